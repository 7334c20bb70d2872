"""Golden cases: pictures with what the trained model itself computes on them, in torch and float32.

Pictures go through the runtime's own preprocessing, so that a case covers the whole way from file to answer. It knows
what a source can compute, and no graph: nothing here comes from the exported model.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from xattn_export.families.base import GoldenPicture, Source
from xattn_runtime.errors import QuestionError, XattnError
from xattn_runtime.manifest import GoldenCase
from xattn_runtime.preprocess.image import open_image
from xattn_runtime.preprocess.pipeline import Pipeline
from xattn_runtime.preprocess.text import TextCodec

__all__ = ["FP32_RELATIVE_RMS", "GoldenSet", "make_golden"]

FP32_RELATIVE_RMS = 1e-3
"""What an fp32 bundle may differ by on any device."""

_MOST_CASES = 8
_MADE_UP_WORDS = 4
# A lead of the best logit over the next, as a share of their root-mean-square, that rounding on no device turns.
_SAFE_LEAD = 1e-3


@dataclass(frozen=True)
class GoldenSet:
    """The cases of the manifest, and the files they name with their content."""

    cases: tuple[GoldenCase, ...]
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class _Computed:
    picture: int
    png: bytes
    logits: NDArray[np.float32]
    text: str
    question: str | None = None
    token_ids: tuple[int, ...] | None = None


def make_golden(source: Source, codec: TextCodec, images: Sequence[Path] | None = None) -> GoldenSet:
    """The golden cases of `source` on `images`, or on pictures that its family draws.

    At most eight of the drawn cases are kept, those in which the model is surest of every token; all of given images.

    Raises:
        ImageError: one of `images` cannot be used.
        XattnError: the tokenizer knows no word to ask a question of.
    """
    pictures = source.pictures() if images is None else _given(images, source.pictures())
    pipeline = Pipeline(source.image_steps)
    computed: list[_Computed] = []
    with torch.inference_mode():
        for number, picture in enumerate(pictures):
            pixel_values = torch.from_numpy(pipeline(picture.png))[None]
            if source.task == "caption":
                computed.append(_caption_case(source, codec, number, picture, pixel_values))
            else:
                computed += _answer_cases(source, codec, number, picture, pixel_values)
    if not computed:
        raise XattnError("golden cases: there is no picture to make one of")
    return _files(computed if images is not None else _surest(computed))


def _given(images: Sequence[Path], drawn: Sequence[GoldenPicture]) -> tuple[GoldenPicture, ...]:
    """The user's pictures as PNG files of the very same pixels, without what else their files hold."""
    questions = tuple(dict.fromkeys(question for picture in drawn for question in picture.questions))
    pictures = []
    for number, path in enumerate(images):
        stream = io.BytesIO()
        open_image(path).save(stream, "PNG")
        asked = (questions[number % len(questions)],) if questions else ()
        pictures.append(GoldenPicture(stream.getvalue(), asked))
    return tuple(pictures)


def _caption_case(
    source: Source, codec: TextCodec, number: int, picture: GoldenPicture, pixel_values: Tensor
) -> _Computed:
    if source.caption is None or source.forced_logits is None:
        raise XattnError(f"{source.name}: its family says not how it captions")
    token_ids = source.caption(pixel_values)
    logits = source.forced_logits(pixel_values, token_ids).numpy()
    return _Computed(number, picture.png, logits, codec.decode(token_ids), token_ids=token_ids)


def _answer_cases(
    source: Source, codec: TextCodec, number: int, picture: GoldenPicture, pixel_values: Tensor
) -> Iterator[_Computed]:
    if source.answer_logits is None or source.labels is None:
        raise XattnError(f"{source.name}: its family says not how it answers")
    for question in _known_questions(source, codec, picture.questions):
        logits = source.answer_logits(pixel_values, codec.encode_question(question).ids).numpy()
        yield _Computed(number, picture.png, logits, source.labels[int(logits.argmax())], question=question)


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
    """The cases in which the model is surest, in the order they came; at least one."""
    ranked = sorted(computed, key=_lead, reverse=True)
    kept = [case for case in ranked if _lead(case) >= _SAFE_LEAD][:_MOST_CASES] or ranked[:1]
    return [case for case in computed if any(case is one for one in kept)]


def _lead(case: _Computed) -> float:
    """By how much the best logit leads where it leads least, as a share of the logits' root-mean-square."""
    rows = np.sort(np.atleast_2d(case.logits), axis=-1)
    size = float(np.sqrt(np.mean((rows - rows.mean(-1, keepdims=True)) ** 2))) or 1.0
    return float((rows[:, -1] - rows[:, -2]).min()) / size


def _files(computed: Sequence[_Computed]) -> GoldenSet:
    files: dict[str, bytes] = {}
    cases = []
    for number, case in enumerate(computed):
        image, tensors = f"golden/{case.picture}.png", f"golden/{number}.npz"
        stream = io.BytesIO()
        np.savez_compressed(stream, logits=case.logits)
        files |= {image: case.png, tensors: stream.getvalue()}
        cases.append(GoldenCase(image, tensors, case.text, case.question, case.token_ids))
    return GoldenSet(tuple(cases), files)
