"""Which mode every graph and layer of a bundle is to have, from the requested modes; checked against the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xattn_export.quantize.base.mode_spec import BASELINE
from xattn_export.quantize.base.options import GraphPlan, Mode, Options
from xattn_export.quantize.base.prepared import PreparedBundle
from xattn_export.quantize.modes.table import mode_names, spec_of, specs_of
from xattn_export.quantize.passes.pre_head import find_pre_head_layers
from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.errors import UserError
from xattn_runtime.json_reader import show

__all__ = ["all_modes", "make_plans"]


def make_plans(
    source: PreparedBundle, mode: Mode, components: Mapping[str, Mode], options: Options | None = None
) -> dict[str, GraphPlan]:
    """Role → plan. The layers that `find_pre_head_layers` names stay fp32 unless `components` says otherwise.

    components: role or role/layer → mode, for those that are to have another one than `mode`. options: what may be
    asked for beside modes.
    Raises UserError for what does not exist or does not go together.
    """
    _check_mode("mode", mode)
    layers: dict[str, dict[str, Mode]] = {role: {} for role in source.graphs}
    modes: dict[str, Mode] = {}
    for component, component_mode in components.items():
        role, _, layer = component.partition("/")
        if role not in layers:
            raise UserError(f"component: expected one of {', '.join(layers)}, found {show(role)}")
        _check_mode(f"component {component}", component_mode)
        if layer:
            layers[role][layer] = component_mode
        else:
            modes[role] = component_mode
    plans = {}
    for role, graph in source.graphs.items():
        plan = GraphPlan(modes.get(role, mode), layers[role])
        _check_layers(role, plan, [layer.name for layer in graph.layers])
        if spec_of(plan.mode).keeps_pre_head:
            for pre_head in find_pre_head_layers(graph.products, graph.layers):
                layers[role].setdefault(pre_head.name, BASELINE)
        plans[role] = plan
    stores = options is not None and options.key_values
    if not stores and not all_modes(plans):
        raise UserError(
            f"mode: expected a mode other than {BASELINE} for some graph or layer, found {BASELINE} for all; name "
            "another"
        )
    _check_opset(source.bundle, plans)
    if options is not None and options.cache != BASELINE and source.bundle.manifest.cache == "split":
        raise UserError(
            f"cache: expected {BASELINE}, as the cache of this bundle is split, found {options.cache}; export it again "
            "with --cache single"
        )
    return plans


def all_modes(plans: Mapping[str, GraphPlan]) -> list[Mode]:
    """Those that change something, by name."""
    return sorted(spec.name for spec in specs_of(frozenset().union(*(plan.modes for plan in plans.values()))))


def _check_mode(what: str, mode: object) -> None:
    if mode not in mode_names():
        raise UserError(f"{what}: expected one of {', '.join(mode_names())}, found {show(mode)}")


def _check_layers(role: str, plan: GraphPlan, known: Sequence[str]) -> None:
    is_whole = spec_of(plan.mode).scope == "graph"
    for layer, mode in plan.layers.items():
        if layer not in known and not is_whole:
            some = ", ".join(known[:5]) + (" …" if len(known) > 5 else "")
            raise UserError(f"component {role}/{layer}: expected a layer such as {some}, found no such layer in {role}")
        if spec_of(mode).scope == "graph" or (is_whole and spec_of(mode).passes):
            whole = plan.mode if is_whole else mode
            raise UserError(
                f"component {role}/{layer}: expected {whole} for whole graphs, with layers in {BASELINE} at most, "
                f"found {mode} in a graph of mode {plan.mode}"
            )


def _check_opset(bundle: Bundle, plans: Mapping[str, GraphPlan]) -> None:
    for plan in plans.values():
        for spec in sorted(specs_of(plan.modes), key=lambda one: one.name):
            if bundle.manifest.opset < spec.lowest_opset:
                raise UserError(
                    f"{bundle.path}: {spec.name}: expected graphs of opset {spec.lowest_opset} or later, found "
                    f"{bundle.manifest.opset}; export it again with --opset {spec.lowest_opset}"
                )
