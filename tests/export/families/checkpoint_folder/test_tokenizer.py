"""Tokenizers put together from the files of a folder spell and read as Transformers' own do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from xattn_export.families.checkpoint_folder.tokenizer import source_tokenizer, tokenizer_json_of
from xattn_runtime.errors import CheckpointError

transformers = pytest.importorskip("transformers")

BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
CLIP = ["<|startoftext|>", "<|endoftext|>"]
TEXTS = [
    "What color is the dog's ball?",
    "  A  photo of\ta cat\nand 2 dogs, isn't it!  ",
    "CAFÉ naïve Ångström, Straße",
    "猫と犬が 中文 한국어 русский",
    "emoji 🙂👩‍👩‍👧 and ﬁne ½ ①",
    "don't we'll they're I'd you've it's 's",
    "<mask> [MASK] <|endoftext|> </s> [SEP]",
    "a\u0000b\u200bc\u00a0d\ufffd",
    "e\u0301 vs \u00e9",
    "word " * 30,
    "...!?,;:'\"()[]{}@#$%^&*-_=+\\/",
]
CORPUS = [
    *TEXTS,
    "a photo of a cat and a dog on a table",
    "what is the color of the ball in the picture",
    "two people riding horses along the beach at sunset",
]


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _wordpiece(folder: Path, lower: bool = True, **settings: Any) -> Path:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        [*CORPUS[:3], *CORPUS[5:]], trainers.WordPieceTrainer(vocab_size=160, special_tokens=BERT)
    )
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word, _ in words), encoding="utf-8")
    _write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": lower} | settings
    )
    return folder


def _byte_level(folder: Path, name: str, special: list[str], suffix: str = "", **settings: Any) -> Path:
    ending: Any = {"end_of_word_suffix": suffix} if suffix else {}
    tokenizer = Tokenizer(models.BPE(**ending))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if suffix:
        alphabet = [*alphabet, *(sign + suffix for sign in alphabet)]
    trainer = trainers.BpeTrainer(vocab_size=len(alphabet) + 80, special_tokens=[*special, *sorted(alphabet)], **ending)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.model.save(str(folder))
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": name} | settings)
    return folder


FOLDERS: dict[str, Callable[[Path], Path]] = {
    "bert": _wordpiece,
    "bert, cased": lambda folder: _wordpiece(folder, lower=False),
    "bert, accents kept": lambda folder: _wordpiece(folder, strip_accents=False),
    "bert, accents off": lambda folder: _wordpiece(folder, lower=False, strip_accents=True),
    "bert, Chinese in words": lambda folder: _wordpiece(folder, tokenize_chinese_chars=False),
    "gpt2": lambda folder: _byte_level(folder, "GPT2Tokenizer", ["<|endoftext|>"]),
    "gpt2, prefix space": lambda folder: _byte_level(folder, "GPT2Tokenizer", ["<|endoftext|>"], add_prefix_space=True),
    "gpt2 of OPT": lambda folder: _byte_level(
        folder, "GPT2Tokenizer", ["<s>", "<pad>", "</s>"], add_bos_token=True,
        bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>",
    ),
    "roberta": lambda folder: _byte_level(folder, "RobertaTokenizer", ROBERTA),
    "roberta, prefix space": lambda folder: _byte_level(folder, "RobertaTokenizer", ROBERTA, add_prefix_space=True),
    "clip": lambda folder: _byte_level(folder, "CLIPTokenizer", CLIP, "</w>"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDERS)
def test_what_transformers_makes_of_the_files(kind: str, tmp_path: Path) -> None:
    folder = FOLDERS[kind](tmp_path)
    ours = Tokenizer.from_str(tokenizer_json_of(folder))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert ours.get_vocab_size() == len(theirs)
    for text in TEXTS:
        for special in (True, False):
            expected = theirs(text, add_special_tokens=special)["input_ids"]
            assert ours.encode(text, add_special_tokens=special).ids == expected, text
        assert ours.decode(expected).strip() == theirs.decode(expected, skip_special_tokens=True).strip(), text
    assert theirs.unk_token_id not in ours.encode("what color is it?", add_special_tokens=False).ids


def test_a_tokenizer_json_is_taken_as_it_is_without_truncation_and_padding(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(tokenizer_json_of(_wordpiece(tmp_path)))
    plain = tokenizer.to_str()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.txt").write_text("other\n")
    assert tokenizer_json_of(tmp_path) == plain


@pytest.mark.parametrize("source", ["tokenizer_config.json", "added_tokens.json"])
def test_added_tokens_keep_their_ids(tmp_path: Path, source: str) -> None:
    folder = _wordpiece(tmp_path)
    size = len((folder / "vocab.txt").read_text().splitlines())
    if source == "added_tokens.json":
        _write_json(folder / source, {"[ENC]": size + 1, "[DEC]": size})
        _write_json(folder / "special_tokens_map.json", {"additional_special_tokens": ["[DEC]", "[ENC]"]})
    else:
        settings = json.loads((folder / source).read_text())
        added = {str(size + i): {"content": name, "special": True} for i, name in enumerate(("[DEC]", "[ENC]"))}
        _write_json(folder / source, settings | {"added_tokens_decoder": added})
    tokenizer = Tokenizer.from_str(tokenizer_json_of(folder))
    assert (tokenizer.token_to_id("[DEC]"), tokenizer.token_to_id("[ENC]")) == (size, size + 1)
    ids = [size, tokenizer.token_to_id("the") or 0, size + 1]
    expected = transformers.AutoTokenizer.from_pretrained(folder).decode(ids, skip_special_tokens=True)
    assert tokenizer.decode(ids) == expected


def test_a_sentencepiece_model_is_converted(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(CORPUS[-3:] * 20), encoding="utf-8")
    folder = tmp_path / "model"
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "spiece"), vocab_size=36, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        minloglevel=2,
    )  # fmt: skip
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "extra_ids": 0})
    tokenizer = Tokenizer.from_str(tokenizer_json_of(folder))
    ids = tokenizer.encode("a photo of a dog").ids
    assert ids == transformers.AutoTokenizer.from_pretrained(folder)("a photo of a dog")["input_ids"]
    assert tokenizer.decode(ids) == "a photo of a dog"


@pytest.mark.parametrize(
    ("settings", "bpe", "expected"),
    [
        ({}, False, False),
        ({"clean_up_tokenization_spaces": False}, False, False),
        ({"clean_up_tokenization_spaces": True}, False, True),
        ({"clean_up_tokenization_spaces": True}, True, False),
    ],
)
def test_cleaning_up(tmp_path: Path, settings: dict[str, Any], bpe: bool, expected: bool) -> None:
    folder = (
        _byte_level(tmp_path, "GPT2Tokenizer", ["<|endoftext|>"], **settings)
        if bpe
        else _wordpiece(tmp_path, **settings)
    )
    assert source_tokenizer(folder, 9).spec.clean_up_spaces is expected


def _damaged(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "vocab.txt").unlink(), "expected a tokenizer (tokenizer.json, vocab.txt"),
        (_damaged("tokenizer.json", "{}"), "tokenizer.json: expected a tokenizer, found: "),
        (_damaged("tokenizer_config.json", "{"), "tokenizer_config.json: expected readable JSON"),
        (_damaged("tokenizer_config.json", "[]"), "tokenizer_config.json: expected a JSON object, found []"),
        (
            _damaged("tokenizer_config.json", '{"cls_token": 3}'),
            "Special token cls_token has to be either str",
        ),
        (_damaged("added_tokens.json", '{"[DEC]": 9999}'), "expected the added token '[DEC]' to have the id 9999"),
        (_damaged("vocab.txt", ""), "vocab.txt: expected a tokenizer, found: "),
        *(
            (
                _damaged("tokenizer_config.json", f'{{"tokenizer_class": "{name}"}}'),
                f"tokenizer_class: expected a class of Transformers that reads vocab.txt, found '{name}'; name",
            )
            for name in ("NoSuchTokenizer", "PreTrainedTokenizerFast")
        ),
        (
            _damaged("tokenizer_config.json", '{"tokenizer_class": "RobertaTokenizer"}'),
            "vocab.txt: expected a tokenizer, found: no vocab.json, merges.txt of the RobertaTokenizer that",
        ),
        (
            _damaged(
                "tokenizer_config.json", '{"tokenizer_class": "Its", "auto_map": {"AutoTokenizer": ["i.T", null]}}'
            ),
            "tokenizer_config.json: auto_map: expected a tokenizer of Transformers, found code of its own",
        ),
        (
            _damaged("tokenizer_config.json", '{"tokenizer_class": "XLMTokenizer"}'),
            "expected a tokenizer, found: ",
        ),
    ],
)
def test_folders_without_a_usable_tokenizer(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(_wordpiece(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        tokenizer_json_of(tmp_path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)
