"""LXMERT and VisualBERT as Transformers computes them, from files of region features to answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertTokenizer,
    LxmertConfig,
    LxmertForQuestionAnswering,
    VisualBertConfig,
    VisualBertForQuestionAnswering,
)

from tests.export.families.conftest import bert_vocabulary, randomize, save_folder
from xattn_export import export_checkpoint
from xattn_runtime.errors import CheckpointError, ImageError
from xattn_runtime.loader import load
from xattn_runtime.tasks import VqaTask
from xattn_runtime.verify.golden import verify_bundle

TOLERANCE = 1e-4
WIDTH = 20
LABELS = ("yes", "no", "red", "green", "two")
NAMES = {"id2label": dict(enumerate(LABELS)), "label2id": {label: number for number, label in enumerate(LABELS)}}
QUESTIONS = ("what color is the circle ?", "is there a red square on the green triangle?", "zebra", "shape")
COUNTS = (1, 2, 9, 36, 5, 7)
VOCABULARY = bert_vocabulary()
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": len(VOCABULARY)}


def _lxmert(**settings: Any) -> LxmertForQuestionAnswering:
    layers = {"l_layers": 1, "x_layers": 2, "r_layers": 1, "visual_feat_dim": WIDTH, "num_qa_labels": len(LABELS)}
    config = LxmertConfig(**SIZES, **{**layers, "max_position_embeddings": 24, **NAMES, **settings})
    return LxmertForQuestionAnswering(config)


def _visual_bert(**settings: Any) -> VisualBertForQuestionAnswering:
    layers = {"num_hidden_layers": 2, "visual_embedding_dim": WIDTH, "pad_token_id": 0}
    config = VisualBertConfig(**SIZES, **{**layers, "max_position_embeddings": 24, **NAMES, **settings})
    return VisualBertForQuestionAnswering(config)


def _folder(folder: Path, model: Any) -> Path:
    model.eval()
    randomize(model)
    return save_folder(folder, model, BertTokenizer({word: number for number, word in enumerate(VOCABULARY)}))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("regions")


@pytest.fixture(scope="module")
def files(place: Path) -> list[Path]:
    """Regions in different numbers, precisions and memory layouts."""
    generator, found = np.random.default_rng(8), []
    for number, count in enumerate(COUNTS):
        features = generator.normal(size=(count, WIDTH)).astype((np.float32, np.float64, np.float32)[number % 3])
        boxes = np.sort(generator.random((count, 4)), 1).astype(np.float32)
        found.append(place / f"{number}.npz")
        save = np.savez if number % 2 else np.savez_compressed
        save(found[-1], features=np.asfortranarray(features) if number == 3 else features, boxes=boxes, more=count)
    return found


@pytest.fixture(scope="module", params=["lxmert", "visual_bert"])
def folder(request: pytest.FixtureRequest, place: Path) -> Path:
    return _folder(place / request.param, {"lxmert": _lxmert, "visual_bert": _visual_bert}[request.param]())


@pytest.fixture(scope="module")
def task(folder: Path) -> VqaTask:
    export_checkpoint(folder, folder.with_suffix(".xattn"))
    return _load(folder.with_suffix(".xattn"))


def _load(bundle: Path) -> VqaTask:
    return load(bundle, threads=1, task="vqa")


def _arrays(file: Path) -> dict[str, torch.Tensor]:
    with np.load(file) as arrays:
        return {name: torch.from_numpy(arrays[name].astype(np.float32))[None] for name in ("features", "boxes")}


def _expected(folder: Path, file: Path, question: str) -> np.ndarray:
    """Logits `[answers]` of Transformers' own model."""
    text = BertTokenizer.from_pretrained(folder)(question, return_tensors="pt")
    regions = _arrays(file)
    with torch.no_grad():
        if folder.name.startswith("lxmert"):
            lxmert = LxmertForQuestionAnswering.from_pretrained(folder).eval()
            found = lxmert(**text, visual_feats=regions["features"], visual_pos=regions["boxes"])
            return np.asarray(found.question_answering_score[0])
        visual_bert = VisualBertForQuestionAnswering.from_pretrained(folder).eval()
        return np.asarray(visual_bert(**text, visual_embeds=regions["features"]).logits[0])


def _check(task: VqaTask, folder: Path, files: list[Path]) -> None:
    answers = set()
    for number, file in enumerate(files):
        question = QUESTIONS[number % len(QUESTIONS)]
        expected = _expected(folder, file, question)
        found = task.logits(task.encode(file), question)
        assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max(), file
        answer = task.ask(file, question)
        assert answer.answer == LABELS[int(expected.argmax())]
        assert answer.confidence == pytest.approx(float(torch.from_numpy(expected).softmax(0).max()), abs=1e-5)
        answers.add(answer.answer)
    assert len(answers) > 1


def test_logits_are_those_of_transformers(task: VqaTask, folder: Path, files: list[Path]) -> None:
    _check(task, folder, files)


def test_decomposed_attention(folder: Path, place: Path, files: list[Path]) -> None:
    report = export_checkpoint(folder, place / f"{folder.name}-18.xattn", attention="decomposed")
    assert all("Attention" not in facts.operators for facts in report.graphs.values())
    _check(_load(place / f"{folder.name}-18.xattn"), folder, files)


def test_a_batch_of_regions_in_different_numbers(task: VqaTask, folder: Path, files: list[Path]) -> None:
    pairs = [(files[number], QUESTIONS[number]) for number in (0, 3, 2)]
    found = task.ask_many([file for file, _ in pairs], [question for _, question in pairs])
    for answer, (file, question) in zip(found, pairs, strict=True):
        expected = torch.from_numpy(_expected(folder, file, question)).softmax(0).numpy()
        assert [label for label, _ in answer.top] == [LABELS[i] for i in np.argsort(-expected)]
        assert [p for _, p in answer.top] == pytest.approx(np.sort(expected)[::-1], abs=1e-5)


def test_arrays_and_bytes_do_as_well_as_a_file(task: VqaTask, files: list[Path]) -> None:
    arrays: Any = {name: values[0].numpy() for name, values in _arrays(files[2]).items()}
    answers = [task.ask(given, QUESTIONS[0]).top for given in (files[2], files[2].read_bytes(), arrays)]
    assert answers[0] == answers[1] == answers[2]


def test_golden_cases_are_regions(task: VqaTask, folder: Path) -> None:
    report = verify_bundle(task.bundle)
    assert report.passed
    assert {case.measure.image.partition(".")[2] for case in report.cases} == {"regions.npz"}
    with np.load(task.bundle.path / "golden" / "0.regions.npz") as arrays:
        assert set(arrays) == ({"features", "boxes"} if "lxmert" in folder.name else {"features"})


def test_a_picture_is_no_region(task: VqaTask) -> None:
    with pytest.raises(ImageError, match=r"expected region features, an .npz with features \[regions, 20\]"):
        task.encode(b"\x89PNG\r\n\x1a\n")


def _write_labels(*names: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "labels.txt").write_text("\n".join(names), encoding="utf-8")


@pytest.mark.parametrize(
    ("settings", "prepare", "message"),
    [
        ({"id2label": None, "label2id": None}, None, "expected names for the model's 5 answers, in id2label of"),
        (
            {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}},
            None,
            "5 answers, found none for 2; add it, or write",
        ),
        (
            {"id2label": {i: f"LABEL_{i}" for i in range(5)}, "label2id": {f"LABEL_{i}": i for i in range(5)}},
            None,
            "expected names for the model's 5 answers",
        ),
        ({}, _write_labels("a", "b"), "labels.txt: expected 5 different names, .* found 2 lines, 2 of them"),
        ({}, _write_labels("a", "b", "c", "c", ""), "found 4 lines, 3 of them different names"),
    ],
)
def test_answers_without_names(
    tmp_path: Path, settings: dict[str, Any], prepare: Callable[[Path], None] | None, message: str
) -> None:
    folder = _folder(tmp_path / "lxmert", _lxmert(**settings))
    if prepare:
        prepare(folder)
    with pytest.raises(CheckpointError, match=message):
        export_checkpoint(folder, tmp_path / "out.xattn")
    assert not (tmp_path / "out.xattn").exists()


def test_names_of_answers_in_a_file_and_regions_of_the_users_own(files: list[Path], tmp_path: Path) -> None:
    folder = _folder(tmp_path / "visual_bert", _visual_bert(num_hidden_layers=1))
    names = ("oui", "non", "rouge", "vert", "deux")
    _write_labels(*names)(folder)
    export_checkpoint(folder, tmp_path / "french.xattn", golden_images=files[:2])
    assert len(verify_bundle(tmp_path / "french.xattn").cases) == 2
    expected = _expected(folder, files[0], QUESTIONS[0])
    assert _load(tmp_path / "french.xattn").ask(files[0], QUESTIONS[0]).answer == names[int(expected.argmax())]


def test_a_form_of_visual_bert_that_is_not_exported(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "model", _visual_bert(bypass_transformer=True))
    with pytest.raises(CheckpointError, match="bypass_transformer: expected false, found true"):
        export_checkpoint(folder, tmp_path / "out.xattn")
