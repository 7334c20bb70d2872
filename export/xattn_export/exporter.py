"""From a trained model to a bundle: opens the source, exports every role, proves it, and writes the bundle.

Only the order of things is here; each step has a module of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from xattn_export.bundle_writer import StagedBundle, check_output, staged_bundle
from xattn_export.conformance import GraphFacts, examine
from xattn_export.families import family_of
from xattn_export.families.base import Source
from xattn_export.families.hf_hub import hub_id, local_folder
from xattn_export.golden import FP32_RELATIVE_RMS, GoldenSet, make_golden
from xattn_export.parity import RoleParity, check_parity
from xattn_export.provenance import created_utc, versions, weights_digest
from xattn_export.to_onnx import choose_opset, export_role
from xattn_runtime.errors import CheckpointError
from xattn_runtime.manifest import Attention, Golden, Graph, Manifest, Provenance, TokenizerSpec
from xattn_runtime.preprocess.text import TextCodec
from xattn_runtime.verify import VerificationReport, verify_bundle

__all__ = ["ExportReport", "Progress", "export_checkpoint"]

Progress = Callable[[str, float], None]
"""Called with what is being done and the share of the whole that is done, from 0 to 1."""

_TOKENIZER_FILE = "tokenizer.json"
_GRAPHS_DONE = 0.8


@dataclass(frozen=True)
class ExportReport:
    """What was exported, and how near the bundle comes to the model it was made from.

    graphs: role → what its graph is made of. parity: role → ONNX Runtime against torch. golden: the bundle's own
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
    attention: Attention = "standard",
    opset: int | None = None,
    overwrite: bool = False,
    command: str = "",
    golden_images: Sequence[Path] | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Make the bundle `output` of the trained model in the folder, or under the hub id, `source`.

    Args:
        attention: `standard` (the `Attention` operator, opset ≥ 23) or `decomposed` (`MatMul` and `Softmax`, ≥ 18).
        opset: of ai.onnx; by default the oldest that suffices.
        overwrite: replace a bundle that is there.
        command: what was typed, for the record.
        golden_images: pictures for the golden cases; by default the family draws some.
        progress: told what is being done.

    Raises:
        UserError: no such form of attention, or an opset that it cannot have.
        CheckpointError: `source` is no model that a family recognises, or is damaged.
        OutputError: `output` exists or cannot be written; nothing is left behind.
        ImageError: one of `golden_images` cannot be used.
        XattnError: the export is not standard, or does not compute what the model computes.
        VerificationError: the finished bundle fails its own golden cases.
    """
    tell = progress or (lambda what, share: None)
    opset = choose_opset(attention, opset)
    check_output(output, overwrite=overwrite)
    tell("opening the model", 0.0)
    model = _open(source)
    provenance = Provenance(
        source=hub_id(source) or source.resolve().name,
        source_sha256=weights_digest(model.weights if isinstance(model.weights, tuple) else (model.weights,)),
        command=command or "xattn_export.export_checkpoint",
        created_utc=created_utc(),
        versions=versions(),
    )
    graphs, parity = _export_roles(model, attention, opset, tell)
    with staged_bundle(output, overwrite=overwrite) as staged:
        tell("computing golden cases", _GRAPHS_DONE)
        facts = {role: examine(graph) for role, graph in graphs.items()}
        graph_bytes = {role: _write_graph(staged, role, graph) for role, graph in graphs.items()}
        tokenizer = _tokenizer(model)
        tokenizer_path = staged.write(_TOKENIZER_FILE, model.tokenizer_json.encode())
        golden = make_golden(model, TextCodec(tokenizer_path, tokenizer), golden_images)
        for path, content in golden.files.items():
            staged.write(path, content)
        staged.write_manifest(_manifest(model, attention, opset, facts, tokenizer, golden, provenance))
        tell("verifying the bundle", 0.9)
        verdict = verify_bundle(staged.folder)
        verdict.raise_if_failed()
    tell("done", 1.0)
    return ExportReport(output, model.task, attention, opset, staged.bytes, facts, graph_bytes, parity, verdict)


def _open(place: Path) -> Source:
    folder = local_folder(place)
    source = family_of(folder).open(folder)
    if not re.fullmatch("[a-z0-9][a-z0-9._-]*", source.name):
        raise CheckpointError(
            f"{folder}: name: expected lower-case letters, digits, '.', '_' and '-', found {source.name!r}"
        )
    return source


def _tokenizer(source: Source) -> TokenizerSpec:
    return TokenizerSpec(
        file=_TOKENIZER_FILE,
        unknown_token_id=source.unknown_token_id,
        max_tokens=source.max_tokens,
        clean_up_spaces=source.clean_up_spaces,
        question_template=source.question_template,
        prompt_template=source.prompt_template,
    )


def _export_roles(
    source: Source, attention: Attention, opset: int, tell: Progress
) -> tuple[dict[str, ModelProto], dict[str, RoleParity]]:
    graphs, parity = {}, {}
    for number, role in enumerate(source.roles):
        share = _GRAPHS_DONE / len(source.roles)
        tell(f"exporting the {role.name}", share * (number + 0.1))
        graphs[role.name] = export_role(role, attention, opset)
        tell(f"comparing the {role.name} with torch", share * (number + 0.8))
        parity[role.name] = check_parity(graphs[role.name], role)
    return graphs, parity


def _write_graph(staged: StagedBundle, role: str, graph: ModelProto) -> int:
    content = graph.SerializeToString(deterministic=True)
    staged.write(_graph_file(role), content)
    return len(content)


def _graph_file(role: str) -> str:
    return f"graphs/{role}.onnx"


def _manifest(
    source: Source,
    attention: Attention,
    opset: int,
    facts: Mapping[str, GraphFacts],
    tokenizer: TokenizerSpec,
    golden: GoldenSet,
    provenance: Provenance,
) -> Manifest:
    return Manifest(
        name=source.name,
        task=source.task,
        license=source.license,
        attention=attention,
        opset=opset,
        graphs={role: Graph(_graph_file(role), "fp32") for role in facts},
        image_steps=source.image_steps,
        tokenizer=tokenizer,
        provenance=provenance,
        golden=Golden(FP32_RELATIVE_RMS, golden.cases),
        files={},
        decoding=source.decoding,
        labels=source.labels,
        similarity=source.similarity,
        session_options={},
    )
