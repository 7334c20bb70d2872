"""Text with byte-order marks, files that other systems leave, and the natural order of names."""

import codecs
from pathlib import Path

import pytest

from xattn_runtime.brought_files import decoded_text, is_folder, is_system_file, natural_key

TEXT = "gem stone\nédition\n♥\n"


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        "\ufeffgem stone\n\ufeffédition\n♥\n".encode(),  # files with marks, joined
    ],
)
def test_a_byte_order_mark_is_no_part_of_the_text(content):
    assert decoded_text(content) == TEXT


@pytest.mark.parametrize("content", [b"\xff\xd8\xff", "gem".encode("utf-16-le"), b"a\xe9b", codecs.BOM_UTF16_LE + b"a"])
def test_bytes_that_are_no_text(content):
    with pytest.raises(UnicodeDecodeError):
        decoded_text(content)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("._photo.jpg", True),
        (".DS_Store", True),
        ("Thumbs.db", True),
        ("THUMBS.DB", True),
        ("Desktop.ini", True),
        ("__MACOSX", True),
        ("photo.jpg", False),
        (".hidden", False),
        ("thumbs.dbx", False),
    ],
)
def test_files_that_other_systems_leave(name, expected):
    assert is_system_file(name) == expected


def test_names_are_sorted_as_people_count():
    names = ["b1.png", "a10.png", "a2/1.png", "a2.png", "a.png", "a02.png", "a10b3.png", "10.png", "9.png"]
    ordered = sorted(map(Path, names), key=natural_key)
    assert [path.as_posix() for path in ordered] == [
        "9.png", "10.png", "a.png", "a2/1.png", "a02.png", "a2.png", "a10.png", "a10b3.png", "b1.png",
    ]  # fmt: skip


def test_what_cannot_be_seen_is_no_folder(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    assert is_folder(tmp_path)
    assert not any(map(is_folder, (tmp_path / "loop", tmp_path / ("a" * 300), tmp_path / "a\0b", tmp_path / "none")))
