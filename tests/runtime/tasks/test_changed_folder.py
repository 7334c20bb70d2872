"""What was loaded stays what it was: the folder may move, change or go, and so may the current folder and a link."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xattn_runtime import BundleError, CaptionTask, default_bundle, load, open_bundle
from xattn_runtime.bundle.held_files import HeldFile

IMAGE = Path(__file__).resolve().parents[3] / "examples" / "gem-and-diamond.png"
QUESTION = "what color is the shape?"


def later(task: CaptionTask) -> dict[str, object]:
    """Answers that need graphs which loading leaves for later."""
    heat = task.attention(IMAGE)
    return {
        "greedy": task.caption(IMAGE).token_ids,
        "beams": task.caption(IMAGE, beams=2).token_ids,
        "stream": [token.token_id for token in task.stream(IMAGE)],
        "words": heat.words,
        "weights": heat.weights.tolist(),
    }


@pytest.fixture(scope="module")
def right() -> dict[str, object]:
    with load(default_bundle("caption"), task="caption") as task:
        return later(task)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(default_bundle("caption"), tmp_path / "m.xattn"))


def _remove(folder: Path) -> None:
    shutil.rmtree(folder)


def _move(folder: Path) -> None:
    folder.rename(folder.with_name("old.xattn"))


def _replace(folder: Path) -> None:
    _move(folder)
    shutil.copytree(default_bundle("vqa"), folder)


def _replace_file_by_file(folder: Path) -> None:
    """As `rsync` does it: each file is written beside the old one, and takes its name."""
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        new = path.with_name("new")
        new.write_bytes(b"other")
        new.replace(path)


def _touch(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (0, 0))


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps files in place that are open")
@pytest.mark.parametrize("change", [_remove, _move, _replace, _replace_file_by_file, _touch])
def test_a_changed_folder_changes_nothing(copy: Path, right: dict[str, object], change: Callable[[Path], None]) -> None:
    with load(copy, task="caption") as task:
        change(copy)
        assert later(task) == right


def test_another_current_folder_changes_nothing(
    copy: Path, right: dict[str, object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(copy.parent)
    opened = open_bundle("m.xattn")
    with load("m.xattn", task="caption") as task:
        monkeypatch.chdir("/")
        assert later(task) == right
    with load(opened, task="caption") as task:
        assert later(task) == right


ANSWERS: dict[str, Callable[[Any], object]] = {
    "vqa": lambda task: task.ask(IMAGE, QUESTION, 3).top,
    "retrieval": lambda task: [*task.embed_images([IMAGE])[0], *task.embed_texts(["a red heart"])[0]],
    "sentiment": lambda task: task.rate("a warm film", frames=[IMAGE]).scores,
}


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps files in place that are open")
@pytest.mark.parametrize("name", ANSWERS)
def test_every_task_outlives_its_folder_and_the_current_one(
    name: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle = default_bundle(name)
    with load(bundle) as task:
        expected = ANSWERS[name](task)
    for change in (_remove, _replace_file_by_file):
        shutil.copytree(bundle, tmp_path / "m.xattn")
        monkeypatch.chdir(tmp_path)
        with load("m.xattn") as task:
            monkeypatch.chdir("/")
            change(tmp_path / "m.xattn")
            assert ANSWERS[name](task) == expected
        shutil.rmtree(tmp_path / "m.xattn", ignore_errors=True)


def test_a_link_that_leads_elsewhere_changes_nothing(copy: Path, right: dict[str, object], tmp_path: Path) -> None:
    current = tmp_path / "current"
    current.symlink_to(copy, target_is_directory=True)
    with load(current, task="caption") as task:
        current.unlink()
        current.symlink_to(default_bundle("vqa"), target_is_directory=True)
        assert later(task) == right
    with load(current, task="vqa") as other:
        assert other.ask(IMAGE, QUESTION).answer


def test_heat_maps_of_questions_outlive_the_folder(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(default_bundle("vqa"), tmp_path / "m.xattn"))
    with load(copy, task="vqa") as task:
        shutil.rmtree(copy)
        assert task.attention(IMAGE, QUESTION).words == ("what", "color", "is", "the", "shape", "?")


def _cut(path: Path) -> None:
    path.write_bytes(b"")


def _alter(path: Path) -> None:
    path.write_bytes(bytes(len(path.read_bytes())))


@pytest.mark.parametrize("change", [_cut, _alter])
@pytest.mark.parametrize("call", [lambda task: task.caption(IMAGE), lambda task: task.caption(IMAGE, beams=2)])
def test_a_file_that_is_written_into_is_named(
    copy: Path, change: Callable[[Path], None], call: Callable[[CaptionTask], object]
) -> None:
    """The weights are mapped into memory: to compute with them now would end the process, or be wrong."""
    with load(copy, task="caption") as task:
        for path in (copy / "graphs").iterdir():
            change(path)
        with pytest.raises(BundleError, match=r"onnx(\.data)?: expected the file as it was .* has changed; load the"):
            call(task)


def test_a_bundle_that_changes_before_it_is_loaded_is_refused(copy: Path) -> None:
    opened = open_bundle(copy)
    (copy / "graphs/attention.onnx").write_bytes((copy / "graphs/decoder.onnx").read_bytes())
    with pytest.raises(BundleError, match=r"attention\.onnx: expected the file as it was"):
        load(opened)
    assert opened.file("tokenizer.json").is_file()
    with (copy / "tokenizer.json").open("a") as stream:
        stream.write(" ")
    with pytest.raises(BundleError, match=r"tokenizer\.json: expected the file as it was"):
        opened.file("tokenizer.json")


def test_a_daemon_that_closed_all_files_still_finds_them_in_their_place(copy: Path, right: dict[str, object]) -> None:
    with load(copy, task="caption") as task:
        held: Any = task._generator._decoder
        others = [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]
        for file, other in zip((held.graph, *held.weights), [*others, None], strict=False):
            os.close(file._descriptor)
            if other is not None:  # another file has the number now, and must stay open
                os.dup2(other, file._descriptor)
        assert later(task) == right
        numbers = [held.graph._descriptor, held.weights[0]._descriptor]
        del held
    gc.collect()
    for number in [*numbers, *others]:
        os.fstat(number)
        os.close(number)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lists open files")
def test_closing_closes_the_files(copy: Path) -> None:
    def opened() -> list[str]:
        return [name for path in Path("/proc/self/fd").iterdir() if str(copy) in (name := _link(path))]

    with load(copy, task="caption") as task:
        assert opened()
        task.caption(IMAGE)
    assert opened() == []


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:  # the folder's own listing
        return ""


def test_a_held_file_is_read_side_by_side(tmp_path: Path) -> None:
    path, content = tmp_path / "weights", os.urandom(3 * 2**20 + 5)
    path.write_bytes(content)
    held = HeldFile(path)
    for number in range(2):
        held.copy_to(tmp_path / f"copy-{number}")
        assert (tmp_path / f"copy-{number}").read_bytes() == content
    assert load(default_bundle("vqa"), task="vqa").labels
