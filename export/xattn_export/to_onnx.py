"""Exports a role: torch module in, checked ONNX model out, the same way for every family.

torch's exporter has silent failures: an opset that it lacks becomes another one, and inputs that share a tensor vanish.
So the result is compared with the request, and nothing is taken on trust. It knows no family.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import Parameter, signature
from itertools import cycle

import onnx
import torch
from onnx import ModelProto, ValueInfoProto
from torch import Tensor

from xattn_export.decompose import decompose_attention, split_cache
from xattn_export.families.base import Role, TensorSpec
from xattn_export.graph.conformance import all_nodes, drop_unused_imports, examine, require_standard, require_valid
from xattn_export.graph.external_weights import WeightStore, has_weights_outside, weights_file
from xattn_export.graph.generator import LOOPED
from xattn_export.graph.layer_names import name_by_layer
from xattn_runtime.bundle.contract import role_contract
from xattn_runtime.bundle.manifest import LOWEST_OPSET, Attention
from xattn_runtime.errors import UserError, XattnError
from xattn_runtime.json_reader import one_line

__all__ = ["HIGHEST_OPSET", "choose_opset", "example_tensor", "export_graph", "export_role"]

HIGHEST_OPSET = 24
# Sizes that differ from each other, from 1, and from what a graph may hold by chance.
_EXAMPLE_SIZES: Mapping[str, int] = {
    "batch": 2,
    "length": 3,
    "past": 5,
    "context": 6,
    "regions": 4,
    "frames": 22,
    "pictures": 4,
    "patches": 24,
    "images": 2,
}
# The side of the square of patches that every tower merges to one token.
_MERGE = 2
_SEED = 20
_ELEMENT_TYPES = {"tensor(float)": onnx.TensorProto.FLOAT, "tensor(int64)": onnx.TensorProto.INT64}


def choose_opset(attention: Attention, opset: int | None) -> int:
    """The opset to export at: `opset`, or the oldest that suffices.

    Raises:
        UserError: an unknown form of attention, or an opset that it cannot have.
    """
    if attention not in LOWEST_OPSET:
        raise UserError(f"attention: expected one of {', '.join(LOWEST_OPSET)}, found {attention!r}")
    lowest = LOWEST_OPSET[attention]
    if opset is None:
        return lowest
    if not lowest <= opset <= HIGHEST_OPSET:
        other = "; --attention decomposed allows 18 and later" if attention == "standard" else ""
        raise UserError(
            f"opset: expected {lowest} to {HIGHEST_OPSET} with --attention {attention}, found {opset}{other}"
        )
    return opset


def export_role(role: Role, attention: Attention, opset: int, weights: WeightStore | None = None) -> ModelProto:
    """`role` as `export_graph` makes it, with the outputs that the runtime expects of it.

    Raises:
        XattnError: torch cannot export it, or the result is not what was requested; names the role.
        OSError: the weights cannot be written.
    """
    model = export_graph(role, attention, opset, weights)
    _check_contract(model, role)
    return model


def export_graph(role: Role, attention: Attention, opset: int, weights: WeightStore | None = None) -> ModelProto:
    """`role` as an ONNX model of exactly this opset, with exactly the tensors that it declares, whatever they are for.

    Large weights go to `weights`, into the file ROLE.onnx.data; if it is None, all are in the model.

    Raises:
        XattnError: torch cannot export it, or the result is not what was requested; names the role.
        OSError: the weights cannot be written.
    """
    generator = torch.Generator().manual_seed(_SEED)
    traced = role.traced or role
    sizes = {**_EXAMPLE_SIZES, "past": traced.prefix + _EXAMPLE_SIZES["past"]}
    examples = tuple(example_tensor(spec, sizes, generator) for spec in traced.inputs)
    module = traced.module.eval()
    written = max(opset, LOWEST_OPSET["standard"])
    with _quiet(role.name), torch.no_grad():
        program = torch.onnx.export(
            module,
            examples,
            dynamo=True,
            opset_version=written,
            dynamic_shapes=_dynamic_shapes(traced),
            input_names=[spec.name for spec in traced.inputs],
            output_names=list(traced.outputs),
            optimize=True,
            verbose=False,
        )
    if program is None:
        raise XattnError(f"{role.name}: torch.onnx.export gave nothing")
    if weights is not None:
        weights.externalize(program.model, weights_file(f"{role.name}.onnx"), shared=role.name == LOOPED)
    model = program.model_proto
    _require_opset(model, role, written)
    name_by_layer(model)
    if role.traced is not None:
        model = split_cache(model)
    if attention == "decomposed":
        model = decompose_attention(model, opset=opset)
    _clean(model, role)
    _check(model, role, attention, opset)
    require_valid(model, role.name, weights.folder if weights is not None and has_weights_outside(model) else None)
    return model


def example_tensor(spec: TensorSpec, sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    """A new tensor of `spec`, with `sizes` for its symbols: sane and different from every other.

    A mask has padding in every row but the first, of a different length each where there is room; the images of a
    batch are of one size after the other.
    """
    shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape]
    if spec.values == "grid":
        return torch.tensor(_grid(sizes["patches"], _MERGE))
    if spec.values == "grids":
        return torch.tensor([_grids(row, sizes) for row in range(shape[0])])
    if spec.values == "token_ids":
        ids = torch.randint(0, spec.limit, shape, generator=generator)
        if spec.ends_with is not None:
            ids[:, -1] = spec.ends_with
        if spec.placeholder is None:
            return ids
        if spec.in_runs:
            return _with_runs(ids, spec.placeholder, sizes)
        return _with_placeholders(ids, spec.placeholder, sizes["context"], generator)
    if spec.values == "mask":
        batch, length = shape
        lengths = torch.tensor([max(spec.fewest, length - row * max(1, length // 3)) for row in range(batch)])
        return (torch.arange(length)[None, :] < lengths[:, None]).to(torch.int64)
    values = torch.randn(shape, generator=generator)
    for image, (height, width) in zip(values, cycle(spec.sizes_px), strict=False):
        image[:, height:], image[:, :, width:] = 0, 0
    return values


def _with_placeholders(ids: Tensor, placeholder: int, count: int, generator: torch.Generator) -> Tensor:
    """`ids` with `placeholder` at `count` places, in each row at others; nowhere where a row is too short for them."""
    ids = torch.where(ids == placeholder, 0 if placeholder else 1, ids)
    for row in ids if count <= ids.shape[1] else ():
        row[torch.randperm(len(row), generator=generator)[:count]] = placeholder
    return ids


def _with_runs(ids: Tensor, placeholder: int, sizes: Mapping[str, int]) -> Tensor:
    """`ids` with `placeholder` for the image tokens of every image of `_grids`, a token before each run."""
    ids = torch.where(ids == placeholder, 0 if placeholder else 1, ids)
    for number, row in enumerate(ids):
        runs = [rows * columns for rows, columns in _grids(number, sizes) if rows]
        if sum(runs) + len(runs) <= len(row):
            place = 0
            for run in runs:
                row[place + 1 : place + 1 + run] = placeholder
                place += 1 + run
    return ids


def _grids(row: int, sizes: Mapping[str, int]) -> list[list[int]]:
    """Rows and columns of the images in a row of a batch, `context` image tokens in all: of one image or of several.

    Of the same number others lie the other way round. A row of fewer images than there may be has zeros for the rest.
    """
    images, tokens = sizes["images"], sizes["context"]
    first = 0 if row % 2 == 0 or tokens < images else images - 1
    grid = _grid(tokens - first, 1)
    grids = [[1, 1]] * first + [grid if row % 4 < 2 else grid[::-1]]
    return grids + [[0, 0]] * (images - len(grids))


def _grid(count: int, multiple: int) -> list[int]:
    """Rows and columns of `count` places, as near to a square as may be, multiples of `multiple` where they can be."""
    fitting = [rows for rows in range(1, math.isqrt(count) + 1) if count % rows == 0]
    even = [rows for rows in fitting if rows % multiple == 0 and count // rows % multiple == 0]
    rows = (even or fitting)[-1]
    return [rows, count // rows]


def _dynamic_shapes(role: Role) -> tuple[object, ...]:
    """Axis → name of each input, in the shape of the module's signature: a `*` parameter takes a tuple."""
    axes = [
        {axis: size for axis, size in enumerate(spec.shape) if isinstance(size, str)} or None for spec in role.inputs
    ]
    kinds = [parameter.kind for parameter in signature(role.module.forward).parameters.values()]
    if Parameter.VAR_POSITIONAL not in kinds:
        return tuple(axes)
    named = kinds.index(Parameter.VAR_POSITIONAL)
    return (*axes[:named], tuple(axes[named:]))


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep torch's chatter off the terminal; what it raises becomes an XattnError."""
    disabled = logging.root.manager.disable
    chatter = io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(chatter), contextlib.redirect_stderr(chatter):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # torch raises a dozen kinds here, several of its own
        raise XattnError(f"{name}: torch cannot export it: {one_line(error)[:500]}") from error
    finally:
        logging.disable(disabled)


def _clean(model: ModelProto, role: Role) -> None:
    """Take off what describes the exporting machine: stack traces, paths, names of its classes."""
    for graph_nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in all_nodes(graph_nodes):
            node.ClearField("metadata_props")
            node.ClearField("doc_string")
    graph = model.graph
    for holder in (model, graph, *graph.input, *graph.output, *graph.initializer):
        holder.ClearField("metadata_props")
        holder.ClearField("doc_string")
    del graph.value_info[:]
    graph.name = role.name
    drop_unused_imports(model)
    # The lowest version that may hold this opset: older readers refuse what is newer than they are.
    opset = next((entry.version for entry in model.opset_import if not entry.domain), 0)
    minimum = onnx.helper.OP_SET_ID_VERSION_MAP.get(("ai.onnx", opset), model.ir_version)
    model.ir_version = min(model.ir_version, minimum)


def _require_opset(model: ModelProto, role: Role, opset: int) -> None:
    actual = require_standard(model, role.name).opset
    if actual != opset:
        raise XattnError(f"{role.name}: expected opset {opset}, found {actual}: torch cannot export to it")


def _check(model: ModelProto, role: Role, attention: Attention, opset: int) -> None:
    _require_opset(model, role, opset)
    facts = examine(model)
    if model.functions:
        raise XattnError(f"{role.name}: expected no local functions, found {len(model.functions)}")
    if attention == "decomposed" and "Attention" in facts.operators:
        raise XattnError(f"{role.name}: expected decomposed attention, found the operator Attention")
    if attention == "standard" and "Attention" not in facts.operators and role.attends:
        raise XattnError(f"{role.name}: expected the operator Attention, found none")
    _check_tensors(model, role)


def _check_tensors(model: ModelProto, role: Role) -> None:
    """Inputs and outputs are the declared ones, in order, with their types and axes; every input is consumed."""
    graph = model.graph
    declared = tuple(spec.name for spec in role.inputs)
    for kind, actual, expected in (("inputs", graph.input, declared), ("outputs", graph.output, role.outputs)):
        names = tuple(tensor.name for tensor in actual)
        if names != expected:
            raise XattnError(f"{role.name}: expected the {kind} {', '.join(expected)}, found {', '.join(names)}")
    consumed = {name for node in all_nodes(graph.node) for name in node.input}
    if unused := [name for name in declared if name not in consumed]:
        raise XattnError(f"{role.name}: expected every input to be used, found these unused: {', '.join(unused)}")
    for tensor, spec in zip(graph.input, role.inputs, strict=True):
        shape = _shape(tensor)
        if shape != spec.shape:
            raise XattnError(
                f"{role.name}: input {tensor.name}: expected the axes {list(spec.shape)}, found {list(shape)}"
            )


def _check_contract(model: ModelProto, role: Role) -> None:
    """Outputs are of the type and rank that the runtime expects, and have a dynamic batch."""
    graph, declared = model.graph, tuple(spec.name for spec in role.inputs)
    for name, expected_tensor in role_contract(role.name, declared, role.outputs).outputs.items():
        tensor = next(tensor for tensor in graph.output if tensor.name == name)
        element = tensor.type.tensor_type.elem_type
        if (element, len(_shape(tensor))) != (_ELEMENT_TYPES[expected_tensor.dtype], expected_tensor.rank):
            raise XattnError(
                f"{role.name}: output {name}: expected {expected_tensor.dtype} of rank {expected_tensor.rank}, found "
                f"element type {element} of rank {len(_shape(tensor))}"
            )
        if not isinstance(_shape(tensor)[0], str):
            raise XattnError(f"{role.name}: output {name}: expected a dynamic batch, found {list(_shape(tensor))}")


def _shape(tensor: ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(axis.dim_param or axis.dim_value for axis in tensor.type.tensor_type.shape.dim)
