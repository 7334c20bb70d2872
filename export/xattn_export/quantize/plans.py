"""Which mode every graph and layer of a bundle is to have, from what was asked for; checked against the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from onnx import ModelProto

from xattn_export.graph.generator import GENERATOR
from xattn_export.graph.reading import read_graph
from xattn_export.quantize.base.layers import Layer, find_layers
from xattn_export.quantize.base.options import MODES, GraphPlan, Mode, Options
from xattn_export.quantize.base.prepare import prepare_products
from xattn_export.quantize.passes.blocks import LOWEST_OPSET
from xattn_export.quantize.passes.exposed import find_exposed
from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.bundle.manifest import ATTENTION_ROLE, WHOLE_ROLES
from xattn_runtime.errors import UserError
from xattn_runtime.json_reader import show

__all__ = ["layers_of_role", "make_plans", "roles_of"]

_BLOCKED: tuple[Mode, ...] = ("int8-weight", "int4")
# What int8-static is for wants all in bytes.
_KEEPS_EXPOSED: tuple[Mode, ...] = ("int8", *_BLOCKED)


def roles_of(bundle: Bundle) -> list[str]:
    """The graphs that are quantized; a generator goes with its decoder, those of the whole model with all."""
    return [role for role in bundle.manifest.graphs if role not in (GENERATOR, ATTENTION_ROLE, *WHOLE_ROLES)]


def layers_of_role(bundle: Bundle, role: str) -> list[Layer]:
    """The layers of a graph of `bundle` that can have a mode of their own."""
    return find_layers(*_prepared(bundle, role))


def _prepared(bundle: Bundle, role: str) -> tuple[ModelProto, Path]:
    """A graph of `bundle` as quantization handles it, and where its weights lie."""
    source = bundle.file(bundle.manifest.graphs[role].file)
    model = read_graph(source)
    prepare_products(model, source.parent)
    return model, source.parent


def make_plans(
    bundle: Bundle, mode: Mode, components: Mapping[str, Mode], options: Options | None = None
) -> dict[str, GraphPlan]:
    """Role → plan. Where nothing else is asked for the few layers that `find_exposed` finds stay fp32.

    components: role or role/layer → mode, for those that are to have another one than `mode`. options: what may be
    asked for beside modes.
    Raises UserError for what does not exist or does not go together.
    """
    _check_mode("mode", mode)
    roles = roles_of(bundle)
    layers: dict[str, dict[str, Mode]] = {role: {} for role in roles}
    modes: dict[str, Mode] = {}
    for component, wanted in components.items():
        role, _, layer = component.partition("/")
        if role not in roles:
            raise UserError(f"component: expected one of {', '.join(roles)}, found {show(role)}")
        _check_mode(f"component {component}", wanted)
        if layer:
            layers[role][layer] = wanted
        else:
            modes[role] = wanted
    plans = {role: GraphPlan(modes.get(role, mode), layers[role]) for role in roles}
    for role, plan in plans.items():
        if not plan.layers and plan.mode not in _KEEPS_EXPOSED:
            continue
        graph = _prepared(bundle, role)
        _check_layers(role, plan, [layer.name for layer in find_layers(*graph)])
        if plan.mode in _KEEPS_EXPOSED:
            for exposed in find_exposed(*graph):
                layers[role].setdefault(exposed.name, "fp32")
    stores = options is not None and (options.cross, options.cache) != ("fp32", "fp32")
    if not stores and all(plan.modes == {"fp32"} for plan in plans.values()):
        raise UserError(
            "mode: expected a mode other than fp32 for some graph or layer, found fp32 for all; name another"
        )
    _check_opset(bundle, plans)
    return plans


def _check_mode(what: str, mode: object) -> None:
    if mode not in MODES:
        raise UserError(f"{what}: expected one of {', '.join(MODES)}, found {show(mode)}")


def _check_layers(role: str, plan: GraphPlan, known: Sequence[str]) -> None:
    for layer, mode in plan.layers.items():
        if layer not in known and plan.mode != "fp16":
            some = ", ".join(known[:5]) + (" …" if len(known) > 5 else "")
            raise UserError(f"component {role}/{layer}: expected a layer such as {some}, found no such layer in {role}")
        if mode == "fp16" or (plan.mode == "fp16" and mode != "fp32"):
            raise UserError(
                f"component {role}/{layer}: expected fp16 for whole graphs, with layers in fp32 at most, found {mode} "
                f"in a graph of mode {plan.mode}"
            )


def _check_opset(bundle: Bundle, plans: Mapping[str, GraphPlan]) -> None:
    for plan in plans.values():
        blocked = plan.modes.intersection(_BLOCKED)
        if blocked and bundle.manifest.opset < LOWEST_OPSET:
            raise UserError(
                f"{bundle.path}: {sorted(blocked)[0]}: expected graphs of opset {LOWEST_OPSET} or later, found "
                f"{bundle.manifest.opset}; export it again with --opset {LOWEST_OPSET}"
            )
