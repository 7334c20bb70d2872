"""SigLIP as Transformers computes it, from files and labels to probabilities, with both of its tokenizers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoTokenizer, GemmaTokenizer, SiglipConfig, SiglipModel, SiglipProcessor, SiglipTokenizer
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.export.families.conftest import processor_of, randomize, save_folder
from tests.export.families.transformers.dual_encoders import (
    LABELS,
    check_embeddings,
    check_probabilities,
    load_retriever,
    write_pictures,
)
from xattn_export import export_checkpoint
from xattn_export.families.checkpoint_folder.tokenizer import source_tokenizer
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.errors import CheckpointError, UserError
from xattn_runtime.tasks import RetrievalTask

SIDE_PX = 32
MOST_TOKENS = 64
VOCABULARY = 120
CORPUS = (
    "a photo of a red circle and a blue square on the table",
    "picture of two dogs, one green and one yellow triangle; what is it?",
    "the quick brown fox jumps over the lazy dog 0123456789",
)
TEXTS = (
    *CORPUS,
    "  A  photo of\ta cat\nand 2 dogs, isn't it!  ",
    "! hello",
    "a ! b . c",
    "CAFÉ naïve, Straße ﬁne ½",
    "猫と犬が emoji 🙂",
    "...!?,;:'\"()[]{}@#$%^&*-_=+\\/a",
    "under_score and-dash",
    "x",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("siglip")


@pytest.fixture(scope="module")
def sentences(place: Path) -> SiglipTokenizer:
    """A sentencepiece model of unigrams, as SigLIP has one: id 1 for the end and for padding."""
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    (place / "corpus.txt").write_text("\n".join(CORPUS * 20), encoding="utf-8")
    trainer.train(
        input=str(place / "corpus.txt"), model_prefix=str(place / "spiece"), model_type="unigram",
        vocab_size=VOCABULARY, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return SiglipTokenizer(str(place / "spiece.model"), model_input_names=["input_ids"])


def _second_tokenizer() -> GemmaTokenizer:
    """Of the kind that SigLIP 2 has: byte-level fall-back, no token for the beginning."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *(chr(code) for code in range(97, 123))]
    vocabulary = {word: number for number, word in enumerate(words)}
    return GemmaTokenizer(
        vocabulary, merges=[], add_bos_token=False, add_eos_token=True, padding_side="right",
        model_max_length=MOST_TOKENS, model_input_names=["input_ids"],
    )  # fmt: skip


def _folder(folder: Path, tokenizer: Any, **vision: Any) -> Path:
    shared = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"hidden_size": 32, "vocab_size": VOCABULARY, "max_position_embeddings": MOST_TOKENS, **shared}
    config = SiglipConfig(
        text_config=text | {"projection_size": 40},
        vision_config={"hidden_size": 40, "image_size": SIDE_PX, "patch_size": 8, **shared} | vision,
    )
    model = SiglipModel(config).eval()
    randomize(model)
    with torch.no_grad():
        model.logit_bias.fill_(-1.5)
    pictures = SiglipImageProcessorPil(size={"height": SIDE_PX, "width": SIDE_PX})
    return save_folder(folder, model, SiglipProcessor(pictures, tokenizer))


@pytest.fixture(scope="module")
def folder(place: Path, sentences: SiglipTokenizer) -> Path:
    return _folder(place / "siglip-tiny", sentences)


@pytest.fixture(scope="module")
def task(folder: Path, place: Path) -> RetrievalTask:
    export_checkpoint(folder, place / "siglip.xattn")
    return load_retriever(place / "siglip.xattn")


@pytest.fixture(scope="module")
def files(place: Path) -> list[Path]:
    return write_pictures(place)


def _check(task: RetrievalTask, folder: Path, files: list[Path]) -> None:
    model, processor = SiglipModel.from_pretrained(folder).eval(), processor_of(folder)

    def inputs(pictures: list[Image.Image], texts: list[str]) -> Any:
        given = processor(
            images=pictures, text=texts, padding="max_length", max_length=MOST_TOKENS, return_tensors="pt"
        )
        assert "attention_mask" not in given
        return given

    check_embeddings(task, model, inputs, files)
    check_probabilities(task, model, inputs, files, torch.sigmoid)


def test_embeddings_and_probabilities_are_those_of_transformers(
    task: RetrievalTask, folder: Path, files: list[Path]
) -> None:
    _check(task, folder, files)


def test_the_tokenizer_of_its_second_version(place: Path, files: list[Path]) -> None:
    folder, bundle = _folder(place / "siglip2", _second_tokenizer(), hidden_act="gelu"), place / "second.xattn"
    report = export_checkpoint(folder, bundle, attention="decomposed")
    assert all("Attention" not in facts.operators for facts in report.graphs.values())
    _check(load_retriever(bundle), folder, files)


def test_what_the_manifest_says(task: RetrievalTask, folder: Path) -> None:
    manifest = open_bundle(task.bundle.path).manifest
    model = SiglipModel.from_pretrained(folder)
    assert manifest.similarity is not None
    assert (manifest.similarity.kind, manifest.similarity.bias) == ("sigmoid", -1.5)
    assert manifest.similarity.scale == pytest.approx(model.logit_scale.exp().item())
    assert (manifest.tokenizer.pad_to, manifest.tokenizer.pad_token_id) == (MOST_TOKENS, 1)


def test_a_label_is_judged_by_itself(task: RetrievalTask, files: list[Path]) -> None:
    found = task.classify(files[0], LABELS)
    assert not found.among_labels
    alone = {label: task.classify(files[0], [label]).probability for label in LABELS}
    assert alone == pytest.approx({score.label: score.probability for score in found.scores}, abs=1e-5)


@pytest.mark.parametrize("lower", [True, False])
def test_its_sentencepiece_model_spells_as_transformers_does(
    place: Path, sentences: SiglipTokenizer, tmp_path: Path, lower: bool
) -> None:
    SiglipTokenizer(str(place / "spiece.model"), do_lower_case=lower).save_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.from_str(source_tokenizer(tmp_path, MOST_TOKENS, writes=False).json)
    for text in TEXTS:
        # Blanks at the ends never get there: every text is stripped before.
        assert ours.encode(text.strip()).ids == theirs(text.strip())["input_ids"], text
    assert ours.decode(ours.encode("red circle").ids, skip_special_tokens=True) == "red circle"


def test_a_model_that_does_not_pool(sentences: SiglipTokenizer, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "model", sentences, vision_use_head=False)
    with pytest.raises(CheckpointError, match="vision_use_head: expected a model that pools its patches, found false"):
        export_checkpoint(folder, tmp_path / "out.xattn")
    assert not (tmp_path / "out.xattn").exists()


def test_padding_on_the_left(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": "left"}))
    with pytest.raises(CheckpointError, match="padding_side: expected right, as SigLIP was trained with, found 'left'"):
        export_checkpoint(copy, tmp_path / "out.xattn")
    assert not (tmp_path / "out.xattn").exists()


def test_a_text_longer_than_the_model_takes(task: RetrievalTask) -> None:
    with pytest.raises(UserError, match=f"text: expected at most {MOST_TOKENS} tokens"):
        task.embed_texts(["x y z " * 40])
