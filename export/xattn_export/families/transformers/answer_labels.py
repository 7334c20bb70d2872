"""The names of the answers that a model chooses among: of `id2label` in config.json, or of a file beside it."""

from __future__ import annotations

from pathlib import Path

from xattn_export.families.checkpoint_folder.json_files import read_json
from xattn_runtime.brought_files import decoded_text
from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import show

__all__ = ["answer_labels"]

_FILE = "labels.txt"
_WRITE = f"write {_FILE} into the folder, a name a line in the order of the answers"


def answer_labels(folder: Path, answers: int) -> tuple[str, ...]:
    """The answers by name: of labels.txt in the folder, a name a line, or else of config.json's `id2label`.

    Raises:
        CheckpointError: neither has a name of its own for each of the model's `answers`; a name that only numbers its
            answer, which is what Transformers makes up where it was told none, is no name.
    """
    path = folder / _FILE
    return _of_file(path, answers) if path.is_file() else _of_config(folder, answers)


def _of_file(path: Path, answers: int) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in decoded_text(path.read_bytes()).splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: expected text in UTF-8, a name a line, found: {error}") from error
    if len(names) != answers or not all(names) or len(set(names)) != answers:
        raise CheckpointError(
            f"{path}: expected {answers} different names, one a line in the order of the model's answers, found "
            f"{len(names)} lines, {len(set(names) - {''})} of them different names"
        )
    return names


def _of_config(folder: Path, answers: int) -> tuple[str, ...]:
    path = folder / "config.json"
    stated = read_json(path).get("id2label")  # whose form was checked when the model was loaded
    names = {int(number): str(name) for number, name in (stated or {}).items()}
    if all(name == f"LABEL_{number}" for number, name in names.items()):
        raise CheckpointError(
            f"{folder}: expected names for the model's {answers} answers, in id2label of config.json or in {_FILE}, "
            f"found none; {_WRITE}"
        )
    expected = f"{path}: id2label: expected a name of its own for each of the model's {answers} answers, found"
    for number in range(answers):
        if not names.get(number, "").strip():
            raise CheckpointError(f"{expected} none for {number}; add it, or {_WRITE}")
    if more := [number for number in names if not 0 <= number < answers]:
        raise CheckpointError(f"{expected} one for {more[0]}; remove it, if the others are right, or {_WRITE}")
    first: dict[str, int] = {}
    for number, name in sorted(names.items()):
        if name in first:
            raise CheckpointError(f"{expected} {show(name)} for {first[name]} and {number}; rename one, or {_WRITE}")
        first[name] = number
    return tuple(names[number] for number in range(answers))
