"""Compares a bundle with the Transformers model that it was made from: pixels, logits at every step, generated ids.

The model is loaded by Transformers itself, not by the exporter. `check_families.py` runs this at the real sizes, and
the tests on tiny models.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from xattn_runtime.bundle.folder import Bundle, open_bundle
from xattn_runtime.execution.session import open_session
from xattn_runtime.execution.settings import session_settings
from xattn_runtime.generate.decoder import DecoderStep
from xattn_runtime.loader import load
from xattn_runtime.preprocess.pipeline import Pipeline

__all__ = [
    "Agreement",
    "Comparison",
    "Reference",
    "agreement_of",
    "compare_generated",
    "compare_ids",
    "embedding_error",
    "generated_agreement",
    "ids_of",
    "logits_error",
    "match_error",
    "noise_pictures",
    "pixel_error",
    "randomize",
]


@dataclass(frozen=True)
class Reference:
    """A Transformers model with its processor, as its users call them.

    pixels: pictures → pixel values `[batch, 3, height, width]`.
    logits: pixel values, decoder tokens `[batch, length]` from its start token on, questions' ids `[batch, length]` or
        None → raw logits `[batch, length, vocabulary]`.
    generate: pixel values and question ids of one picture, and what `generate()` takes by name → ids.
    question_ids: a question → ids `[1, length]`, as the processor makes them.
    start: tokens that the decoder begins with. ends: tokens that end a text.
    """

    pixels: Callable[[Sequence[Image.Image]], Tensor]
    logits: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    generate: Callable[..., Tensor]
    vocabulary: int
    start: tuple[int, ...]
    ends: tuple[int, ...]
    question_ids: Callable[[str], Tensor] | None = None


NOISE = 1e-3
"""Of the size of the scores: where such noise changes what `generate()` gives, other ids are no fault."""


@dataclass(frozen=True)
class Comparison:
    """A text's ids by `generate()`, whether a bundle gives them too, and if it does not, whether noise decides."""

    token_ids: tuple[int, ...]
    equal: bool
    near_tie: bool


@dataclass(frozen=True)
class Agreement:
    """Of `pictures` texts those with equal ids, those with other ids where noise decides, and how many differ."""

    pictures: int
    equal: int
    near_ties: int
    different_texts: int

    @property
    def compared(self) -> int:
        """Texts that should be equal."""
        return self.pictures - self.near_ties


def noise_pictures(count: int, seed: int = 5) -> list[Image.Image]:
    """Coarse coloured noise of different sizes: pictures that differ to a model, too."""
    generator = np.random.default_rng(seed)
    pictures = []
    for number in range(count):
        cells = generator.integers(0, 256, (3 + number % 4, 4, 3), dtype=np.uint8)
        size = (20 + 7 * (number % 5), 24 + 5 * (number % 3))
        pictures.append(Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC))
    return pictures


def randomize(model: torch.nn.Module, seed: int = 3, gain: float = 1.0) -> None:
    """Give every weight a size under which each layer passes on values of about the size that it gets.

    Transformers' own initialisation is so small (of BLIP's image encoder 1e-10) that any two models agree.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.dim() < 2 and name.endswith("bias"):
                tensor.normal_(0, 0.1, generator=generator)
            elif tensor.dim() < 2:
                tensor.normal_(1, 0.1, generator=generator)
            else:
                tensor.normal_(0, gain * tensor[0].numel() ** -0.5, generator=generator)


def pixel_error(bundle: Path, reference: Reference, pictures: Sequence[Image.Image]) -> float:
    """Largest difference of a pixel value from the processor's, as a share of the values' range over all pictures."""
    pipeline = Pipeline(open_bundle(bundle).manifest.image_steps)
    found = np.stack([pipeline(picture) for picture in pictures])
    expected = np.concatenate([reference.pixels([picture]).numpy() for picture in pictures])
    return float(np.abs(found - expected).max() / (expected.max() - expected.min()))


def logits_error(
    bundle: Path,
    reference: Reference,
    pictures: Sequence[Image.Image],
    *,
    steps: int = 16,
    prompt: int = 3,
    question: str | None = None,
    seed: int = 9,
) -> float:
    """Largest difference of a logit as a share of the largest logit, teacher-forced along random tokens.

    One run with a prompt of several tokens and one without, then a token at a time with the cache.
    """
    pixel_values = reference.pixels(pictures)
    shape = (len(pictures), steps)
    tokens = torch.randint(0, reference.vocabulary, shape, generator=torch.Generator().manual_seed(seed))
    start = torch.tensor([reference.start]).expand(len(pictures), -1)
    ids = torch.cat((start, tokens), 1)
    question_ids = None
    if question is not None and reference.question_ids is not None:
        question_ids = reference.question_ids(question).expand(len(pictures), -1)
    with torch.inference_mode():
        expected = reference.logits(pixel_values, ids, question_ids).numpy()
    worst = 0.0
    for first in (len(reference.start), len(reference.start) + prompt):
        found = _stepwise(open_bundle(bundle), pixel_values.numpy(), ids.numpy(), question_ids, first)
        difference = np.abs(found - expected[:, first - 1 :]).max()
        worst = max(worst, float(difference / np.abs(expected).max()))
    return worst


def generated_agreement(
    bundle: Path,
    reference: Reference,
    files: Sequence[Path],
    *,
    beams: int = 1,
    questions: Sequence[str] = (),
) -> Agreement:
    """How often a bundle generates from picture files the very ids that `generate()` does.

    To a captioner `questions` are prompts.
    """
    task = load(bundle)
    return agreement_of(
        [
            compare_generated(
                task, reference, file, beams=beams, question=questions[number % len(questions)] if questions else None
            )
            for number, file in enumerate(files)
        ]
    )


def compare_generated(
    task: Any,
    reference: Reference,
    file: Path,
    *,
    beams: int = 1,
    question: str | None = None,
) -> Comparison:
    """What `generate()` gives for a picture file, and whether the task does; a captioner's question is a prompt."""
    with Image.open(file) as picture:
        pixel_values = reference.pixels([picture])
    question_ids = None if question is None or reference.question_ids is None else reference.question_ids(question)

    def generate(**settings: Any) -> Tensor:
        return reference.generate(pixel_values, question_ids, num_beams=beams, **settings)

    found = ids_of(task, file, beams, question)
    return compare_ids(generate, found, prompt_length=len(reference.start), ends=reference.ends)


def compare_ids(
    generate: Callable[..., Tensor], found: tuple[int, ...], *, prompt_length: int, ends: Collection[int]
) -> Comparison:
    """Compare ids with what `generate`, bound to its inputs, gives after a prompt and before an end token."""

    def ids(*processors: object) -> tuple[int, ...]:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice on how to call generate()
            given = generate(logits_processor=list(processors))[0, prompt_length:].tolist()
        return tuple(given[: next((i for i, token in enumerate(given) if token in ends), len(given))])

    expected = ids()
    return Comparison(expected, found == expected, found != expected and ids(_noise) != expected)


def agreement_of(comparisons: Sequence[Comparison]) -> Agreement:
    """The sum of comparisons."""
    return Agreement(
        pictures=len(comparisons),
        equal=sum(each.equal for each in comparisons),
        near_ties=sum(each.near_tie for each in comparisons),
        different_texts=len({each.token_ids for each in comparisons}),
    )


def embedding_error(
    bundle: Path, files: Sequence[Path], texts: Sequence[str], expected: Callable[[Path, str], tuple[Tensor, Tensor]]
) -> float:
    """Largest difference of an embedding's value, of pictures and texts alone and of all of them at once."""
    task = load(bundle, task="retrieval")
    with torch.inference_mode():
        wanted = [expected(file, text) for file, text in zip(files, texts, strict=True)]
    images, words = (torch.cat(part).numpy() for part in zip(*wanted, strict=True))
    alone = [np.concatenate([task.embed_texts([text]) for text in texts]) - words, task.embed_images(files) - images]
    return max(float(np.abs(part).max()) for part in (*alone, task.embed_texts(texts) - words))


def match_error(
    bundle: Path, files: Sequence[Path], texts: Sequence[str], expected: Callable[[Path, str], float]
) -> float:
    """Largest difference of a logit that picture and text belong together, as a share of the largest such logit."""
    task = load(bundle, task="retrieval")
    with torch.inference_mode():
        wanted = np.array([expected(file, text) for file, text in zip(files, texts, strict=True)])
    found = np.array([task.rerank(text, [file], [0.0])[0] for file, text in zip(files, texts, strict=True)])
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def _stepwise(
    bundle: Bundle, pixel_values: NDArray[Any], ids: NDArray[np.int64], question_ids: Tensor | None, first: int
) -> NDArray[Any]:
    """Logits `[batch, length - first + 1, vocabulary]` by the graphs: `first` tokens at once, then one at a time."""
    settings = session_settings("cpu", None)
    encoder = open_session(bundle, "image_encoder", settings)
    names = list(encoder.output_shapes)
    context = dict(zip(names, encoder.run(names, {"pixel_values": pixel_values}), strict=True))
    if question_ids is not None and "text_encoder" in bundle.manifest.graphs:
        reader = open_session(bundle, "text_encoder", settings)
        names = list(reader.output_shapes)
        text = {"input_ids": question_ids.numpy(), "attention_mask": np.ones_like(question_ids.numpy())}
        context = dict(zip(names, reader.run(names, text | context), strict=True))
    decoder = DecoderStep(open_session(bundle, "decoder", settings))
    past, cross = decoder.first_past(context), decoder.cross(context)
    rows = []
    for part in (ids[:, :first], *(ids[:, place : place + 1] for place in range(first, ids.shape[1]))):
        logits, past = decoder.logits(np.ascontiguousarray(part), past, cross)
        rows.append(logits)
    return np.stack(rows, 1)


def _noise(input_ids: Tensor, scores: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(input_ids.shape[1])
    allowed = scores[torch.isfinite(scores)]
    size = NOISE * float(allowed.std()) if allowed.numel() > 1 else 0.0
    return scores + size * torch.randn(scores.shape, generator=generator)


def ids_of(task: Any, file: Path, beams: int, question: str | None) -> tuple[int, ...]:
    """The ids that a task which generates gives for an image file, and a question or prompt."""
    if task.spec.text_key is None:
        return tuple(task.caption(file, prompt=question, beams=beams).token_ids)
    return tuple(task.ask(file, question, beams=beams).token_ids)
