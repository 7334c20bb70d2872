"""What the command line asks of decoding: draws, several captions, words to stop at, streams, lists of answers."""

import dataclasses
import json
import signal
import subprocess
import sys

import pytest

from xattn_edge.commands.shared import many as _many
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.execution import session
from xattn_runtime.tasks import Answer, AnswerTiming, DecodingOptions, VqaTask

ANSWER = Answer("cat", 0.5, (("cat", 0.5),), (), AnswerTiming(1.0, 1.0, 1.0, 3.0))


def captions(invoke, bundle, pictures, *options):
    result = invoke("caption", *pictures, "-b", bundle, "--json", *options)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)["results"]


def test_draws_repeat_with_their_seed(invoke, caption_bundle, noise):
    pictures = [noise(seed) for seed in range(6)]

    def drawn(*options):
        return [one["token_ids"] for one in captions(invoke, caption_bundle, pictures, *options)]

    assert drawn("--seed", "1") == drawn("--seed", "1") != drawn("--seed", "2")
    assert drawn("--top-k", "1") == drawn("--temperature", "0.001", "--seed", "7") == drawn()
    assert drawn("--top-p", "0.0001") == drawn("--min-p", "1") == drawn()


def test_the_n_best_are_told(invoke, caption_bundle, noise):
    (one,) = captions(invoke, caption_bundle, [noise(5)], "--beams", "4", "--n-best", "3")
    scores = [each["search_score"] for each in one["n_best"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert len({tuple(each["token_ids"]) for each in one["n_best"]}) == 3
    assert one["n_best"][0]["caption"] == one["caption"]
    text = invoke("caption", noise(5), "-b", caption_bundle, "--beams", "4", "--n-best", "3").stdout
    assert text.splitlines() == [each["caption"] for each in one["n_best"]]
    (drawn,) = captions(invoke, caption_bundle, [noise(5)], "--temperature", "4", "--seed", "3", "--n-best", "5")
    assert len(drawn["n_best"]) == 5
    assert len({tuple(each["token_ids"]) for each in drawn["n_best"]}) > 1


def test_a_caption_begins_and_stops_as_asked(invoke, caption_bundle, noise):
    drawn = ("--prefix", "the red", "--temperature", "9", "--seed", "2", "--no-repeat-ngram-size", "1")
    drawn += ("--min-new-tokens", "8")
    (whole,) = captions(invoke, caption_bundle, [noise(5)], *drawn)
    words = whole["caption"].split()
    assert words[:2] == ["the", "red"]
    last = next(word for place, word in enumerate(words) if place > 2 and words.index(word) == place)
    (cut,) = captions(invoke, caption_bundle, [noise(5)], *drawn, "--stop", last, "--stop", "zebra")
    assert cut["caption"] == " ".join(words[: words.index(last)])
    assert len(cut["token_ids"]) < len(whole["token_ids"])
    streamed = invoke("caption", noise(5), "-b", caption_bundle, *drawn, "--stop", last, "--stream").stdout
    assert streamed == cut["caption"] + "\n"


def test_beams_stop_too(invoke, caption_bundle, noise):
    (whole,) = captions(invoke, caption_bundle, [noise(5)], "--beams", "3", "--no-repeat-ngram-size", "1")
    words = whole["caption"].split()
    (cut,) = captions(
        invoke,
        caption_bundle,
        [noise(5)],
        "--beams",
        "3",
        "--n-best",
        "3",
        "--stop",
        words[-1],
        "--no-repeat-ngram-size",
        "1",
    )
    assert all(words[-1] not in one["caption"] for one in cut["n_best"])
    assert min(len(one["token_ids"]) for one in cut["n_best"]) < len(whole["token_ids"])


def test_a_stream_prints_what_the_caption_is(invoke, caption_bundle, noise):
    for seed in (0, 4, 5):
        plain = invoke("caption", noise(seed), "-b", caption_bundle).stdout
        assert invoke("caption", noise(seed), "-b", caption_bundle, "--stream").stdout == plain
    both = invoke("caption", noise(4), noise(5), "-b", caption_bundle, "--stream", "--seed", "1")
    assert [line.split(": ")[0] for line in both.stdout.splitlines()] == [str(noise(4)), str(noise(5))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--beams", "2", "--seed", "1"), "error: beams: expected none beside seed, which draw tokens, found 2"),
        (("--beams", "16"), "error: beams: expected at most 15, the tokens of this model's vocabulary, found 16"),
        (("--n-best", "2"), "error: n_best: expected at most the 1 of beams, found 2"),
        (("--beams", "2", "--n-best", "3"), "error: n_best: expected at most the 2 of beams, found 3"),
        (("--temperature", "0"), "error: temperature: expected a number above 0"),
        (("--top-p", "0"), "error: top_p: expected above 0, at most 1, found 0.0"),
        (("--min-p", "1.5"), "error: min_p: expected 0 to 1, found 1.5"),
        (("--length-penalty", "2"), "error: length_penalty: expected 2 beams or more to choose among, found 1"),
        (("--repetition-penalty", "0"), "error: repetition_penalty: expected a number, 1e-30 to 1e30, found 0.0"),
        (("--min-new-tokens", "9", "--max-new-tokens", "4"), "error: min_new_tokens: expected at most 4"),
        (
            ("--max-new-tokens", "0"),
            "error: Invalid value for '--max-new-tokens': expected a whole number of at least 1, found '0'",
        ),
        (("--stop", ""), "error: stop: expected texts that are not empty"),
        (("--prefix", "zebra"), "error: prefix: expected words that this model knows, found 'zebra'"),
        (("--prefix", " "), "error: prefix: expected a prefix, found an empty text"),
        (("--stream", "--beams", "2"), "error: beams: expected 1, as what is streamed cannot be taken back, found 2"),
        (("--stream", "--json"), "error: stream: expected a caption for people to read"),
    ],
)
def test_what_cannot_be_asked_for(invoke, caption_bundle, options, message):
    result = invoke("caption", caption_bundle / "golden" / "0.png", "-b", caption_bundle, *options)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert result.stdout.strip() == ""
    assert result.stderr.startswith(message)


def test_a_stream_that_is_killed_says_so(spawn, caption_bundle, tmp_path):
    pictures = [caption_bundle / "golden" / "0.png"] * 20_000
    process = spawn("caption", *pictures, "-b", caption_bundle, "--stream")
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    with process:
        said, errors = process.stdout.read(), process.stderr.read()
    assert (process.returncode, errors) == (130, "interrupted\n")
    assert not said or said.endswith("\n")


def test_answers_are_chosen_among_those_given(invoke, vqa_bundle, picture, tmp_path):
    def answer(*options):
        return json.loads(invoke("vqa", picture, "what is red", "-b", vqa_bundle, "--json", *options).stdout)

    free = {one["answer"]: one["confidence"] for one in answer()["top"]}
    among = answer("--answers", "yes, two")
    assert {one["answer"] for one in among["top"]} == {"yes", "two"}
    assert sum(one["confidence"] for one in among["top"]) == pytest.approx(1)
    ratio = free["yes"] / free["two"]
    found = {one["answer"]: one["confidence"] for one in among["top"]}
    assert found["yes"] / found["two"] == pytest.approx(ratio, rel=1e-3)
    (tmp_path / "answers.txt").write_text("yes\n\n two \n")
    assert answer("--answers", tmp_path / "answers.txt")["top"] == among["top"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "yes,blue",
            "error: answers: expected some of this bundle's 5, such as yes, no, red, green, two, found 'blue'",
        ),
        ("yes,yes", "error: answers: expected each once, found 'yes' twice; remove one"),
        ("none.txt", "error: answers: expected a file or a list, found no file none.txt; check the path"),
        (",", "error: answers: expected a list of them, found an empty one"),
        (" ", "error: answers: expected a file or a list, found nothing"),
    ],
)
def test_lists_of_answers_that_cannot_be_used(invoke, vqa_bundle, picture, given, message):
    result = invoke("vqa", picture, "what is red", "-b", vqa_bundle, "--answers", given)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(message)


def test_a_calibrated_bundle_is_less_or_more_sure_and_says_the_same(invoke, vqa_copy, picture, rewrite):
    from dataclasses import replace

    from xattn_runtime.bundle.calibration import ConfidenceCalibration
    from xattn_runtime.bundle.folder import open_bundle

    def top():
        return json.loads(invoke("vqa", picture, "what is red", "-b", vqa_copy, "--json").stdout)["top"]

    plain = top()
    manifest = open_bundle(vqa_copy).manifest
    rewrite(vqa_copy, replace(manifest, calibration=ConfidenceCalibration(2.0, "pytest", 1, 1, 0.1, 0.05)))
    found = top()
    assert [one["answer"] for one in found] == [one["answer"] for one in plain]
    squares = [one["confidence"] ** 0.5 for one in plain]
    assert [one["confidence"] for one in found] == pytest.approx([one / sum(squares) for one in squares], abs=1e-5)
    assert invoke("verify", vqa_copy).exit_code == 0


KILLED_AFTER_SOME = """
import os, signal
from xattn_edge.commands.shared.caption_file import CaptionFile
add, lines = CaptionFile.add, []
def add_or_die(self, line):
    add(self, line)
    lines.append(line)
    if len(lines) == 21:
        os.kill(os.getpid(), signal.SIGKILL)
CaptionFile.add = add_or_die
from xattn_edge.commands import main
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_folder_is_captioned_and_gone_on_with(invoke, caption_bundle, tmp_path, noise):
    from PIL import Image

    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    original = Image.open(noise(1))
    for number in range(300):
        original.rotate(number).save(folder / ("deeper" if number % 2 else "") / f"{number:03}.png")
    (folder / "150.png").write_bytes(b"no picture")
    output = tmp_path / "captions.jsonl"
    arguments = ["caption", str(folder), "--recursive", "-b", str(caption_bundle), "-o", str(output)]
    killed = subprocess.run([sys.executable, "-c", KILLED_AFTER_SOME, *arguments], check=False)
    assert killed.returncode == -signal.SIGKILL
    before = output.read_bytes()
    whole = before[: before.rfind(b"\n") + 1]
    assert whole.count(b"\n") == 21
    output.write_bytes(whole + b'{"image": "half a li')
    result = invoke("caption", folder, "--recursive", "-b", caption_bundle, "-o", output, "--json")
    summary = json.loads(result.stdout)
    lines = output.read_bytes().splitlines()
    assert output.read_bytes().startswith(whole)
    entries = {entry["image"]: entry for entry in map(json.loads, lines)}
    assert len(lines) == len(entries) == 300 == summary["pictures"]
    assert set(entries) == {path.as_posix() for path in folder.rglob("*.png")}
    assert [name for name, entry in entries.items() if "error" in entry] == [(folder / "150.png").as_posix()]
    assert summary["done_before"] == whole.count(b"\n")
    alone = captions(invoke, caption_bundle, [folder / "000.png", folder / "deeper" / "001.png"])
    assert [entries[one["image"]]["caption"] for one in alone] == [one["caption"] for one in alone]
    again = invoke("caption", folder, "--recursive", "-b", caption_bundle, "-o", output)
    assert (again.exit_code, again.stdout) == (0, "")
    assert again.stderr == f"{output}: 0 images captioned, 300 done before\n"
    assert output.read_bytes().splitlines() == lines


def test_large_models_take_few_pictures_together(caption_bundle, monkeypatch):
    bundle = open_bundle(caption_bundle)
    monkeypatch.setattr(session, "default_threads", lambda: 3)
    assert _many.open_for_many(bundle, "cpu", None)[1] == (8, 3)
    assert _many.open_for_many(bundle, "cpu", 2)[1] == (8, 1)
    monkeypatch.setattr(_many, "_SMALL_BYTES", 0)
    assert _many.open_for_many(bundle, "cpu", None)[1] == (2, 1)


def test_a_bad_picture_is_recorded_and_passed_over(invoke, caption_bundle, tmp_path, noise):
    (tmp_path / "bad.png").write_bytes(b"")
    output = tmp_path / "captions.jsonl"
    places = (noise(0), tmp_path / "bad.png", tmp_path / "none.png", noise(1))
    result = invoke("caption", *places, "-b", caption_bundle, "-o", output)
    assert result.exit_code == 2
    assert [line.partition(": ")[0] for line in result.stderr.splitlines()] == ["error", "error", str(output)]
    entries = [json.loads(line) for line in output.read_text().splitlines()]
    assert [("caption" in entry, "error" in entry) for entry in entries] == [
        (True, False), (False, True), (False, True), (True, False),
    ]  # fmt: skip


@pytest.mark.parametrize("content", [b"mine\n", b"mine", b'{"image": 3, "made_by": "x"}\n', b"[]\n"])
def test_a_file_of_something_else_is_left_as_it_is(invoke, caption_bundle, tmp_path, content):
    output = tmp_path / "notes.txt"
    output.write_bytes(content)
    result = invoke("caption", caption_bundle / "golden" / "0.png", "-b", caption_bundle, "-o", output)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert output.read_bytes() == content


def test_captions_with_other_options_go_elsewhere(invoke, caption_bundle, tmp_path):
    arguments = ("caption", caption_bundle / "golden" / "0.png", "-b", caption_bundle, "-o", tmp_path / "a.jsonl")
    assert invoke(*arguments).exit_code == 0
    result = invoke(*arguments, "--beams", "2")
    assert result.exit_code == 2
    assert "line 1: expected captions of this bundle with these options" in result.stderr


def test_folders_without_pictures_and_places_that_cannot_be_written(invoke, caption_bundle, tmp_path):
    (tmp_path / "deeper").mkdir()
    empty = invoke("caption", tmp_path, "-b", caption_bundle)
    assert empty.exit_code == 2
    assert "expected a folder with images, found none in it; name another, or use --recursive" in empty.stderr
    picture = caption_bundle / "golden" / "0.png"
    refused = invoke("caption", picture, "-b", caption_bundle, "-o", tmp_path / "none" / "a.jsonl")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "expected a file that can be written" in refused.stderr


@pytest.mark.parametrize("name", ["caption", "vqa"])
def test_every_decoding_option_is_an_option_of_both_commands(invoke, name):
    text = invoke(name, "--help").stdout
    for field in dataclasses.fields(DecodingOptions):
        option = "sample-top-k" if field.name == "top_k" and name == "vqa" else field.name.replace("_", "-")
        assert f"--{option} " in text or f"--{option}," in text, field.name


def test_vqa_hands_on_all_that_was_asked_of_decoding(invoke, vqa_bundle, noise, monkeypatch):
    asked = []
    monkeypatch.setattr(VqaTask, "ask", lambda *arguments, **options: asked.append(options["options"]) or ANSWER)
    options = ("--beams", "3", "--early-stopping", "never", "--sample-top-k", "7", "--stop", "a", "--stop", "b")
    result = invoke("vqa", noise(0), "what?", "-b", vqa_bundle, *options, "--prefix", "the")
    assert (result.exit_code, result.stdout) == (0, "cat\n")
    assert asked == [DecodingOptions(beams=3, early_stopping="never", top_k=7, stop=("a", "b"), prefix="the")]


def test_a_bundle_that_chooses_decodes_nothing(invoke, vqa_bundle, noise):
    result = invoke("vqa", noise(0), "what is the cat", "-b", vqa_bundle, "--temperature", "0.5")
    assert result.exit_code == 2
    assert "temperature: expected none, as this bundle chooses among" in result.stderr
