"""Golden cases: pictures with what the trained model itself computes on them, in torch and float32.

Pictures go through the runtime's own preprocessing, so that a case covers the whole way from file to answer. It knows
what a source can compute, and no graph: nothing here comes from the exported model.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from xattn_export.families.base import Generated, GoldenPicture, Source
from xattn_runtime.bundle.manifest import GoldenCase
from xattn_runtime.errors import QuestionError, XattnError
from xattn_runtime.preprocess.image import open_image
from xattn_runtime.preprocess.pipeline import Pipeline
from xattn_runtime.preprocess.regions import RegionReader
from xattn_runtime.preprocess.text import TextCodec
from xattn_runtime.preprocess.tokenizer import Grid
from xattn_runtime.tasks.sentiment import Utterance, UtteranceReader, read_utterance
from xattn_runtime.verify.golden import least_lead

__all__ = ["FP32_RELATIVE_RMS", "GoldenSet", "make_golden"]

FP32_RELATIVE_RMS = 1e-3
"""What an fp32 bundle may differ by on any device."""

_MOST_CASES = 8
# Of drawn pictures, where the model itself generates a text for each of them.
_MOST_GENERATED_FROM = 3
_FEWEST_CASES = 3
_MADE_UP_WORDS = 4
_SAMPLE, _REGIONS = "sample.npz", "regions.npz"
_PNG = b"\x89PNG"
# A lead of the best logit over the next, as a share of their root-mean-square, that rounding on no device turns.
_SAFE_LEAD = 1e-3


@dataclass(frozen=True)
class GoldenSet:
    """The cases of the manifest, and the files they name with their content."""

    cases: tuple[GoldenCase, ...]
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class _Computed:
    """A case in the making. `lead` says how sure the model is; `text` is None where that is not enough."""

    picture: int
    png: bytes
    tensors: Mapping[str, NDArray[np.float32]]
    lead: float
    text: str | None = None
    question: str | None = None
    token_ids: tuple[int, ...] | None = None
    query: str | None = None


@dataclass(frozen=True)
class _Pixels:
    """Pixel values `[1, 3, height, width]`, or in tiles `[1, tiles, 3, height, width]`; and how the picture was cut."""

    values: Tensor
    grid: Grid


_Cases = Callable[[Source, TextCodec, Any, Sequence[str]], Iterator[_Computed]]


def make_golden(source: Source, codec: TextCodec, images: Sequence[Path] | None = None) -> GoldenSet:
    """The golden cases of `source` on `images`, or on pictures that its family draws.

    At most eight of the drawn cases are kept, those in which the model is surest of every token; all of given images.

    Raises:
        ImageError: one of `images` cannot be used.
        XattnError: the tokenizer knows no word to ask a question of.
    """
    drawn = source.pictures() if source.generate is None else source.pictures()[:_MOST_GENERATED_FROM]
    pictures = drawn if images is None else _given(source, images, drawn)
    prepare = _preparation(source)
    cases_of = _cases_of(source)
    computed: list[_Computed] = []
    with torch.inference_mode():
        for number, picture in enumerate(pictures):
            cases = cases_of(source, codec, prepare(picture.png), picture.questions)
            computed += [replace(case, picture=number, png=picture.png) for case in cases]
    if not computed:
        raise XattnError("golden cases: there is no picture to make one of")
    return _files(computed if images is not None else _surest(computed), _SAMPLE if source.speech else _REGIONS)


def _preparation(source: Source) -> Callable[[bytes], Any]:
    """A file's bytes to what the source computes on: pixels, or the inputs made of regions, in a batch of 1."""
    if source.speech is not None:
        return lambda data: data
    if source.regions is None:
        return partial(_pixels, Pipeline(source.image_steps))
    reader = RegionReader(source.regions)
    return lambda data: {name: torch.from_numpy(values)[None] for name, values in reader(data).items()}


def _pixels(pipeline: Pipeline, data: bytes) -> _Pixels:
    tiles = pipeline.tiles(data)
    values = torch.from_numpy(tiles.pixels)
    return _Pixels(values[None] if pipeline.tiled else values, (tiles.rows, tiles.columns))


def _given(source: Source, images: Sequence[Path], drawn: Sequence[GoldenPicture]) -> tuple[GoldenPicture, ...]:
    """The user's pictures as PNG files of the very same pixels, without what else their files hold; or regions."""
    questions = tuple(dict.fromkeys(question for picture in drawn for question in picture.questions))
    pictures = []
    for number, path in enumerate(images):
        stream = io.BytesIO()
        if source.regions is None:
            open_image(path).save(stream, "PNG")
        else:
            found = RegionReader(source.regions)(path)
            arrays = {key: found[name] for name, (key, _) in source.regions.arrays.items()}
            np.savez_compressed(stream, allow_pickle=False, **arrays)
        asked = (questions[number % len(questions)],) if questions else ()
        pictures.append(GoldenPicture(stream.getvalue(), asked))
    return tuple(pictures)


def _cases_of(source: Source) -> _Cases:
    """How cases are made of what the source can compute."""
    if source.task == "retrieval":
        return _retrieval_cases
    if source.task == "sentiment":
        return _sentiment_cases
    if source.decoding is not None:
        return _generated_cases
    return _answer_cases if source.regions is None else _region_cases


def _generated_cases(
    source: Source, codec: TextCodec, pixels: _Pixels, questions: Sequence[str]
) -> Iterator[_Computed]:
    # A question that a decoder goes on from is no text of its own.
    special = any(role.name == "text_encoder" for role in source.roles)

    def ids_of(question: str | None) -> tuple[int, ...]:
        if question is None:
            return codec.encode_prompt(grid=pixels.grid)
        return codec.encode_question(question, special_tokens=special, grid=pixels.grid).ids

    for question in (None,) if source.task == "caption" else _known_questions(source, codec, questions):
        found = _generate(source, pixels.values, ids_of(question))
        text = codec.decode(found.token_ids) if found.steady else None
        tensors = {"logits": found.logits}
        yield _Computed(0, b"", tensors, least_lead(found.logits), text, question, found.token_ids)


def _generate(source: Source, pixel_values: Tensor, question_ids: tuple[int, ...]) -> Generated:
    if source.generate is not None:
        return source.generate(pixel_values, question_ids)
    if source.caption is None or source.forced_logits is None:
        raise XattnError(f"{source.name}: its family says not how it generates")
    token_ids = source.caption(pixel_values)
    logits = source.forced_logits(pixel_values, token_ids).numpy()
    return Generated(token_ids, logits, steady=least_lead(logits) >= _SAFE_LEAD)


def _answer_cases(source: Source, codec: TextCodec, pixels: _Pixels, questions: Sequence[str]) -> Iterator[_Computed]:
    if source.answer_logits is None:
        raise XattnError(f"{source.name}: its family says not how it answers")
    yield from _chosen_cases(source, codec, partial(source.answer_logits, pixels.values), questions)


def _region_cases(
    source: Source, codec: TextCodec, regions: Mapping[str, Tensor], questions: Sequence[str]
) -> Iterator[_Computed]:
    if source.answer_regions is None:
        raise XattnError(f"{source.name}: its family says not how it answers")
    yield from _chosen_cases(source, codec, partial(source.answer_regions, regions), questions)


def _chosen_cases(
    source: Source, codec: TextCodec, answer: Callable[[tuple[int, ...]], Tensor], questions: Sequence[str]
) -> Iterator[_Computed]:
    if source.labels is None:
        raise XattnError(f"{source.name}: its family says not what it answers with")
    for question in _known_questions(source, codec, questions):
        logits = answer(codec.encode_question(question).ids).numpy()
        lead = least_lead(logits)
        text = source.labels[int(logits.argmax())] if lead >= _SAFE_LEAD else None
        yield _Computed(0, b"", {"logits": logits}, lead, text, question)


def _retrieval_cases(source: Source, codec: TextCodec, pixels: _Pixels, queries: Sequence[str]) -> Iterator[_Computed]:
    if source.embed_image is None or source.embed_text is None:
        raise XattnError(f"{source.name}: its family says not how it embeds")
    image = source.embed_image(pixels.values).numpy()
    for query in _known_questions(source, codec, queries):
        ids = codec.encode_question(query).ids
        tensors = {"image_embeddings": image, "text_embeddings": source.embed_text(ids).numpy()}
        if source.match is not None:
            logits = [float(source.match(pixels.values, ids[:end])) for end in range(1, len(ids) + 1)]
            tensors["match"] = np.array([0.0, *logits], dtype=np.float32)
        yield _Computed(0, b"", tensors, _SAFE_LEAD, query=query)


def _sentiment_cases(source: Source, codec: TextCodec, data: bytes, texts: Sequence[str]) -> Iterator[_Computed]:
    if source.label_logits is None or source.labels is None:
        raise XattnError(f"{source.name}: its family says not how it tells labels apart")
    if source.speech is None or source.longest_frames is None:
        raise XattnError(f"{source.name}: its family says not how speech and frames are prepared")
    read = UtteranceReader(codec, source.speech, source.image_steps, source.longest_frames)
    # A text of words that are all unknown is no case, but a sample may go without one.
    for text in [text for text in texts if _is_known(codec, text)] or (None,):
        sample = read_utterance(io.BytesIO(data), text)
        if sample == Utterance():
            continue
        inputs = {name: torch.from_numpy(values) for name, values in read(sample)[0].items()}
        logits = source.label_logits(inputs).numpy()
        lead = least_lead(logits)
        label = source.labels[int(logits.argmax())] if lead >= _SAFE_LEAD else None
        yield _Computed(0, b"", {"logits": logits}, lead, label, text)


def _known_questions(source: Source, codec: TextCodec, questions: Sequence[str]) -> tuple[str, ...]:
    """Those of `questions` whose every word the model knows; else one made of words that it does know."""
    known = tuple(question for question in questions if _is_known(codec, question))
    if known:
        return known
    vocabulary: dict[str, int] = Tokenizer.from_str(source.tokenizer_json).get_vocab(with_added_tokens=False)
    words = [word for word in sorted(vocabulary, key=vocabulary.__getitem__) if word.isalnum()]
    question = " ".join(words[: min(_MADE_UP_WORDS, source.max_tokens)])
    if not _is_known(codec, question):
        raise XattnError(f"{source.name}: its tokenizer knows no word to make a golden question of")
    return (question,)


def _is_known(codec: TextCodec, question: str) -> bool:
    try:
        return not codec.encode_question(question).unknown_words
    except QuestionError:
        return False


def _surest(computed: Sequence[_Computed]) -> list[_Computed]:
    """The cases in which the model is surest, in the order they came; a few without text where it is sure of none."""
    ranked = sorted(computed, key=lambda case: (case.text is not None, case.lead), reverse=True)
    sure = [case for case in ranked if case.text is not None or case.query is not None]
    kept = sure[:_MOST_CASES] or ranked[:_FEWEST_CASES]
    return [case for case in computed if any(case is one for one in kept)]


def _files(computed: Sequence[_Computed], other: str) -> GoldenSet:
    """The cases and their files; `other` is the ending of inputs that are no pictures."""
    files: dict[str, bytes] = {}
    cases = []
    for number, case in enumerate(computed):
        kind = "png" if case.png.startswith(_PNG) else other
        image, tensors = f"golden/{case.picture}.{kind}", f"golden/{number}.npz"
        stream = io.BytesIO()
        np.savez_compressed(stream, allow_pickle=False, **case.tensors)
        files |= {image: case.png, tensors: stream.getvalue()}
        cases.append(GoldenCase(image, tensors, case.text, case.question, case.token_ids, case.query))
    return GoldenSet(tuple(cases), files)
