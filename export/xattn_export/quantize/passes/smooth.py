"""SmoothQuant: channels that reach far are divided before a product, and its weights multiplied by as much.

The division goes into the normalization in front of the products, so nothing is added to the graph (Xiao et al., 2023,
https://arxiv.org/abs/2211.10438).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from xattn_export.graph.editing import Constants, GraphWriter, with_inputs
from xattn_export.quantize.base.layers import QuantizableLayer
from xattn_export.quantize.base.passing import Assignment, Draft, Observed, Pass

__all__ = ["SMOOTH_PRODUCTS", "smooth_products"]

_NORMALIZATIONS = ("LayerNormalization", "RMSNormalization")
_SMALLEST = 1e-5


def smooth_products(draft: Draft, assignment: Assignment) -> Draft:
    """Move the share `smooth` of the spread of activations into the weights of products, by their observed peaks.

    Only normalizations whose results go to such products alone are changed; products of tied tables stay as they are.
    """
    if not assignment.options.smooth:
        return draft
    graph, constants = draft.graph, draft.graph.constants()
    divided: dict[str, NDArray[np.float32]] = {}
    renamed: dict[tuple[str, str], str] = {}
    normalized: dict[str, list[str]] = {}
    products = _products_alone(draft, assignment)
    for node in graph.nodes:
        name = node.output[0]
        if node.op_type not in _NORMALIZATIONS or name not in products or name not in draft.observed.peaks:
            continue
        weights = list(dict.fromkeys(layer.weights for layer in products[name]))
        divided[name] = _factors(draft.observed.peaks[name], weights, constants, assignment.options.smooth)
        normalized[name] = [
            one if place == 0 else constants.add(f"{one}_smooth", constants.values(one) / divided[name])
            for place, one in enumerate(node.input)
        ]
        for one in weights:
            scaled = constants.values(one) * divided[name][:, None]
            renamed[name, one] = constants.add(f"{one}_smooth", scaled)
    writer = GraphWriter(constants)
    for node in graph.nodes:
        if node.output[0] in normalized:
            writer.keep(with_inputs(node, normalized[node.output[0]]))
        elif len(node.input) > 1 and (scaled_name := renamed.get((node.input[0], node.input[1]))):
            writer.keep(with_inputs(node, [node.input[0], scaled_name]))
        else:
            writer.keep(node)
    return replace(draft, graph=graph.rewritten(writer), observed=_after(draft.observed, divided))


SMOOTH_PRODUCTS = Pass("smooth_products", smooth_products)


def _products_alone(draft: Draft, assignment: Assignment) -> dict[str, list[QuantizableLayer]]:
    """Tensor → the products that consume it, where nothing else consumes it and all of them are to be smoothed."""
    tied = {pair.product.name for pair in assignment.tied}
    products: dict[str, list[QuantizableLayer]] = {}
    for layer in assignment.layers:
        if layer.kind == "product" and layer.name not in tied:
            products.setdefault(layer.input, []).append(layer)
    readers = Counter(name for node in draft.graph.nodes for name in node.input)
    readers.update(output.name for output in draft.graph.outputs)
    return {name: layers for name, layers in products.items() if readers[name] == len(layers)}


def _factors(peaks: NDArray[np.float32], weights: list[str], constants: Constants, share: float) -> NDArray[np.float32]:
    """What each channel is divided by."""
    largest = np.max([np.abs(constants.values(name)).max(axis=1) for name in weights], axis=0)
    factors = np.maximum(peaks, _SMALLEST) ** share / np.maximum(largest, _SMALLEST) ** (1 - share)
    smoothed: NDArray[np.float32] = (factors / np.exp(np.log(factors).mean())).astype(np.float32)
    return smoothed


def _after(observed: Observed, divided: Mapping[str, NDArray[np.float32]]) -> Observed:
    hessians = {
        name: hessian / np.outer(divided[name], divided[name]) if name in divided else hessian
        for name, hessian in observed.hessians.items()
    }
    peaks = {name: peak / divided.get(name, np.float32(1)) for name, peak in observed.peaks.items()}
    means = {name: mean / divided.get(name, np.float32(1)) for name, mean in observed.means.items()}
    return replace(observed, hessians=hessians, peaks=peaks, means=means)
