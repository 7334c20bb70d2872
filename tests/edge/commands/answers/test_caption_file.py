"""`caption --output`: what is in the file already stays in it, whoever wrote it."""

import errno
import fcntl
import json
import os
import resource
import subprocess
import sys

import pytest

CHECKOUT_COMMAND = [sys.executable, "-m", "xattn_edge", "caption"]


@pytest.fixture
def image(caption_bundle):
    return caption_bundle / "golden" / "0.png"


@pytest.fixture
def begun(invoke, caption_bundle, image, tmp_path):
    """A file with the captions of two images."""
    output = tmp_path / "captions.jsonl"
    assert invoke("caption", image, image.with_name("1.png"), "-b", caption_bundle, "-o", output).exit_code == 0
    return output


OTHERS = {
    "one line": b'{"image": "a.png", "text": "by hand"}',
    "a caption of another program": b'{"image": "a.png", "caption": "by hand"}',
    "half a line of another program": b'{"image": "a.png", "capt',
    "a list": b"[1, 2]",
    "a number": b"7",
    "several lines of JSON": b'{\n  "image": "a.png"\n}\n',
    "binary": bytes(range(256)),
    "zeros": bytes(100),
    "UTF-16": '{"image": "a.png", "caption": "x", "made_by": "y"}'.encode("utf-16"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_file_that_we_did_not_begin_is_refused(invoke, caption_bundle, image, tmp_path, kind):
    output = tmp_path / "own.jsonl"
    output.write_bytes(OTHERS[kind])
    result = invoke("caption", image, "-b", caption_bundle, "-o", output)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith(f"error: {output}: ")
    assert output.read_bytes() == OTHERS[kind]


def test_an_empty_file_is_begun(invoke, caption_bundle, image, tmp_path):
    output = tmp_path / "captions.jsonl"
    output.touch()
    assert invoke("caption", image, "-b", caption_bundle, "-o", output).exit_code == 0
    assert json.loads(output.read_text())["image"] == image.as_posix()


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"", b"\r\n", b"\n\n"])
def test_a_line_corrected_by_hand_stays(invoke, caption_bundle, image, begun, mark, end):
    first, last = begun.read_bytes().splitlines()
    corrected = json.dumps({**json.loads(last), "caption": "by hand"}).encode()
    begun.write_bytes(mark + first + b"\n" + corrected + end)
    others = [image.with_name(f"{number}.png") for number in (0, 1, 2)]
    result = invoke("caption", *others, "-b", caption_bundle, "-o", begun, "--json")
    summary = json.loads(result.stdout)
    assert (summary["captioned"], summary["done_before"]) == (1, 2), result.stderr
    entries = [json.loads(line) for line in begun.read_bytes().splitlines() if line]
    assert [entry["image"] for entry in entries] == [other.as_posix() for other in others]
    assert entries[1]["caption"] == "by hand"


def test_half_a_line_is_said_and_captioned_again(invoke, caption_bundle, image, begun):
    content = begun.read_bytes()
    begun.write_bytes(content[:-30])
    result = invoke("caption", image, image.with_name("1.png"), "-b", caption_bundle, "-o", begun)
    assert result.exit_code == 0
    assert "its last line was half written" in result.stderr
    assert begun.read_bytes() == content


@pytest.mark.parametrize("last", [b"note: the second is wrong", b'{"image": "a.png", "caption": "by "hand""}'])
def test_a_last_line_that_is_no_half_of_ours_is_kept(invoke, caption_bundle, image, begun, last):
    content = begun.read_bytes() + last
    begun.write_bytes(content)
    result = invoke("caption", image.with_name("2.png"), "-b", caption_bundle, "-o", begun)
    assert (result.exit_code, begun.read_bytes()) == (2, content)
    assert "line 3: expected a caption that this command wrote" in result.stderr


def test_nothing_is_left_where_nothing_was_captioned(invoke, caption_bundle, image, tmp_path):
    output = tmp_path / "captions.jsonl"
    assert invoke("caption", image, "-b", caption_bundle, "-o", output, "--beams", "65").exit_code == 2
    assert not output.exists()


def test_a_line_that_does_not_fit_on_the_disk_is_not_left_in_half(caption_bundle, image, begun):
    content = begun.read_bytes()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) + 20, len(content) + 20))

    command = [*CHECKOUT_COMMAND, str(image.with_name("2.png")), "-b", str(caption_bundle), "-o", str(begun)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit)
    assert done.returncode != 0
    assert begun.read_bytes() == content


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOLCK, 0), (errno.EOPNOTSUPP, 0), (errno.ENOSYS, 0), (errno.EWOULDBLOCK, 2)],
)
def test_a_file_system_without_locks(invoke, caption_bundle, image, tmp_path, monkeypatch, number, code):
    def flock(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    output = tmp_path / "captions.jsonl"
    result = invoke("caption", image, "-b", caption_bundle, "-o", output)
    assert result.exit_code == code
    assert ("found another; wait for it" if code else "cannot be locked where it lies") in result.stderr


def test_lines_on_standard_output(invoke, caption_bundle, image):
    result = invoke("caption", image, image.with_name("none.png"), "-b", caption_bundle, "-o", "-")
    assert result.exit_code == 2
    good, bad = map(json.loads, result.stdout.splitlines())
    assert (good["image"], "caption" in good, "error" in bad) == (image.as_posix(), True, True)


@pytest.mark.parametrize(
    "arguments",
    [("-o", "-", "--json"), ("-o", "captions.jsonl", "-")],
)
def test_standard_streams_that_make_no_sense(invoke, caption_bundle, image, arguments):
    result = invoke("caption", image, "-b", caption_bundle, *arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_cannot_be_resumed_is_refused(invoke, caption_bundle, image, tmp_path, kind):
    os.mkfifo(tmp_path / "pipe")
    output = tmp_path / "pipe" if kind == "pipe" else "/dev/full"
    result = invoke("caption", image, "-b", caption_bundle, "-o", output)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "found a device or pipe; name a file, or - for standard output" in result.stderr
