"""What a user can do wrong: each mistake is answered by one clear line, exit code 2, and nothing on standard output."""

import errno
import json
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from xattn_runtime.bundle.folder import open_bundle

QUESTION = "what is the cat"


def check(result, *words: str, code: int = 2) -> None:
    assert (result.exit_code, result.stdout) == (code, ""), result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.endswith("\n")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def _bomb() -> bytes:
    """A small PNG file that says that it holds 20,000 × 20,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(60_001 * 100), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


IMAGES: dict[str, tuple[Callable[[bytes], bytes | None], str]] = {
    "missing": (lambda good: None, "no such file"),
    "truncated": (lambda good: good[: len(good) // 2], "damaged"),
    "not an image": (lambda good: b"once upon a time", "expected an image"),
    "empty": (lambda good: b"", "empty file"),
    "bomb": (lambda good: _bomb(), "megapixels"),
}


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("command", ["caption", "vqa"])
def test_pictures(invoke, tmp_path, picture, vqa_bundle, caption_bundle, command, kind):
    make, words = IMAGES[kind]
    path = tmp_path / "picture.png"
    content = make(picture.read_bytes())
    if content is not None:
        path.write_bytes(content)
    arguments = (
        ("caption", path, "-b", caption_bundle) if command == "caption" else ("vqa", path, QUESTION, "-b", vqa_bundle)
    )
    for more in ((), ("--json",), ("--quiet",)):
        check(invoke(*arguments, *more), str(path), words)


def test_a_folder_for_a_picture(invoke, tmp_path, caption_bundle):
    check(invoke("caption", tmp_path, "-b", caption_bundle), "expected a folder with images, found none in it")


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("", "empty"),
        (" \t\n", "empty"),
        ("is the cat red " * 667, "at most 2,000 characters"),
        ("is the cat red " * 10, "tokens"),
        ("quo vadis", "none of the words"),
        ("какого цвета фигура", "none of the words"),
        ("図形は何色ですか", "none of the words"),
        ("\x1b[31m\n", "none of the words"),
    ],
)
def test_questions(invoke, picture, vqa_bundle, question, words):
    check(invoke("vqa", picture, question, "-b", vqa_bundle), "question", words)
    check(invoke("vqa", picture, question, "-b", vqa_bundle, "--json"), "question", words)


def _without_file(folder: Path) -> None:
    (folder / "graphs" / "classifier.onnx").unlink()


def _truncated_file(folder: Path) -> None:
    path = folder / "graphs" / "classifier.onnx"
    path.write_bytes(path.read_bytes()[:-100])


def _altered_file(folder: Path) -> None:
    path = folder / "graphs" / "classifier.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _edit(folder: Path, **values: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _unknown_schema(folder: Path) -> None:
    _edit(folder, schema_version=99)


def _path_that_leaves(folder: Path) -> None:
    graphs = json.loads((folder / "manifest.json").read_text())["graphs"]
    graphs["classifier"]["file"] = "../classifier.onnx"
    _edit(folder, graphs=graphs)


def _broken_json(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


def _without_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


BUNDLES = {
    "a missing file": (_without_file, "classifier.onnx"),
    "a truncated file": (_truncated_file, "classifier.onnx"),
    "an altered file": (_altered_file, "classifier.onnx"),
    "an unknown schema version": (_unknown_schema, "schema_version"),
    "a path that leaves it": (_path_that_leaves, "../classifier.onnx"),
    "a broken manifest": (_broken_json, "manifest.json"),
    "no manifest": (_without_manifest, "manifest.json"),
}


@pytest.mark.parametrize("kind", BUNDLES)
def test_bundles(invoke, picture, vqa_copy, kind):
    damage, words = BUNDLES[kind]
    damage(vqa_copy)
    check(invoke("vqa", picture, QUESTION, "-b", vqa_copy), words)
    check(invoke("verify", vqa_copy), words)
    check(invoke("profile", vqa_copy, "--runs", "1"), words)


def test_a_bundle_that_is_not_there(invoke, picture, tmp_path):
    path = tmp_path / "nothing.xattn"
    for arguments in (("vqa", picture, QUESTION, "-b", path), ("verify", path), ("profile", path)):
        check(invoke(*arguments), str(path))


def test_a_bundle_of_another_task(invoke, picture, caption_bundle, vqa_bundle):
    check(invoke("vqa", picture, QUESTION, "-b", caption_bundle), "expected a bundle for vqa")
    check(invoke("caption", picture, "-b", vqa_bundle), "expected a bundle for caption")


def test_a_file_that_is_no_graph_though_its_hash_is_right(invoke, picture, vqa_copy, rewrite):
    manifest = open_bundle(vqa_copy).manifest
    (vqa_copy / "graphs" / "classifier.onnx").write_bytes(b"no graph")
    rewrite(vqa_copy, replace(manifest))
    check(invoke("vqa", picture, QUESTION, "-b", vqa_copy), "classifier.onnx")


def test_providers(invoke, picture, vqa_bundle):
    check(invoke("vqa", picture, QUESTION, "-b", vqa_bundle, "--provider", "abacus"), "abacus", "xattn-edge providers")


def test_too_many_new_tokens(invoke, picture, caption_bundle):
    check(invoke("caption", picture, picture, "-b", caption_bundle, "--max-new-tokens", "999"), "max_new_tokens")


@pytest.mark.parametrize(
    ("name", "task", "words"),
    [
        ("shapes-vqa", "caption", ("task: expected vqa, as", "found 'caption'")),
        ("emoji-caption", "retrieval", ("task: expected caption, as", "found 'retrieval'")),
    ],
)
def test_a_task_that_the_model_does_not_do(invoke, tmp_path, name, task, words):
    checkpoint = Path(__file__).parents[3] / "checkpoints" / name
    check(invoke("export", checkpoint, "-o", tmp_path / "out.xattn", "--task", task), *words)
    assert list(tmp_path.iterdir()) == []


EMPTY_PATHS = (
    ("caption", ""),
    ("vqa", "", QUESTION),
    ("classify", "", "cat", "dog"),
    ("retrieve", "cat", "--in", ""),
    ("sentiment", "good", "--audio", ""),
    ("sentiment", "--frames", ""),
    ("caption", "a.png", "-b", ""),
    ("caption", "a.png", "-o", ""),
    ("profile", ""),
    ("profile", "a.xattn", "--html", ""),
    ("tune", "a.xattn", "--also", ""),
    ("verify", ""),
    ("inspect", ""),
    ("compare", "", ""),
    ("export", "", "-o", "out.xattn"),
    ("quantize", "a.xattn", "-o", ""),
    ("evaluate", "", "--data", "emoji"),
    ("train", "retrieval", "-o", "out", "--eye", ""),
    ("study", "-o", "out", "--report", ""),
)


@pytest.mark.parametrize("arguments", EMPTY_PATHS, ids=" ".join)
def test_an_empty_path_is_not_the_current_folder(invoke, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    check(invoke(*arguments), "expected a path, found an empty text")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_name_of_data_is_not_the_current_folder(invoke, tmp_path, monkeypatch, vqa_bundle, picture):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "private.png").write_bytes(picture.read_bytes())
    check(invoke("compare", vqa_bundle, vqa_bundle, "--data", ""), "unknown data set ''")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("caption", "a.png", "--temperature", "nan"), "expected a finite number, found nan"),
        (("caption", "a.png", "--threads", "2.5"), "expected a whole number of at least 1, found '2.5'"),
        (("caption", "a.png", "--threads", "0"), "expected a whole number of at least 1, found '0'"),
        (("caption", "a.png", "--temperature", "warm"), "expected a number, found 'warm'"),
        (("caption", "a.png", "--length-penalty", "-inf"), "expected a finite number, found -inf"),
        (("profile", "a.xattn", "--tolerance", "nan"), "expected a finite number, found nan"),
        (("tune", "a.xattn", "--time-budget", "inf"), "expected a finite number, found inf"),
        (("quantize", "a.xattn", "-o", "b.xattn", "--smooth", "nan"), "expected a finite number, found nan"),
        (("caption", "a.png", "--top-k", "9" * 30), "expected a number of at most 9223372036854775807"),
        (("retrieve", "cat", "--in", ".", "--top-k", "9" * 30), "expected a number of at most 9223372036854775807"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_numbers_that_are_none(invoke, arguments, words):
    check(invoke(*arguments), words)


@pytest.mark.parametrize("threads", ["0", "-1", "5000", "9999999999"])
def test_numbers_of_threads(invoke, picture, vqa_bundle, threads):
    check(invoke("vqa", picture, QUESTION, "-b", vqa_bundle, "--threads", threads), "threads")
    check(invoke("profile", vqa_bundle, "--threads", threads), "threads: expected")


def test_paths_that_cannot_be_used_do_not_keep_the_others_from_their_captions(
    invoke, caption_bundle, picture, tmp_path
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "link.png").symlink_to("nowhere.png")
    bad = [tmp_path / name for name in ("a" * 300 + ".png", "loop.png", "link.png", "empty")]
    result = invoke("caption", *bad, picture, "-b", caption_bundle)
    assert (result.exit_code, result.stdout.count("\n")) == (2, 1)
    assert result.stdout.startswith(f"{picture}: ")
    assert result.stderr.count("error: ") == result.stderr.count("\n") == len(bad)
    assert all(str(path) in result.stderr for path in bad)
    lines = invoke("caption", *bad, picture, "-b", caption_bundle, "-o", tmp_path / "captions.jsonl")
    assert lines.exit_code == 2
    entries = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert [("caption" in entry) for entry in entries] == [False, False, False, True]


def test_a_file_that_may_not_be_read_keeps_none_of_the_others_from_its_caption(
    invoke, caption_bundle, picture, tmp_path, monkeypatch
):
    """A superuser may read everything, so the system's answer is played."""
    locked, read = tmp_path / "locked.png", Path.read_bytes
    locked.write_bytes(picture.read_bytes())

    def refuse(path):
        if path == locked:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode, **options: Path(path) != locked)
    result = invoke("caption", locked, picture, "-b", caption_bundle)
    assert (result.exit_code, result.stdout.count("\n")) == (2, 1)
    assert result.stdout.startswith(f"{picture}: ")
    assert f"{locked}: expected a readable image, found: {os.strerror(errno.EACCES)}; check its perm" in result.stderr


def test_links_that_lead_nowhere_do_not_keep_a_folder_from_being_searched(invoke, picture, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "1.png").write_bytes(picture.read_bytes())
    (folder / "2.png").symlink_to("nowhere.png")
    for more in ((), ("--index", tmp_path / "images.xindex")):
        result = invoke("retrieve", "red heart", "--in", folder, *more)
        assert (result.exit_code, result.stdout.count("\n")) == (2, 1)
        assert "1.png" in result.stdout
        assert f"error: {folder / '2.png'}: expected a readable image" in result.stderr
