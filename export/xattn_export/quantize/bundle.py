"""From a bundle to a smaller bundle: quantizes every graph, measures what is lost, and writes it down.

Only the order of things is here. The golden logits stay those of the trained model: the loss is measured against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from xattn_export.bundle.attention_role import write_attention
from xattn_export.bundle.graph_files import write_generator, write_graph
from xattn_export.bundle.provenance import created_utc, versions
from xattn_export.bundle.writer import StagedBundle, check_output, staged_bundle
from xattn_export.graph.conformance import require_standard, require_valid
from xattn_export.graph.external_weights import INSIDE_BYTES, WeightStore, has_weights_outside, weights_file
from xattn_export.graph.generator import GENERATOR, LOOPED
from xattn_export.quantize.base.mode_spec import BASELINE
from xattn_export.quantize.base.options import GraphPlan, Mode, Options
from xattn_export.quantize.base.prepared import PreparedBundle, prepare_bundle
from xattn_export.quantize.calibration.activation_statistics import calibrate, needs_examples
from xattn_export.quantize.calibration.examples import Examples
from xattn_export.quantize.calibration.result import Calibration
from xattn_export.quantize.gate import judge_golden
from xattn_export.quantize.modes.table import option_names, precision_of, rounds_activations, session_options
from xattn_export.quantize.plans import all_modes, make_plans
from xattn_export.quantize.quantizing import quantize_graph
from xattn_export.quantize.report import GraphReport, QuantizeReport
from xattn_export.whole import write_whole_graphs
from xattn_runtime.bundle.folder import MANIFEST_FILE, Bundle, file_digest, open_bundle
from xattn_runtime.bundle.graph_facts import GraphFacts
from xattn_runtime.bundle.manifest import ATTENTION_ROLE, WHOLE_ROLES, Golden, Graph, Manifest
from xattn_runtime.errors import OutputError, UserError, XattnError
from xattn_runtime.loader import load
from xattn_runtime.progress import Progress, silent
from xattn_runtime.verify.golden import measure, verify_bundle

__all__ = ["open_source", "quantize_bundle", "write_quantized"]


_SMALLEST_TOLERANCE = 1e-3
# Engines fuse quantized layers in ways of their own: OpenVINO's error on our int8-static models is up to 2.2 of ours.
_SAFETY = 3.0


def quantize_bundle(
    source: Path,
    output: Path,
    *,
    mode: Mode = "int8",
    components: Mapping[str, Mode] | None = None,
    options: Options | None = None,
    examples: Examples | None = None,
    overwrite: bool = False,
    command: str = "",
    progress: Progress = silent,
) -> QuantizeReport:
    """Make the bundle `output`, a quantized copy of the bundle `source`.

    Args:
        mode: `int8`: products with constant weights, and convolutions over wide maps of a fixed size, in int8,
            activations quantized as they come; other convolutions, embeddings and recurrent layers stored as int8 and
            computed in float32. `int8-static`: products and convolutions in int8, ranges fixed by calibration.
            `int8-weight` and `int4`: the weights of products in 8 or 4 bits, a scale for every block; the rest stored
            as in `int8`. `fp16`: weights and computation in half precision. A tied table is stored once where it is
            int8 as embedding and as factor.
        components: role, or role/layer, → a mode, for graphs and layers that are to have another one than `mode`.
        options: how each mode does what it does.
        examples: what to calibrate on, for the modes and options that need that.
        overwrite: replace an existing bundle.
        command: what was typed, for the record.
        progress: receives the current step and the share of all work that is done.

    Raises:
        UserError: an unknown mode, component or option, a graph whose opset is too old for the mode, no examples where
            they are needed, activations or weights that are not finite, nothing to quantize, or `source` is quantized
            already.
        BundleError: `source` is no bundle, or is damaged.
        OutputError: `output` exists, is `source` or cannot be written; nothing is left behind.
        XattnError: the result is not standard, or every golden text changed that the trained model was sure of.
    """
    options = options or Options()
    options.check()
    progress("opening the bundle", 0.0)
    prepared = open_source(source, output, overwrite=overwrite)
    plans = make_plans(prepared, mode, components or {}, options)
    if examples is None and (reasons := needs_examples(plans, options)):
        raise UserError(
            f"{' and '.join(reasons)}: expected data to calibrate on, found none; name some with --data, such as "
            "--data easy-vqa, or --data golden for the inputs in the bundle itself"
        )
    calibrations = calibrate(prepared, plans, options, examples, lambda what, share: progress(what, 0.3 * share))
    return write_quantized(
        prepared,
        output,
        plans,
        options,
        calibrations,
        mode=mode,
        examples=examples,
        overwrite=overwrite,
        command=command,
        progress=progress,
    )


def open_source(source: Path, output: Path, *, overwrite: bool) -> PreparedBundle:
    """The bundle to quantize and its graphs, after checking that it can be and that `output` may be written.

    Raises what `quantize_bundle` raises for these.
    """
    _check_places(source, output)
    check_output(output, overwrite=overwrite)
    bundle = open_bundle(source)
    _check_precision(bundle)
    return prepare_bundle(bundle)


def write_quantized(
    source: PreparedBundle,
    output: Path,
    plans: Mapping[str, GraphPlan],
    options: Options,
    calibrations: Mapping[str, Calibration],
    *,
    mode: str,
    examples: Examples | None = None,
    search: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    command: str = "",
    progress: Progress = silent,
) -> QuantizeReport:
    """Make the bundle `output` of `source` by its plans; `search`: how they were chosen, for the record."""
    bundle = source.bundle
    with staged_bundle(output, overwrite=overwrite) as staged:
        reports = _quantize_graphs(source, plans, options, calibrations, staged, progress)
        copied = {case_file for case in bundle.manifest.golden.cases for case_file in (case.image, case.tensors)}
        for path in sorted({bundle.manifest.tokenizer.file, *copied}):
            staged.write(path, bundle.file(path).read_bytes())
        record = _record(plans, options, examples, search)
        manifest = _manifest(bundle, plans, options, record, command)
        if ATTENTION_ROLE in bundle.manifest.graphs:
            manifest, _, _ = write_attention(staged, manifest)
        if any(role in bundle.manifest.graphs for role in WHOLE_ROLES):
            manifest = write_whole_graphs(staged, manifest).stated(manifest)
        progress("measuring the loss", 0.7)
        manifest = staged.write_manifest(manifest)
        small = open_bundle(staged.folder)
        judged = judge_golden(small, measure(load(small)), " and ".join(all_modes(plans)))
        tolerance = max(_SMALLEST_TOLERANCE, _SAFETY * judged.largest_relative_rms)
        _write_manifest(staged, replace(manifest, golden=Golden(tolerance, judged.cases)))
        progress("verifying the bundle", 0.9)
        verify_bundle(staged.folder).raise_if_failed("quantize it in another mode")
        after = staged.bytes
    progress("done", 1.0)
    before = sum(entry.bytes for entry in bundle.manifest.files.values())
    return QuantizeReport(
        bundle=output,
        mode=mode,
        bytes_before=before,
        bytes_after=after,
        graphs=reports,
        golden_cases=len(judged.cases),
        largest_relative_rms=judged.largest_relative_rms,
        relative_rms=tolerance,
        near_ties=judged.near_ties,
        dropped_cases=judged.dropped,
    )


def _check_places(source: Path, output: Path) -> None:
    if output.resolve() == source.resolve() or source.resolve() in output.resolve().parents:
        raise OutputError(f"{output}: expected a place outside the bundle to quantize, found one in it; name another")


def _check_precision(bundle: Bundle) -> None:
    manifest, advice = bundle.manifest, "quantize the bundle that `xattn-edge export` wrote"
    for role, graph in manifest.graphs.items():
        if graph.precision != "fp32":
            raise UserError(
                f"{bundle.path}: expected an fp32 bundle, found that its {role} is {graph.precision} already; {advice}"
            )
    if manifest.quantization is not None:
        raise UserError(f"{bundle.path}: expected an fp32 bundle, found one that was quantized already; {advice}")


def _quantize_graphs(
    source: PreparedBundle,
    plans: Mapping[str, GraphPlan],
    options: Options,
    calibrations: Mapping[str, Calibration],
    staged: StagedBundle,
    progress: Progress,
) -> dict[str, GraphReport]:
    """Quantize and write one graph after the other, so that no two quantized ones are in memory at once."""
    graphs = source.bundle.manifest.graphs
    stores: dict[Path, WeightStore] = {}
    reports = {}
    for number, (role, plan) in enumerate(plans.items()):
        progress(f"quantizing the {role}", 0.3 + 0.4 * number / len(plans))
        graph, file = source.graphs[role], graphs[role].file
        parts, counts = quantize_graph(graph, plan, options, calibrations.get(role, Calibration()))
        folder = (staged.folder / file).parent
        # The graphs of the whole model name the weights of all the others.
        most = 0 if any(each in graphs for each in WHOLE_ROLES) else INSIDE_BYTES
        store = stores.setdefault(folder, WeightStore(folder, most))
        is_shared = role == LOOPED and GENERATOR in graphs
        model = store.externalized(parts.model(), weights_file(graph.file.name), shared=is_shared)
        facts = _check_graph(model, role, graph.opset, folder)
        sizes = {"bytes_before": _bytes_of(source.bundle, file), "bytes_after": write_graph(staged, file, model)}
        reports[role] = GraphReport(precision_of(plan.modes), counts, facts.operators, **sizes)
    _check_gain(plans, reports)
    if GENERATOR in graphs:
        write_generator(staged, graphs[LOOPED].file, graphs[GENERATOR].file)
    return reports


def _bytes_of(bundle: Bundle, file: str) -> int:
    """Size of a graph with the weights beside it."""
    files = bundle.manifest.files
    return sum(files[path].bytes for path in (file, weights_file(file)) if path in files)


def _check_gain(plans: Mapping[str, GraphPlan], reports: Mapping[str, GraphReport]) -> None:
    modes = all_modes(plans)
    if modes and not any(count for report in reports.values() for count in report.layers.values()):
        raise UserError(
            f"{', '.join(reports)}: expected weights that {' and '.join(modes)} makes smaller, found nothing to "
            "quantize: all layers are small, or of kinds that stay as they are; use the bundle as it is"
        )


def _check_graph(model: ModelProto, role: str, opset: int | None, folder: Path) -> GraphFacts:
    """The facts of the graph. Raises XattnError where it is not standard, of another opset, or not valid."""
    facts = require_standard(model, role)
    if facts.opset != opset:
        raise XattnError(f"{role}: expected opset {opset} after quantization, found {facts.opset}")
    require_valid(model, role, folder if has_weights_outside(model) else None)
    return facts


def _record(
    plans: Mapping[str, GraphPlan], options: Options, examples: Examples | None, search: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What was done, as the manifest keeps it."""
    components = {}
    for role, plan in plans.items():
        components[role] = plan.mode
        components |= {f"{role}/{layer}": mode for layer, mode in plan.layers.items() if mode != plan.mode}
    record: dict[str, Any] = {"components": components, **options.record(option_names(all_modes(plans)))}
    record["int8_activations"] = [role for role, plan in plans.items() if rounds_activations(plan.modes, options)]
    if examples is not None:
        record["calibration"] = {"data": examples.name, "examples": len(examples.items)}
    return record if search is None else record | {"search": dict(search)}


def _manifest(
    bundle: Bundle, plans: Mapping[str, GraphPlan], options: Options, record: Mapping[str, Any], command: str
) -> Manifest:
    """The source's manifest as a quantized bundle has it: not yet measured, not yet evaluated."""
    old = bundle.manifest
    plans = {**plans, GENERATOR: plans.get(LOOPED, GraphPlan(BASELINE))}
    needed = session_options(all_modes(plans), options)
    origin = f"{bundle.path.resolve().name} sha256:{file_digest(bundle.path / MANIFEST_FILE)}"
    return replace(
        old,
        graphs={
            role: Graph(graph.file, precision_of(plans[role].modes))
            for role, graph in old.graphs.items()
            if role in plans
        },
        session_options={**(old.session_options or {}), **needed},
        provenance=replace(
            old.provenance,
            command=command or "xattn_export.quantize_bundle",
            created_utc=created_utc(),
            versions={**old.provenance.versions, **versions()},
            from_bundle=origin,
        ),
        quantization=record,
        evaluation=(),
        calibration=None,
    )


def _write_manifest(staged: StagedBundle, manifest: Manifest) -> None:
    """The manifest, and no golden file that it does not name."""
    used = {path for case in manifest.golden.cases for path in (case.image, case.tensors)}
    for path in manifest.files:
        if path.startswith("golden/") and path not in used:
            staged.remove(path)
    staged.write_manifest(manifest)
