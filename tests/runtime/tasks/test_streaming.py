"""Pieces of text together are the text, whatever the tokenizer makes of its tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from xattn_runtime.preprocess.text import TextCodec
from xattn_runtime.preprocess.tokenizer import TokenizerSpec
from xattn_runtime.tasks.shared.streaming import TextStream, before_stop

WORDS = ["[END]", "it", "'", "s", "n't", "do", "not", ".", ",", "?", "!", "##ing", "n", "'re", "'m", "we", "rock"]


def word_pieces(path: Path) -> TextCodec:
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[END]"))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.save(str(path))
    return TextCodec(path, TokenizerSpec("tokenizer.json", None, 99, clean_up_spaces=True))


def bytes_of_text(path: Path) -> TextCodec:
    """Tokens that are bytes: most characters take several."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(["[END]", *letters])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path))
    return TextCodec(path, TokenizerSpec("tokenizer.json", None, 99))


def streamed(codec: TextCodec, ids: list[int], stop: tuple[str, ...] = ()) -> tuple[str, list[str]]:
    stream = TextStream(codec.decode, (0,), stop)
    pieces = [stream.add(token_id, 0.0, last=place == len(ids) - 1).text for place, token_id in enumerate(ids)]
    return before_stop(codec.decode([token_id for token_id in ids if token_id]), stop), pieces


@pytest.mark.parametrize("stop", [(), ("s",), ("do n", "we", "xyz")], ids=str)
def test_words_that_join(tmp_path: Path, stop: tuple[str, ...]) -> None:
    codec = word_pieces(tmp_path / "tokenizer.json")
    rng = np.random.default_rng(0)
    for _ in range(2000):
        ids = [*rng.integers(1, len(WORDS), rng.integers(1, 9)).tolist(), 0]
        text, pieces = streamed(codec, ids, stop)
        assert "".join(pieces) == text, (ids, pieces)


def test_characters_of_several_tokens(tmp_path: Path) -> None:
    codec = bytes_of_text(tmp_path / "tokenizer.json")
    for text in ("a cat", "ein Bär läuft", "𝄞 and 日本語 end", "\N{CAT FACE}"):
        ids = [*codec.encode_prefix(text), 0]
        found, pieces = streamed(codec, ids)
        assert found == text == "".join(pieces)
        assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
        assert len([piece for piece in pieces if piece]) > len(text) // 2


def test_text_is_told_as_soon_as_it_is_certain(tmp_path: Path) -> None:
    codec = bytes_of_text(tmp_path / "tokenizer.json")
    _, pieces = streamed(codec, list(codec.encode_prefix("red cat")), ("cake",))
    # What may be the beginning of a word to stop at is kept back, and the blank before it.
    assert pieces == ["r", "e", "d", "", "", "", " cat"]
    assert before_stop("a red cat, a cake", ("cat", "cake")) == "a red"
