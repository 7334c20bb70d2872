"""manifest.json, schema version 1, as typed frozen values: the one definition that readers and writers share.

It reads and writes plain dictionaries. It opens no file and knows no graph; `bundle.py` does the files.
docs/bundle-format.md says what each key means.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from xattn_runtime.bundle.calibration import ConfidenceCalibration, read_calibration
from xattn_runtime.bundle.decoding import Decoding, read_decoding
from xattn_runtime.bundle.similarity import Similarity, read_similarity
from xattn_runtime.bundle.task_table import TASKS, TaskSpec
from xattn_runtime.errors import BundleError
from xattn_runtime.json_reader import ObjectReader, show, unsafe_path_reason
from xattn_runtime.preprocess.regions import RegionSpec, read_region_spec
from xattn_runtime.preprocess.speech import MelSpec, read_mel_spec
from xattn_runtime.preprocess.steps import Step, parse_steps, step_to_dict
from xattn_runtime.preprocess.tokenizer import TokenizerSpec, read_tokenizer

__all__ = [
    "ATTENTION_ROLE",
    "CACHE_FORMS",
    "LOWEST_OPSET",
    "PRECISIONS",
    "SCHEMA_VERSION",
    "SESSION_OPTIONS",
    "WHOLE_ROLES",
    "Attention",
    "CacheForm",
    "ConfidenceCalibration",
    "Decoding",
    "FileEntry",
    "Golden",
    "GoldenCase",
    "Graph",
    "Manifest",
    "Precision",
    "Provenance",
    "Similarity",
    "TaskName",
    "TokenizerSpec",
    "parse",
]

TaskName = Literal["caption", "vqa", "retrieval", "sentiment"]
Attention = Literal["standard", "decomposed"]
CacheForm = Literal["single", "split"]
Precision = Literal["fp32", "fp16", "int8", "int4"]

SCHEMA_VERSION = 1
CACHE_FORMS: tuple[CacheForm, ...] = ("single", "split")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "int4")
# Beside a decoder there may be the same with the loop around it.
_BESIDE_A_DECODER = "generator"
# Beside everything there may be all of it in one graph, and a graph that says what was attended to.
WHOLE_ROLES = ("whole", "whole_text")
ATTENTION_ROLE = "attention"
LOWEST_OPSET: Mapping[Attention, int] = {"standard": 23, "decomposed": 18}
# A bundle is foreign input, and some session entries make ONNX Runtime write files: only these may be asked for.
SESSION_OPTIONS = (
    "session.disable_prepacking",
    "session.disable_quant_qdq",
    "session.enable_quant_qdq_cleanup",
    "session.intra_op.allow_spinning",
    "session.qdq_matmulnbits_accuracy_level",
    "session.set_denormal_as_zero",
    "session.x64quantprecision",
)


@dataclass(frozen=True)
class Graph:
    """One ONNX file of the bundle and the precision of its weights."""

    file: str
    precision: Precision


@dataclass(frozen=True)
class Provenance:
    """Where the bundle comes from. `from_bundle` names the bundle that this one was made from, if any."""

    source: str
    source_sha256: str
    command: str
    created_utc: str
    versions: Mapping[str, str]
    from_bundle: str | None = None


@dataclass(frozen=True)
class GoldenCase:
    """An input with the trained model's own output.

    text: the answer; None where it is so unsure that rounding may change it.
    question: about the image, for VQA; the transcript, for sentiment, where it is known.
    token_ids: generated, for captioning and generative VQA.
    query: the text embedded beside the image, for retrieval.
    """

    image: str
    tensors: str
    text: str | None = None
    question: str | None = None
    token_ids: tuple[int, ...] | None = None
    query: str | None = None

    @property
    def input_text(self) -> str | None:
        """The text beside the image, whatever the task calls it."""
        return self.question if self.query is None else self.query


@dataclass(frozen=True)
class Golden:
    """The golden cases and the largest relative root-mean-square difference that they may show."""

    relative_rms: float
    cases: tuple[GoldenCase, ...]


@dataclass(frozen=True)
class FileEntry:
    """SHA-256 (64 lower-case hexadecimal digits) and size of one file."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """All of manifest.json.

    `decoding` goes with a decoder, `labels` with a classifier, `similarity` with retrieval. A model that takes
    `regions` takes no image, and has no `image_steps`. `absent` says why a role of the whole model is not there.
    `cache` says whether that of a decoder is in two parts, of which one stays as it is from step to step.
    Of sentiment the steps are those of a frame; it has `speech` and `longest_frames` besides. `video_steps` are those
    of a frame of a video, for a model that takes videos as well as images.
    """

    name: str
    task: TaskName
    license: str
    attention: Attention
    opset: int
    graphs: Mapping[str, Graph]
    image_steps: tuple[Step, ...]
    tokenizer: TokenizerSpec
    provenance: Provenance
    golden: Golden
    files: Mapping[str, FileEntry]
    decoding: Decoding | None = None
    labels: tuple[str, ...] | None = None
    similarity: Similarity | None = None
    regions: RegionSpec | None = None
    speech: MelSpec | None = None
    longest_frames: int | None = None
    video_steps: tuple[Step, ...] | None = None
    cache: CacheForm = "single"
    session_options: Mapping[str, str] | None = None
    quantization: Mapping[str, Any] | None = None
    absent: Mapping[str, str] | None = None
    calibration: ConfidenceCalibration | None = None
    evaluation: tuple[Mapping[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The manifest as JSON values, keys in the order of the format's description; `parse` takes it back."""
        out: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "task": self.task,
            "license": self.license,
            "attention": self.attention,
            "opset": self.opset,
            "graphs": {role: asdict(graph) for role, graph in self.graphs.items()},
            "preprocessing": self._preprocessing(),
            "tokenizer": self.tokenizer.to_dict(),
        }
        if self.decoding is not None:
            out["decoding"] = self.decoding.to_dict()
        if self.cache != "single":
            out["cache"] = self.cache
        if self.labels is not None:
            out["labels"] = list(self.labels)
        if self.similarity is not None:
            out["similarity"] = asdict(self.similarity)
        if self.calibration is not None:
            out["calibration"] = dict(self.calibration.to_dict())
        if self.absent:
            out["absent"] = dict(self.absent)
        out |= {
            "session_options": dict(self.session_options or {}),
            "provenance": _plain(asdict(self.provenance)),
        }
        if self.quantization is not None:
            out["quantization"] = dict(self.quantization)
        return out | {
            "evaluation": [dict(record) for record in self.evaluation],
            "golden": {
                "relative_rms": self.golden.relative_rms,
                "cases": [_plain(asdict(case)) for case in self.golden.cases],
            },
            "files": {path: asdict(entry) for path, entry in self.files.items()},
        }

    def _preprocessing(self) -> dict[str, Any]:
        if self.regions is not None:
            return {"regions": asdict(self.regions)}
        out: dict[str, Any] = {"image": [step_to_dict(step) for step in self.image_steps]}
        if self.speech is not None:
            out |= {"speech": asdict(self.speech), "frames": {"longest": self.longest_frames}}
        if self.video_steps is not None:
            out["video"] = [step_to_dict(step) for step in self.video_steps]
        return out


def parse(data: object, file: str = "manifest.json") -> Manifest:
    """Typed manifest of `data`, as `json.load` gave it; `file` stands in the errors.

    Raises BundleError, which names file, key, expected and found, for another schema version, a key that is missing,
    unknown or of a wrong value, a path that leaves the bundle, or a file that is used and not listed.
    """
    root = ObjectReader(data, file)
    _check_schema_version(root, file)
    task = cast(TaskName, root.text("task", choices=tuple(TASKS)))
    spec = TASKS[task]
    attention = cast(Attention, root.text("attention", choices=tuple(LOWEST_OPSET)))
    preprocessing = root.child("preprocessing")
    takes_regions = "regions" in preprocessing
    graphs = _graphs(root.child("graphs"), spec)
    tokenizer = read_tokenizer(root.child("tokenizer"))
    manifest = Manifest(
        name=root.text("name", pattern="[a-z0-9][a-z0-9._-]*"),
        task=task,
        license=root.text("license"),
        attention=attention,
        opset=root.integer("opset", minimum=LOWEST_OPSET[attention]),
        graphs=graphs,
        image_steps=() if takes_regions else parse_steps(preprocessing.children("image"), file),
        tokenizer=tokenizer,
        # Where the image stands in the text, there always is a prompt.
        decoding=read_decoding(root.child("decoding"), needs_prompt=tokenizer.image_layout is None)
        if "decoder" in graphs
        else None,
        cache=cast(CacheForm, root.text("cache", choices=CACHE_FORMS)) if "cache" in root else "single",
        labels=root.texts("labels") if "classifier" in graphs else None,
        similarity=read_similarity(root.child("similarity")) if spec.has_similarity else None,
        calibration=read_calibration(root.child("calibration")) if "calibration" in root else None,
        speech=read_mel_spec(preprocessing.child("speech")) if spec.has_speech else None,
        longest_frames=_longest_frames(preprocessing.child("frames")) if spec.has_speech else None,
        video_steps=parse_steps(preprocessing.children("video"), file) if "video" in preprocessing else None,
        regions=read_region_spec(preprocessing.child("regions")) if takes_regions else None,
        session_options=_session_options(root),
        absent=root.text_map("absent") if "absent" in root else None,
        provenance=_provenance(root.child("provenance")),
        quantization=_quantization(root) if "quantization" in root else None,
        evaluation=_evaluation(root),
        golden=_golden(root.child("golden"), spec, graphs),
        files=_files(root.child("files"), file),
    )
    preprocessing.finish()
    root.finish()
    _check_listed(manifest, file)
    return manifest


def _check_schema_version(root: ObjectReader, file: str) -> None:
    version = root.raw("schema_version", str(SCHEMA_VERSION))
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise BundleError(
            f"{file}: schema_version: expected {SCHEMA_VERSION}, the one version that this runtime reads, "
            f"found {show(version)}; install the xattn-edge that wrote the bundle, or export it again with this one"
        )


def _graphs(reader: ObjectReader, spec: TaskSpec) -> dict[str, Graph]:
    roles = min(spec.roles, key=lambda roles: len(set(roles) ^ set(reader)))
    if "decoder" in roles and _BESIDE_A_DECODER in reader:
        roles = (*roles, _BESIDE_A_DECODER)
    if spec.has_whole_graphs:
        roles = (*roles, *(role for role in (*WHOLE_ROLES, ATTENTION_ROLE) if role in reader))
    graphs = {}
    for role in roles:
        graph = reader.child(role)
        graphs[role] = Graph(graph.path("file"), cast(Precision, graph.text("precision", choices=PRECISIONS)))
        graph.finish()
    reader.finish()
    return graphs


def _longest_frames(reader: ObjectReader) -> int:
    longest = reader.integer("longest", minimum=1)
    reader.finish()
    return longest


def _session_options(root: ObjectReader) -> dict[str, str]:
    options = root.text_map("session_options")
    for key in options:
        if key not in SESSION_OPTIONS:
            root.fail("session_options", f"only {', '.join(SESSION_OPTIONS)}", key)
    return options


def _provenance(reader: ObjectReader) -> Provenance:
    provenance = Provenance(
        source=reader.text("source"),
        source_sha256=reader.text("source_sha256"),
        command=reader.text("command"),
        created_utc=reader.text("created_utc"),
        versions=reader.text_map("versions"),
        from_bundle=reader.text("from_bundle") if "from_bundle" in reader else None,
    )
    reader.finish()
    return provenance


def _quantization(root: ObjectReader) -> Mapping[str, Any]:
    record = root.raw("quantization", "an object")
    if not isinstance(record, dict):
        root.fail("quantization", "an object", record)
    return cast("dict[str, Any]", record)


def _evaluation(root: ObjectReader) -> tuple[Mapping[str, Any], ...]:
    records = root.items("evaluation", "a list of objects")
    if not all(isinstance(record, dict) for record in records):
        root.fail("evaluation", "a list of objects", records)
    return tuple(cast("list[dict[str, Any]]", records))


def _golden(reader: ObjectReader, spec: TaskSpec, roles: Collection[str]) -> Golden:
    cases = tuple(_case(case, spec, roles) for case in reader.children("cases"))
    golden = Golden(reader.positive("relative_rms"), cases)
    if not golden.cases:
        reader.fail("cases", "at least one golden case", [])
    reader.finish()
    return golden


def _case(reader: ObjectReader, spec: TaskSpec, roles: Collection[str]) -> GoldenCase:
    def question_or_query(key: str) -> str | None:
        has_it = spec.text_key == key and (spec.text_required or key in reader)
        return reader.text(key) if has_it else None

    case = GoldenCase(
        image=reader.path("image"),
        tensors=reader.path("tensors"),
        # A model may caption an image with no word.
        text=reader.any_text("text") if "text" in reader else None,
        question=question_or_query("question"),
        token_ids=reader.integers("token_ids") if "decoder" in roles else None,
        query=question_or_query("query"),
    )
    reader.finish()
    return case


def _files(reader: ObjectReader, file: str) -> dict[str, FileEntry]:
    entries = {}
    for path in reader:
        reason = "it is the manifest" if path == "manifest.json" else unsafe_path_reason(path)
        if reason is not None:
            raise BundleError(
                f"{file}: files: expected a relative path inside the bundle ({reason}), found {show(path)}"
            )
        entry = reader.child(path)
        entries[path] = FileEntry(entry.text("sha256", pattern="[0-9a-f]{64}"), entry.integer("bytes"))
        entry.finish()
    return entries


def _check_listed(manifest: Manifest, file: str) -> None:
    used = [graph.file for graph in manifest.graphs.values()]
    used.append(manifest.tokenizer.file)
    for case in manifest.golden.cases:
        used += [case.image, case.tensors]
    for path in used:
        if path not in manifest.files:
            raise BundleError(f"{file}: files: expected an entry for {show(path)}, which the manifest uses, found none")


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Without None, and with lists for tuples."""
    present = {key: value for key, value in values.items() if value is not None}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in present.items()}
