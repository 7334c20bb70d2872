"""`xattn-edge chat`, and `vqa` about several images and videos: the same answers as from Python."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.runtime.tasks.test_chat import bundle, folder
from xattn_edge.commands.app import app
from xattn_runtime.loader import load
from xattn_runtime.preprocess.prompts.video import Video

__all__ = ["bundle", "folder"]


@pytest.fixture
def invoke() -> Any:
    """As everywhere, with what is said on standard input."""
    return lambda *arguments, input=b"": CliRunner().invoke(app, [*map(str, arguments)], input=input)


@pytest.fixture
def files(noise: Any) -> list[str]:
    return [str(noise(seed)) for seed in (1, 3)]


def test_a_question_about_several_images(invoke: Any, bundle: Any, files: list[str]) -> None:
    task = load(bundle, task="vqa")
    expected = [task.ask(files, question).answer for question in ("cat", "red")]
    asked = ["--question", "cat", "--question", "red", "--bundle", str(bundle)]
    assert invoke("vqa", *files, *asked).stdout.splitlines() == [f"cat: {expected[0]}", f"red: {expected[1]}"]
    document = json.loads(invoke("vqa", *files, *asked[:2], *asked[4:], "--json").stdout)
    assert document["images"] == files and document["answer"] == expected[0]
    one = json.loads(invoke("vqa", files[0], "cat", *asked[4:], "--json").stdout)
    assert one["image"] == files[0] and one["answer"] == task.ask(files[0], "cat").answer
    assert invoke("vqa", files[0], "--question", "cat", *asked[4:]).stdout.strip() == one["answer"]


def test_a_question_about_a_video(invoke: Any, bundle: Any, files: list[str]) -> None:
    expected = load(bundle, task="vqa").ask(Video(files, [0, 1.5]), "cat").answer
    arguments = ("vqa", *files, "--times", "0,1.5", "--question", "cat", "--bundle", str(bundle))
    document = json.loads(invoke(*arguments, "--json").stdout)
    assert (document["images"], document["times"], document["answer"]) == (files, [0, 1.5], expected)


def test_a_conversation(invoke: Any, bundle: Any, files: list[str]) -> None:
    said = b"cat\n\n  the red \nred\n"
    talk = load(bundle, task="vqa").chat(files, "the dog")
    expected = [talk.ask(question).answer for question in ("cat", "the red", "red")]
    arguments = ("chat", *files, "--bundle", str(bundle), "--system", "the dog")
    assert [line.strip() for line in invoke(*arguments, input=said).stdout.splitlines()] == expected
    lines = [json.loads(line) for line in invoke(*arguments, "--json", input=said).stdout.splitlines()]
    assert [(line["images"], line["question"], line["answer"]) for line in lines] == [
        (files, question, answer) for question, answer in zip(("cat", "the red", "red"), expected, strict=True)
    ]
    beams = invoke(*arguments, "--beams", "3", "--n-best", "2", input=b"cat\n")
    assert len(beams.stdout.splitlines()) == 2


def test_a_question_that_cannot_be_used_ends_no_conversation(invoke: Any, bundle: Any, files: list[str]) -> None:
    result = invoke("chat", files[0], "--bundle", str(bundle), input=b"<image>\ncat\n")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: question: expected no '<image>', which stands for an image")
    assert len(result.stderr.splitlines()) == len(result.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said", "message"),
    [
        (("vqa", "{}", "{}"), b"", "question: expected a question"),
        (("vqa", "{}"), b"", "question: expected one or more, found none; write them after the image, each quoted"),
        (("vqa", "{}", "{}", "--times", "0,x", "--question", "cat"), b"", "times: expected seconds with commas"),
        (("vqa", "{}", "{}", "--times", "0", "--question", "cat"), b"", "times: expected one for each of 2 frames"),
        (("vqa", "{}", "{}", "--question", "cat", "--heatmap", "a.png"), b"", "heatmap: expected one image, found"),
        (("vqa", *["{}"] * 5, "--question", "cat"), b"", "images: expected at most 4, as this model takes"),
        (("chat", "-"), b"cat\n", "image: expected files, as standard input is what you say, found -"),
        (("chat", "{}"), b"\xff\xfe\n", "standard input: expected questions in UTF-8, found other bytes"),
    ],
)
def test_bad_input(
    invoke: Any, bundle: Any, files: list[str], arguments: tuple[str, ...], said: bytes, message: str
) -> None:
    if message == "question: expected a question":
        arguments = (arguments[0], arguments[1], " ")
    named = [argument.format(files[0]) for argument in arguments]
    result = invoke(*named, "--bundle", str(bundle), input=said)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert result.stderr.startswith(f"error: {message}")


def test_a_bundle_that_holds_no_conversations(invoke: Any, vqa_bundle: Any, files: list[str]) -> None:
    result = invoke("chat", files[0], "--bundle", str(vqa_bundle), input=b"cat\n")
    assert result.exit_code == 2
    assert "expected a bundle of a model that holds conversations, found one that answers" in result.stderr
