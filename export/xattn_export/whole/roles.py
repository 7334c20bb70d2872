"""Writes the roles `whole` and `whole_text` into a staged bundle, or gives the reason why it cannot have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from onnx import ModelProto, TensorProto

from xattn_export.bundle.graph_files import write_graph
from xattn_export.bundle.writer import StagedBundle
from xattn_export.graph.conformance import require_standard, require_valid
from xattn_export.graph.generator import GENERATOR, LOOPED, generator_graph
from xattn_export.graph.reading import read_graph
from xattn_export.whole.composition import Composition, compose, new_composition
from xattn_export.whole.pixels import unwritable_step
from xattn_export.whole.questions import QuestionWords, question_words, write_question
from xattn_export.whole.texts import TokenTexts, token_texts, write_labels, write_texts
from xattn_runtime.bundle.graph_facts import GraphFacts
from xattn_runtime.bundle.manifest import PRECISIONS, WHOLE_ROLES, Graph, Manifest
from xattn_runtime.bundle.task_table import TASKS
from xattn_runtime.preprocess.text import TextCodec

__all__ = ["WHOLE", "WHOLE_TEXT", "WholeGraphs", "left_out", "write_whole_graphs"]

WHOLE, WHOLE_TEXT = WHOLE_ROLES
_LOWEST_OPSET_OF_STRINGS = 20
_QUESTION = "input_ids"


@dataclass(frozen=True)
class WholeGraphs:
    """What was written: role → file, facts and size in bytes; and role → why it is absent."""

    files: dict[str, str] = field(default_factory=dict)
    facts: dict[str, GraphFacts] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def stated(self, manifest: Manifest) -> Manifest:
        """`manifest` with these roles, of the least precision of the others, and why what is absent is absent."""
        others = {role: graph for role, graph in manifest.graphs.items() if role not in WHOLE_ROLES}
        least = max((graph.precision for graph in others.values()), key=PRECISIONS.index)
        written = {role: Graph(file, least) for role, file in self.files.items()}
        return replace(manifest, graphs={**others, **written}, absent=dict(self.absent) or None)


def left_out() -> WholeGraphs:
    """Neither role, as requested by the user."""
    reason = "it was left out; export again without --no-whole"
    return WholeGraphs(absent={WHOLE: reason, WHOLE_TEXT: reason})


def write_whole_graphs(staged: StagedBundle, manifest: Manifest) -> WholeGraphs:
    """Write both roles as far as the bundle can have them.

    The other graphs and the tokenizer are written already, as `manifest` says. Raises XattnError where the result
    is not standard, or not valid.
    """
    whole_graphs = WholeGraphs()
    reason = _obstacle(manifest)
    graphs = {} if reason else _graphs(staged, manifest)
    if reason := reason or _fixed_axis(graphs):
        whole_graphs.absent.update({WHOLE: reason, WHOLE_TEXT: reason})
        return whole_graphs
    spec = TASKS[manifest.task]
    codec = TextCodec(staged.folder / manifest.tokenizer.file, manifest.tokenizer)
    prompt_ids = codec.encode_prompt() if spec.text_key is None else ()
    composition = new_composition()
    question = None
    if spec.text_key is not None:
        question = _QUESTION
        composition.inputs[_QUESTION] = (TensorProto.INT64, ["batch", "length"])
    compose(composition, manifest, graphs, prompt_ids, question)
    _write(staged, manifest, whole_graphs, WHOLE, composition.model(WHOLE, graphs["image_encoder"]))
    words = _words(staged, manifest, codec, graphs)
    if isinstance(words, str):
        whole_graphs.absent[WHOLE_TEXT] = words
    else:
        model = _with_words(manifest, graphs, prompt_ids, *words)
        _write(staged, manifest, whole_graphs, WHOLE_TEXT, model.model(WHOLE_TEXT, graphs["image_encoder"]))
    return whole_graphs


def _obstacle(manifest: Manifest) -> str | None:
    """Why there can be no graph of the whole model."""
    if not TASKS[manifest.task].has_whole_graphs:
        return f"the bundle is for {manifest.task}"
    if manifest.regions is not None:
        return "the model takes regions in place of an image"
    if manifest.tokenizer.image_layout is not None:
        return "the image stands among the tokens of the prompt"
    if manifest.cache != "single":
        return "the cache of the decoder is split; export again with --cache single"
    if "decoder" in manifest.graphs and GENERATOR not in manifest.graphs:
        return "decoding changes the scores of tokens, which the loop in the graph does not do"
    return unwritable_step(manifest.image_steps)


def _fixed_axis(graphs: Mapping[str, ModelProto]) -> str | None:
    batch = graphs["image_encoder"].graph.input[0].type.tensor_type.shape.dim[0]
    return "the image encoder takes one image at a time" if batch.HasField("dim_value") else None


def _graphs(staged: StagedBundle, manifest: Manifest) -> dict[str, ModelProto]:
    """The graphs to be joined, with their weights left in their files."""
    joined = {
        role: read_graph(staged.folder / graph.file)
        for role, graph in manifest.graphs.items()
        if role in ("image_encoder", "text_encoder", "classifier", LOOPED)
    }
    if LOOPED in joined:
        # Outside of the loop as far as can be: ONNX Runtime for the web finds no file of weights inside of one.
        joined[GENERATOR] = generator_graph(joined.pop(LOOPED), weights_outside=True)
    return joined


def _words(
    staged: StagedBundle, manifest: Manifest, codec: TextCodec, graphs: Mapping[str, ModelProto]
) -> tuple[TokenTexts | None, QuestionWords | None] | str:
    """How token ids become words, and questions token ids, as far as the task needs it; or why they cannot."""
    opset = next((entry.version for entry in graphs["image_encoder"].opset_import if not entry.domain), 0)
    if opset < _LOWEST_OPSET_OF_STRINGS:
        return f"opset {opset} has no StringConcat; export with --opset {_LOWEST_OPSET_OF_STRINGS} or later"
    vocabulary: QuestionWords | None = None
    if TASKS[manifest.task].text_key is not None:
        tokenizer_json = (staged.folder / manifest.tokenizer.file).read_text(encoding="utf-8")
        read = question_words(codec, tokenizer_json, manifest.tokenizer)
        if isinstance(read, str):
            return read
        vocabulary = read
    if manifest.labels is not None:
        return None, vocabulary
    logits = next(tensor for tensor in _decoder(staged, manifest).graph.output if tensor.name == "logits")
    texts = token_texts(codec, logits.type.tensor_type.shape.dim[1].dim_value)
    return texts if isinstance(texts, str) else (texts, vocabulary)


def _decoder(staged: StagedBundle, manifest: Manifest) -> ModelProto:
    """The decoder, its weights left in their file."""
    return read_graph(staged.folder / manifest.graphs[LOOPED].file)


def _with_words(
    manifest: Manifest,
    graphs: Mapping[str, ModelProto],
    prompt_ids: tuple[int, ...],
    texts: TokenTexts | None,
    vocabulary: QuestionWords | None,
) -> Composition:
    composition = new_composition()
    writer = composition.writer
    question = None
    if vocabulary is not None:
        composition.inputs["questions"] = (TensorProto.STRING, ["batch"])
        question = write_question(writer, "questions", vocabulary)
    compose(composition, manifest, graphs, prompt_ids, question)
    if texts is not None:
        is_followed = "text_encoder" not in graphs and (question is not None or bool(prompt_ids))
        shown = () if manifest.decoding is None else manifest.decoding.shown_prompt(is_followed=is_followed)
        strings = write_texts(writer, "token_ids", texts, shown)
    else:
        strings = write_labels(writer, "answer_ids", manifest.labels or ())
    writer.publish(strings, "texts")
    composition.outputs = {"texts": (TensorProto.STRING, ["batch"]), **composition.outputs}
    return composition


def _write(staged: StagedBundle, manifest: Manifest, whole_graphs: WholeGraphs, role: str, model: ModelProto) -> None:
    file = str(PurePosixPath(manifest.graphs["image_encoder"].file).with_name(f"{role}.onnx"))
    whole_graphs.facts[role] = require_standard(model, role)
    require_valid(model, role, staged.folder / PurePosixPath(file).parent)
    whole_graphs.bytes[role] = write_graph(staged, file, model)
    whole_graphs.files[role] = file
