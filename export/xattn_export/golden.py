"""Golden cases: inputs with what the original model itself computes of them, in torch and float32.

Inputs go through the runtime's own preprocessing, so that a case covers the whole way from file to answer. Each kind of
model has one function here. It knows what a source can compute, and no graph: nothing here comes from the exported
model.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from xattn_export.families.base import (
    SAFE_LEAD,
    Chooses,
    ChoosesOverRegions,
    Embeds,
    Generates,
    GoldenInput,
    Labels,
    Source,
)
from xattn_runtime.bundle.manifest import GoldenCase
from xattn_runtime.errors import QuestionError, XattnError
from xattn_runtime.preprocess.image import open_image
from xattn_runtime.preprocess.pipeline import Pipeline
from xattn_runtime.preprocess.regions import RegionReader, RegionSpec
from xattn_runtime.preprocess.text import TextCodec
from xattn_runtime.preprocess.tokenizer import PromptImages
from xattn_runtime.tasks.sentiment import Utterance, UtteranceReader, read_utterance
from xattn_runtime.verify.golden import least_lead

__all__ = ["FP32_RELATIVE_RMS", "GoldenSet", "make_golden"]

FP32_RELATIVE_RMS = 1e-3
"""What an fp32 bundle may differ by on any device."""

_MOST_CASES = 8
_FEWEST_CASES = 3
_MADE_UP_WORDS = 4


@dataclass(frozen=True)
class GoldenSet:
    """The cases of the manifest, and the files they name with their content."""

    cases: tuple[GoldenCase, ...]
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class _Computed:
    """The outputs of the model for an input. `lead`: how sure the model is; `text` is None where that is too little."""

    tensors: Mapping[str, NDArray[np.float32]]
    lead: float
    text: str | None = None
    question: str | None = None
    token_ids: tuple[int, ...] | None = None
    query: str | None = None


@dataclass(frozen=True)
class _Case:
    """A candidate case: the outputs for the input with this number."""

    number: int
    content: bytes
    computed: _Computed


@dataclass(frozen=True)
class _Texts:
    """The texts that golden cases ask or seek."""

    source: Source
    codec: TextCodec

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, by the original's own tokenizer where there is one."""
        return (self.source.tokenizer.decode or self.codec.decode)(ids)

    def is_known(self, text: str) -> bool:
        """Whether the model knows every word of `text`."""
        try:
            return not self.codec.encode_question(text).unknown_words
        except QuestionError:
            return False

    def known(self, texts: Sequence[str]) -> tuple[str, ...]:
        """Those of `texts` whose every word the model knows; else one made of words that it does know."""
        known = tuple(text for text in texts if self.is_known(text))
        if known:
            return known
        tokenizer = Tokenizer.from_str(self.source.tokenizer.json)
        vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=False)
        words = [word for word in sorted(vocabulary, key=vocabulary.__getitem__) if word.isalnum()]
        made_up = " ".join(words[: min(_MADE_UP_WORDS, self.source.tokenizer.spec.max_tokens)])
        if not self.is_known(made_up):
            raise XattnError(f"{self.source.name}: its tokenizer knows no word to make a golden question of")
        return (made_up,)


_Compute = Callable[[GoldenInput], Iterator[_Computed]]


def make_golden(source: Source, codec: TextCodec, images: Sequence[Path] | None = None) -> GoldenSet:
    """The golden cases of `source` on `images`, or on the inputs that its family brings.

    At most eight of the family's cases are kept, those in which the model is surest of every token; all of `images`.

    Raises:
        ImageError: one of `images` cannot be used.
        XattnError: the tokenizer knows no word to ask a question of.
    """
    inputs = source.golden_inputs if images is None else _own_inputs(source, images)
    compute = _compute(source, _Texts(source, codec))
    with torch.inference_mode():
        cases = [
            _Case(number, each.content, computed) for number, each in enumerate(inputs) for computed in compute(each)
        ]
    if not cases:
        raise XattnError("golden cases: there is no input to make one of")
    return _files(cases if images is not None else _surest(cases), _ending(source))


def _own_inputs(source: Source, images: Sequence[Path]) -> tuple[GoldenInput, ...]:
    """The user's images as PNG files of the very same pixels, without what else their files hold; or regions."""
    questions = tuple(dict.fromkeys(text for drawn in source.golden_inputs for text in drawn.texts))
    inputs = []
    for number, path in enumerate(images):
        texts = (questions[number % len(questions)],) if questions else ()
        if isinstance(source.reference, ChoosesOverRegions):
            inputs.append(GoldenInput(_regions_npz(source.reference.regions, path), texts))
        else:
            stream = io.BytesIO()
            open_image(path).save(stream, "PNG")
            inputs.append(GoldenInput(stream.getvalue(), texts))
    return tuple(inputs)


def _regions_npz(spec: RegionSpec, path: Path) -> bytes:
    regions = RegionReader(spec)(path)
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **{key: regions[name] for name, (key, _) in spec.arrays.items()})
    return stream.getvalue()


def _compute(source: Source, texts: _Texts) -> _Compute:
    """What makes cases of an input, by the kind of the model."""
    match source.reference:
        case Generates() as reference:
            # A question that a decoder continues is no text of its own.
            special = any(role.name == "text_encoder" for role in source.roles)
            return partial(_generated, reference, Pipeline(reference.image_steps), texts, special)
        case Chooses() as reference:
            return partial(_chosen, reference, Pipeline(reference.image_steps), texts)
        case ChoosesOverRegions() as reference:
            return partial(_chosen_over_regions, reference, RegionReader(reference.regions), texts)
        case Embeds() as reference:
            return partial(_embedded, reference, Pipeline(reference.image_steps), texts)
        case Labels() as reference:
            steps = reference.frame_steps
            reader = UtteranceReader(texts.codec, reference.speech, steps, reference.longest_frames)
            return partial(_labelled, reference, reader, texts)
        case _ as never:
            assert_never(never)


def _generated(
    reference: Generates, pipeline: Pipeline, texts: _Texts, special: bool, golden: GoldenInput
) -> Iterator[_Computed]:
    pixels, images = _pixels(pipeline, golden.content)
    questions: tuple[str | None, ...] = texts.known(golden.texts) if golden.texts else (None,)
    for question in questions:
        if question is None:
            ids = texts.codec.encode_prompt(images=images)
        else:
            ids = texts.codec.encode_question(question, special_tokens=special, images=images).ids
        output = reference.generate(pixels, ids)
        shown = reference.decoding.shown_prompt(is_followed=bool(ids) and not special)
        text = texts.decode((*shown, *output.token_ids)) if output.steady else None
        yield _Computed({"logits": output.logits}, least_lead(output.logits), text, question, output.token_ids)


def _chosen(reference: Chooses, pipeline: Pipeline, texts: _Texts, golden: GoldenInput) -> Iterator[_Computed]:
    pixels, _ = _pixels(pipeline, golden.content)
    for question in texts.known(golden.texts):
        logits = reference.answer_logits(pixels, texts.codec.encode_question(question).ids)
        yield _label(reference.labels, logits, question)


def _chosen_over_regions(
    reference: ChoosesOverRegions, reader: RegionReader, texts: _Texts, golden: GoldenInput
) -> Iterator[_Computed]:
    regions = {name: torch.from_numpy(values)[None] for name, values in reader(golden.content).items()}
    for question in texts.known(golden.texts):
        logits = reference.answer_logits(regions, texts.codec.encode_question(question).ids)
        yield _label(reference.labels, logits, question)


def _embedded(reference: Embeds, pipeline: Pipeline, texts: _Texts, golden: GoldenInput) -> Iterator[_Computed]:
    pixels, _ = _pixels(pipeline, golden.content)
    image = reference.embed_image(pixels).numpy()
    for query in texts.known(golden.texts):
        ids = texts.codec.encode_question(query).ids
        tensors = {"image_embeddings": image, "text_embeddings": reference.embed_text(ids).numpy()}
        if reference.match is not None:
            logits = [float(reference.match(pixels, ids[:end])) for end in range(1, len(ids) + 1)]
            tensors["match"] = np.array([0.0, *logits], dtype=np.float32)
        yield _Computed(tensors, SAFE_LEAD, query=query)


def _labelled(reference: Labels, reader: UtteranceReader, texts: _Texts, golden: GoldenInput) -> Iterator[_Computed]:
    # A text of words that are all unknown is no case, but a sample may go without one.
    for text in [text for text in golden.texts if texts.is_known(text)] or (None,):
        sample = read_utterance(io.BytesIO(golden.content), text)
        if sample == Utterance():
            continue
        inputs = {name: torch.from_numpy(values) for name, values in reader(sample)[0].items()}
        yield _label(reference.labels, reference.label_logits(inputs), text)


def _pixels(pipeline: Pipeline, content: bytes) -> tuple[Tensor, PromptImages]:
    """Pixel values as `Generates` has them, and how the image was cut."""
    if pipeline.patch is not None:
        patches, merge = pipeline.patches(content), pipeline.patch.merge
        rows, columns = patches.rows // merge, patches.columns // merge
        values = torch.from_numpy(patches.values).reshape(1, rows, columns, merge**2, -1)
        return values, PromptImages(((rows, columns),))
    tiles = pipeline.tiles(content)
    values = torch.from_numpy(tiles.pixels)
    return values[None] if pipeline.tiled else values, PromptImages(((tiles.rows, tiles.columns),))


def _label(labels: Sequence[str], logits: Tensor, question: str | None) -> _Computed:
    """The best of `labels` by logits `[labels]`."""
    values: NDArray[np.float32] = logits.numpy()
    lead = least_lead(values)
    return _Computed({"logits": values}, lead, labels[int(values.argmax())] if lead >= SAFE_LEAD else None, question)


def _surest(cases: Sequence[_Case]) -> list[_Case]:
    """The cases in which the model is surest, in the order they came; a few without text where it is sure of none."""
    ranked = sorted(cases, key=lambda case: (case.computed.text is not None, case.computed.lead), reverse=True)
    sure = [case for case in ranked if case.computed.text is not None or case.computed.query is not None]
    chosen = sure[:_MOST_CASES] or ranked[:_FEWEST_CASES]
    return [case for case in cases if any(case is one for one in chosen)]


def _ending(source: Source) -> str:
    """Of the files that hold the inputs."""
    match source.reference:
        case ChoosesOverRegions():
            return "regions.npz"
        case Labels():
            return "sample.npz"
        case _:
            return "png"


def _files(cases: Sequence[_Case], ending: str) -> GoldenSet:
    files: dict[str, bytes] = {}
    golden = []
    for number, case in enumerate(cases):
        made = case.computed
        image, tensors = f"golden/{case.number}.{ending}", f"golden/{number}.npz"
        stream = io.BytesIO()
        np.savez_compressed(stream, allow_pickle=False, **made.tensors)
        files |= {image: case.content, tensors: stream.getvalue()}
        golden.append(GoldenCase(image, tensors, made.text, made.question, made.token_ids, made.query))
    return GoldenSet(tuple(golden), files)
