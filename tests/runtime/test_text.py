from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors

from xattn_runtime.errors import BundleError, QuestionError
from xattn_runtime.manifest import TokenizerSpec
from xattn_runtime.preprocess.text import TextCodec

SPEC = TokenizerSpec("tokenizer.json", unknown_token_id=1, max_tokens=6)


@pytest.fixture
def codec(caption_bundle: Path) -> TextCodec:
    return TextCodec(caption_bundle / "tokenizer.json", SPEC)


def test_known_words(codec: TextCodec) -> None:
    encoded = codec.encode_question("  What is the CAT \n")
    assert encoded.ids == (4, 5, 6, 9)
    assert encoded.unknown_words == ()


def test_unknown_words_are_reported_once_each_as_written(codec: TextCodec) -> None:
    encoded = codec.encode_question("is Éclair a cat Éclair zebra")
    assert encoded.ids == (5, 1, 12, 9, 1, 1)
    assert encoded.unknown_words == ("Éclair", "zebra")


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("", "expected a question, found an empty text"),
        (" \t\n ", "expected a question, found an empty text"),
        ("cat " * 7, "expected at most 6 tokens, found 7"),
        ("a" * 2001, "expected at most 2,000 characters, found 2,001"),
        (" " * 2001, "expected at most 2,000 characters, found 2,001"),
        (
            "blue zebra",
            "none of the words in 'blue zebra' is known to this model; it knows words like what, is, the, red",
        ),
        ("\ud800", "expected Unicode text"),
        (None, "expected text, found None"),
    ],
)
def test_questions_that_cannot_be_asked(codec: TextCodec, question: str, message: str) -> None:
    with pytest.raises(QuestionError) as caught:
        codec.encode_question(question)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_special_tokens_of_the_file_count_and_are_not_words(caption_bundle: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(caption_bundle / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="[START] $A", special_tokens=[("[START]", 2)])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    codec = TextCodec(tmp_path / "tokenizer.json", SPEC)
    assert codec.encode_question("what is the cat").ids == (2, 4, 5, 6, 9)
    with pytest.raises(QuestionError, match="none of the words"):
        codec.encode_question("zebra")


def test_decode_leaves_special_tokens_out(codec: TextCodec) -> None:
    assert codec.decode((2, 6, 7, 9, 3, 0)) == "the red cat"
    assert codec.decode(()) == ""


def test_files_that_are_no_tokenizer(tmp_path: Path, caption_bundle: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="expected a tokenizer of the tokenizers library"):
        TextCodec(tmp_path / "tokenizer.json", SPEC)
    with pytest.raises(BundleError, match="expected an unknown token with the id 99, found none"):
        TextCodec(caption_bundle / "tokenizer.json", TokenizerSpec("tokenizer.json", 99, 6))
