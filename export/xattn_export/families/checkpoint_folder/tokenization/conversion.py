"""A tokenizer of Transformers as the tokenizer.json files that may stand for it, the likeliest first.

What a class adds in Python to the tokenizer of the `tokenizers` library becomes a part of that tokenizer. One that is
written in Python as a whole can at least write texts: each of its tokens becomes a word, and what joins them a decoder.
Whether a file does what the original does is tried elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, processors

from xattn_export.families.checkpoint_folder.tokenization.original import TOKENIZER, Original
from xattn_export.families.checkpoint_folder.tokenization.siglip import siglip_tokenizer

__all__ = ["Conversion", "conversions"]


@dataclass(frozen=True)
class Conversion:
    """The content of a tokenizer.json; whether it can write texts alone."""

    json: str
    decodes_only: bool = False


def conversions(original: Original) -> list[Conversion]:
    """Tokenizers that may do what `original` does, truncation and padding off."""
    if original.backend is not None:
        return [_of(_from_backend(original, original.backend))]
    found = []
    if (path := original.folder / TOKENIZER).is_file():
        found.append(_of(Tokenizer.from_file(str(path))))
    elif original.name == "SiglipTokenizer":
        found.append(_of(_siglip(original)))
    vocabulary = _words(original)
    return found + [Conversion(_decode_only(original, vocabulary, make()), decodes_only=True) for make in _DECODERS]


def _of(tokenizer: Tokenizer) -> Conversion:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Conversion(str(tokenizer.to_str()))


def _from_backend(original: Original, backend: Tokenizer) -> Tokenizer:
    tokenizer = Tokenizer.from_str(backend.to_str())
    # CLIP's class makes blanks of the ends of words in the decoded text, but of the last.
    if hasattr(original.tokenizer, "_wrap_decode_method_backend_tokenizer"):
        suffix = tokenizer.model.end_of_word_suffix
        blanks = (decoders.Replace(Regex(rf"{re.escape(suffix)}\z"), ""), decoders.Replace(suffix, " "))
        tokenizer.decoder = decoders.Sequence([tokenizer.decoder, *blanks])
    return tokenizer


def _siglip(original: Original) -> Tokenizer:
    """`SiglipTokenizer`: nothing at the beginning, `</s>` at the end."""
    theirs = original.tokenizer
    tokenizer = siglip_tokenizer(original.folder / "spiece.model", lower_case=theirs.do_lower_case)
    tokenizer.add_tokens([token for _, token in sorted(original.added.items())])
    end = str(theirs.eos_token)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B:1 {end}:1", special_tokens=[(end, theirs.eos_token_id)]
    )
    return tokenizer


def _words(original: Original) -> dict[str, int]:
    """Token → id; a token that stands for several ids has the one that the original gives it."""
    tokens = original.tokenizer.convert_ids_to_tokens(list(range(len(original.tokenizer))))
    words: dict[str, int] = {}
    for number, token in enumerate(tokens):
        if token not in words or original.tokenizer.convert_tokens_to_ids(token) == number:
            words[token] = number
    return words


def _decode_only(original: Original, words: dict[str, int], decoder: Any) -> str:
    unknown = original.special.get("unk_token", "")
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=unknown))
    tokenizer.decoder = decoder
    special = set(original.tokenizer.all_special_tokens)
    tokenizer.add_special_tokens(
        [AddedToken(word, normalized=False, special=True) for word in words if word in special]
    )
    return str(tokenizer.to_str())


def _spaced() -> list[Any]:
    """Steps that join tokens with a blank."""
    return [decoders.Replace(Regex(r"\z"), " "), decoders.Fuse(), decoders.Replace(Regex(r" \z"), "")]


# How Transformers' classes join tokens: with blanks but before a continuation, with marks for blanks, with marks for
# tokens that go on or for those that end a word, or just one after the other.
_DECODERS: tuple[Callable[[], Any], ...] = (
    lambda: decoders.WordPiece(prefix="##", cleanup=False),
    lambda: decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()]),
    lambda: decoders.Sequence([*_spaced(), decoders.Replace("@@ ", "")]),
    lambda: decoders.Sequence([decoders.Fuse(), decoders.Replace("</w>", " ")]),
    decoders.Fuse,
    decoders.ByteLevel,
)
