"""Tokenizers of Transformers folders as one tokenizer.json of the `tokenizers` library, which is all the runtime reads.

What `AutoTokenizer` loads is carried over, and asked the same as what came of it: ids of texts, and texts of ids. Where
they differ, it is refused before anything is exported. No code that came with a checkpoint is run.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from xattn_export.families.base import TOKENIZER_FILE, SourceTokenizer
from xattn_export.families.checkpoint_folder.tokenization.conversion import Conversion, conversions
from xattn_export.families.checkpoint_folder.tokenization.original import SETTINGS, Original, guarded, load_original
from xattn_export.families.checkpoint_folder.tokenization.probes import (
    Difference,
    reading_difference,
    refused_words,
    writing_difference,
)
from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import one_line
from xattn_runtime.preprocess.text import TextCodec
from xattn_runtime.preprocess.tokenizer import TokenizerSpec

__all__ = ["source_tokenizer", "tokenizer_json_of"]


def source_tokenizer(folder: Path, max_tokens: int, *, reads: bool = True, writes: bool = True) -> SourceTokenizer:
    """The tokenizer in `folder`, for texts of up to `max_tokens` tokens that are put to the model as they are.

    Args:
        reads: whether the model cannot do without texts; if it can, a tokenizer that writes them alone will do.
        writes: whether the model generates tokens, of which texts are made.

    Raises:
        CheckpointError: there is no tokenizer, or none that can be carried over.
    """
    original = load_original(folder)
    first: Difference | None = None
    failing = partial(_failing, original)
    for conversion in guarded(partial(conversions, original), failing):
        if conversion.decodes_only and reads:
            break
        tokenizer = _tokenizer(original, conversion, max_tokens)
        found = guarded(partial(_proved, original, tokenizer, writes=writes), failing)
        if isinstance(found, SourceTokenizer):
            return found
        first = first or found
    raise _refused(original, first)


def tokenizer_json_of(folder: Path) -> str:
    """The tokenizer in `folder` as tokenizer.json, truncation and padding off; raises as `source_tokenizer`."""
    return source_tokenizer(folder, max_tokens=1).json


def _tokenizer(original: Original, conversion: Conversion, max_tokens: int) -> SourceTokenizer:
    theirs = original.tokenizer
    spec = TokenizerSpec(
        TOKENIZER_FILE,
        None if conversion.decodes_only else _unknown_token_id(conversion.json),
        max_tokens,
        clean_up_spaces=_cleans_up_spaces(original),
        split_special_tokens=bool(getattr(theirs, "split_special_tokens", False)),
        decodes_only=conversion.decodes_only,
    )
    return SourceTokenizer(conversion.json, spec, original.special, original.decode)


def _unknown_token_id(tokenizer_json: str) -> int | None:
    """The id of the token for unknown words, where the tokenizer's model has one among its words."""
    model = json.loads(tokenizer_json)["model"]
    unknown, vocabulary = model.get("unk_token"), model.get("vocab")
    return vocabulary.get(unknown) if isinstance(vocabulary, dict) else None


def _cleans_up_spaces(original: Original) -> bool:
    """Whether decoded text loses the blanks before punctuation, as in Transformers' `decode`.

    It does not for BPE unless forced, since there every blank is in the tokens.
    """
    theirs, backend = original.tokenizer, original.backend
    forced = theirs.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output
    is_bpe = backend is not None and type(backend.model).__name__ == "BPE"
    return bool(theirs.clean_up_tokenization_spaces and (forced or not is_bpe))


def _proved(original: Original, tokenizer: SourceTokenizer, *, writes: bool) -> SourceTokenizer | Difference:
    """`tokenizer`, with what must not stand in a text; or in what it differs from `original`."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / TOKENIZER_FILE
        path.write_text(tokenizer.json, encoding="utf-8")
        codec = TextCodec(path, tokenizer.spec)
    if writes and (difference := writing_difference(original, codec)):
        return difference
    if tokenizer.spec.decodes_only:
        return tokenizer
    if difference := reading_difference(original, codec):
        return difference
    return replace(tokenizer, spec=replace(tokenizer.spec, refused_words=refused_words(original, codec)))


def _failing(original: Original, error: BaseException) -> CheckpointError:
    return CheckpointError(
        f"{original.folder}: expected a tokenizer, found a {original.name} that fails: {one_line(error)[:300]}; "
        "save the tokenizer into this folder again"
    )


def _refused(original: Original, difference: Difference | None) -> CheckpointError:
    stated = f"{original.folder / SETTINGS}: tokenizer_class: expected a tokenizer that the `tokenizers` library has"
    if difference is None:
        return CheckpointError(
            f"{stated}, since the model is given texts, found {original.name}, which can only write texts here; save a "
            "fast tokenizer, with its tokenizer.json, into this folder"
        )
    return CheckpointError(
        f"{stated}, found {original.name}, which makes {difference.expected} of {difference.question}, where the "
        f"bundle would make {difference.found}; save a fast tokenizer, with its tokenizer.json, into this folder"
    )
