"""Which files of a folder are images."""

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
