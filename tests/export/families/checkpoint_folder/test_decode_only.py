"""Tokenizers whose way of reading is not at hand still write what their own classes write."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.export.families.conftest import noise_pictures, randomize, save_folder
from xattn_export import export_checkpoint
from xattn_export.families.checkpoint_folder.tokenizer import source_tokenizer
from xattn_runtime.errors import CheckpointError, UserError
from xattn_runtime.loader import load
from xattn_runtime.preprocess.text import TextCodec

transformers = pytest.importorskip("transformers")

KANA = [chr(code) for code in range(0x3041, 0x3061)]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *KANA, *(f"##{kana}" for kana in KANA), "ab", "##", "."]


def _japanese(folder: Path, **settings: Any) -> Path:
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS), encoding="utf-8")
    settings = {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab"} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def _codec(folder: Path) -> TextCodec:
    tokenizer = source_tokenizer(folder, 20, reads=False)
    assert tokenizer.spec.decodes_only
    (folder / "bundle.json").write_text(tokenizer.json, encoding="utf-8")
    return TextCodec(folder / "bundle.json", tokenizer.spec)


def _sequences(most: int) -> list[list[int]]:
    chance = random.Random(3)
    return [[chance.randrange(most) for _ in range(chance.randint(0, 12))] for _ in range(300)]


@pytest.mark.parametrize("segmenter", ["mecab", "sudachi", "jumanpp", "basic"])
@pytest.mark.parametrize("clean", [False, True])
def test_japanese_without_a_segmenter(tmp_path: Path, segmenter: str, clean: bool) -> None:
    folder = _japanese(
        tmp_path, word_tokenizer_type=segmenter, subword_tokenizer_type="character", clean_up_tokenization_spaces=clean
    )
    codec = _codec(folder)
    # The class itself, which needs its segmenter for reading alone.
    theirs = transformers.BertJapaneseTokenizer(
        str(folder / "vocab.txt"), do_word_tokenize=False, clean_up_tokenization_spaces=clean
    )
    for ids in _sequences(len(WORDS)):
        assert codec.decode(ids) == theirs.decode(ids, skip_special_tokens=True).strip(), ids
    assert codec.decode([2, 5, 38, 6, 3]) == "ぁ" + KANA[1] + " " + KANA[1]


def test_pieces_that_go_on(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("a 5\nb@@ 4\nc 3\n@@d@@ 2\n")
    (tmp_path / "bpe.codes").write_text("a b 1\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PhobertTokenizer"}')
    codec, theirs = _codec(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    for ids in _sequences(len(theirs)):
        assert codec.decode(ids) == theirs.decode(ids, skip_special_tokens=True).strip(), ids


def test_it_reads_nothing(tmp_path: Path) -> None:
    codec = _codec(_japanese(tmp_path))
    assert codec.encode_prompt() == ()
    for read in (codec.encode_prompt, codec.encode_prefix, codec.encode_answer):
        with pytest.raises(UserError, match=r"expected none, since the tokenizer .* can write texts but read none"):
            read("ぁ")


def test_a_model_that_is_given_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        source_tokenizer(_japanese(tmp_path), 20)
    assert str(caught.value).startswith(f"{tmp_path / 'tokenizer_config.json'}: tokenizer_class: expected a tokenizer")
    assert "found BertJapaneseTokenizer, which can only write texts here" in str(caught.value)


@pytest.mark.slow
def test_a_reader_of_japanese(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(image_size=32, patch_size=8, **sizes),
        transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=24, **sizes),
    )
    model = transformers.VisionEncoderDecoderModel(config).eval()
    randomize(model, gain=1.5)
    settings = model.generation_config
    settings.decoder_start_token_id, settings.eos_token_id, settings.pad_token_id, settings.max_length = 2, 3, 0, 12
    pictures = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    folder = _japanese(save_folder(tmp_path / "manga", model, pictures), subword_tokenizer_type="character")
    export_checkpoint(folder, tmp_path / "manga.xattn")
    theirs = transformers.BertJapaneseTokenizer(str(folder / "vocab.txt"), do_word_tokenize=False)
    task = load(tmp_path / "manga.xattn", task="caption", threads=1)
    texts = set()
    for picture in noise_pictures(4):
        with torch.no_grad():
            ids = model.generate(pictures(picture, return_tensors="pt").pixel_values)[0]
        caption = task.caption(picture)
        assert caption.text == theirs.decode(ids, skip_special_tokens=True)
        texts.add(caption.text)
    assert len(texts) > 1
    for golden in task.bundle.manifest.golden.cases:
        assert golden.text == theirs.decode(golden.token_ids or (), skip_special_tokens=True).strip()
    with pytest.raises(UserError, match="prompt: expected none, since the tokenizer of this model can write texts"):
        task.caption(noise_pictures(1)[0], prompt="ぁ")
