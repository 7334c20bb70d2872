"""Compares an exported graph, run by ONNX Runtime, with the original model in torch, over lengths and batches.

A graph that dropped an input or froze an axis is right at one shape and wrong at others: so the comparison walks past
0, 1, 7 and the longest, prompts of one and of several tokens, and batch 1 and 3; at the longest past, whose keys and
values would fill the memory, batch 1 alone. It knows roles and no family.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto

from xattn_export.families.base import Role
from xattn_export.to_onnx import example_tensor
from xattn_runtime.errors import XattnError
from xattn_runtime.execution.providers import load_onnxruntime
from xattn_runtime.execution.session import default_threads
from xattn_runtime.json_reader import one_line

__all__ = ["FP32_TOLERANCE", "RoleParity", "check_parity"]

FP32_TOLERANCE = 1e-4
"""Largest difference of a value, where values are below 1; above, as a share of the largest value."""

_BATCHES = (1, 3)
_SOME_PAST = (0, 1, 7)
_SOME_LENGTHS = (1, 2, 7)
_PROMPT = 5
_CONTEXT = 3
_REGIONS = 8
# Of an image: few, oblong, and as many as windows of attention have and some more.
_PATCHES = (24, 4, 60, 324)
_IMAGES = 2
_SEED = 7
_SEVERITY_FATAL = 4


@dataclass(frozen=True)
class RoleParity:
    """How near a graph came: the number of shapes compared, and the largest error with the tensor that showed it."""

    cases: int
    largest_error: float
    tensor: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def check_parity(model: ModelProto | Path, role: Role, tolerance: float = FP32_TOLERANCE) -> RoleParity:
    """Compare `model`, in memory or in a file, with `role.reference` at every shape of the walk.

    Raises:
        XattnError: a difference above `tolerance`, or a shape that the graph cannot run; names role, tensor, batch,
            length, past and error.
    """
    session = _session(model, role.name)
    generator = torch.Generator().manual_seed(_SEED)
    worst, worst_tensor, cases = 0.0, role.outputs[0], 0
    for sizes in _shapes(role):
        inputs = {spec.name: example_tensor(spec, sizes, generator) for spec in role.inputs}
        with torch.inference_mode():
            expected = [tensor.numpy() for tensor in role.reference(*inputs.values())]
        where = f"{role.name}: " + ", ".join(f"{name} {size}" for name, size in sizes.items())
        outputs = _run(session, role, {name: tensor.numpy() for name, tensor in inputs.items()}, where)
        cases += 1
        for name, error in _errors(role, outputs, expected, tolerance):
            if not error <= tolerance:
                raise XattnError(
                    f"{where}: {name}: expected what torch computes within {tolerance:g}, found a difference of "
                    f"{error:.3g}; the export is wrong, please report it"
                )
            if error > worst:
                worst, worst_tensor = error, name
    return RoleParity(cases, worst, worst_tensor)


def _shapes(role: Role) -> Iterator[dict[str, int]]:
    """The sizes of every symbol that the role has."""
    symbols = {axis for spec in role.inputs for axis in spec.shape if isinstance(axis, str)}
    longest = role.longest or 1
    # Of a text with image tokens among its own, long enough for all of them.
    prompt = _PROMPT + (
        max(map(_context, _BATCHES)) if any(spec.placeholder is not None for spec in role.inputs) else 0
    )
    if "past" in symbols:
        some_past = [role.prefix + past for past in _SOME_PAST]
        steps = [(1, past) for past in (*some_past, longest - 1)]
        prompts = [(prompt, past) for past in (*some_past, longest - prompt)]
        fits = [(length, past) for length, past in (*steps, *prompts) if length + past <= longest]
        lengths = [(length, past) for length, past in fits if past >= role.prefix]
    elif symbols & {"length", "frames"}:
        fewest = max(spec.fewest for spec in role.inputs)
        lengths = [(length, 0) for length in (*_SOME_LENGTHS, longest) if fewest <= length <= longest]
    else:
        lengths = [(0, 0)]
    for length, past in dict.fromkeys(lengths):
        for batch, patches, frozen in product(
            _BATCHES if past <= role.prefix + max(_SOME_PAST) else _BATCHES[:1],
            _PATCHES if "patches" in symbols else _PATCHES[:1],
            _frozen(past) if "frozen" in symbols else (0,),
        ):
            image = {"context": _context(batch), "regions": _REGIONS - batch, "patches": patches, "images": _IMAGES}
            cache = {"past": past - frozen, "frozen": frozen, "rows": batch}
            sizes = {"batch": batch, "length": length, **cache, **image, "frames": length, "pictures": batch + 1}
            yield {name: size for name, size in sizes.items() if name in symbols}


def _frozen(past: int) -> tuple[int, ...]:
    """How much of a cache is frozen: all of it, and part of it where that is not all the same."""
    return (past, past // 2) if past > 1 else (past,)


def _context(batch: int) -> int:
    return _CONTEXT + batch


def _session(model: ModelProto | Path, role: str) -> Any:
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = default_threads()
    options.log_severity_level = _SEVERITY_FATAL
    # The model itself is in memory, too: no second copy of the weights for speed, and nothing kept for later.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_cpu_mem_arena = False
    graph = str(model) if isinstance(model, Path) else model.SerializeToString()
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise XattnError(f"{role}: ONNX Runtime cannot load the graph: {one_line(error)}") from error


def _run(session: Any, role: Role, inputs: Mapping[str, NDArray[Any]], where: str) -> list[NDArray[Any]]:
    try:
        return list(session.run(list(role.outputs), dict(inputs)))
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise XattnError(f"{where}: ONNX Runtime cannot run the graph: {one_line(error)}") from error


def _errors(
    role: Role, outputs: list[NDArray[Any]], expected: list[NDArray[Any]], tolerance: float
) -> Iterator[tuple[str, float]]:
    """Every output with its error; infinite where the shape differs or a value is not finite."""
    by_name = dict(zip(role.outputs, expected, strict=True))
    for name, values in zip(role.outputs, outputs, strict=True):
        if values.shape != by_name[name].shape or values.dtype != by_name[name].dtype:
            yield name, float("inf")
        elif np.issubdtype(values.dtype, np.integer):
            yield name, _token_error(values, by_name, name, tolerance)
        else:
            yield name, _value_error(values, by_name[name])


def _value_error(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    if not actual.size:
        return 0.0
    if not np.isfinite(actual).all():
        return float("inf")
    return float(np.abs(actual - expected).max() / max(1.0, np.abs(expected).max()))


def _token_error(actual: NDArray[Any], expected: Mapping[str, NDArray[Any]], name: str, tolerance: float) -> float:
    """0 where the tokens are the same, or as good: where two logits tie within the tolerance, either may win."""
    if (actual == expected[name]).all():
        return 0.0
    logits = expected["logits"]
    chosen = np.take_along_axis(logits, actual[:, None], axis=-1)[:, 0]
    lost = float((logits.max(-1) - chosen).max() / max(1.0, np.abs(logits).max()))
    return 0.0 if lost <= 2 * tolerance else float("inf")
