"""SmoothQuant: channels that reach far are divided before a product, and its weights multiplied by as much.

The division goes into the normalization in front of the products, so nothing is added to the graph (Xiao et al., 2023,
https://arxiv.org/abs/2211.10438).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from xattn_export.quantize.base.layers import Layer, Observed, find_layers
from xattn_export.quantize.base.prepare import Constants

__all__ = ["smooth_products"]

_NORMALIZATIONS = ("LayerNormalization", "RMSNormalization")
_SMALLEST = 1e-5


def smooth_products(
    model: ModelProto, share: float, observed: Observed, folder: Path | None = None, *, only: Collection[str]
) -> Observed:
    """Move `share`, 0 to 1, of the spread of activations into the weights of the products `only`, in place.

    observed: has the peaks of what the products take. What was observed is returned as it is afterwards.
    Only normalizations whose results go to such products alone are changed. folder: where weights lie.
    """
    graph, constants = model.graph, Constants(model.graph, folder)
    products: dict[str, list[Layer]] = {}
    for layer in find_layers(model, folder):
        if layer.kind == "product" and layer.name in only:
            products.setdefault(layer.found, []).append(layer)
    readers = [name for node in graph.node for name in node.input] + [output.name for output in graph.output]
    divided: dict[str, NDArray[np.float32]] = {}
    for node in graph.node:
        name = node.output[0]
        if node.op_type not in _NORMALIZATIONS or name not in products or name not in observed.peaks:
            continue
        if readers.count(name) != len(products[name]):
            continue
        factors = _factors(observed.peaks[name], [constants.values(one.weights) for one in products[name]], share)
        _divide(node, factors, constants)
        for weights in {layer.weights for layer in products[name]}:
            scaled = constants.add(f"{weights}_smooth", constants.values(weights) * factors[:, None])
            for reader in graph.node:
                if name in reader.input and weights in reader.input:
                    reader.input[1] = scaled
        divided[name] = factors
    constants.write_back()
    return _after(observed, divided)


def _factors(peaks: NDArray[np.float32], weights: list[NDArray[np.float32]], share: float) -> NDArray[np.float32]:
    """What each channel is divided by."""
    largest = np.max([np.abs(one).max(axis=1) for one in weights], axis=0)
    factors = np.maximum(peaks, _SMALLEST) ** share / np.maximum(largest, _SMALLEST) ** (1 - share)
    smoothed: NDArray[np.float32] = (factors / np.exp(np.log(factors).mean())).astype(np.float32)
    return smoothed


def _divide(node: NodeProto, factors: NDArray[np.float32], constants: Constants) -> None:
    for place in range(1, len(node.input)):
        name = node.input[place]
        node.input[place] = constants.add(f"{name}_smooth", constants.values(name) / factors)


def _after(observed: Observed, divided: dict[str, NDArray[np.float32]]) -> Observed:
    hessians = {
        name: hessian / np.outer(divided[name], divided[name]) if name in divided else hessian
        for name, hessian in observed.hessians.items()
    }
    peaks = {name: peak / divided.get(name, np.float32(1)) for name, peak in observed.peaks.items()}
    means = {name: mean / divided.get(name, np.float32(1)) for name, mean in observed.means.items()}
    return replace(observed, hessians=hessians, peaks=peaks, means=means)
