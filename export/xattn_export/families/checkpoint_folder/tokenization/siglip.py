"""Sentencepiece models as tokenizers of the `tokenizers` library, where Transformers itself has no such conversion.

SigLIP's texts are made canonical before the model sees them: models/siglip/tokenization_siglip.py. It reads the file
and needs no sentencepiece library. https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

from __future__ import annotations

import re
import string
import unicodedata
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

__all__ = ["siglip_tokenizer"]

_SPACE = "▁"
_UNIGRAM = 1


def siglip_tokenizer(path: Path, *, lower_case: bool) -> Tokenizer:
    """The tokenizer of a SigLIP vocabulary, `spiece.model`, that adds no special token yet.

    Texts lose their punctuation, all ASCII of it, and every run of blanks becomes one.
    Raises ValueError for a model that is not of unigrams.
    """
    proto = _read(path)
    if proto.trainer_spec.model_type != _UNIGRAM:
        raise ValueError(f"expected a model of unigrams, found type {proto.trainer_spec.model_type}")
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=proto.trainer_spec.unk_id, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(_canonical(proto.normalizer_spec.precompiled_charsmap, lower_case))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
    return tokenizer


def _canonical(charsmap: bytes, lower_case: bool) -> list[Any]:
    """The steps in the order that Transformers has them: the first blank is there before all else."""
    return [
        normalizers.Prepend(_SPACE),
        *([normalizers.Lowercase()] if lower_case else []),
        normalizers.Replace(Regex(f"[{re.escape(string.punctuation)}]"), ""),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
        *([*_composed(), normalizers.Precompiled(charsmap)] if charsmap else []),
        normalizers.Replace(Regex(" {2,}"), " "),
        normalizers.Strip(left=False),
    ]


def _composed() -> list[Any]:
    """Characters of several code points, which a map of characters is asked for only where they are short."""
    halves = (chr(code) + mark for code in range(0xFF66, 0xFF9E) for mark in "\uff9e\uff9f")
    wholes = ((half, unicodedata.normalize("NFKC", half)) for half in halves)
    return [normalizers.NFC(), *(normalizers.Replace(half, whole) for half, whole in wholes if len(whole) == 1)]


def _read(path: Path) -> Any:
    from transformers.convert_slow_tokenizer import import_protobuf

    return import_protobuf().ModelProto.FromString(path.read_bytes())
