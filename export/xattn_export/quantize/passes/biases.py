"""Bias correction: what rounded weights give too little of on average goes into the bias that follows the product.

Activations are far from zero on average, so that errors of weights add up in the same direction at every token. Nothing
is added to the graph (Nagel et al., 2019, https://arxiv.org/abs/1906.04721).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from xattn_export.quantize.base.prepare import Constants

__all__ = ["correct_biases"]


def correct_biases(model: ModelProto, shifts: Mapping[str, NDArray[np.float32]], folder: Path | None = None) -> int:
    """Add `shifts`, product's output → `[columns]`, to the biases that alone follow those products, in place; how many.

    A product without a bias stays as it is. folder: where weights lie that are beside the graph.
    """
    graph, constants = model.graph, Constants(model.graph, folder)
    readers = [name for node in graph.node for name in node.input] + [output.name for output in graph.output]
    corrected = 0
    for node in graph.node:
        if node.op_type != "Add":
            continue
        for place, name in enumerate(node.input):
            bias = node.input[1 - place]
            if name not in shifts or readers.count(name) != 1 or not constants.is_float(bias, 1):
                continue
            node.input[1 - place] = constants.add(f"{name}_bias", constants.values(bias) + shifts[name])
            corrected += 1
    constants.write_back()
    return corrected
