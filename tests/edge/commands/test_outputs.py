"""What a command writes beside its answer: nothing of a person's is replaced, and what cannot be is said first."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xattn_edge.study.chart import Point, scatter
from xattn_runtime import files
from xattn_runtime.errors import OutputError
from xattn_runtime.execution.device_profile import device_profile_path, optimized_graphs_path, remove_device_profile
from xattn_runtime.profiling import trace_document
from xattn_runtime.tasks.shared.attention_maps import AttentionMap
from xattn_runtime.tasks.shared.heatmap import draw_html, write_heatmap

OWN = b"<!doctype html><title>a page of my own</title>\n"


def refuse_to_write(monkeypatch, folder: Path) -> None:
    """Let nothing be made in `folder`, as a folder of another user does; these tests may run as root."""
    touch = Path.touch

    def checked(path: Path, *arguments: Any, **options: Any) -> None:
        if path.parent == folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        touch(path, *arguments, **options)

    monkeypatch.setattr(Path, "touch", checked)


SIDE_OUTPUTS = {
    "compare": ("compare", "VQA", "VQA", "--html", "own.html"),
    "profile": ("profile", "VQA", "--runs", "1", "--html", "own.html"),
    "profile --trace": ("profile", "VQA", "--runs", "1", "--trace", "own.json"),
    "quantize": ("quantize", "VQA", "-o", "small.xattn", "--mode", "auto", "--plot", "own.svg"),
    "vqa": ("vqa", "IMAGE", "what is the cat", "-b", "VQA", "--heatmap", "own.png"),
    "caption": ("caption", "IMAGE", "-b", "CAPTION", "--heatmap", "own.html"),
    "study": ("study", "-o", "study", "--quick", "--report", "own.md"),
}


# Work that none of them may begin: running a graph, a process that does so, training.
WORK = (
    ("onnxruntime.InferenceSession", "run"),
    ("onnxruntime.InferenceSession", "run_with_iobinding"),
    ("xattn_runtime.profiling.worker_process", "WorkerProcess.__init__"),
    ("xattn_edge.study.run", "make_subject"),
)


def _found_out_after_the_work(*arguments: Any, **options: Any) -> None:
    raise AssertionError("found out after the work")


@pytest.fixture
def typed(vqa_bundle, caption_bundle, picture):
    """A command line with places in the stead of its capitals."""
    places = {"VQA": vqa_bundle, "CAPTION": caption_bundle, "IMAGE": picture}
    return lambda arguments: [places.get(each, each) for each in arguments]


@pytest.mark.parametrize("command", SIDE_OUTPUTS)
def test_a_file_of_something_else_is_not_replaced(invoke, typed, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    name = SIDE_OUTPUTS[command][-1]
    Path(name).write_bytes(OWN)
    for module, work in WORK:
        monkeypatch.setattr(f"{module}.{work}", _found_out_after_the_work)
    result = invoke(*typed(SIDE_OUTPUTS[command]))
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert f"error: {name}: expected a new file, or one that xattn-edge wrote before" in result.stderr
    assert Path(name).read_bytes() == OWN
    assert {path.name for path in tmp_path.iterdir()} <= {name, "study"}


def test_what_was_written_before_is_replaced(invoke, typed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert invoke(*typed(SIDE_OUTPUTS["compare"])).exit_code == 0
        assert files.MARK.encode() in Path("own.html").read_bytes()[:1024]


def _attention_map() -> AttentionMap:
    weights = np.full((1, 1, 1, 2, 2), 0.25, dtype=np.float32)
    return AttentionMap("a cat", ("cat",), weights, np.zeros((8, 8, 3), dtype=np.uint8))


def test_all_that_is_written_beside_an_answer_is_known_again(tmp_path):
    written = {
        "trace.json": json.dumps(trace_document({"decoder": [{"ph": "X", "name": "MatMul"}] * 100})),
        "chart.svg": scatter("Questions", [Point("one_way", "concat", 1.0, 90.0, 1.0)], 50.0),
        "map.html": draw_html(_attention_map()),
    }
    attention_map = _attention_map()
    for name, text in written.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    write_heatmap(tmp_path / "map.png", attention_map)
    for path in tmp_path.iterdir():
        files.check_replaceable(path)
    write_heatmap(tmp_path / "map.png", attention_map)
    (tmp_path / "map.png").write_bytes(OWN)
    with pytest.raises(OutputError):
        write_heatmap(tmp_path / "map.png", attention_map)


@pytest.mark.parametrize("command", ["caption", "vqa"])
def test_an_image_is_not_replaced_by_its_own_heat_map(invoke, typed, picture, tmp_path, command):
    image = tmp_path / "photo.png"
    shutil.copyfile(picture, image)
    content = image.read_bytes()
    arguments = [image if each == "IMAGE" else each for each in SIDE_OUTPUTS[command][:-1]]
    result = invoke(*typed(arguments), image)
    assert (result.exit_code, result.stderr.count("\n"), image.read_bytes()) == (2, 1, content)


@pytest.mark.parametrize("command", ["compare", "profile", "profile --trace", "quantize"])
def test_a_place_that_cannot_be_written_is_said_before_the_work(invoke, typed, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    arguments = [*typed(SIDE_OUTPUTS[command])[:-1], tmp_path / "closed" / SIDE_OUTPUTS[command][-1]]
    (tmp_path / "closed").mkdir()
    refuse_to_write(monkeypatch, tmp_path / "closed")
    monkeypatch.setattr("xattn_runtime.profiling.profile_matrix", None)
    monkeypatch.setattr("xattn_export.compare.compare_bundles", None)
    result = invoke(*arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "expected a place to write to, found: Permission denied; name another" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "module", "function"),
    [
        (("tune", "BUNDLE"), "xattn_runtime.profiling.tune", "tune_bundle"),
        (("evaluate", "BUNDLE", "--data", "easy-vqa", "--record"), "xattn_edge.evaluation", "evaluate"),
        (("calibrate", "BUNDLE", "--data", "easy-vqa", "--record"), "xattn_edge.evaluation.calibration", "calibrate"),
    ],
    ids=["tune", "evaluate", "calibrate"],
)
def test_a_bundle_beside_which_nothing_can_be_written(
    invoke, stand_in, vqa_copy, monkeypatch, arguments, module, function
):
    refuse_to_write(monkeypatch, vqa_copy.parent)
    stand_in(module, **{function: None})  # is not called
    result = invoke(*(vqa_copy if each == "BUNDLE" else each for each in arguments))
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "Permission denied" in result.stderr


@pytest.mark.parametrize("name", ["", "thesis.txt", "a.onnx", "decoder.onnx"])
def test_what_has_the_place_of_a_device_profile_stays(invoke, stand_in, vqa_copy, name):
    own = optimized_graphs_path(vqa_copy) / name if name else device_profile_path(vqa_copy)
    own.parent.mkdir(exist_ok=True)
    own.write_text("mine")
    stand_in("xattn_runtime.profiling.tune", tune_bundle=None)
    result = invoke("tune", vqa_copy)
    assert (result.exit_code, result.stderr.count("\n"), own.read_text()) == (2, 1, "mine")
    assert "move it elsewhere" in result.stderr


def test_a_stranger_among_our_optimized_graphs_stays(invoke, stand_in, vqa_copy):
    device_profile_path(vqa_copy).write_text('{"schema": "xattn-edge/device/1"}')
    own = optimized_graphs_path(vqa_copy) / "a.onnx"
    own.parent.mkdir()
    own.write_text("mine")
    (own.parent / "classifier.onnx.data").write_text("ours")
    stand_in("xattn_runtime.profiling.tune", tune_bundle=None)
    result = invoke("tune", vqa_copy)
    assert (result.exit_code, result.stderr.count("\n"), own.read_text()) == (2, 1, "mine")
    assert "found a.onnx; move it elsewhere" in result.stderr
    with pytest.raises(OutputError, match=r"found a\.onnx; move it elsewhere"):
        remove_device_profile(vqa_copy)
    assert own.read_text() == "mine"
    own.unlink()
    assert remove_device_profile(vqa_copy)
    assert not own.parent.exists()


@pytest.mark.parametrize("command", [("export", "in"), ("quantize", "in"), ("train", "vqa"), ("study",)])
def test_a_folder_cannot_be_written_to_standard_output(invoke, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    result = invoke(*command, "-o", "-")
    assert (result.exit_code, result.stderr.count("\n"), list(tmp_path.iterdir())) == (2, 1, [])
    assert "name a folder" in result.stderr


def test_an_index_that_cannot_be_written_is_said_before_the_work(invoke, picture, tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "closed").mkdir()
    shutil.copyfile(picture, tmp_path / "images" / "1.png")
    refuse_to_write(monkeypatch, tmp_path / "closed")
    monkeypatch.setattr("xattn_runtime.retrieval.index._embed", None)
    result = invoke("retrieve", "cat", "--in", tmp_path / "images", "--index", tmp_path / "closed" / "images.xindex")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "expected a file that can be written" in result.stderr
