"""CLIP as Transformers computes it, from files and labels to probabilities."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.export.families.conftest import noise_pictures, processor_of, randomize, save_folder
from tests.export.families.transformers.dual_encoders import (
    LABELS,
    check_embeddings,
    check_probabilities,
    load_retriever,
    write_pictures,
)
from xattn_export import export_checkpoint
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.errors import CheckpointError, QuestionError, UserError
from xattn_runtime.tasks import RetrievalTask

SIDE_PX = 32
MOST_TOKENS = 48
FIRST, END, LATER = "<|startoftext|>", "<|endoftext|>", "later"


def _vocabulary(*, end_is_last: bool) -> dict[str, int]:
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), FIRST]
    return {word: i for i, word in enumerate([*words, LATER, END] if end_is_last else [*words, END, LATER])}


def _folder(folder: Path, eos_token_id: Any = None, activation: str = "quick_gelu", **vision: Any) -> Path:
    """With the id 2, as early configurations state it, the end token is the last of the vocabulary."""
    vocabulary = _vocabulary(end_is_last=eos_token_id == 2)
    shared = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": activation}
    text = {"hidden_size": 32, "vocab_size": len(vocabulary), "max_position_embeddings": MOST_TOKENS, **shared}
    config = CLIPConfig(
        text_config=text | {"eos_token_id": vocabulary[END] if eos_token_id is None else eos_token_id},
        vision_config={"hidden_size": 40, "image_size": SIDE_PX, "patch_size": 8, **shared} | vision,
        projection_dim=24,
    )
    model = CLIPModel(config).eval()
    randomize(model)
    size = {"shortest_edge": SIDE_PX}
    pictures = CLIPImageProcessorPil(size=size, crop_size={"height": SIDE_PX, "width": SIDE_PX})
    return save_folder(folder, model, CLIPProcessor(pictures, CLIPTokenizer(vocabulary, merges=[])))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clip")


@pytest.fixture(scope="module")
def folder(place: Path) -> Path:
    return _folder(place / "clip-tiny")


@pytest.fixture(scope="module")
def task(folder: Path, place: Path) -> RetrievalTask:
    export_checkpoint(folder, place / "clip.xattn")
    return load_retriever(place / "clip.xattn")


@pytest.fixture(scope="module")
def files(place: Path) -> list[Path]:
    return write_pictures(place)


def _check(task: RetrievalTask, folder: Path, files: list[Path]) -> None:
    model, processor = CLIPModel.from_pretrained(folder).eval(), processor_of(folder)

    def inputs(pictures: list[Image.Image], texts: list[str]) -> Any:
        return processor(images=pictures, text=texts, padding=True, return_tensors="pt")

    check_embeddings(task, model, inputs, files)
    check_probabilities(task, model, inputs, files, lambda logits: logits.softmax(-1))


def test_embeddings_and_probabilities_are_those_of_transformers(
    task: RetrievalTask, folder: Path, files: list[Path]
) -> None:
    _check(task, folder, files)


@pytest.mark.slow
def test_configurations_that_state_no_true_end_token(place: Path, files: list[Path]) -> None:
    folder, bundle = _folder(place / "clip-old", eos_token_id=2, activation="gelu"), place / "old.xattn"
    report = export_checkpoint(folder, bundle, attention="decomposed")
    assert all("Attention" not in facts.operators for facts in report.graphs.values())
    _check(load_retriever(bundle), folder, files)


def test_what_the_manifest_says(task: RetrievalTask, folder: Path) -> None:
    manifest = open_bundle(task.bundle.path).manifest
    model = CLIPModel.from_pretrained(folder)
    assert manifest.similarity is not None
    assert (manifest.similarity.kind, manifest.similarity.bias) == ("softmax", 0.0)
    assert manifest.similarity.scale == pytest.approx(model.logit_scale.exp().item())
    assert manifest.tokenizer.pad_to is None


def test_a_picture_finds_itself(task: RetrievalTask, files: list[Path]) -> None:
    embeddings = task.embed_images(files)
    for number, embedding in enumerate(embeddings):
        match = task.rank(embedding, embeddings)[0]
        assert match.index == number
        assert match.cosine == pytest.approx(1.0)


def test_an_encoded_picture_costs_nothing_more(task: RetrievalTask, files: list[Path]) -> None:
    encoded = task.encode(files[0])
    found, again = task.classify(files[0], LABELS), task.classify(encoded, LABELS)
    assert again.timing_ms.encode == again.timing_ms.preprocess == 0
    assert found.timing_ms.encode > 0
    assert [(s.label, s.probability) for s in again.scores] == [(s.label, s.probability) for s in found.scores]
    assert sum(score.probability for score in found.scores) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("labels", "template", "error", "message"),
    [
        ([], "{label}", UserError, "labels: expected at least 2, found 0; say what the image may show"),
        (["red"], "{label}", UserError, "labels: expected at least 2, found 1; this model chooses among them"),
        (["red", " red "], "{label}", UserError, "labels: expected each label once, found 'red' twice"),
        (["red", " "], "{label}", QuestionError, "labels: expected a text, found an empty one as number 2"),
        (["red", "zoo " * 20], "{label}", QuestionError, "label: expected at most 48 tokens, found 62"),
        (["red", "blue"], "a photo", UserError, "template: expected a text with {label} in it once, found 'a photo'"),
    ],
)
def test_labels_that_cannot_be_used(
    task: RetrievalTask, files: list[Path], labels: list[str], template: str, error: type[UserError], message: str
) -> None:
    with pytest.raises(error) as raised:
        task.classify(files[0], labels, template)
    assert type(raised.value) is error
    assert message in str(raised.value)


def test_the_end_token_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"eos_token_id: expected the id of the token that ends a text, found \["):
        export_checkpoint(_folder(tmp_path / "model", eos_token_id=[5, 6]), tmp_path / "out.xattn")
    assert not (tmp_path / "out.xattn").exists()


def test_batches_of_pictures_and_texts(task: RetrievalTask, files: list[Path]) -> None:
    pictures: list[Any] = [*noise_pictures(17), *files]
    alone = torch.tensor([task.embed_images([picture])[0].tolist() for picture in pictures])
    torch.testing.assert_close(torch.from_numpy(task.embed_images(pictures)), alone, atol=1e-5, rtol=0)
    texts = [f"{label} {number}" for label in LABELS for number in range(14)]
    alone = torch.tensor([task.embed_texts([text])[0].tolist() for text in texts])
    torch.testing.assert_close(torch.from_numpy(task.embed_texts(texts)), alone, atol=1e-5, rtol=0)
