"""ViLT as Transformers computes it, whatever the shape of the picture."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertTokenizer, ViltConfig, ViltForQuestionAnswering, ViltProcessor
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

from tests.export.families.conftest import bert_vocabulary, noise_pictures, processor_of, randomize, save_folder
from xattn_export import export_checkpoint
from xattn_export.families.layers.vision.vilt import ViltCanvas, ViltPatchGraph
from xattn_export.families.table import family_of
from xattn_runtime.errors import CheckpointError, UserError
from xattn_runtime.loader import load
from xattn_runtime.tasks import VqaTask

TOLERANCE = 1e-4
PATCH_PX = 16
LABELS = ("yes", "no", "red", "green", "two")
QUESTIONS = ("what color is the circle ?", "is there a red square on the green triangle?", "zebra", "shape")
SHAPES_PX = ((90, 90), (120, 60), (60, 120), (40, 120), (130, 44), (1, 1), (7, 3), (64, 64), (300, 200), (500, 150))


def _folder(folder: Path, edge_px: int, processing: dict[str, Any] | None = None, **settings: Any) -> Path:
    vocabulary = bert_vocabulary()
    config = ViltConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        vocab_size=len(vocabulary),
        max_position_embeddings=20,
        id2label=dict(enumerate(LABELS)),
        label2id={label: number for number, label in enumerate(LABELS)},
        **{"image_size": 64, "patch_size": PATCH_PX} | settings,
    )
    model = ViltForQuestionAnswering(config).eval()
    randomize(model)
    pictures = ViltImageProcessorPil(size={"shortest_edge": edge_px}, size_divisor=16, **(processing or {}))
    tokenizer = BertTokenizer({word: number for number, word in enumerate(vocabulary)})
    return save_folder(folder, model, ViltProcessor(pictures, tokenizer))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vilt")


@pytest.fixture(scope="module")
def folder(place: Path) -> Path:
    return _folder(place / "vilt-tiny", 64)


@pytest.fixture(scope="module")
def task(folder: Path, place: Path) -> VqaTask:
    export_checkpoint(folder, place / "vilt.xattn")
    return load(place / "vilt.xattn", threads=1, task="vqa")


NAMES: list[tuple[object, str | None, str]] = [
    (
        {"0": "yes", "1": "no", "2": "red", "3": "yes", "4": "two"},
        None,
        "found 'yes' for 0 and 3; rename one, or write",
    ),
    (
        {"0": "yes", "1": "no", "2": "red", "3": "green", "5": "two"},
        None,
        "found none for 4; add it, or write labels.txt",
    ),
    ({"0": "yes", "1": "no", "2": "", "3": "green", "4": "two"}, None, "found none for 2; add it, or write labels.txt"),
    (
        {str(number): f"LABEL_{number}" for number in range(5)},
        None,
        "expected names for the model's 5 answers, in id2l",
    ),
    ({"yes": 0, "no": 1}, None, "id2label: expected names by number, as in"),
    (["yes", "no"], None, "config.json: id2label: expected "),
    (dict(enumerate(LABELS)), "yes\nno\nred\nred\ntwo\n", "labels.txt: expected 5 different names, one a line"),
]


@pytest.mark.parametrize(("stated", "file", "message"), NAMES, ids=[message[:30] for *_, message in NAMES])
def test_answers_without_names_of_their_own(
    folder: Path, tmp_path: Path, stated: object, file: str | None, message: str
) -> None:
    """Told in the name of the file that holds them, before anything is exported."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"id2label": stated, "label2id": None}))
    if file is not None:
        (copy / "labels.txt").write_text(file)
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        family_of(copy).open(copy)
    assert str(caught.value).startswith(str(copy))


def test_fewer_names_than_the_weights_have_answers(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"id2label": {"0": "yes", "1": "no"}, "label2id": None}))
    with pytest.raises(
        CheckpointError, match=r"the shape \[2.*, found \[5.*unless the number of names in id2label is to be 5"
    ):
        family_of(copy).open(copy)


def _pictures() -> list[Image.Image]:
    return [picture.resize(size) for picture, size in zip(noise_pictures(10), SHAPES_PX, strict=True)]


def _expected(folder: Path, pictures: list[Image.Image], questions: list[str]) -> np.ndarray:
    """Logits `[batch, answers]` of Transformers' own model for what its own processor makes of a batch."""
    model = ViltForQuestionAnswering.from_pretrained(folder).eval()
    inputs = processor_of(folder)(pictures, questions, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits: np.ndarray = model(**inputs).logits.numpy()
    return logits


def _check(task: VqaTask, folder: Path) -> None:
    rows = []
    for number, picture in enumerate(_pictures()):
        question = QUESTIONS[number % len(QUESTIONS)]
        expected = _expected(folder, [picture], [question])[0]
        found = task.logits(task.encode(picture), question)
        assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max(), picture.size
        answer = task.ask(picture, question)
        assert answer.answer == LABELS[int(expected.argmax())]
        rows.append(expected)
    assert np.std(rows, axis=0).max() > 1000 * TOLERANCE


def test_pictures_of_every_shape_get_the_logits_of_transformers(task: VqaTask, folder: Path) -> None:
    _check(task, folder)


@pytest.mark.slow
@pytest.mark.parametrize("edge_px", [48, 100])
def test_sizes_that_the_model_was_not_trained_at(place: Path, edge_px: int) -> None:
    folder, bundle = _folder(place / f"vilt-{edge_px}", edge_px), place / f"{edge_px}.xattn"
    report = export_checkpoint(folder, bundle, attention="decomposed" if edge_px == 48 else "standard")
    assert ("Attention" in report.graphs["classifier"].operators) == (edge_px != 48)
    loaded = load(bundle, threads=1, task="vqa")
    _check(loaded, folder)


def test_a_batch_of_different_shapes_and_questions(task: VqaTask, folder: Path) -> None:
    pictures, questions = _pictures()[1:4], list(QUESTIONS[:3])
    expected = 1 / (1 + np.exp(-_expected(folder, pictures, questions)))
    for answer, probabilities in zip(task.ask_many(pictures, questions), expected, strict=True):
        assert [label for label, _ in answer.top] == [LABELS[i] for i in np.argsort(-probabilities)]
        assert [p for _, p in answer.top] == pytest.approx(np.sort(probabilities)[::-1], abs=1e-5)


def test_a_file_is_encoded_once_for_several_questions(task: VqaTask, folder: Path, tmp_path: Path) -> None:
    picture = _pictures()[3]
    picture.save(tmp_path / "picture.png")
    encoded = task.encode(tmp_path / "picture.png")
    for question in QUESTIONS:
        answer = task.ask(encoded, question)
        assert answer.timing_ms.encode == 0
        assert answer.answer == LABELS[int(_expected(folder, [picture], [question]).argmax())]


def test_patches_of_every_size_lie_where_upstream_puts_them(folder: Path) -> None:
    model = ViltForQuestionAnswering.from_pretrained(folder).eval()
    graph = ViltPatchGraph(model, ViltCanvas(96, PATCH_PX, 24))
    sizes = [(height, width) for height in range(1, 7) for width in range(1, 7) if height * width <= 24]
    canvases = torch.zeros(len(sizes), 3, 96, 96)
    for canvas, (height, width) in zip(canvases, sizes, strict=True):
        canvas[:, : height * PATCH_PX, : width * PATCH_PX] = torch.randn(3, height * PATCH_PX, width * PATCH_PX)
    with torch.no_grad():
        tokens, mask = graph(canvases)
        for row, (height, width) in enumerate(sizes):
            picture = canvases[row : row + 1, :, : height * PATCH_PX, : width * PATCH_PX]
            pixel_mask = torch.ones(1, *picture.shape[2:], dtype=torch.int64)
            expected, _, (places, _) = model.vilt.embeddings.visual_embed(picture, pixel_mask, max_image_length=-1)
            order = (places[0, :, 0] * width + places[0, :, 1]).argsort()
            length = 1 + height * width
            assert mask[row].tolist() == [1] * length + [0] * (25 - length)
            torch.testing.assert_close(tokens[row, :length], torch.cat((expected[0, :1], expected[0, 1:][order])))
            assert not tokens[row, length:].any()


@pytest.mark.parametrize(
    ("settings", "processing", "message"),
    [
        ({"max_image_length": 23}, {}, "max_image_length: expected -1, or at least 24, .* found 23"),
        ({}, {"do_normalize": False}, "expected a normalisation that makes no color zero"),
        ({"image_size": 96, "patch_size": 32}, {}, "size_divisor: expected a multiple of the model's patch_size 32"),
    ],
)
def test_settings_that_no_graph_can_have(
    tmp_path: Path, settings: dict[str, Any], processing: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        export_checkpoint(_folder(tmp_path / "vilt", 64, processing, **settings), tmp_path / "out.xattn")
    assert not (tmp_path / "out.xattn").exists()


def test_it_does_no_other_task(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task: expected vqa, as .* is a model of ViLT VQA, found 'caption'"):
        export_checkpoint(folder, tmp_path / "out.xattn", task="caption")
