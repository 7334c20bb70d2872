"""Compares every family at its real size with Transformers, and prints the rows of the table in docs/families.md.

    python -m tests.parity.check_families [--only BLIP] [--pictures 20] [--found FILE] [--write docs/families.md]

Weights are random, of a sane size: nothing is downloaded. It takes minutes a model, and a few GB of memory and of disk.
With `--found` each figure is added to a file as soon as it is known, and what stands there is not computed again: so
an interrupted run resumes. A model that fails does not keep the others from being checked.
A new family is one more entry in FAMILIES.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipForQuestionAnswering
from transformers.utils import logging

from tests.parity import blip as family_blip
from tests.parity import blip2 as family_blip2
from tests.parity import dual as family_dual
from tests.parity import florence2 as family_florence2
from tests.parity import git as family_git
from tests.parity import regions as family_regions
from tests.parity import smolvlm as family_smolvlm
from tests.parity import vilt as family_vilt
from tests.parity import vision_encoder_decoder as family_vision_encoder_decoder
from tests.parity.checks import FORMS, QUESTIONS, Entry, Ledger, check, chooses, embeds, generates, reads_tiles

__all__ = ["FAMILIES", "HEADER", "parser", "start_of", "with_row"]

HEADER = (
    "| family | tasks | size | opsets | error of logits | at other sizes "
    "| ids equal, greedy | ids equal, 4 beams | preprocessing |",
    "|---|---|---|---|---|---|---|---|---|",
)


def _words(count: int, *last: str) -> list[str]:
    """A vocabulary of `count` words that spells every word of lower-case ASCII letters."""
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    spelled = [*"abcdefghijklmnopqrstuvwxyz?,.", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
    filler = (f"[unused{number}]" for number in range(count - len(special) - len(spelled) - len(last)))
    return [*special, *spelled, *filler, *last]


def _blip(model_class: Any, size: int = 384) -> Callable[[Path], Path]:
    return lambda folder: family_blip.save_blip(folder, model_class, _words(30524, "[DEC]"), size)


def _trocr(size: int = 384) -> Callable[[Path], Path]:
    return lambda folder: family_vision_encoder_decoder.save_trocr(folder, size)


def _vit_gpt2(size: int = 224) -> Callable[[Path], Path]:
    return lambda folder: family_vision_encoder_decoder.save_vit_gpt2(folder, vision={"image_size": size})


def _git(size: int = 224) -> Callable[[Path], Path]:
    return lambda folder: family_git.save_git(folder, _words(30522), size)


def _blip2(language: str = "opt", size: int = 224, **vision: int) -> Callable[[Path], Path]:
    # All of OPT's layers would take 10 GB more, all of T5's 9, and nothing in them is different.
    text: Any = {"opt": {"num_hidden_layers": 4}, "t5": {"num_layers": 4, "num_decoder_layers": 4}}[language]
    return lambda folder: family_blip2.save_blip2(folder, size, language, vision=vision, text=text)


def _smolvlm(tile_px: int) -> Callable[[Path], Path]:
    return lambda folder: family_smolvlm.save_idefics3(
        folder, tile_px=tile_px, longest_px=4 * tile_px, vision={**family_smolvlm.BASE["vision"], "image_size": tile_px}
    )


def _vilt(size: int = 384) -> Callable[[Path], Path]:
    return lambda folder: family_vilt.save_vilt(folder, _words(30522), size, answers=3129)


def _lxmert(folder: Path) -> Path:
    return family_regions.save_lxmert(folder, _words(30522))


def _visual_bert(folder: Path) -> Path:
    return family_regions.save_visual_bert(folder, _words(30522))


def _florence2(size: int = 768) -> Callable[[Path], Path]:
    return lambda folder: family_florence2.save_florence2(folder, size)


def _dual(save: Callable[[Path, int], Path], size: int = 224) -> Callable[[Path], Path]:
    return lambda folder: save(folder, size)


def _sizes(make: Callable[[int], Callable[[Path], Path]], *sizes_px: int) -> dict[str, Callable[[Path], Path]]:
    return {str(size): make(size) for size in sizes_px}


def _blip2_sizes(language: str) -> dict[str, Callable[[Path], Path]]:
    return _sizes(lambda size: _blip2(language, size, num_hidden_layers=4), 233, 300)


_PAIR = generates(family_vision_encoder_decoder.captioner)
_CLASSIFIES = "retrieval, zero-shot classification"
_OVER_REGIONS = "question answering over regions"
_ANSWERS = "question answering"
_BLIP2_SIZE = "ViT-g 224 px, 4 of OPT-2.7b's 32 layers"
_BLIP2_T5_SIZE = "ViT-g 224 px, 4 and 4 of Flan-T5-xl's 24 and 24 layers"
FAMILIES: tuple[Entry, ...] = (
    Entry(
        "VisionEncoderDecoder",
        "captioning",
        "ViT-base 224 px, GPT-2 base",
        _vit_gpt2(),
        _PAIR,
        _sizes(_vit_gpt2, 250, 333),
    ),
    Entry("VisionEncoderDecoder", "text recognition", "TrOCR-base 384 px", _trocr(), _PAIR, _sizes(_trocr, 250, 401)),
    *(
        Entry(
            "BLIP",
            task,
            "base, 384 px",
            _blip(model_class),
            check_of_it,
            _sizes(partial(_blip, model_class), 250, 401),
        )
        for task, model_class, check_of_it in (
            ("captioning", BlipForConditionalGeneration, generates(family_blip.captioner)),
            (_ANSWERS, BlipForQuestionAnswering, generates(family_blip.answerer, QUESTIONS)),
            ("retrieval", BlipForImageTextRetrieval, embeds(family_blip.embedder, family_blip.matcher)),
        )
    ),
    Entry("BLIP-2", "captioning", _BLIP2_SIZE, _blip2(), generates(family_blip2.captioner), _blip2_sizes("opt")),
    *(
        Entry(
            "BLIP-2",
            "question answering by prompt",
            size,
            _blip2(language),
            generates(family_blip2.answerer, QUESTIONS),
            _blip2_sizes(language),
            asked="vqa",
        )
        for language, size in (("opt", _BLIP2_SIZE), ("t5", _BLIP2_T5_SIZE))
    ),
    Entry("GIT", "captioning", "base, 224 px", _git(), generates(family_git.captioner), _sizes(_git, 250, 333)),
    Entry(
        "GIT",
        "question answering by prompt",
        "base, 224 px",
        _git(),
        generates(family_git.answerer, QUESTIONS),
        _sizes(_git, 250, 333),
        asked="vqa",
    ),
    Entry(
        "SmolVLM",
        _ANSWERS,
        "256M, tiles of 512 px",
        family_smolvlm.save_idefics3,
        reads_tiles(),
        _sizes(_smolvlm, 320, 448),
    ),
    Entry(
        "Florence-2",
        "captioning, text recognition, answers by prompts",
        "base, 768 px",
        _florence2(),
        generates(family_florence2.florence2, family_florence2.PROMPTS),
        _sizes(_florence2, 501, 655),
    ),
    Entry(
        "ViLT",
        _ANSWERS,
        "B/32, 384 px",
        _vilt(),
        chooses(family_vilt.answers_error, "in the error"),
        _sizes(_vilt, 352, 480),
    ),
    Entry(
        "CLIP",
        _CLASSIFIES,
        "ViT-B/32, 224 px",
        _dual(family_dual.save_clip),
        embeds(family_dual.embedder),
        _sizes(partial(_dual, family_dual.save_clip), 250, 333),
    ),
    Entry(
        "SigLIP",
        _CLASSIFIES,
        "base, 224 px",
        _dual(family_dual.save_siglip),
        embeds(family_dual.embedder),
        _sizes(partial(_dual, family_dual.save_siglip), 250, 333),
    ),
    Entry("LXMERT", _OVER_REGIONS, "base, 2048 features", _lxmert, chooses(family_regions.answers_error, "–")),
    Entry("VisualBERT", _OVER_REGIONS, "base, 2048 features", _visual_bert, chooses(family_regions.answers_error, "–")),
)


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    parser = argparse.ArgumentParser(description="Compare families at their real size with Transformers.")
    parser.add_argument("--only", default="", help="check only families with this in 'FAMILY TASK'")
    parser.add_argument("--pictures", type=int, default=20, help="how many texts to compare")
    parser.add_argument("--found", type=Path, help="file to keep figures in; what stands there is not computed again")
    parser.add_argument("--write", type=Path, help="document whose rows of these families are replaced")
    return parser


def main() -> None:
    """Check the families that are asked for."""
    options = parser().parse_args()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that gigabytes of models do not stay behind
    print(*HEADER, sep="\n", flush=True)
    failed = 0
    for entry in FAMILIES:
        if options.only.lower() not in f"{entry.family} {entry.task}".lower():
            continue
        try:
            row = _row(entry, options.found, options.pictures)
        except Exception as error:  # whatever a model's code raises
            failed += 1
            print(f"{entry.family} {entry.task}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            continue
        print(row, flush=True)
        if options.write is not None:
            options.write.write_text(with_row(options.write.read_text(), entry, row))
    raise SystemExit(1 if failed else 0)


def start_of(entry: Entry) -> str:
    """What the row of an entry begins with."""
    return f"| {entry.family} | {entry.task} | {entry.size} |"


def _row(entry: Entry, found: Path | None, pictures: int) -> str:
    ledger = Ledger(found, f"{entry.family} {entry.task} {entry.size}")
    with tempfile.TemporaryDirectory(prefix="check-families-") as place:
        cells = check(entry, Path(place), ledger, pictures)
    opsets = ", ".join(str(opset) for opset in FORMS.values())
    return f"{start_of(entry)} {' | '.join([opsets, *cells])} |"


def with_row(text: str, entry: Entry, row: str) -> str:
    """A document with the row of an entry in place of the one that it has; ValueError where it has not one."""
    lines = text.splitlines()
    places = [number for number, line in enumerate(lines) if line.startswith(start_of(entry))]
    if len(places) != 1:
        raise ValueError(f"expected one row that begins with {start_of(entry)!r}, found {len(places)}")
    lines[places[0]] = row
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
