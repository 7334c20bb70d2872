"""Which files of a folder are images."""

import errno
import os
from pathlib import Path

import pytest

from xattn_runtime.preprocess.image_files import image_files, is_image_file


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.png", True),
        ("a.JPG", True),
        ("a.jpeg", True),
        ("a.webp", True),
        ("a.gif", True),
        ("a.bmp", True),
        ("a.svg", False),
        ("a.png.txt", False),
        ("png", False),
        (".png", False),
        ("._a.png", False),
        (".a.png.7-0123abcd.partial", False),
    ],
)
def test_by_name(name, expected):
    assert is_image_file(Path(name)) == expected


def test_of_a_folder(tmp_path):
    for name in ("b.png", "a.jpg", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png" / "c.png").touch()
    assert image_files(tmp_path) == [tmp_path / "a.jpg", tmp_path / "b.png"]
    assert image_files(tmp_path, recursive=True) == [*image_files(tmp_path), tmp_path / "folder.png" / "c.png"]
    with pytest.raises(FileNotFoundError):
        image_files(tmp_path / "nowhere")


def test_what_other_systems_leave_is_no_image(tmp_path):
    for name in ("b/1.png", "b/._1.png", "__MACOSX/1.png", "@eaDir/1.png", ".thumbnails/1.png", "$RECYCLE.BIN/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert image_files(tmp_path, recursive=True) == [tmp_path / "b" / "1.png"]


def test_frames_are_in_the_order_of_their_numbers(tmp_path):
    for number in range(1, 13):
        (tmp_path / f"frame_{number}.png").touch()
    assert [path.stem for path in image_files(tmp_path)] == [f"frame_{number}" for number in range(1, 13)]


def test_what_cannot_be_opened_is_listed_so_that_it_is_said(tmp_path):
    (tmp_path / "link.png").symlink_to("nowhere")
    (tmp_path / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert [path.name for path in image_files(tmp_path)] == ["link.png", "loop.png", "pipe.png"]


def test_a_folder_that_may_not_be_read_is_said(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    scan = os.scandir

    def scandir(path: str) -> object:
        if Path(path).name == "b":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    failed: list[OSError] = []
    assert image_files(tmp_path, recursive=True, on_unreadable=failed.append) == [tmp_path / "a" / "1.png"]
    assert [error.filename for error in failed] == [str(tmp_path / "b")]
    for folder in (tmp_path, tmp_path / "b"):
        with pytest.raises(PermissionError):
            image_files(folder, recursive=True)
    with pytest.raises(PermissionError):
        image_files(tmp_path / "b", on_unreadable=failed.append)
