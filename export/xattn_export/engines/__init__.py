"""Engines that we did not write, to run the graphs of a bundle in: what is standard in them must be so everywhere.

`ENGINES` names them; `open_engine` returns one that `xattn_runtime.load` takes in place of ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from xattn_export.engines.signature import DeclaredTensor, Signature, read_signature
from xattn_runtime.errors import BundleError, DependencyError, UserError
from xattn_runtime.json_reader import likely_meant, one_line

__all__ = ["ENGINES", "ForeignEngine", "open_engine"]

Tensor = NDArray[Any]
_Load = Callable[[Path, Signature], "_ForeignGraph"]


class _ForeignGraph(Protocol):
    def run(self, outputs: Sequence[str], inputs: Mapping[str, Tensor]) -> list[Tensor]: ...


@dataclass(frozen=True)
class _SignedGraph:
    """A graph in an engine, with the signature that its file declares."""

    signature: Signature
    graph: _ForeignGraph

    def get_inputs(self) -> Sequence[DeclaredTensor]:
        return self.signature.inputs

    def get_outputs(self) -> Sequence[DeclaredTensor]:
        return self.signature.outputs

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
        return self.graph.run(outputs, inputs)


@dataclass(frozen=True)
class ForeignEngine:
    """An engine that runs every graph in place of ONNX Runtime."""

    name: str
    load: _Load

    def open(self, path: Path, role: str) -> _SignedGraph:
        """The graph in `path`; BundleError where the engine refuses it."""
        signature = read_signature(path)
        try:
            return _SignedGraph(signature, self.load(path, signature))
        except DependencyError:
            raise
        except Exception as error:  # each engine has exceptions of its own
            raise BundleError(
                f"{path}: expected a graph that {self.name} can load, found: {one_line(error)}"
            ) from error


@contextmanager
def _reference(folder: Path, options: Mapping[str, str]) -> Iterator[_Load]:
    try:
        from xattn_export.engines.reference import ReferenceGraph
    except ImportError as error:
        raise DependencyError(
            f'engine onnx-reference: {error}; install it with pip install "xattn-edge[export]"'
        ) from error
    yield lambda path, _: ReferenceGraph(path)


@contextmanager
def _openvino(folder: Path, options: Mapping[str, str]) -> Iterator[_Load]:
    from xattn_export.engines.openvino import OpenVinoGraph

    try:
        import openvino  # noqa: F401
    except ImportError as error:
        raise DependencyError(f'engine openvino: {error}; install it with pip install "xattn-edge[engines]"') from error
    yield lambda path, _: OpenVinoGraph(path)


@contextmanager
def _node(package: str, folder: Path, options: Mapping[str, str]) -> Iterator[_Load]:
    from xattn_export.engines.node import NodeGraph, NodeProcess

    process = NodeProcess(package, folder)
    try:
        yield lambda path, signature: NodeGraph(process, path, signature, options)
    finally:
        process.close()


@contextmanager
def _onnxruntime_node(folder: Path, options: Mapping[str, str]) -> Iterator[_Load]:
    with _node("onnxruntime-node", folder, options) as load:
        yield load


@contextmanager
def _onnxruntime_web(folder: Path, options: Mapping[str, str]) -> Iterator[_Load]:
    with _node("onnxruntime-web", folder, options) as load:
        yield load


ENGINES = {
    "onnx-reference": _reference,
    "openvino": _openvino,
    "onnxruntime-node": _onnxruntime_node,
    "onnxruntime-web": _onnxruntime_web,
}


@contextmanager
def open_engine(
    name: str, folder: Path | None = None, options: Mapping[str, str] | None = None
) -> Iterator[ForeignEngine]:
    """The engine called `name`, for as long as the context lasts.

    folder: that has the `node_modules` for the two of Node; by default the current one. options: those of a session of
    ONNX Runtime, which the two of Node heed.
    Raises UserError for a name that is none, DependencyError where the engine is not installed.
    """
    if name not in ENGINES:
        raise UserError(f"--engine: expected one of {', '.join(ENGINES)}, found {name!r}{likely_meant(name, ENGINES)}")
    with ENGINES[name](folder or Path.cwd(), options or {}) as load:
        yield ForeignEngine(name, load)
