"""Spares the tests what torch's exporter computes again and again: its table of operators, and equal programs.

Half of the time of all tests is spent in `torch.onnx.export`. Here each distinct module is exported once a run,
whatever is then made of it: the results lie in a folder that all workers share. A module is known by all that it holds,
so one that cannot be pickled, such as a class within a test, is exported anew each time.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import torch
from torch.onnx._internal.exporter._registration import ONNXRegistry

__all__ = ["export_once", "real_export"]

real_export: Callable[..., Any] = torch.onnx.export
_OPSET = 23  # of most exports in the tests


@contextmanager
def export_once(folder: Path) -> Iterator[None]:
    """Within it, `torch.onnx.export` takes from `folder` what it has already exported, and puts there what is new."""
    from_torchlib = ONNXRegistry.from_torchlib
    table = functools.cache(from_torchlib)
    table(opset_version=_OPSET)  # for processes forked from this one too
    folder.mkdir(parents=True, exist_ok=True)
    ONNXRegistry.from_torchlib = staticmethod(table)  # type: ignore[method-assign]
    torch.onnx.export = functools.partial(_export, folder)
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = from_torchlib  # type: ignore[method-assign]
        torch.onnx.export = real_export


@dataclass(frozen=True)
class _Program:
    """What the product asks of a `torch.onnx.ONNXProgram`."""

    model: onnx_ir.Model

    @property
    def model_proto(self) -> onnx.ModelProto:
        return onnx_ir.serde.serialize_model(self.model)


def _export(folder: Path, module: torch.nn.Module, examples: tuple[Any, ...], **options: Any) -> Any:
    """As `torch.onnx.export`."""
    key = _key(module, examples, options)
    if key is None:
        return real_export(module, examples, **options)
    path = folder / f"{key}.onnx"
    if path.exists():
        return _Program(onnx_ir.serde.deserialize_model(onnx.load(path)))
    program = real_export(module, examples, **options)
    part = folder / f"{key}.{os.getpid()}.part"
    part.write_bytes(program.model_proto.SerializeToString())
    part.rename(path)
    return program


class _Pickler(pickle.Pickler):
    """Writes of a tensor what it holds, not where it lies in memory."""

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, torch.Tensor):
            content = value.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
            facts = (value.dtype, tuple(value.shape), value.stride(), hashlib.sha256(content).hexdigest())
            return str, (str(facts),)
        return NotImplemented


def _key(*inputs: object) -> str | None:
    """The same for equal inputs, in every process; None where that cannot be told."""
    stream = io.BytesIO()
    try:
        _Pickler(stream).dump(inputs)
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError):
        return None
    return hashlib.sha256(stream.getvalue()).hexdigest()
