"""What stands beside a vocabulary or a tokenizer.json counts: a bundle reads and writes texts as Transformers does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from xattn_export.families.checkpoint_folder.tokenizer import source_tokenizer
from xattn_runtime.errors import CheckpointError, UserError
from xattn_runtime.preprocess.text import TextCodec

transformers = pytest.importorskip("transformers")

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
LETTERS = [*map(chr, range(33, 127)), "é", "東", "京"]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", *BYTES, "<mask>"]
GPT2 = [*BYTES, "<|endoftext|>"]
CLIP = [*BYTES, *(f"{byte}</w>" for byte in BYTES), "<|startoftext|>", "<|endoftext|>"]
TEXTS = [
    "A Photo of a Café, isn't it?",
    "  <new> two  Dogs<extra>, a <new>b ",
    "東京 Größe cafe\u0301",
    "[MASK]<mask> <|endoftext|> </s>New word newword",
    "שלום 👩\u200d👧\ttab\nline",
]

Files = Mapping[str, Any]


def _words(words: list[str]) -> dict[str, int]:
    return {word: number for number, word in enumerate(words)}


def _bert() -> Any:
    return transformers.BertTokenizer(_words(BERT))


def _roberta() -> Any:
    return transformers.RobertaTokenizer(_words(ROBERTA), [])


def _gpt2() -> Any:
    return transformers.GPT2Tokenizer(_words(GPT2), [])


def _clip() -> Any:
    return transformers.CLIPTokenizer(_words(CLIP), [])


def _added(number: int, word: str, **flags: bool) -> dict[str, Any]:
    names = ("lstrip", "rstrip", "single_word", "normalized", "special")
    return {str(number): {"content": word, **dict.fromkeys(names, False), **flags}}


def _settings(**settings: Any) -> Files:
    return {"tokenizer_config.json": settings}


FLAGS = {
    **_added(len(ROBERTA), "<new>", lstrip=True, rstrip=True),
    **_added(len(ROBERTA) + 1, "New", single_word=True, normalized=True),
    **_added(len(ROBERTA) + 2, "<extra>", special=True),
}
CHANGES: dict[str, tuple[Callable[[], Any], Files]] = {
    "case kept": (_bert, _settings(do_lower_case=False)),
    "accents kept": (_bert, _settings(strip_accents=False)),
    "Chinese in words": (_bert, _settings(tokenize_chinese_chars=False)),
    "blanks taken off": (_bert, _settings(clean_up_tokenization_spaces=True)),
    "blanks of BPE left": (_roberta, _settings(clean_up_tokenization_spaces=True)),
    "blanks of BPE taken off": (
        _roberta,
        _settings(
            clean_up_tokenization_spaces=True,
            clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output=True,
        ),
    ),
    "a blank before GPT-2's first word": (_gpt2, _settings(add_prefix_space=True)),
    "a blank before RoBERTa's first word": (_roberta, _settings(add_prefix_space=True)),
    "GPT-2's begin and end": (_gpt2, _settings(add_bos_token=True, add_eos_token=True)),
    "CLIP's padding": (_clip, _settings(pad_token="!")),
    "additional tokens": (_gpt2, _settings(additional_special_tokens=["<new>", "<extra>"])),
    "extra tokens": (_roberta, _settings(extra_special_tokens=["<new>", "<extra>"])),
    "extra tokens by name": (_bert, _settings(extra_special_tokens={"image_token": "<new>"}, other_token="<extra>")),
    "added_tokens_decoder": (_roberta, _settings(added_tokens_decoder=FLAGS)),
    "added_tokens.json": (_roberta, {"added_tokens.json": {"<new>": len(ROBERTA), "<extra>": len(ROBERTA) + 1}}),
    "special_tokens_map.json": (
        _gpt2,
        {"special_tokens_map.json": {"additional_special_tokens": ["<new>"], "pad_token": "<extra>"}},
    ),
    "a place for an unknown token": (_bert, {"special_tokens_map.json": {"bos_token": "<new>"}}),
    "special tokens as words": (_bert, _settings(split_special_tokens=True)),
    "the file as it is": (_bert, _settings(tokenizer_class="PreTrainedTokenizerFast", do_lower_case=False)),
    "sides and lengths": (_bert, _settings(padding_side="left", truncation_side="left", model_max_length=3)),
}


def _write(folder: Path, files: Files) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        known = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(known | content))


def _vocabulary(words: Mapping[str, int]) -> Files:
    """The files that older versions wrote of these words."""
    if "[CLS]" in words:
        return {"vocab.txt": "".join(f"{word}\n" for word in sorted(words, key=words.__getitem__))}
    return {"vocab.json": words, "merges.txt": "#version: 0.2\n"}


def _codec(folder: Path) -> TextCodec:
    tokenizer = source_tokenizer(folder, 99)
    (folder / "of-the-bundle.json").write_text(tokenizer.json)
    return TextCodec(folder / "of-the-bundle.json", tokenizer.spec)


def _check(codec: TextCodec, theirs: Any) -> None:
    for text in TEXTS:
        for special in (True, False):
            expected = theirs(text, add_special_tokens=special)["input_ids"]
            assert codec.ids_of([text], special_tokens=special) == [expected], text
        assert codec.decode(expected) == theirs.decode(expected, skip_special_tokens=True).strip()


@pytest.mark.parametrize("change", CHANGES)
def test_settings_beside_a_tokenizer(change: str, tmp_path: Path) -> None:
    make, files = CHANGES[change]
    make().save_pretrained(tmp_path)
    _write(tmp_path, files)
    _check(_codec(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path))


@pytest.mark.parametrize("change", [change for change in CHANGES if change != "the file as it is"])
def test_settings_beside_a_vocabulary(change: str, tmp_path: Path) -> None:
    make, files = CHANGES[change]
    make().save_pretrained(tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    (tmp_path / "tokenizer.json").unlink()
    _write(tmp_path, {**_vocabulary(model["vocab"]), **files})
    _check(_codec(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path))


def _model(decoder: str, **more: str) -> Files:
    parts = {"encoder": {"model_type": "vit"}, "decoder": {"model_type": decoder, **more}}
    return {"config.json": {"model_type": "vision-encoder-decoder", **parts}}


UNNAMED: dict[str, tuple[Callable[[], Any], Files]] = {
    "nothing but words": (_bert, {}),
    "by the decoder, BERT": (_bert, _model("bert")),
    "by the decoder, RoBERTa": (_roberta, _model("roberta")),
    "by the decoder, GPT-2": (_gpt2, _model("gpt2")),
    "by a class that the decoder names": (_roberta, _model("trocr", tokenizer_class="RobertaTokenizerFast")),
}


@pytest.mark.parametrize("case", UNNAMED)
def test_a_vocabulary_without_the_name_of_its_class(case: str, tmp_path: Path) -> None:
    make, files = UNNAMED[case]
    theirs = make()
    _write(tmp_path, {**_vocabulary(theirs.get_vocab()), **files})
    _check(_codec(tmp_path), theirs)


def test_a_tokenizer_of_words_without_special_tokens(tmp_path: Path) -> None:
    made = Tokenizer(models.WordLevel(_words(["[UNK]", "a", "photo", "of", "cat"]), unk_token="[UNK]"))
    made.pre_tokenizer, made.normalizer = pre_tokenizers.Whitespace(), normalizers.Lowercase()
    made.save(str(tmp_path / "tokenizer.json"))
    _write(tmp_path, _settings(tokenizer_class="PreTrainedTokenizerFast"))
    codec = _codec(tmp_path)
    _check(codec, transformers.AutoTokenizer.from_pretrained(tmp_path))
    assert codec.ids_of(["A photo of a dog"]) == [[1, 2, 3, 1, 0]]


def test_one_in_a_folder_below_is_not_taken(tmp_path: Path) -> None:
    _bert().save_pretrained(tmp_path / "tokenizer")
    _write(tmp_path, {"config.json": {"model_type": "blip"}})
    with pytest.raises(CheckpointError, match=r"expected a tokenizer .*, found none"):
        source_tokenizer(tmp_path, 9)


@pytest.mark.parametrize(
    ("files", "where"),
    [
        ({"added_tokens.json": {"<new>": len(ROBERTA) + 4}}, "added_tokens.json: "),
        (
            _settings(added_tokens_decoder=_added(len(ROBERTA) + 4, "<new>")),
            "tokenizer_config.json: added_tokens_decoder: ",
        ),
    ],
)
def test_ids_with_holes_before_them_are_refused(files: Files, where: str, tmp_path: Path) -> None:
    _roberta().save_pretrained(tmp_path)
    _write(tmp_path, files)
    with pytest.raises(CheckpointError) as caught:
        source_tokenizer(tmp_path, 9)
    hole = f"expected the added token '<new>' to have the id {len(ROBERTA) + 4}, found {len(ROBERTA)}"
    assert f"{tmp_path / where.split(':')[0]}{where[where.index(':') :]}{hole}" in str(caught.value)


def test_a_class_that_joins_tokens_in_its_own_way_is_refused_by_name(tmp_path: Path) -> None:
    _gpt2().save_pretrained(tmp_path)
    # It writes a token that follows itself once.
    _write(tmp_path, _settings(tokenizer_class="ParakeetTokenizer"))
    with pytest.raises(CheckpointError) as caught:
        source_tokenizer(tmp_path, 9)
    assert "tokenizer_config.json: tokenizer_class: expected a tokenizer that the" in str(caught.value)
    assert "found ParakeetTokenizer, which makes" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_special_tokens_that_a_text_spells_out(tmp_path: Path) -> None:
    _bert().save_pretrained(tmp_path)
    codec = _codec(tmp_path)
    assert BERT.index("[MASK]") in codec.encode_question("a [MASK]").ids
    _write(tmp_path, _settings(split_special_tokens=True))
    assert BERT.index("[MASK]") not in _codec(tmp_path).encode_question("a [MASK]").ids


def test_a_tokenizer_that_splits_at_special_tokens_otherwise(tmp_path: Path) -> None:
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    (tmp_path / "corpus.txt").write_text("a photo of two dogs\nthe cat is on a table\n" * 20)
    trainer.train(
        input=str(tmp_path / "corpus.txt"), model_prefix=str(tmp_path / "spiece"), model_type="unigram", vocab_size=40,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    _write(tmp_path, _settings(tokenizer_class="SiglipTokenizer"))
    tokenizer = source_tokenizer(tmp_path, 99, writes=False)
    (tmp_path / "bundle.json").write_text(tokenizer.json)
    codec, theirs = (
        TextCodec(tmp_path / "bundle.json", tokenizer.spec),
        transformers.AutoTokenizer.from_pretrained(tmp_path),
    )
    for text in ("ｶﾞ か\u3099 각", "A photo, of Dogs!", "cafe\u0301"):
        assert list(codec.encode_question(text).ids) == theirs(text)["input_ids"]
    with pytest.raises(UserError, match="text: expected a text without the special token '</s>', found 'a </s> cat'"):
        codec.encode_question("a </s> cat", kind="text")


def test_an_added_token_that_the_model_lacks(tmp_path: Path) -> None:
    _gpt2().save_pretrained(tmp_path)
    _write(tmp_path, _settings(pad_token="[PAD]"))
    tokenizer = source_tokenizer(tmp_path, 99).refusing_from(len(GPT2))
    assert tokenizer.spec.refused_words == ("[PAD]",)
    assert source_tokenizer(tmp_path, 99).refusing_from(len(GPT2) + 1).spec.refused_words == ()
