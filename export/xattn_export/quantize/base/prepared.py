"""The graphs of a bundle as quantization handles them: each is read once, checked and prepared once, and passed on.

Weights in files are mapped, so that several graphs at a time take little memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from xattn_export.graph.conformance import require_standard
from xattn_export.graph.editing import GraphParts, graph_parts
from xattn_export.graph.generator import GENERATOR
from xattn_export.graph.reading import read_graph
from xattn_export.graph.stored_weights import map_weights
from xattn_export.quantize.base.layers import QuantizableLayer, check_weights, find_layers
from xattn_export.quantize.base.products import prepare_products
from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.bundle.manifest import ATTENTION_ROLE, WHOLE_ROLES

__all__ = ["PreparedBundle", "PreparedGraph", "prepare_bundle", "prepare_graph", "roles_of"]


@dataclass(frozen=True)
class PreparedGraph:
    """A graph of a bundle, in each form that is needed. Nobody changes any of them.

    file: where it was read. model: as it was read, weights left in their files. parts: the same, taken apart.
    products: with its products in the one form that `prepare_products` makes. layers: of `products`. opset: of ai.onnx.
    """

    role: str
    file: Path
    model: ModelProto
    parts: GraphParts
    products: GraphParts
    layers: tuple[QuantizableLayer, ...]
    opset: int | None


@dataclass(frozen=True)
class PreparedBundle:
    """A bundle, and the graphs of it that are quantized, by role."""

    bundle: Bundle
    graphs: Mapping[str, PreparedGraph]


def roles_of(bundle: Bundle) -> list[str]:
    """The graphs that are quantized; a generator follows its decoder, whole-model graphs follow all graphs."""
    return [role for role in bundle.manifest.graphs if role not in (GENERATOR, ATTENTION_ROLE, *WHOLE_ROLES)]


def prepare_bundle(bundle: Bundle) -> PreparedBundle:
    """Read and prepare the graphs of `bundle`.

    Raises:
        BundleError: a graph, or the weights beside it, cannot be read.
        UserError: a weight is not finite.
        XattnError: an operator is not standard.
    """
    files = {role: bundle.file(bundle.manifest.graphs[role].file) for role in roles_of(bundle)}
    return PreparedBundle(bundle, {role: prepare_graph(role, file, read_graph(file)) for role, file in files.items()})


def prepare_graph(role: str, file: Path, model: ModelProto) -> PreparedGraph:
    """Check and prepare `model`, which was read from `file`. Raises what `prepare_bundle` does."""
    weights = map_weights(model, file.parent)
    check_weights(model, role, weights)
    parts = graph_parts(model, weights)
    products = prepare_products(parts)
    return PreparedGraph(role, file, model, parts, products, find_layers(products), require_standard(model, role).opset)
