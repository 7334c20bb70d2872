"""A factory of tiny models of Transformers' own classes: random weights of a sane size, saved as users save them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, PreTrainedModel
from transformers.utils import logging

WORDS = "a the red blue green yellow circle square triangle of and on is what color shape there picture yes no ? , ."
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

Save = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def quiet() -> Iterator[None]:
    """No reports and progress bars of Transformers among those of the tests."""
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


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


def noise_pictures(count: int, seed: int = 5) -> list[Image.Image]:
    """Coarse coloured noise of different sizes: pictures that differ to a model, too."""
    generator = np.random.default_rng(seed)
    pictures = []
    for number in range(count):
        cells = generator.integers(0, 256, (3 + number % 4, 4, 3), dtype=np.uint8)
        size = (20 + 7 * (number % 5), 24 + 5 * (number % 3))
        pictures.append(Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC))
    return pictures


def processor_of(folder: Path) -> Any:
    """The processor that Transformers itself makes of a folder."""
    return AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
