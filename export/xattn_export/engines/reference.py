"""ONNX's own reference implementation: slow, and as near to the words of the standard as there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

__all__ = ["ReferenceGraph"]

Tensor = NDArray[Any]


class ReferenceGraph:
    """A graph in `onnx.reference.ReferenceEvaluator`."""

    def __init__(self, path: Path) -> None:
        """Load it; raises whatever ONNX raises."""
        self._evaluator = ReferenceEvaluator(str(path))

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The named outputs for `inputs`."""
        with np.errstate(all="ignore"):  # softmax of a masked row divides what is then replaced
            return [np.asarray(value) for value in self._evaluator.run(list(outputs), dict(inputs))]
