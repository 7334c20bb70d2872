"""Lets a model import an older opset, where every operator that it holds means the same there. Knows no attention.

Which operators changed in meaning was read off the specification of opsets 18 to 25; all others gained element types,
attributes with a neutral default, or new values of an attribute.
"""

from __future__ import annotations

import onnx
import onnx.inliner
from onnx import ModelProto, NodeProto
from onnx.defs import OpSchema

from xattn_export.graph.conformance import all_nodes
from xattn_runtime.bundle.manifest import LOWEST_OPSET
from xattn_runtime.bundle.standard_operators import STANDARD_DOMAIN
from xattn_runtime.errors import XattnError
from xattn_runtime.json_reader import one_line

__all__ = ["default_opset", "lower_opset"]

_LOWEST_OPSET = LOWEST_OPSET["decomposed"]
_NEWEST_READ = 25
_CHANGED_OPERATORS = frozenset({"DFT", "GridSample", "GroupNormalization"})
_CHANGED_VALUES: tuple[tuple[str, str, object], ...] = (
    ("Pad", "mode", b"wrap"),
    ("Resize", "coordinate_transformation_mode", b"half_pixel_symmetric"),
    ("AveragePool", "ceil_mode", 1),
    ("MaxPool", "ceil_mode", 1),
)


def default_opset(model: ModelProto) -> int:
    """The version of `ai.onnx` that `model` imports.

    Raises:
        XattnError: it imports none.
    """
    for entry in model.opset_import:
        if entry.domain in ("", STANDARD_DOMAIN):
            return int(entry.version)
    raise XattnError(f"expected a model that imports {STANDARD_DOMAIN}, found none")


def lower_opset(model: ModelProto, opset: int) -> ModelProto:
    """`model` at `opset`, and at the oldest ONNX version that has it. `model` may be changed.

    Raises:
        XattnError: `opset` is newer than the model's or older than 18, or an operator is not the same there.
    """
    current = default_opset(model)
    if not _LOWEST_OPSET <= opset <= current:
        raise XattnError(f"opset: expected {_LOWEST_OPSET} to {current}, which the model imports, found {opset}")
    if opset == current:
        return model
    model = _expand_new_operators(model, current, opset)
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in all_nodes(nodes):
            if node.domain in ("", STANDARD_DOMAIN):
                _lower_node(node, current, opset)
    for imports in (model.opset_import, *(function.opset_import for function in model.functions)):
        for entry in imports:
            if entry.domain in ("", STANDARD_DOMAIN):
                entry.version = min(entry.version, opset)
    model.ir_version = min(model.ir_version, onnx.helper.OP_SET_ID_VERSION_MAP[("ai.onnx", opset)])
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        raise XattnError(f"expected element types that opset {opset} has, found: {one_line(error)[:500]}") from error
    return model


def _expand_new_operators(model: ModelProto, current: int, opset: int) -> ModelProto:
    """Operators that `opset` lacks, written as the functions by which the standard defines them."""
    before: set[str] = set()
    while (lacking := _lacking(model, current, opset)) - before:
        functions = [("", name) for name in sorted(lacking)]
        for node in all_nodes(model.graph.node):
            if node.op_type in lacking and node.domain in ("", STANDARD_DOMAIN):
                _spell_out_defaults(node, onnx.defs.get_schema(node.op_type, current))
        model = onnx.inliner.inline_selected_functions(model, functions, inline_schema_functions=True)
        before |= lacking
    return model


def _spell_out_defaults(node: NodeProto, schema: OpSchema) -> None:
    """onnx.inliner forgets the defaults of attributes that a function's body refers to."""
    present = {attribute.name for attribute in node.attribute}
    defaults = (attribute.default_value for name, attribute in schema.attributes.items() if name not in present)
    node.attribute.extend(default for default in defaults if default.name)


def _lacking(model: ModelProto, current: int, opset: int) -> set[str]:
    names = {node.op_type for node in all_nodes(model.graph.node) if node.domain in ("", STANDARD_DOMAIN)}
    return {name for name in names if _same_at(name, current, opset) is None}


def _same_at(name: str, current: int, opset: int) -> OpSchema | None:
    """The operator's schema at `opset`, or None where there is none of the same meaning."""
    try:
        newer = onnx.defs.get_schema(name, current)
        older = onnx.defs.get_schema(name, opset)
    except onnx.defs.SchemaError:
        return None
    if newer.since_version == older.since_version:
        return older
    return None if newer.since_version > _NEWEST_READ or name in _CHANGED_OPERATORS else older


def _lower_node(node: NodeProto, current: int, opset: int) -> None:
    """Drop attributes that hold the default and do not exist at `opset`; refuse those with another value."""
    older = _same_at(node.op_type, current, opset)
    where = f"{node.op_type} {node.name or ', '.join(node.output)}"
    if older is None:
        raise XattnError(f"expected operators that are the same in opsets {current} and {opset}, found {where}")
    if len(node.input) > older.max_input or len(node.output) > older.max_output:
        raise XattnError(f"{where}: expected the inputs and outputs of opset {opset}, found those of {current}")
    if older.since_version == onnx.defs.get_schema(node.op_type, current).since_version:
        return
    newer = onnx.defs.get_schema(node.op_type, current)
    for attribute in list(node.attribute):
        value = onnx.helper.get_attribute_value(attribute)
        if attribute.name in older.attributes:
            fits = (node.op_type, attribute.name, value) not in _CHANGED_VALUES
        else:
            default = newer.attributes[attribute.name].default_value
            # Only AveragePool's dilations have no default; missing means ones.
            fits = value == onnx.helper.get_attribute_value(default) if default.name else set(value) == {1}
            node.attribute.remove(attribute)
        if not fits:
            text = value.decode() if isinstance(value, bytes) else value
            raise XattnError(f"{where}: expected the attributes of opset {opset}, found {attribute.name}={text}")
