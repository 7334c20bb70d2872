"""A factory of tiny models of Transformers' own classes: random weights of a sane size, saved as users save them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor, PreTrainedModel
from transformers.utils import logging

from tests.parity.parity import noise_pictures, randomize

__all__ = ["bert_vocabulary", "noise_pictures", "processor_of", "randomize", "save_folder"]

WORDS = "a the red blue green yellow circle square triangle of and on is what color shape there picture yes no ? , ."
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@pytest.fixture(scope="session", autouse=True)
def quiet() -> Iterator[None]:
    """No reports and progress bars of Transformers among those of the tests."""
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twenty different pictures as files."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, picture in enumerate(noise_pictures(20)):
        picture.save(folder / f"{number:02}.png")
    return sorted(folder.iterdir())


def bert_vocabulary(extra: Sequence[str] = ()) -> list[str]:
    """A vocabulary that spells every word of lower-case ASCII, with special tokens first and `extra` ones last."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = [*letters, *(f"##{letter}" for letter in letters), *(word for word in WORDS.split() if len(word) > 1)]
    return [*BERT_SPECIAL, *pieces, "?", ",", ".", *extra]


def save_folder(folder: Path, model: PreTrainedModel, processor: Any) -> Path:
    """What `save_pretrained` of a model and of its processor write."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def processor_of(folder: Path) -> Any:
    """The processor that Transformers itself makes of a folder."""
    return AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
