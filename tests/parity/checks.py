"""What `check_families.py` compares of a model with Transformers, and keeps of it in a file as soon as it is known.

It knows kinds of models, those that generate, embed, or choose among answers, and no architecture.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

from PIL import Image

from tests.parity import smolvlm as family_smolvlm
from tests.parity.parity import (
    Comparison,
    Reference,
    agreement_of,
    compare_generated,
    embedding_error,
    logits_error,
    match_error,
    noise_pictures,
    pixel_error,
)
from xattn_export import export_checkpoint
from xattn_runtime.bundle.manifest import Attention, TaskName
from xattn_runtime.loader import load

__all__ = ["FORMS", "QUESTIONS", "Check", "Entry", "Ledger", "check", "chooses", "embeds", "generates", "reads_tiles"]

FORMS = {"standard": 23, "decomposed": 18}
"""Of attention, with the opset that a bundle is made for."""

QUESTIONS = ("what color is the circle?", "is there a red square, on the triangle?", "how many are there")
_STEPS = 16
_PICTURES_EMBEDDED = 8
_PICTURES_OF_OTHER_SIZES = 4
_Json = TypeVar("_Json")


class Ledger:
    """What was found of a model, in a file of JSON lines that may hold others', too.

    A part that stands there is not computed again, whatever has changed since.
    """

    def __init__(self, path: Path | None, model: str) -> None:
        self._path, self._model = path, model
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        self._known = {part: value for name, part, value in map(json.loads, lines) if name == model}

    def __call__(self, part: str, compute: Callable[[], _Json]) -> _Json:
        """The value of a part: a number, or a list of them."""
        if part not in self._known:
            self._known[part] = compute()
            print(f"{self._model}: {part}: {json.dumps(self._known[part])[:60]}", file=sys.stderr, flush=True)
            if self._path is not None:
                with self._path.open("a") as stream:
                    print(json.dumps([self._model, part, self._known[part]]), file=stream)
        found: _Json = self._known[part]
        return found


class Model:
    """A model in a folder, its bundles and what it is compared with, each made when it is first asked for."""

    def __init__(
        self, make: Callable[[Path], Path], check: Check, asked: TaskName | None, place: Path, pictures: int
    ) -> None:
        self._make, self._check, self._asked, self._place, self._pictures = make, check, asked, place, pictures
        self._tasks: dict[str, Any] = {}

    @cached_property
    def folder(self) -> Path:
        return self._make(self._place / "model")

    @cached_property
    def reference(self) -> Any:
        return self._check.open(self.folder)

    @cached_property
    def files(self) -> list[Path]:
        files = [self._place / f"{number:02}.png" for number in range(self._pictures)]
        for file, picture in zip(files, self._check.pictures(self._pictures), strict=True):
            picture.save(file)
        return files

    def bundle(self, attention: str) -> Path:
        """The bundle in one form of attention."""
        path = self._place / f"{attention}.xattn"
        if not path.exists():
            export_checkpoint(
                self.folder,
                path,
                task=self._asked,
                attention=cast(Attention, attention),
                opset=FORMS[attention],
                command="check_families",
            )
        return path

    def task(self, attention: str) -> Any:
        """The bundle, loaded."""
        if attention not in self._tasks:
            self._tasks[attention] = load(self.bundle(attention))
        return self._tasks[attention]


@dataclass(frozen=True)
class Check:
    """How a kind of model is compared.

    open: folder → what `Model.reference` is.
    error: model and form of attention → largest difference of a logit or embedding, and how many answers are the same.
    pixels: model → largest difference of a pixel value as a share of their range; or where else it is seen.
    generated: model, number of a picture, beams → one text compared; of models that generate.
    pictures: a number → as many pictures, all different.
    """

    open: Callable[[Path], Any]
    error: Callable[[Model, str], tuple[float, int]]
    pixels: Callable[[Model], float] | str
    generated: Callable[[Model, int, int], Comparison] | None = None
    pictures: Callable[[int], Sequence[Image.Image]] = noise_pictures


@dataclass(frozen=True)
class Entry:
    """A model to check.

    make: writes it into a folder as `save_pretrained` does. others: the same by name, of other sizes, each of which is
    compared in one form of attention. asked: the task to export it for, where its files do not say.
    """

    family: str
    task: str
    size: str
    make: Callable[[Path], Path]
    check: Check
    others: Mapping[str, Callable[[Path], Path]] = field(default_factory=dict)
    asked: TaskName | None = None


def generates(reference_of: Callable[[Path], Reference], questions: Sequence[str] = ()) -> Check:
    """The check of a model that generates text, for captions or as answers to `questions`."""

    def error(model: Model, attention: str) -> tuple[float, int]:
        bundle, question = model.bundle(attention), questions[0] if questions else None
        return max(
            logits_error(bundle, model.reference, noise_pictures(batch), steps=_STEPS, question=question)
            for batch in (1, 3)
        ), 0

    def pixels(model: Model) -> float:
        return pixel_error(model.bundle("standard"), model.reference, noise_pictures(20))

    def generated(model: Model, number: int, beams: int) -> Comparison:
        question = questions[number % len(questions)] if questions else None
        return compare_generated(
            model.task("standard"), model.reference, model.files[number], beams=beams, question=question
        )

    return Check(reference_of, error, pixels, generated)


def embeds(
    embedder_of: Callable[[Path], Callable[[Path, str], Any]],
    matcher_of: Callable[[Path], Callable[[Path, str], float]] | None = None,
) -> Check:
    """The check of a model that embeds pictures and texts, and maybe looks again at both together."""

    def error(model: Model, attention: str) -> tuple[float, int]:
        bundle, files = model.bundle(attention), model.files[:_PICTURES_EMBEDDED]
        texts = [QUESTIONS[number % len(QUESTIONS)] for number in range(len(files))]
        found = embedding_error(bundle, files, texts, model.reference)
        if matcher_of is not None:
            found = max(found, match_error(bundle, files, texts, matcher_of(model.folder)))
        return found, 0

    return Check(embedder_of, error, "in the error")


def chooses(answers_error: Callable[..., tuple[float, int]], pixels: str) -> Check:
    """The check of a model that chooses among answers; `pixels` says where its preprocessing is compared."""

    def error(model: Model, attention: str) -> tuple[float, int]:
        return answers_error(model.folder, [model.bundle(attention)], model.files, QUESTIONS)

    return Check(lambda folder: folder, error, pixels)


def reads_tiles() -> Check:
    """The check of SmolVLM: long and narrow pictures, of which few tiles are made; and pixels of all shapes."""

    def narrow_pictures(count: int) -> list[Image.Image]:
        return [
            noise.resize((60, 14) if number % 2 else (14, 60)) for number, noise in enumerate(noise_pictures(count))
        ]

    def error(model: Model, attention: str) -> tuple[float, int]:
        noise = [picture.resize((60, 14)) for picture in noise_pictures(4)]
        return max(
            family_smolvlm.logits_error(
                model.bundle(attention), model.folder, batch, QUESTIONS[0], steps=_STEPS, prefill=prefill
            )
            for batch, prefill in ((noise[:1], 3), (noise[1:], 0))
        ), 0

    def pixels(model: Model) -> float:
        return family_smolvlm.pixel_error(model.bundle("standard"), model.reference[0], noise_pictures(4))

    def generated(model: Model, number: int, beams: int) -> Comparison:
        processor, reference = model.reference
        return family_smolvlm.compare_generated(
            model.task("standard"),
            processor,
            reference,
            model.files[number],
            QUESTIONS[number % len(QUESTIONS)],
            beams=beams,
        )

    def opened(folder: Path) -> tuple[Any, Any]:
        return family_smolvlm.processor_of(folder), family_smolvlm.model_of(folder)

    return Check(opened, error, pixels, generated, narrow_pictures)


def check(entry: Entry, place: Path, ledger: Ledger, pictures: int) -> list[str]:
    """The cells that say what was found, from the largest error on."""
    model = Model(entry.make, entry.check, entry.asked, place, pictures)
    found = [ledger(f"error, {form}", lambda form=form: entry.check.error(model, form)) for form in FORMS]
    pixels = _pixels(entry.check.pixels, model, ledger)
    texts = _texts(entry, model, ledger, pictures, sum(equal for _, equal in found))
    return [f"{max(error for error, _ in found):.1e}", _other_sizes(entry, place, ledger), *texts, pixels]


def _other_sizes(entry: Entry, place: Path, ledger: Ledger) -> str:
    errors = []
    for number, (name, make) in enumerate(entry.others.items()):
        form = list(FORMS)[number % len(FORMS)]
        with tempfile.TemporaryDirectory(dir=place) as there:
            other = Model(make, entry.check, entry.asked, Path(there), _PICTURES_OF_OTHER_SIZES)
            error, _ = ledger(f"error at {name}, {form}", lambda other=other, form=form: entry.check.error(other, form))
        errors.append(error)
    return f"{max(errors):.1e} at {', '.join(entry.others)} px" if errors else "–"


def _texts(entry: Entry, model: Model, ledger: Ledger, pictures: int, answers: int) -> list[str]:
    compare = entry.check.generated
    if compare is None:
        return [f"{answers} of {len(FORMS) * pictures} answers" if answers else "–", "–"]
    cells = []
    for beams in (1, 4):

        def values(number: int, beams: int = beams) -> list[Any]:
            one = compare(model, number, beams)
            return [list(one.token_ids), one.equal, one.near_tie]

        parts = [
            ledger(f"{beams} beams, picture {number}", lambda number=number: values(number))
            for number in range(pictures)
        ]
        found = agreement_of([Comparison(tuple(ids), equal, near_tie) for ids, equal, near_tie in parts])
        left_out = f", {found.near_ties} near-ties left out" if found.near_ties else ""
        cells.append(f"{found.equal} of {found.compared}{left_out}; {found.different_texts} texts")
    return cells


def _pixels(pixels: Callable[[Model], float] | str, model: Model, ledger: Ledger) -> str:
    if isinstance(pixels, str):
        return pixels
    error = ledger("pixels", lambda: pixels(model))
    return "equal" if error == 0 else f"within {error:.1e}"
