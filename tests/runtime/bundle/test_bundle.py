from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from xattn_runtime.bundle import folder as bundle_module
from xattn_runtime.bundle.folder import default_bundle, file_digest, open_bundle, shipped_bundles
from xattn_runtime.bundle.task_table import TASKS, TaskSpec
from xattn_runtime.errors import BundleError


def test_opens(caption_bundle: Path) -> None:
    bundle = open_bundle(str(caption_bundle))
    assert bundle.manifest.name == "tiny-caption"
    assert bundle.file("tokenizer.json") == caption_bundle / "tokenizer.json"
    with pytest.raises(BundleError, match=r"found '\.\./x'"):
        bundle.file("../x")


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _edit(path: Path, key: str, value: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda b: (b / "manifest.json").unlink(), "expected a bundle, found no manifest.json in this folder"),
    (lambda b: (b / "manifest.json").write_text("{"), "manifest.json: expected a JSON document, found"),
    (lambda b: (b / "manifest.json").write_text("[]"), "manifest.json: the document: expected an object, found []"),
    (lambda b: (b / "manifest.json").write_text('{"schema_version": NaN}'), "found the number NaN"),
    (lambda b: (b / "manifest.json").write_bytes(b"\xff\xfe\x00"), "manifest.json: expected a JSON document"),
    (lambda b: (b / "manifest.json").write_text("[" * 100_000), "manifest.json: expected a JSON document"),
    (lambda b: _edit(b / "manifest.json", "schema_version", 99), "this runtime reads, found 99; install"),
    (lambda b: (b / "graphs/decoder.onnx").unlink(), "graphs/decoder.onnx: expected a file that manifest.json lists"),
    (lambda b: (b / "graphs/decoder.onnx").write_bytes(b""), "bytes, found 0; copy or export the bundle again"),
    (lambda b: _flip(b / "graphs/decoder.onnx"), "graphs/decoder.onnx: expected SHA-256"),
    (lambda b: _flip(b / "golden/0.npz"), "golden/0.npz: expected SHA-256"),
    (
        lambda b: (b / "graphs/decoder.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab"),
        "graphs/decoder.onnx: expected a file of the bundle, found a Git LFS pointer in place of the file; run",
    ),
    (
        lambda b: (b / "manifest.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab"),
        "manifest.json: expected a file of the bundle, found a Git LFS pointer",
    ),
    (
        lambda b: (b / "tokenizer.json").write_text("<!doctype html><html>"),
        "tokenizer.json: expected a file of the bundle, found a web page (HTML) in place of the file",
    ),
    (lambda b: (b / "notes.txt").write_text("x"), "notes.txt: expected only what manifest.json lists"),
    (lambda b: (b / "empty").mkdir(), "empty: expected only what manifest.json lists"),
    (lambda b: (b / "link").symlink_to("tokenizer.json"), "link: expected a file of the bundle, found a link"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[message for _, message in DAMAGE])
def test_damage_is_named(caption_copy: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(caption_copy)
    with pytest.raises(BundleError) as caught:
        open_bundle(caption_copy)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_other_systems_leave_in_a_bundle_is_passed_over(caption_copy: Path) -> None:
    for name in (".DS_Store", "graphs/._decoder.onnx", "golden/Thumbs.db", "desktop.ini", "__MACOSX/._manifest.json"):
        (caption_copy / name).parent.mkdir(exist_ok=True)
        (caption_copy / name).write_bytes(b"\0\5\26\7")
    assert open_bundle(caption_copy).manifest.name == "tiny-caption"
    (caption_copy / "graphs" / "._link").symlink_to("decoder.onnx")
    with pytest.raises(BundleError, match="found a link"):
        open_bundle(caption_copy)


def test_a_manifest_saved_with_a_byte_order_mark(caption_copy: Path) -> None:
    path = caption_copy / "manifest.json"
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert open_bundle(caption_copy).manifest.name == "tiny-caption"


def test_an_empty_path_is_not_the_current_folder(caption_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(caption_bundle)
    with pytest.raises(BundleError, match="found an empty path"):
        open_bundle("")


def test_a_listed_file_may_not_be_a_link_even_to_the_same_bytes(caption_copy: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.json"
    (caption_copy / "tokenizer.json").rename(moved)
    (caption_copy / "tokenizer.json").symlink_to(moved)
    with pytest.raises(BundleError, match="found a link"):
        open_bundle(caption_copy)


def test_a_folder_of_files_may_not_be_a_link(caption_copy: Path, tmp_path: Path) -> None:
    (caption_copy / "graphs").rename(tmp_path / "graphs")
    (caption_copy / "graphs").symlink_to(tmp_path / "graphs")
    with pytest.raises(BundleError, match="found a link"):
        open_bundle(caption_copy)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_in_place_of_a_file_does_not_hang(caption_copy: Path) -> None:
    (caption_copy / "tokenizer.json").unlink()
    os.mkfifo(caption_copy / "tokenizer.json")
    with pytest.raises(BundleError, match="expected a regular file"):
        open_bundle(caption_copy)


def test_paths_that_are_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name, message in (("none", "found nothing"), ("file", "found a file"), (".", "found no manifest.json")):
        with pytest.raises(BundleError, match=message):
            open_bundle(tmp_path / name)


@pytest.mark.parametrize("suffix", ["", ".xattn"])
def test_a_bundle_that_came_with_the_package_is_found_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sorted(shipped_bundles()) == ["emoji-caption", "emoji-retrieval", "sentiment", "shapes-vqa"]
    for name, folder in shipped_bundles().items():
        assert open_bundle(name + suffix).path == folder


def test_a_path_that_exists_wins_over_a_name(
    caption_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shapes-vqa.xattn").symlink_to(caption_bundle)
    assert open_bundle("shapes-vqa.xattn").manifest.task == "caption"
    assert open_bundle("shapes-vqa").manifest.task == "vqa"


def test_a_name_that_is_not_found_lists_those_that_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = "check the path, or name one that came with this package: emoji-caption, emoji-retrieval, sentiment, sha"
    for name in ("emoji", "folder/emoji-caption", "emoji-caption.xattn.xattn"):
        with pytest.raises(BundleError, match=expected):
            open_bundle(name)


def test_digest(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert file_digest(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()


def test_default_bundle_of_no_such_task() -> None:
    with pytest.raises(BundleError, match="expected a task of caption, retrieval, sentiment, vqa, found 'speech'"):
        default_bundle("speech")  # type: ignore[arg-type]


def test_default_bundle_absent_or_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        cast(dict[str, TaskSpec], TASKS), "caption", replace(TASKS["caption"], default_bundle="no-such.xattn")
    )
    with pytest.raises(BundleError, match="expected the default bundle for caption, found none; name a bundle"):
        default_bundle("caption")


def test_large_files_are_checked_too(caption_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are hashed side by side; one that was altered, or is gone, is named all the same."""
    monkeypatch.setattr(bundle_module, "_LARGE_FILE_BYTES", 1)
    open_bundle(caption_copy)
    _flip(caption_copy / "graphs/decoder.onnx")
    with pytest.raises(BundleError, match=r"graphs/decoder\.onnx: expected SHA-256"):
        open_bundle(caption_copy)
    (caption_copy / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match="lists, found nothing"):
        (caption_copy / "graphs/decoder.onnx").unlink()
        open_bundle(caption_copy)


@pytest.mark.parametrize("locked", ["m.xattn", "m.xattn/manifest.json"])
def test_a_folder_that_may_not_be_entered_is_not_said_to_be_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: str
) -> None:
    """A superuser may enter every folder, so the system's answer is played."""
    (tmp_path / "m.xattn").mkdir()
    lstat = Path.lstat

    def refuse(path: Path) -> os.stat_result:
        if path == tmp_path / locked:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", refuse)
    with pytest.raises(BundleError, match=r"m\.xattn: expected a .*folder.*, found: .*; check its permissions"):
        open_bundle(tmp_path / "m.xattn")
