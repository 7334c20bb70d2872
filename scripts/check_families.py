"""Compares every family at its real size with Transformers, and prints the rows of the table in docs/families.md.

    python scripts/check_families.py [--only BLIP] [--pictures 20] [--rows FILE]

Weights are random, of a sane size: nothing is downloaded. It takes minutes, and a few GB of memory and of disk. With
`--rows` each row is added to a file as soon as it is known, and models whose row stands there are passed over: so what
was broken off goes on where it was. A model that fails does not keep the others from being checked.
A new family is one more entry in FAMILIES.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import family_blip
import family_blip2
import family_dual
import family_florence2
import family_git
import family_regions
import family_smolvlm
import family_vilt
import family_vision_encoder_decoder
from family_parity import (
    Reference,
    embedding_error,
    generated_agreement,
    logits_error,
    match_error,
    noise_pictures,
    pixel_error,
)
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipForQuestionAnswering
from transformers.utils import logging

from xattn_export import export_checkpoint
from xattn_runtime.manifest import Task

__all__ = ["FAMILIES", "Entry", "Figures"]

HEADER = (
    "| family | tasks | size | opsets | error of logits | ids equal, greedy | ids equal, 4 beams | preprocessing |",
    "|---|---|---|---|---|---|---|---|",
)
STEPS = 16
QUESTIONS = ("what color is the circle?", "is there a red square, on the triangle?", "how many are there")
FORMS = (("standard", 23), ("decomposed", 18))


@dataclass(frozen=True)
class Figures:
    """What was found: the largest error of a logit or embedding, equal of compared texts, and of a pixel."""

    error: float
    greedy: str
    beams: str
    pixels: str


@dataclass(frozen=True)
class Entry:
    """A model to check.

    make: writes it into a folder as `save_pretrained` does. check: folder, bundle in each form, and picture files →
    figures. asked: the task to export it for, where its files do not say.
    """

    family: str
    task: str
    size: str
    make: Callable[[Path], Path]
    check: Callable[[Path, Sequence[Path], Sequence[Path]], Figures]
    asked: Task | None = None


def generates(
    reference_of: Callable[[Path], Reference], questions: Sequence[str] = ()
) -> Callable[[Path, Sequence[Path], Sequence[Path]], Figures]:
    """The check of a model that generates text, for captions or as answers to `questions`."""

    def check(folder: Path, bundles: Sequence[Path], files: Sequence[Path]) -> Figures:
        reference, question = reference_of(folder), questions[0] if questions else None
        errors = [
            logits_error(bundle, reference, noise_pictures(batch), steps=STEPS, question=question)
            for bundle in bundles
            for batch in (1, 3)
        ]
        texts = []
        for beams in (1, 4):
            found = generated_agreement(bundles[0], reference, files, beams=beams, questions=questions)
            texts.append(f"{found.equal} of {found.compared}, {found.different_texts} different")
        return Figures(max(errors), *texts, _pixels(pixel_error(bundles[0], reference, noise_pictures(len(files)))))

    return check


def embeds(
    embedder_of: Callable[[Path], Callable[[Path, str], Any]],
    matcher_of: Callable[[Path], Callable[[Path, str], float]] | None = None,
) -> Callable[[Path, Sequence[Path], Sequence[Path]], Figures]:
    """The check of a model that embeds pictures and texts, and maybe looks again at both together."""

    def check(folder: Path, bundles: Sequence[Path], files: Sequence[Path]) -> Figures:
        texts = [QUESTIONS[number % len(QUESTIONS)] for number in range(len(files))]
        embed = embedder_of(folder)
        errors = [embedding_error(bundle, files, texts, embed) for bundle in bundles]
        if matcher_of is not None:
            match = matcher_of(folder)
            errors += [match_error(bundle, files, texts, match) for bundle in bundles]
        return Figures(max(errors), "–", "–", "in the error")

    return check


def chooses(
    answers_error: Callable[..., tuple[float, int]], pixels: str
) -> Callable[[Path, Sequence[Path], Sequence[Path]], Figures]:
    """The check of a model that chooses among answers; `pixels` says where its preprocessing is compared."""

    def check(folder: Path, bundles: Sequence[Path], files: Sequence[Path]) -> Figures:
        error, equal = answers_error(folder, bundles, files, QUESTIONS)
        return Figures(error, f"{equal} of {len(bundles) * len(files)} answers", "–", pixels)

    return check


def reads_tiles(folder: Path, bundles: Sequence[Path], files: Sequence[Path]) -> Figures:
    """The check of SmolVLM: long and narrow pictures, of which few tiles are made; and pixels of all shapes."""
    pixels = family_smolvlm.pixel_error(
        bundles[0], family_smolvlm.processor_of(folder), noise_pictures(min(4, len(files)))
    )
    for number, file in enumerate(files):
        with Image.open(file) as picture:
            narrow = picture.resize((60, 14) if number % 2 else (14, 60))
        narrow.save(file)
    batches = [[narrow], [noise.resize(narrow.size) for noise in noise_pictures(3)]]
    errors = [
        family_smolvlm.logits_error(bundle, folder, batch, QUESTIONS[0], steps=STEPS, prefill=prefill)
        for bundle in bundles
        for batch, prefill in zip(batches, (3, 0), strict=True)
    ]
    texts = []
    for beams in (1, 4):
        found = family_smolvlm.agreement(bundles[0], folder, files, QUESTIONS, beams=beams)
        texts.append(f"{found.equal} of {found.compared}, {found.different_texts} different")
    return Figures(max(errors), *texts, _pixels(pixels))


def _pixels(error: float) -> str:
    return "equal" if error == 0 else f"within {error:.1e}"


def _words(count: int, *last: str) -> list[str]:
    """A vocabulary of `count` words that spells every word of lower-case ASCII letters."""
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    spelled = [*"abcdefghijklmnopqrstuvwxyz?,.", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
    filler = (f"[unused{number}]" for number in range(count - len(special) - len(spelled) - len(last)))
    return [*special, *spelled, *filler, *last]


def _blip(model_class: Any) -> Callable[[Path], Path]:
    return lambda folder: family_blip.save_blip(folder, model_class, _words(30524, "[DEC]"), 384)


def _git(folder: Path) -> Path:
    return family_git.save_git(folder, _words(30522), 224)


def _blip2(folder: Path) -> Path:
    # All 32 layers would take 10 GB more, and nothing in them is different.
    return family_blip2.save_blip2(folder, 224, text={"num_hidden_layers": 4})


def _vilt(folder: Path) -> Path:
    return family_vilt.save_vilt(folder, _words(30522), 384, answers=3129)


def _lxmert(folder: Path) -> Path:
    return family_regions.save_lxmert(folder, _words(30522))


def _visual_bert(folder: Path) -> Path:
    return family_regions.save_visual_bert(folder, _words(30522))


def _florence2(folder: Path) -> Path:
    return family_florence2.save_florence2(folder, 768)


_PAIR = generates(family_vision_encoder_decoder.captioner)
_CLASSIFIES = "retrieval, zero-shot classification"
_OVER_REGIONS = "VQA over regions"
_BY_PROMPTS = generates(family_florence2.florence2, family_florence2.PROMPTS)
_BLIP2_SIZE = "ViT-g 224 px, 4 of OPT-2.7b's 32 layers"
FAMILIES: tuple[Entry, ...] = (
    Entry(
        "VisionEncoderDecoder",
        "captioning",
        "ViT-base 224 px, GPT-2 base",
        family_vision_encoder_decoder.save_vit_gpt2,
        _PAIR,
    ),
    Entry("VisionEncoderDecoder", "OCR", "TrOCR-base 384 px", family_vision_encoder_decoder.save_trocr, _PAIR),
    Entry("BLIP", "captioning", "base, 384 px", _blip(BlipForConditionalGeneration), generates(family_blip.captioner)),
    Entry("BLIP", "VQA", "base, 384 px", _blip(BlipForQuestionAnswering), generates(family_blip.answerer, QUESTIONS)),
    Entry(
        "BLIP",
        "retrieval",
        "base, 384 px",
        _blip(BlipForImageTextRetrieval),
        embeds(family_blip.embedder, family_blip.matcher),
    ),
    Entry("GIT", "captioning", "base, 224 px", _git, generates(family_git.captioner)),
    Entry("GIT", "VQA by prompt", "base, 224 px", _git, generates(family_git.answerer, QUESTIONS), asked="vqa"),
    Entry("SmolVLM", "VQA", "256M, tiles of 512 px", family_smolvlm.save_idefics3, reads_tiles),
    Entry("BLIP-2", "captioning", _BLIP2_SIZE, _blip2, generates(family_blip2.captioner)),
    Entry("BLIP-2", "VQA by prompt", _BLIP2_SIZE, _blip2, generates(family_blip2.answerer, QUESTIONS), asked="vqa"),
    Entry("ViLT", "VQA", "b32, 384 px", _vilt, chooses(family_vilt.answers_error, "in the error")),
    Entry("Florence-2", "captioning, OCR", "base, 768 px", _florence2, _BY_PROMPTS),
    Entry("CLIP", _CLASSIFIES, "ViT-B/32, 224 px", family_dual.save_clip, embeds(family_dual.embedder)),
    Entry("SigLIP", _CLASSIFIES, "base, 224 px", family_dual.save_siglip, embeds(family_dual.embedder)),
    Entry("LXMERT", _OVER_REGIONS, "base, 2048 features", _lxmert, chooses(family_regions.answers_error, "–")),
    Entry("VisualBERT", _OVER_REGIONS, "base, 2048 features", _visual_bert, chooses(family_regions.answers_error, "–")),
)


def main() -> None:
    """Check the families that are asked for."""
    parser = argparse.ArgumentParser(description="Compare families at their real size with Transformers.")
    parser.add_argument("--only", default="", help="check only families with this in their name or task")
    parser.add_argument("--pictures", type=int, default=20, help="how many texts to compare")
    parser.add_argument("--rows", type=Path, help="file to add rows to; models with a row in it are passed over")
    options = parser.parse_args()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    known = options.rows.read_text().splitlines() if options.rows is not None and options.rows.exists() else []
    print(*HEADER, sep="\n", flush=True)
    failed = 0
    for entry in FAMILIES:
        start = f"| {entry.family} | {entry.task} | {entry.size} |"
        if options.only.lower() not in f"{entry.family} {entry.task}".lower() or any(
            row.startswith(start) for row in known
        ):
            continue
        try:
            row = _row(entry, options.pictures)
        except Exception as error:  # whatever a model's code raises
            failed += 1
            print(f"{entry.family} {entry.task}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            continue
        print(row, flush=True)
        if options.rows is not None:
            with options.rows.open("a") as stream:
                print(row, file=stream)
    raise SystemExit(1 if failed else 0)


def _row(entry: Entry, pictures: int) -> str:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="check-families-") as place:
        folder = entry.make(Path(place) / "model")
        files = []
        for number, picture in enumerate(noise_pictures(pictures)):
            files.append(Path(place) / f"{number:02}.png")
            picture.save(files[-1])
        bundles = []
        for attention, opset in FORMS:
            bundles.append(Path(place) / f"{attention}.xattn")
            export_checkpoint(
                folder, bundles[-1], task=entry.asked, attention=attention, opset=opset, command="check_families"
            )
            print(f"{entry.family} {entry.task}: exported, {time.monotonic() - began:.0f} s", file=sys.stderr)
        found = entry.check(folder, bundles, files)
    print(f"{entry.family} {entry.task}: checked, {time.monotonic() - began:.0f} s", file=sys.stderr)
    opsets = ", ".join(str(opset) for _, opset in FORMS)
    cells = (
        entry.family,
        entry.task,
        entry.size,
        opsets,
        f"{found.error:.1e}",
        found.greedy,
        found.beams,
        found.pixels,
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
