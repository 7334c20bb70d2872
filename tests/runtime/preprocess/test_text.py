from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from xattn_runtime.bundle.manifest import TokenizerSpec
from xattn_runtime.errors import BundleError, QuestionError, UserError
from xattn_runtime.json_reader import ObjectReader
from xattn_runtime.preprocess.text import TextCodec
from xattn_runtime.preprocess.tokenizer import read_tokenizer

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


@pytest.mark.parametrize("text", ["какого цвета фигура?", "zebra!", "...", "zebra ?!", "¿zebra?"])
def test_a_known_mark_is_no_known_word(tmp_path: Path, text: str) -> None:
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "cat": 2, "?": 3, "!": 4, ".": 5, "¿": 6}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    codec = TextCodec(tmp_path / "tokenizer.json", SPEC)
    with pytest.raises(QuestionError, match="none of the words in"):
        codec.encode_question(text)
    assert codec.encode_question("zebra cat?").unknown_words == ("zebra",)


@pytest.mark.parametrize("unknown", [None, 256])
def test_marks_alone_are_read_by_a_tokenizer_that_can_spell_everything(tmp_path: Path, unknown: int | None) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate([*alphabet, "<unk>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    spec = TokenizerSpec("tokenizer.json", unknown_token_id=unknown, max_tokens=6)
    assert TextCodec(tmp_path / "tokenizer.json", spec).encode_question("?!").ids == (vocabulary["?"], vocabulary["!"])


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


def test_templates_stand_around_what_is_asked(caption_bundle: Path) -> None:
    spec = replace(SPEC, question_template="the {question} of", prompt_template="{prompt} house", max_tokens=8)
    codec = TextCodec(caption_bundle / "tokenizer.json", spec)
    assert codec.encode_question(" red cat ").ids == (6, 7, 9, 11)
    assert codec.encode_question("red zebra") == replace(codec.encode_question("red zebra"), unknown_words=("zebra",))
    assert codec.encode_prompt("a") == (12, 14)
    with pytest.raises(QuestionError, match="none of the words in 'zebra' is known"):
        codec.encode_question("zebra")


def test_prompts_are_refused_where_a_word_is_unknown(codec: TextCodec) -> None:
    assert codec.encode_prompt("a green") == (12, 8)
    for prompt, message in [
        ("a zebra", "prompt: expected words that this model knows, found 'zebra'; it knows words like what"),
        ("zebra", "prompt: none of the words in 'zebra' is known"),
        (" ", "prompt: expected a prompt, found an empty text"),
        ("a " * 7, "prompt: expected at most 6 tokens, found 7"),
    ]:
        with pytest.raises(UserError) as caught:
            codec.encode_prompt(prompt)
        assert message in str(caught.value)
        assert not isinstance(caught.value, QuestionError)


def test_special_tokens_are_for_encoders(caption_bundle: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(caption_bundle / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="[START] $A", special_tokens=[("[START]", 2)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    codec = TextCodec(tmp_path / "tokenizer.json", SPEC)
    assert codec.encode_question("the cat").ids == (2, 6, 9)
    assert codec.encode_question("the cat", special_tokens=False).ids == (6, 9)
    assert codec.encode_prompt("the cat") == (6, 9)


def _byte_level(path: Path) -> TextCodec:
    """A tokenizer that spells every word: single bytes alone."""
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({sign: number for number, sign in enumerate(signs)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path))
    return TextCodec(path, TokenizerSpec("tokenizer.json", None, 40))


def test_a_tokenizer_that_spells_every_word_knows_every_question(tmp_path: Path) -> None:
    codec = _byte_level(tmp_path / "tokenizer.json")
    encoded = codec.encode_question("Éclair 🙂?")
    assert encoded.unknown_words == ()
    assert codec.decode(encoded.ids) == "Éclair 🙂?"
    assert codec.decode(codec.encode_prompt("x")[:0]) == ""
    with pytest.raises(QuestionError, match="expected at most 40 tokens"):
        codec.encode_question("a" * 41)


def test_a_question_of_nothing_that_counts_is_refused(tmp_path: Path) -> None:
    _byte_level(tmp_path / "plain.json")
    tokenizer = Tokenizer.from_file(str(tmp_path / "plain.json"))
    tokenizer.normalizer = normalizers.Replace("z", "")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    codec = TextCodec(tmp_path / "tokenizer.json", TokenizerSpec("tokenizer.json", None, 40))
    with pytest.raises(QuestionError, match="none of the words in 'zz' is known"):
        codec.encode_question("zz")


def test_cleaning_up_takes_blanks_before_punctuation_and_contractions(tmp_path: Path) -> None:
    plain = _byte_level(tmp_path / "tokenizer.json")
    clean = TextCodec(tmp_path / "tokenizer.json", TokenizerSpec("tokenizer.json", None, 80, clean_up_spaces=True))
    text = "it 's a cat , is n't it ? they 've ' no ' dog ."
    ids = clean.encode_prompt(text)
    assert plain.decode(ids) == text
    assert clean.decode(ids) == "it's a cat, isn't it? they've'no'dog."


def test_special_tokens_that_a_text_spells_out(caption_bundle: Path) -> None:
    path = caption_bundle / "tokenizer.json"
    start = Tokenizer.from_file(str(path)).token_to_id("[START]")
    assert start in TextCodec(path, SPEC).encode_question("the [START] cat").ids
    assert start not in TextCodec(path, replace(SPEC, split_special_tokens=True)).encode_question("[START] cat").ids
    refusing = TextCodec(path, replace(SPEC, refused_words=("[START]",)))
    with pytest.raises(QuestionError, match=r"without the special token '\[START\]', found 'the \[START\]"):
        refusing.encode_question("the [START] cat")
    assert refusing.encode_question("the cat").ids == TextCodec(path, SPEC).encode_question("the cat").ids


def test_a_tokenizer_that_writes_texts_alone(caption_bundle: Path) -> None:
    codec = TextCodec(caption_bundle / "tokenizer.json", replace(SPEC, unknown_token_id=None, decodes_only=True))
    assert codec.encode_prompt() == ()
    assert codec.decode([6, 9]) == "the cat"
    for encode, kind in (
        (codec.encode_prompt, "prompt"),
        (codec.encode_prefix, "prefix"),
        (codec.encode_answer, "answers"),
    ):
        with pytest.raises(
            UserError, match=f"{kind}: expected none, since the tokenizer .*, found 'cat'; leave it out"
        ):
            encode("cat")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"question_template": "Question: Answer:"}, "question_template: expected a text with {question} in it once"),
        ({"prompt_template": "{prompt}{prompt}"}, "prompt_template: expected a text with {prompt} in it once"),
        ({"clean_up_spaces": 1}, "clean_up_spaces: expected true or false, found 1"),
        ({"unknown_token_id": None}, "unknown_token_id: expected an integer"),
        ({"split_special_tokens": "no"}, "split_special_tokens: expected true or false, found 'no'"),
        ({"refused_words": []}, "refused_words: expected a list of different, non-empty strings"),
        (
            {"decodes_only": True, "caption_template": "a photo of"},
            "decodes_only: expected false, since the model is given a text with every image, found True",
        ),
    ],
)
def test_what_a_manifest_cannot_say_of_a_tokenizer(values: dict[str, object], message: str) -> None:
    with pytest.raises(BundleError, match="tokenizer") as caught:
        read_tokenizer(ObjectReader({"file": "tokenizer.json", "max_tokens": 4} | values, "manifest.json", "tokenizer"))
    assert message in str(caught.value)


def test_a_tokenizer_of_the_manifest_reads_back_the_same() -> None:
    for spec in (
        TokenizerSpec("tokenizer.json", None, 4),
        TokenizerSpec("t.json", 1, 9, True, "Question: {question} Answer:", "User: {prompt}"),
        TokenizerSpec("t.json", None, 9, split_special_tokens=True, decodes_only=True, refused_words=("</s>", "<s>")),
    ):
        values = spec.to_dict()
        assert read_tokenizer(ObjectReader(values, "manifest.json")) == spec
        assert ("unknown_token_id" in values, len(values)) in {(False, 2), (True, 6), (False, 5)}
