"""Text with an image in it: what stands for the image tokens, and the special tokens that come before a text.

It reads tokenizers as tokenizer.json, and knows no model.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from xattn_runtime._reading import show
from xattn_runtime.errors import CheckpointError

__all__ = ["special_start", "token_text", "with_image_token"]

_IMAGE = "<image>"


def with_image_token(tokenizer_json: str, token_id: int, folder: Path) -> str:
    """The tokenizer with a token of the id `token_id`; where it has none, `<image>` is added, as processors do.

    Raises:
        CheckpointError: what is added gets another id.
    """
    tokenizer = Tokenizer.from_str(tokenizer_json)
    if tokenizer.id_to_token(token_id) is not None:
        return tokenizer_json
    tokenizer.add_special_tokens([AddedToken(_IMAGE, normalized=False, special=True)])
    if (found := tokenizer.token_to_id(_IMAGE)) != token_id:
        raise CheckpointError(
            f"{folder}: expected a tokenizer with the token {token_id}, as config.json says of image tokens, found "
            f"none, and {show(_IMAGE)} would be {found}; save the model's own processor into the folder"
        )
    return str(tokenizer.to_str())


def token_text(tokenizer_json: str, token_id: int, folder: Path) -> str:
    """The text that the tokenizer reads as the one token `token_id`.

    Raises:
        CheckpointError: there is none, since it is no special token.
    """
    tokenizer = Tokenizer.from_str(tokenizer_json)
    # Others may be read together with what stands beside them.
    if token_id not in tokenizer.get_added_tokens_decoder():
        raise CheckpointError(
            f"{folder}: expected a special token with the id {token_id}, as config.json says, found "
            f"{show(tokenizer.id_to_token(token_id))}; weights and tokenizer are not of one model"
        )
    return str(tokenizer.id_to_token(token_id))


def special_start(tokenizer_json: str, folder: Path) -> str:
    """What the tokenizer puts before every text, as text itself.

    Raises:
        CheckpointError: it puts something after a text, where a language model is to go on.
    """
    encoding = Tokenizer.from_str(tokenizer_json).encode("a")
    count = encoding.special_tokens_mask.index(0) if 0 in encoding.special_tokens_mask else len(encoding.ids)
    if any(encoding.special_tokens_mask[count:]):
        raise CheckpointError(
            f"{folder}: expected a tokenizer that puts special tokens before a text alone, found "
            f"{show(encoding.tokens)} for 'a'; a model that goes on from the text cannot read what ends it"
        )
    return "".join(token_text(tokenizer_json, token_id, folder) for token_id in encoding.ids[:count])
