"""From a trained model to a bundle: opens the source, exports every role, proves it, and writes the bundle.

Only the order of things is here; each step has a module of its own.
"""

from __future__ import annotations

import gc
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import onnx

from xattn_export.bundle.attention_role import write_attention
from xattn_export.bundle.graph_files import write_generator, write_graph
from xattn_export.bundle.provenance import created_utc, versions, weights_digest
from xattn_export.bundle.writer import StagedBundle, check_output, staged_bundle
from xattn_export.families.base import (
    Embeds,
    Generates,
    Reference,
    Role,
    Source,
)
from xattn_export.families.base.split_role import can_split, split_role
from xattn_export.families.checkpoint_folder.folder import name_of
from xattn_export.families.checkpoint_folder.hub import hub_id, local_folder
from xattn_export.families.checkpoint_folder.weights.base import whole_folder
from xattn_export.families.table import family_of
from xattn_export.golden import FP32_RELATIVE_RMS, GoldenSet, make_golden
from xattn_export.graph.conformance import examine, require_valid
from xattn_export.graph.external_weights import INSIDE_BYTES, WeightStore, weights_file
from xattn_export.graph.generator import GENERATOR, LOOPED
from xattn_export.graph.reading import read_graph
from xattn_export.parallel import run_parallel
from xattn_export.parity import RoleParity, check_parity
from xattn_export.to_onnx import choose_opset, export_role
from xattn_export.whole import left_out, write_whole_graphs
from xattn_runtime.bundle.graph_facts import GraphFacts
from xattn_runtime.bundle.manifest import (
    ATTENTION_ROLE,
    CACHE_FORMS,
    Attention,
    CacheForm,
    Golden,
    Graph,
    Manifest,
    Provenance,
    TaskName,
)
from xattn_runtime.errors import CheckpointError, UserError
from xattn_runtime.execution.machine import return_freed_memory
from xattn_runtime.json_reader import show
from xattn_runtime.preprocess.text import TextCodec
from xattn_runtime.progress import Progress, silent
from xattn_runtime.verify.golden import VerificationReport, verify_bundle

__all__ = ["ExportReport", "export_checkpoint"]

_FAULT_OF_EXPORT = (
    "nothing is written, since the exported model does not do what the original does: please report it, with the "
    "checkpoint's config.json"
)
_GRAPHS_FOLDER = "graphs"
_GRAPHS_DONE = 0.8
_STATIC, _BATCH = "image_encoder", "batch"


@dataclass(frozen=True)
class ExportReport:
    """What was exported, and how near the bundle comes to the model it was made from.

    graphs: role → facts of its graph. parity: role → ONNX Runtime against torch. golden: the bundle's own
    verification.
    """

    bundle: Path
    task: str
    attention: Attention
    opset: int
    bytes: int
    graphs: Mapping[str, GraphFacts]
    graph_bytes: Mapping[str, int]
    parity: Mapping[str, RoleParity]
    golden: VerificationReport

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "bundle": str(self.bundle),
            "task": self.task,
            "attention": self.attention,
            "opset": self.opset,
            "bytes": self.bytes,
            "standard": all(facts.standard for facts in self.graphs.values()),
            "graphs": {
                role: {**facts.to_dict(), "bytes": self.graph_bytes[role]} for role, facts in self.graphs.items()
            },
            "parity": {role: parity.to_dict() for role, parity in self.parity.items()},
            "golden": {
                "cases": len(self.golden.cases),
                "largest_relative_rms": max(case.measure.relative_rms for case in self.golden.cases),
            },
        }


def export_checkpoint(
    source: Path,
    output: Path,
    *,
    task: TaskName | None = None,
    attention: Attention = "standard",
    opset: int | None = None,
    overwrite: bool = False,
    command: str = "",
    golden_images: Sequence[Path] | None = None,
    inside_bytes: int = INSIDE_BYTES,
    static_batch: bool = False,
    whole: bool = True,
    with_attention: bool = False,
    cache: CacheForm | None = None,
    base: Path | None = None,
    progress: Progress = silent,
) -> ExportReport:
    """Make the bundle `output` of the trained model in the folder, or under the hub id, `source`.

    Args:
        task: for a model that does several; by default the family's first.
        attention: `standard` (the `Attention` operator, opset ≥ 23) or `decomposed` (`MatMul` and `Softmax`, ≥ 18).
        opset: of ai.onnx; by default the lowest that suffices.
        overwrite: replace an existing bundle.
        command: what was typed, for the record.
        golden_images: images for the golden cases; by default the family draws some.
        inside_bytes: the most weights that a graph may hold; what is more lies in a file beside it.
        static_batch: whether the image encoder takes one image at a time, so that every axis of it has a size.
        whole: join the graphs into one of the whole model too, where that can be; then all weights lie beside them.
        with_attention: write a graph with the attention weights as outputs too, for maps of what it looked at.
        cache: of a decoder: `split` in a part that no step changes and a short one that grows, or `single`. By default
            it is split where an image stands among the tokens of the prompt.
        base: the model that `source`, an adapter of PEFT, was trained on, as a folder or hub id; they are merged.
        progress: receives the current step.

    Raises:
        UserError: no such form of attention, or an opset that it cannot have; a task that the model does not do; a
            cache that cannot be split.
        CheckpointError: `source` is no model that a family recognises, or is damaged.
        OutputError: `output` exists or cannot be written; nothing is left behind.
        ImageError: one of `golden_images` cannot be used.
        XattnError: the export is not standard, or does not compute what the model computes.
        VerificationError: the finished bundle fails its own golden cases.
    """
    opset = choose_opset(attention, opset)
    check_output(output, overwrite=overwrite)
    progress("opening the model", 0.0)
    model = _with_cache(_open(source, task, base), cache)
    provenance = Provenance(
        source=hub_id(source) or source.resolve().name,
        source_sha256=weights_digest(model.weights),
        command=command or "xattn_export.export_checkpoint",
        created_utc=created_utc(),
        versions=versions(),
    )
    with staged_bundle(output, overwrite=overwrite) as staged:
        # Images and texts that are embedded apart are never one graph.
        can_join = not isinstance(model.reference, Embeds)
        joins = whole and can_join
        tokenizer = model.tokenizer.spec
        tokenizer_path = staged.write(tokenizer.file, model.tokenizer.json.encode())
        inside_bytes = 0 if joins else inside_bytes
        compute_golden = partial(make_golden, model, TextCodec(tokenizer_path, tokenizer), golden_images)
        graphs, golden = _export_roles(model, attention, opset, inside_bytes, staged, compute_golden, progress)
        if static_batch and _STATIC in graphs:
            _fix_batch(staged, _graph_file(_STATIC))
        for path, content in golden.files.items():
            staged.write(path, content)
        manifest = _manifest(model, attention, opset, tuple(graphs), golden, provenance)
        # Nothing below needs the model: verifying the bundle loads its weights once more.
        del model, golden, compute_golden
        _release_memory()
        if with_attention:
            manifest, facts, written = write_attention(staged, manifest)
            graphs[ATTENTION_ROLE] = _Exported(facts, written, None)
        if joins:
            progress("joining the graphs", 0.85)
            joined = write_whole_graphs(staged, manifest)
            manifest = joined.stated(manifest)
            graphs |= {role: _Exported(facts, joined.bytes[role], None) for role, facts in joined.facts.items()}
        elif can_join:
            manifest = left_out().stated(manifest)
        staged.write_manifest(manifest)
        progress("verifying the bundle", 0.9)
        verdict = verify_bundle(staged.folder)
        verdict.raise_if_failed(_FAULT_OF_EXPORT)
    progress("done", 1.0)
    return ExportReport(
        bundle=output,
        task=manifest.task,
        attention=attention,
        opset=opset,
        bytes=staged.bytes,
        graphs={role: graph.facts for role, graph in graphs.items()},
        graph_bytes={role: graph.bytes for role, graph in graphs.items()},
        parity={role: graph.parity for role, graph in graphs.items() if graph.parity is not None},
        golden=verdict,
    )


def _open(place: Path, task: TaskName | None, base: Path | None) -> Source:
    """The source in the folder, or in that of an adapter and its base together, and its files by their own names."""
    folder = local_folder(place)
    with whole_folder(folder, base and local_folder(base), name_of(folder)) as whole:
        source = _open_folder(whole, task)
        return source if whole == folder else replace(source, weights=tuple(path.resolve() for path in source.weights))


def _open_folder(folder: Path, task: TaskName | None) -> Source:
    family = family_of(folder)
    source = (family.open if task is None else family.also.get(task, family.open))(folder)
    if task not in (None, source.task):
        tasks = ", ".join((source.task, *(other for other in family.also if other != source.task)))
        raise UserError(f"task: expected {tasks}, as {folder} is a model of {family.name}, found {show(task)}")
    if not re.fullmatch("[a-z0-9][a-z0-9._-]*", source.name):
        raise CheckpointError(
            f"{folder}: name: expected lower-case letters, digits, '.', '_' and '-', found {source.name!r}"
        )
    limits = [spec.limit for role in source.roles for spec in role.inputs if spec.values == "token_ids"]
    return replace(source, tokenizer=source.tokenizer.refusing_from(min(limits))) if limits else source


def _with_cache(source: Source, form: CacheForm | None) -> Source:
    """With the cache of its decoder in the form asked for, or the one that is best."""
    decoder = next((role for role in source.roles if role.name == LOOPED), None)
    if form not in (None, *CACHE_FORMS):
        raise UserError(f"cache: expected {' or '.join(CACHE_FORMS)}, found {show(form)}")
    if form == "split" and (decoder is None or not can_split(decoder)):
        found = "none" if decoder is None else "one whose cache begins with the keys and values of an image"
        raise UserError(f"cache: expected a decoder with a cache to split, found {found}; leave it out")
    if decoder is None or form == "single" or (form is None and not _reads_image_tokens(decoder)):
        return source
    return replace(source, roles=tuple(split_role(role) if role is decoder else role for role in source.roles))


def _reads_image_tokens(decoder: Role) -> bool:
    """Whether the image stands in the prompt, which is long then."""
    return any(spec.name == "image_tokens" for spec in decoder.inputs)


def _cache_form(roles: Sequence[Role]) -> CacheForm:
    return "split" if any(role.traced is not None for role in roles) else "single"


@dataclass(frozen=True)
class _Exported:
    """A graph that was written: its facts, its size with its own file of weights, and its parity.

    A graph derived from another one has that one's parity.
    """

    facts: GraphFacts
    bytes: int
    parity: RoleParity | None


def _export_roles(
    source: Source,
    attention: Attention,
    opset: int,
    inside_bytes: int,
    staged: StagedBundle,
    compute_golden: Callable[[], GoldenSet],
    progress: Progress,
) -> tuple[dict[str, _Exported], GoldenSet]:
    """Export all roles in parallel, with the golden cases, and compare each role with torch once it is exported."""
    folder = staged.folder / _GRAPHS_FOLDER
    progress(f"exporting the {' and the '.join(role.name for role in source.roles)}, computing golden cases", 0.1)
    # Which of them is done first is left to chance, but not the bundle: so each has its weights in a folder of its own.
    stores = [WeightStore(folder / f"of-{role.name}", inside_bytes) for role in source.roles]
    works: list[Callable[[], object]] = [
        partial(_export, role, attention, opset, store) for role, store in zip(source.roles, stores, strict=True)
    ]
    weights, exported = WeightStore(folder, inside_bytes), {}
    with run_parallel([*works, compute_golden]) as results:
        for number, role in enumerate(source.roles):
            content, own = cast(tuple[bytes, WeightStore], next(results))
            progress(f"comparing the {role.name} with torch", _GRAPHS_DONE * (0.5 + 0.5 * number / len(works)))
            exported[role.name] = _store_role(role, content, own, weights, staged)
        progress("computing golden cases", _GRAPHS_DONE)
        golden = cast(GoldenSet, next(results))
    # Where scores are always changed, nothing is ever decoded in one run; a split cache is put together between steps.
    if LOOPED in exported and _is_greedy(source.reference) and _cache_form(source.roles) == "single":
        facts, written = write_generator(staged, _graph_file(LOOPED), _graph_file(GENERATOR))
        exported[GENERATOR] = _Exported(facts, written, None)
    return exported, golden


def _is_greedy(reference: Reference) -> bool:
    """Whether a text may be decoded by taking the best token of every step."""
    return isinstance(reference, Generates) and replace(reference.decoding, beams=1).is_plain


def _store_role(role: Role, content: bytes, own: WeightStore, weights: WeightStore, staged: StagedBundle) -> _Exported:
    """Write the exported graph, its weights moved from `own` to `weights`, and compare it with torch."""
    file = _graph_file(role.name)
    graph = weights.merge(onnx.load_from_string(content), own, weights_file(f"{role.name}.onnx"))
    shutil.rmtree(own.folder, ignore_errors=True)
    facts, written = examine(graph), write_graph(staged, file, graph)
    del graph
    exported = _Exported(facts, written, check_parity(staged.folder / file, role))
    _release_memory()
    return exported


def _export(role: Role, attention: Attention, opset: int, weights: WeightStore) -> tuple[bytes, WeightStore]:
    """The graph without the weights that `weights` took out of it, and these."""
    return export_role(role, attention, opset, weights).SerializeToString(deterministic=True), weights


def _fix_batch(staged: StagedBundle, file: str) -> None:
    """Fix the axis `batch` of a written graph at size 1."""
    graph = read_graph(staged.folder / file)
    for value in (*graph.graph.input, *graph.graph.output, *graph.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param == _BATCH:
                axis.dim_value = 1
    require_valid(graph, _STATIC, (staged.folder / file).parent)
    write_graph(staged, file, graph)


def _release_memory() -> None:
    """Torch's programs hold weights in cycles: release them before more is needed."""
    gc.collect()
    return_freed_memory()


def _graph_file(role: str) -> str:
    return f"{_GRAPHS_FOLDER}/{role}.onnx"


def _manifest(
    source: Source,
    attention: Attention,
    opset: int,
    roles: Sequence[str],
    golden: GoldenSet,
    provenance: Provenance,
) -> Manifest:
    fields = {"image_steps": (), **source.reference.in_manifest}
    return Manifest(
        name=source.name,
        task=source.task,
        license=source.license,
        attention=attention,
        opset=opset,
        graphs={role: Graph(_graph_file(role), "fp32") for role in roles},
        tokenizer=source.tokenizer.spec,
        provenance=provenance,
        golden=Golden(FP32_RELATIVE_RMS, golden.cases),
        files={},
        session_options={},
        cache=_cache_form(source.roles),
        **fields,
    )
