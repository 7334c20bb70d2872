"""Text with an image in it: the placeholders of image tokens, and the special tokens around a text.

It reads tokenizers as tokenizer.json, and knows no model.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import show

__all__ = ["special_around", "token_text", "with_image_token"]

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
    if (actual_id := tokenizer.token_to_id(_IMAGE)) != token_id:
        raise CheckpointError(
            f"{folder}: expected a tokenizer with the token {token_id}, as config.json says of image tokens, found "
            f"none, and {show(_IMAGE)} would be {actual_id}; save the model's own processor into the folder"
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


def special_around(tokenizer_json: str, folder: Path) -> tuple[str, str]:
    """What the tokenizer puts before every text and after it, as text itself."""
    encoding = Tokenizer.from_str(tokenizer_json).encode("a")
    places = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
    around = encoding.ids[: places[0]], encoding.ids[places[-1] + 1 :]
    before, after = ("".join(token_text(tokenizer_json, token_id, folder) for token_id in ids) for ids in around)
    return before, after
