"""OpenVINO's own reader and CPU plugin, without ONNX Runtime in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.execution.processor import sums_int8_exactly

__all__ = ["OpenVinoGraph"]

Tensor = NDArray[Any]


class OpenVinoGraph:
    """A graph compiled by OpenVINO for the CPU, in float32 where its input is float32."""

    def __init__(self, path: Path) -> None:
        """Load it; raises whatever OpenVINO raises, ImportError without it."""
        import openvino

        core = openvino.Core()
        exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
        if not sums_int8_exactly():
            # OpenVINO would sum pairs of products of bytes in 16 bits, which can overflow: fixed ranges in float32.
            exact["LP_TRANSFORMS_MODE"] = "NO"
        self._compiled = core.compile_model(core.read_model(path), "CPU", exact)

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The named outputs for `inputs`."""
        names = {name for port in self._compiled.inputs for name in port.names}
        # OpenVINO identifies dtypes by number, and numpy has two numbers for int64: the cast produces the usual one.
        tensors = {
            name: value.astype(np.dtype(value.dtype.str), order="C") for name, value in inputs.items() if name in names
        }
        results = self._compiled(tensors)
        return [np.array(results[name]) for name in outputs]
