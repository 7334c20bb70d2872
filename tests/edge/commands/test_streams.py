"""Standard streams: closed ones, `-` in place of a file, and the command as a module."""

import json
import os
import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-m", "xattn_edge"]


def run(*arguments, closed=(), **options):
    """The command as a process of its own, with the standard streams `closed` by their numbers."""

    def close() -> None:
        for number in closed:
            os.close(number)

    command = [*COMMAND, *map(str, arguments)]
    streams = {name: subprocess.PIPE for number, name in ((1, "stdout"), (2, "stderr")) if number not in closed}
    return subprocess.run(command, check=False, preexec_fn=close if closed else None, **(streams | options))


def test_as_a_module():
    result = run("--version")
    assert (result.returncode, result.stdout.split()[0]) == (0, b"xattn-edge")


@pytest.mark.parametrize("closed", [(2,), (0, 2), (0,)])
def test_warnings_are_no_part_of_the_answer(vqa_bundle, picture, closed):
    result = run("vqa", picture, "what is the zebra", "-b", vqa_bundle, "--json", closed=closed)
    assert result.returncode == 0
    assert json.loads(result.stdout)["question"] == "what is the zebra"


@pytest.mark.parametrize("closed", [(1,), (1, 2), (0, 1, 2)])
def test_an_answer_that_goes_nowhere_is_a_mistake(vqa_bundle, picture, closed):
    result = run("vqa", picture, "what is the cat", "-b", vqa_bundle, closed=closed)
    assert result.returncode == 2
    if 2 not in closed:
        assert b"standard output: expected a place for the answer" in result.stderr


def test_a_file_does_not_take_the_number_of_standard_error(caption_bundle, tmp_path):
    """What ONNX Runtime writes to standard error by its number would else be in the file of captions."""
    output = tmp_path / "captions.jsonl"
    script = (
        "import os\nfrom xattn_edge.commands.shared import many\nmake = many._line\n"
        "many._line = lambda *a: os.write(2, b'[W:onnxruntime] a warning') and make(*a)\n"
        "from xattn_edge.commands import main\nmain()\n"
    )
    image = caption_bundle / "golden" / "0.png"
    command = [sys.executable, "-c", script, "caption", str(image), "-b", str(caption_bundle), "-o", str(output)]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, preexec_fn=lambda: os.close(2))
    assert done.returncode == 0
    assert json.loads(output.read_bytes())["image"] == image.as_posix()


def test_an_image_on_standard_input(caption_bundle, picture):
    given = run("caption", "-", "-b", caption_bundle, "--json", input=picture.read_bytes())
    named = run("caption", picture, "-b", caption_bundle, "--json")
    results = [json.loads(each.stdout)["results"][0] for each in (given, named)]
    assert [one["image"] for one in results] == ["-", str(picture)]
    assert results[0]["caption"] == results[1]["caption"]


def test_an_image_to_profile_on_standard_input(vqa_bundle, picture):
    arguments = ("profile", vqa_bundle, "--image", "-", "--runs", "1", "--json")
    result = run(*arguments, input=picture.read_bytes())
    assert (result.returncode, json.loads(result.stdout)["profiles"][0]["passes"]) == (0, 1)
    result = run(*arguments, input=b"none")
    assert (result.returncode, b"standard input: expected an image as PNG" in result.stderr) == (2, True)


def test_a_graph_to_inspect_on_standard_input(vqa_bundle):
    graph = vqa_bundle / "graphs" / "classifier.onnx"
    piped, named = run("inspect", "-", "--json", input=graph.read_bytes()), run("inspect", graph, "--json")
    assert piped.returncode == 0
    (one,), (other,) = (json.loads(each.stdout)["graphs"].values() for each in (piped, named))
    assert one == other


def test_questions_and_answers_on_standard_input(vqa_bundle, picture):
    questions = "\ufeffwhat is the cat\n\nis the cat red\n".encode("utf-16")
    result = run("vqa", picture, "-", "-b", vqa_bundle, "--json", input=questions)
    asked = [one["question"] for one in json.loads(result.stdout)["results"]]
    assert asked == ["what is the cat", "is the cat red"]
    answers = run("vqa", picture, "is it red", "-b", vqa_bundle, "--answers", "-", "--json", input=b"yes\nno\n")
    assert {one["answer"] for one in json.loads(answers.stdout)["top"]} == {"yes", "no"}


@pytest.mark.parametrize(
    ("arguments", "content", "words"),
    [
        (("-", "what"), b"", b"found nothing; pipe a file into the command"),
        (("-", "what"), b"text", b"expected an image"),
        (("-", "-"), b"x", b"found it twice"),
    ],
)
def test_standard_input_that_cannot_be_used(vqa_bundle, arguments, content, words):
    result = run("vqa", *arguments, "-b", vqa_bundle, input=content)
    assert (result.returncode, result.stdout, result.stderr.count(b"\n")) == (2, b"", 1)
    assert words in result.stderr


def test_standard_input_that_is_closed(vqa_bundle):
    result = run("vqa", "-", "what", "-b", vqa_bundle, closed=(0,))
    assert (result.returncode, result.stderr.count(b"\n")) == (2, 1)
    assert b"found it closed" in result.stderr
