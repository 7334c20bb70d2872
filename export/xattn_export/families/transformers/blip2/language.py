"""What a language model adds to BLIP-2: the roles that read image tokens, and how text is put to them.

BLIP-2's image side is the same before every language model. Each of these is in a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from xattn_export.families.base import Generated, Role, SourceTokenizer
from xattn_runtime.bundle.manifest import Decoding
from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import show

if TYPE_CHECKING:
    from transformers import Blip2ForConditionalGeneration

__all__ = ["QUESTION", "Language", "text_token"]

QUESTION = "Question: {question} Answer:"
"""What BLIP-2 is given for a question, as its documentation has it."""


@dataclass(frozen=True)
class Language:
    """What of a `Source` depends on the language model."""

    roles: tuple[Role, ...]
    tokenizer: SourceTokenizer
    decoding: Decoding
    generate: Callable[[Tensor, tuple[int, ...]], Generated]


def text_token(folder: Path, model: Blip2ForConditionalGeneration, key: str, token_id: int | None) -> int:
    """`token_id`, which config.json states as `key`; CheckpointError where it is none that the language model has."""
    vocabulary = model.config.text_config.vocab_size
    if token_id is None or not 0 <= token_id < vocabulary:
        raise CheckpointError(
            f"{folder / 'config.json'}: {key}: expected a token, one of {vocabulary}, found {show(token_id)}"
        )
    return int(token_id)
