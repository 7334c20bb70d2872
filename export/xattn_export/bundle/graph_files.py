"""Writes graphs into a staged bundle: weights in files next to them, and the loop around a decoder."""

from __future__ import annotations

from pathlib import PurePosixPath

from onnx import ModelProto

from xattn_export.bundle.writer import StagedBundle
from xattn_export.graph.conformance import require_standard, require_valid
from xattn_export.graph.external_weights import INSIDE_BYTES, weights_file
from xattn_export.graph.generator import GENERATOR, generator_graph
from xattn_export.graph.reading import read_graph
from xattn_runtime.bundle.graph_facts import GraphFacts

__all__ = ["write_generator", "write_graph"]


def write_graph(staged: StagedBundle, file: str, graph: ModelProto) -> int:
    """Write a graph, and list the file of its weights if it has one; the size of both in bytes."""
    content = graph.SerializeToString(deterministic=True)
    staged.write(file, content)
    weights = weights_file(file)
    return len(content) + (staged.adopt(weights) if (staged.folder / weights).is_file() else 0)


def write_generator(staged: StagedBundle, decoder: str, file: str) -> tuple[GraphFacts, int]:
    """Write the loop around the decoder in the file `decoder`; its facts, and its size in bytes.

    The two share their weights. That they say the same is seen when the bundle is verified.
    Raises XattnError where it is not standard, or not valid.
    """
    weights = staged.folder / weights_file(decoder)
    is_large = weights.is_file() and weights.stat().st_size > INSIDE_BYTES
    graph = generator_graph(read_graph(staged.folder / decoder), weights_outside=is_large)
    facts = require_standard(graph, GENERATOR)
    require_valid(graph, GENERATOR, staged.folder / PurePosixPath(file).parent)
    return facts, write_graph(staged, file, graph)
