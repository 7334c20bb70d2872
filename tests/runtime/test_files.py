"""Files and folders that are written whole or not at all."""

import errno
import os
import stat
from pathlib import Path

import pytest

from xattn_runtime import files
from xattn_runtime.errors import OutputError
from xattn_runtime.files import (
    atomic_file,
    atomic_folder,
    atomic_write,
    check_replaceable,
    check_writable,
    is_leftover,
    scratch_folder,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def ended_process() -> int:
    """The id of a process that is no more."""
    process = os.spawnlp(os.P_NOWAIT, "true", "true")
    os.waitpid(process, 0)
    return process


def full_disk(_descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("content", ["naïve\n", "naïve\n".encode()])
def test_a_file_is_replaced_by_a_whole_one(tmp_path, content):
    path = tmp_path / "file"
    path.write_text("old")
    atomic_write(path, content)
    assert path.read_bytes() == "naïve\n".encode()
    assert names(tmp_path) == ["file"]


def test_a_file_has_the_permissions_of_any_new_one(tmp_path):
    atomic_write(tmp_path / "file", b"")
    (tmp_path / "plain").touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "plain")}
    assert len(modes) == 1


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, seen = tmp_path / "file", []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        seen.append((kind, path.exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    atomic_write(path, b"1")
    assert seen == [("file", False), ("folder", True)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, RuntimeError])
def test_an_error_midway_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_temporary_file_may_lie_elsewhere(tmp_path):
    bundle = tmp_path / "a.xattn"
    bundle.mkdir()
    with atomic_file(bundle / "manifest.json", beside=bundle) as temporary:
        temporary.touch()
        assert temporary.parent == tmp_path
        assert names(bundle) == []
    assert names(bundle) == ["manifest.json"]


def test_a_folder_is_replaced_by_a_whole_one(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    with atomic_folder(path) as staging:
        (staging / "inner").mkdir()
        (staging / "inner" / "new").touch()
        assert names(path) == ["old"]
    assert names(path) == ["inner"]
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_folder_takes_the_place_of_folders_only(tmp_path, kind):
    path = tmp_path / "folder"
    if kind == "file":
        path.write_text("precious")
    else:
        (tmp_path / "other").mkdir()
        path.symlink_to(tmp_path / "other")
    before = names(tmp_path)
    with pytest.raises(NotADirectoryError), atomic_folder(path):
        pass
    assert names(tmp_path) == before
    assert path.is_symlink() == (kind == "link")


def test_scratch_is_thrown_away(tmp_path):
    with scratch_folder(tmp_path / "folder") as scratch:
        (scratch / "file").touch()
        assert is_leftover(scratch.name)
    assert names(tmp_path) == []


@pytest.mark.parametrize("write", ["file", "folder"])
def test_the_next_write_sweeps_what_killed_processes_left_of_it(tmp_path, write):
    dead = ended_process()
    swept = [f".it.{dead}-0123abcd.partial", f".it.{dead}-0123abce.partial"]
    kept = [f".it.{os.getppid()}-0123abcd.partial", f".other.{dead}-0123abcd.partial", ".it.partial"]
    (tmp_path / swept[0]).mkdir()
    (tmp_path / swept[0] / "file").touch()
    for name in (swept[1], *kept):
        (tmp_path / name).touch()
    if write == "file":
        atomic_write(tmp_path / "it", b"")
    else:
        with atomic_folder(tmp_path / "it"):
            pass
    assert names(tmp_path) == sorted([*kept, "it"])


@pytest.mark.parametrize(
    "name", ["n" * 230, "n" * 250, "ü" * 125, "n" + "ü" * 127], ids=["cut", "250 bytes", "2-byte characters", "shifted"]
)
@pytest.mark.parametrize("write", ["file", "folder"])
def test_a_long_name_is_written_and_swept(tmp_path, name, write):
    path = tmp_path / name
    atomic = {"file": atomic_file, "folder": atomic_folder}[write]
    with atomic(path) as temporary:
        temporary.touch()
        assert is_leftover(temporary.name)
        left = tmp_path / temporary.name.replace(f".{os.getpid()}-", f".{ended_process()}-")
        left.touch()
    atomic_write(tmp_path / ("n" * 249), b"")
    (tmp_path / ("n" * 249)).unlink()
    check_writable(tmp_path / ("n" * 255))
    assert names(tmp_path) == sorted([left.name, name])
    files.sweep(path)
    assert names(tmp_path) == [name]


def test_a_folder_that_a_killed_process_had_moved_aside_comes_back(tmp_path):
    """Killed between the two renames, it leaves the old folder under another name, and the new one half done."""
    dead = ended_process()
    aside = tmp_path / f".it.{dead}-0123abcd.old"
    aside.mkdir()
    (aside / "file").write_text("old")
    files.sweep(tmp_path / "it")
    assert names(tmp_path) == ["it"]
    assert (tmp_path / "it" / "file").read_text() == "old"


def test_what_cannot_be_written_is_said_before_the_work(tmp_path):
    check_writable(tmp_path / "file")
    assert names(tmp_path) == []
    with pytest.raises(IsADirectoryError):
        check_writable(tmp_path)
    with pytest.raises(FileNotFoundError):
        check_writable(tmp_path / "nowhere" / "file")


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EACCES, "check its permissions and those of its folder"),
        (errno.EIO, "check the path"),
    ],
)
def test_advice_follows_the_reason(number, advice):
    error = files.not_written(Path("a.xattn"), OSError(number, os.strerror(number)))
    assert str(error).startswith(f"a.xattn: cannot be written: {os.strerror(number)}; {advice}")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_bring_a_file_to_the_disk_at_once(tmp_path, monkeypatch, number):
    def fsync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    atomic_write(tmp_path / "file", "new")
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "file").write_text("new")
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize(
    ("content", "is_ours"),
    [(None, True), (b"", True), (b"<!-- xattn-edge -->", True), (b"mine", False), (b"-" * 2000 + b"xattn-edge", False)],
)
def test_what_may_be_replaced(tmp_path, content, is_ours):
    path = tmp_path / "page.html"
    if content is not None:
        path.write_bytes(content)
    if is_ours:
        check_replaceable(path)
    else:
        with pytest.raises(OutputError, match="expected a new file, or one that xattn-edge wrote before"):
            check_replaceable(path)
