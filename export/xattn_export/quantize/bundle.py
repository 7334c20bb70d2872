"""From a bundle to a smaller bundle: quantizes every graph, measures what is lost, and writes it down.

Only the order of things is here. The golden logits stay those of the trained model: the loss is measured against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from xattn_export.bundle_writer import StagedBundle, check_output, staged_bundle
from xattn_export.conformance import GraphFacts, require_standard, require_valid
from xattn_export.external_weights import WeightStore, has_weights_outside, weights_file
from xattn_export.generator import GENERATOR, LOOPED
from xattn_export.graph_files import write_generator, write_graph
from xattn_export.inspect import read_graph
from xattn_export.provenance import created_utc, versions
from xattn_export.quantize.blocks import LOWEST_OPSET, quantize_blocks
from xattn_export.quantize.convolutions import quantize_convolutions
from xattn_export.quantize.prepare import Constants, prepare_products
from xattn_export.quantize.products import quantize_products
from xattn_export.quantize.weights import store_convolutions, store_embeddings
from xattn_runtime._reading import show
from xattn_runtime.bundle import MANIFEST_FILE, Bundle, file_digest, open_bundle
from xattn_runtime.errors import OutputError, UserError, XattnError
from xattn_runtime.manifest import PRECISIONS, Golden, GoldenCase, Graph, Manifest, Precision
from xattn_runtime.tasks import load
from xattn_runtime.verify import CaseMeasure, measure, verify_bundle

__all__ = ["MODES", "GraphReport", "QuantizeReport", "quantize_bundle"]

MODES: tuple[Precision, ...] = ("int8", "int4")
_COUNTS = ("int4_products", "int8_products", "int8_convolutions", "int8_stored_convolutions", "int8_embeddings")
_SMALLEST_TOLERANCE = 1e-3
_SAFETY = 2.0
_SESSION_OPTIONS: Mapping[Precision, Mapping[str, str]] = {
    "fp32": {},
    # Signed weights overflow the 16-bit sums of x86 without VNNI: there, and only there, the runtime sets this.
    "int8": {"session.x64quantprecision": "1"},
    # Activations are rounded to 8 bits on the way: it costs little beside 4-bit weights, and is twice as fast.
    "int4": {"session.x64quantprecision": "1", "session.qdq_matmulnbits_accuracy_level": "4"},
}


@dataclass(frozen=True)
class GraphReport:
    """What became of a graph: how many products, convolutions and embeddings are int4 or int8, and its size.

    int8_stored_convolutions: those of which only the weights are int8, computed in float32.
    """

    precision: Precision
    int4_products: int
    int8_products: int
    int8_convolutions: int
    int8_stored_convolutions: int
    int8_embeddings: int
    operators: Mapping[str, int]
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class QuantizeReport:
    """A quantized bundle, its size beside the one it came from, and the loss on the golden cases.

    largest_relative_rms: over the kept cases, against the trained model. relative_rms: what the bundle allows.
    dropped_cases: golden cases whose text changed, as `picture: question: before → after`.
    """

    bundle: Path
    mode: str
    bytes_before: int
    bytes_after: int
    graphs: Mapping[str, GraphReport]
    golden_cases: int
    largest_relative_rms: float
    relative_rms: float
    dropped_cases: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        values = asdict(self) | {"bundle": str(self.bundle), "dropped_cases": list(self.dropped_cases)}
        return values | {"ratio": self.bytes_after / self.bytes_before}


def quantize_bundle(
    source: Path,
    output: Path,
    *,
    mode: Precision = "int8",
    components: Mapping[str, Precision] | None = None,
    overwrite: bool = False,
    command: str = "",
    progress: Callable[[str, float], None] | None = None,
) -> QuantizeReport:
    """Make the bundle `output`, a quantized copy of the bundle `source`.

    Args:
        mode: `int8`: products with constant weights, and convolutions over wide maps of a fixed size, in int8,
            activations quantized as they come; other convolutions and embeddings stored as int8 and computed in
            float32; recurrent layers stay as they are. `int4`: the weights of products in 4 bits, a scale for every
            32; the rest as in `int8`.
        components: role → `int8`, `int4` or `fp32`, for graphs that are to have another mode than `mode`.
        overwrite: replace a bundle that is there.
        command: what was typed, for the record.
        progress: told what is being done and the share of the whole that is done.

    Raises:
        UserError: an unknown mode or component, a graph whose opset is too old for the mode, or `source` is quantized
            already.
        BundleError: `source` is no bundle, or is damaged.
        OutputError: `output` exists, is `source` or cannot be written; nothing is left behind.
        XattnError: the result is not standard, or every golden text changed.
    """
    tell = progress or (lambda what, share: None)
    if mode not in MODES:
        raise UserError(f"mode: expected one of {', '.join(MODES)}, found {mode!r}")
    _check_places(source, output)
    check_output(output, overwrite=overwrite)
    tell("opening the bundle", 0.0)
    bundle = open_bundle(source)
    _check_precision(bundle)
    modes = _modes(bundle, mode, components or {})
    with staged_bundle(output, overwrite=overwrite) as staged:
        reports = _quantize_graphs(bundle, modes, staged, tell)
        copied = {case_file for case in bundle.manifest.golden.cases for case_file in (case.image, case.tensors)}
        for path in sorted({bundle.manifest.tokenizer.file, *copied}):
            staged.write(path, bundle.file(path).read_bytes())
        tell("measuring the loss", 0.7)
        manifest = staged.write_manifest(_manifest(bundle, modes, command))
        kept, dropped = _measure(staged.folder)
        largest = max(case.relative_rms for case in kept)
        tolerance = max(_SMALLEST_TOLERANCE, _SAFETY * largest)
        cases = tuple(case for case in manifest.golden.cases if _key(case) in {_key(one) for one in kept})
        _write_kept(staged, replace(manifest, golden=Golden(tolerance, cases)))
        tell("verifying the bundle", 0.9)
        verify_bundle(staged.folder).raise_if_failed()
        after = staged.bytes
    tell("done", 1.0)
    before = sum(entry.bytes for entry in bundle.manifest.files.values())
    notes = tuple(_note(case) for case in dropped)
    return QuantizeReport(output, mode, before, after, reports, len(kept), largest, tolerance, notes)


def _check_places(source: Path, output: Path) -> None:
    if output.resolve() == source.resolve() or source.resolve() in output.resolve().parents:
        raise OutputError(f"{output}: expected a place outside the bundle to quantize, found one in it; name another")


def _check_precision(bundle: Bundle) -> None:
    for role, graph in bundle.manifest.graphs.items():
        if graph.precision != "fp32":
            raise UserError(
                f"{bundle.path}: expected an fp32 bundle, found that its {role} is {graph.precision} already; "
                "quantize the bundle that `xattn-edge export` wrote"
            )


def _modes(bundle: Bundle, mode: Precision, components: Mapping[str, Precision]) -> dict[str, Precision]:
    """The mode of every graph, checked; a generator goes with its decoder."""
    manifest = bundle.manifest
    roles = [role for role in manifest.graphs if role != GENERATOR]
    for role, wanted in components.items():
        if role not in roles:
            raise UserError(f"component: expected one of {', '.join(roles)}, found {role!r}")
        if wanted not in PRECISIONS:
            raise UserError(f"component {role}: expected one of {', '.join(PRECISIONS)}, found {wanted!r}")
    modes = {role: components.get(role, mode) for role in roles}
    if "int4" in modes.values() and manifest.opset < LOWEST_OPSET:
        raise UserError(
            f"{bundle.path}: int4: expected graphs of opset {LOWEST_OPSET} or later, found {manifest.opset}; export it "
            f"again with --opset {LOWEST_OPSET}"
        )
    return modes


def _quantize_graphs(
    bundle: Bundle, modes: Mapping[str, Precision], staged: StagedBundle, tell: Callable[[str, float], None]
) -> dict[str, GraphReport]:
    """Quantize and write one graph after the other, so that no two are in memory at once."""
    graphs = bundle.manifest.graphs
    stores: dict[Path, WeightStore] = {}
    reports = {}
    for number, (role, mode) in enumerate(modes.items()):
        tell(f"quantizing the {role}", 0.1 + 0.6 * number / len(modes))
        source, file = bundle.file(graphs[role].file), graphs[role].file
        model = read_graph(source)
        opset = require_standard(model, role).opset
        counts = _quantize_graph(model, mode, source.parent)
        folder = (staged.folder / file).parent
        store = stores.setdefault(folder, WeightStore(folder))
        is_shared = role == LOOPED and GENERATOR in graphs
        model = store.taken_out(model, weights_file(source.name), shared=is_shared)
        facts = _check_graph(model, role, opset, folder)
        sizes = {"bytes_before": _bytes_of(bundle, file), "bytes_after": write_graph(staged, file, model)}
        reports[role] = GraphReport(mode, **counts, operators=facts.operators, **sizes)
    if GENERATOR in graphs:
        write_generator(staged, graphs[LOOPED].file, graphs[GENERATOR].file)
    return reports


def _bytes_of(bundle: Bundle, file: str) -> int:
    """Size of a graph with the weights beside it."""
    files = bundle.manifest.files
    return sum(files[path].bytes for path in (file, weights_file(file)) if path in files)


def _quantize_graph(model: ModelProto, mode: Precision, folder: Path) -> dict[str, int]:
    """Quantize `model`, whose weights may lie in `folder`, in place; then it holds them. The counts of its report."""
    counts = dict.fromkeys(_COUNTS, 0)
    if mode != "fp32":
        prepare_products(model, folder)
        counts["int8_convolutions"] = quantize_convolutions(model, folder)
        counts["int8_stored_convolutions"] = store_convolutions(model, folder)
        counts["int8_embeddings"] = store_embeddings(model, folder)
        counts["int4_products"] = quantize_blocks(model, folder) if mode == "int4" else 0
        counts["int8_products"] = quantize_products(model, folder)
    Constants(model.graph, folder).bring_in()
    return counts


def _check_graph(model: ModelProto, role: str, opset: int | None, folder: Path) -> GraphFacts:
    """What it is made of. Raises XattnError where it is not standard, of another opset, or not valid."""
    facts = require_standard(model, role)
    if facts.opset != opset:
        raise XattnError(f"{role}: expected opset {opset} after quantization, found {facts.opset}")
    require_valid(model, role, folder if has_weights_outside(model) else None)
    return facts


def _manifest(bundle: Bundle, modes: Mapping[str, Precision], command: str) -> Manifest:
    """The source's manifest as a quantized bundle has it: not yet measured, not yet evaluated."""
    old = bundle.manifest
    modes = {**modes, GENERATOR: modes.get(LOOPED, "fp32")}
    needed = {key: value for mode in modes.values() for key, value in _SESSION_OPTIONS[mode].items()}
    origin = f"{bundle.path.resolve().name} sha256:{file_digest(bundle.path / MANIFEST_FILE)}"
    return replace(
        old,
        graphs={role: Graph(graph.file, modes[role]) for role, graph in old.graphs.items()},
        session_options={**(old.session_options or {}), **needed},
        provenance=replace(
            old.provenance,
            command=command or "xattn_export.quantize_bundle",
            created_utc=created_utc(),
            versions={**old.provenance.versions, **versions()},
            from_bundle=origin,
        ),
        evaluation=(),
    )


def _measure(folder: Path) -> tuple[list[CaseMeasure], list[CaseMeasure]]:
    """The golden cases that kept their text, and those that did not."""
    measures = measure(load(folder))
    kept = [case for case in measures if case.same_text and np.isfinite(case.relative_rms)]
    dropped = [case for case in measures if case not in kept]
    if not kept:
        raise XattnError(
            f"expected golden texts that stay as they are, found that quantization changes every one, such as "
            f"{_note(dropped[0])}; this model loses too much in int8"
        )
    return kept, dropped


def _key(case: CaseMeasure | GoldenCase) -> tuple[str, str | None]:
    return case.image, case.question


def _note(case: CaseMeasure) -> str:
    question = f": {case.question}" if case.question else ""
    return f"{case.image}{question}: {show(case.expected_text)} → {show(case.found_text)}"


def _write_kept(staged: StagedBundle, manifest: Manifest) -> None:
    """The manifest, and no golden file that it does not name."""
    used = {path for case in manifest.golden.cases for path in (case.image, case.tensors)}
    for path in manifest.files:
        if path.startswith("golden/") and path not in used:
            staged.remove(path)
    staged.write_manifest(manifest)
