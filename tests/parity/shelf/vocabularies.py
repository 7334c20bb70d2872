"""Tokenizers of few words for the folders of the shelf, in the files that a published tokenizer of their kind has.

Ids of special tokens are those of the published vocabularies; what comes between is short.
"""

from __future__ import annotations

import io
import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import BertTokenizer, CLIPTokenizer, GPT2Tokenizer, RobertaTokenizer

__all__ = [
    "BERT_WORDS",
    "CLIP_WORDS",
    "GPT2_WORDS",
    "OPT_WORDS",
    "ROBERTA_WORDS",
    "put_bert",
    "put_bytes",
    "put_clip",
    "put_sentencepiece",
]

_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
_MERGES = ("Ġ a", "Ġ t", "h e", "Ġt he", "i n", "r e", "Ġ re", "Ġre d")
_MERGED = [merge.replace(" ", "") for merge in _MERGES]
_LETTERS = string.ascii_lowercase + string.digits
_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
_STEMS = ("the", "red", "blue", "circle", "square", "what", "color", "is", "there", "how", "many", "photo", "of")

BERT_WORDS = (
    "[PAD]", *(f"[unused{number}]" for number in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]",
    *_PUNCTUATION, *_LETTERS, *(f"##{letter}" for letter in _LETTERS), *_STEMS, "été", "##é",
)  # fmt: skip
GPT2_WORDS = (*_BYTES, *_MERGED, "<|endoftext|>")
ROBERTA_WORDS = ("<s>", "<pad>", "</s>", "<unk>", *_BYTES, *_MERGED, "<mask>")
OPT_WORDS = ("<s>", "<pad>", "</s>", "<unk>", *_BYTES, *_MERGED)
_CLIP_MERGES = ("t h", "th e</w>", "c a", "ca t</w>", "o f</w>")
CLIP_WORDS = (
    *_BYTES, *(f"{sign}</w>" for sign in _BYTES), *(merge.replace(" ", "") for merge in _CLIP_MERGES),
    "<|startoftext|>", "<|endoftext|>",
)  # fmt: skip
_SENTENCES = (
    "what color is the circle?",
    "Is there a red square, on the triangle?",
    "how many are there",
    "a photo of two dogs, 0123456789 of them",
    "INVOICE TOTAL: 12.50 due today",
)


def put_bert(folder: Path, words: Sequence[str] = BERT_WORDS, *, fast: bool = True) -> None:
    """`vocab.txt`, and `tokenizer.json` as well if `fast`."""
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    if fast:
        _put_fast(folder, BertTokenizer(_numbered(words)))


def put_bytes(folder: Path, words: Sequence[str], *, fast: bool = True) -> None:
    """`vocab.json` and `merges.txt` of a byte-level vocabulary, and `tokenizer.json` as well if `fast`."""
    _put_merged(folder, words, _MERGES)
    if fast:
        tokenizer_class = GPT2Tokenizer if words is GPT2_WORDS else RobertaTokenizer
        _put_fast(folder, tokenizer_class(_numbered(words), [tuple(merge.split()) for merge in _MERGES]))


def put_clip(folder: Path, *, fast: bool = True) -> None:
    """`vocab.json` and `merges.txt` of CLIP, and `tokenizer.json` as well if `fast`."""
    _put_merged(folder, CLIP_WORDS, _CLIP_MERGES)
    if fast:
        _put_fast(folder, CLIPTokenizer(_numbered(CLIP_WORDS), [tuple(merge.split()) for merge in _CLIP_MERGES]))


def put_sentencepiece(folder: Path, name: str, **special_ids: Any) -> int:
    """A sentencepiece model of unigrams in the file `name`; gives how many pieces it has.

    special_ids: `pad_id`, `unk_id`, `bos_id`, `eos_id`; -1 for none.
    """
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    stream = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([*_SENTENCES, *map(str.lower, _SENTENCES)] * 30),
        model_writer=stream,
        vocab_size=100,
        model_type="unigram",
        hard_vocab_limit=False,
        minloglevel=2,
        **special_ids,
    )
    (folder / name).write_bytes(stream.getvalue())
    return int(SentencePieceProcessor(model_proto=stream.getvalue()).vocab_size())


def _numbered(words: Sequence[str]) -> dict[str, int]:
    return {word: number for number, word in enumerate(words)}


def _put_merged(folder: Path, words: Sequence[str], merges: Sequence[str]) -> None:
    (folder / "vocab.json").write_text(json.dumps(_numbered(words)), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(("#version: 0.2", *merges)) + "\n", encoding="utf-8")


def _put_fast(folder: Path, tokenizer: Any) -> None:
    """`tokenizer.json` with merges as texts, which is how it was written before 2024."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    if "merges" in content["model"]:
        content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
