"""What the commands of a device print: text for people, JSON for programs, nothing else on standard output."""

import json

import pytest

from xattn_runtime.bundle.folder import shipped_bundles


def test_caption_prints_the_caption_alone(invoke, caption_bundle):
    case = json.loads((caption_bundle / "manifest.json").read_text())["golden"]["cases"][0]
    result = invoke("caption", caption_bundle / case["image"], "--bundle", caption_bundle)
    assert (result.exit_code, result.stdout, result.stderr) == (0, case["text"] + "\n", "")


def test_captions_of_several_pictures_are_told_apart(invoke, caption_bundle):
    pictures = [caption_bundle / "golden" / f"{i}.png" for i in range(2)]
    lines = invoke("caption", *pictures, "--bundle", caption_bundle).stdout.splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(picture) for picture in pictures]


def test_caption_json(invoke, caption_bundle):
    picture = caption_bundle / "golden" / "0.png"
    document = json.loads(invoke("caption", picture, "-b", caption_bundle, "--json", "--max-new-tokens", "3").stdout)
    assert set(document) == {"results", "provider", "bundle"}
    (result,) = document["results"]
    assert set(result) == {"image", "caption", "token_ids", "score", "timing_ms"}
    assert set(result["timing_ms"]) == {"preprocess", "encode", "decode", "total"}
    assert (result["image"], len(result["token_ids"]), document["provider"]) == (str(picture), 3, "cpu")


def test_caption_takes_a_prompt_and_beams(invoke, caption_bundle, noise):
    pictures = [noise(seed) for seed in range(8)]

    def ids(*options):
        document = json.loads(invoke("caption", *pictures, "-b", caption_bundle, "--json", *options).stdout)
        return tuple(tuple(result["token_ids"]) for result in document["results"])

    assert len({ids(), ids("--prompt", "the red"), ids("--beams", "4")}) == 3
    assert ids("--beams", "1") == ids()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--beams", "65"), "error: beams: expected 1 to 64, found 65"),
        (("--max-new-tokens", "13"), "error: max_new_tokens: expected 1 to 12, this bundle's limit, found 13"),
        (("--prompt", "the zebra"), "error: prompt: expected words that this model knows, found 'zebra'"),
        (("--prompt", " "), "error: prompt: expected a prompt, found an empty text"),
        (("--prompt", "the " * 12), "error: prompt: expected at most 8 tokens, found 12"),
    ],
)
def test_what_a_caption_cannot_be_asked_for(invoke, caption_bundle, options, message):
    result = invoke("caption", caption_bundle / "golden" / "0.png", "-b", caption_bundle, *options)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith(message)


def test_a_broken_picture_does_not_keep_the_others_from_their_captions(invoke, caption_bundle, tmp_path):
    pictures = [tmp_path / "missing.png", caption_bundle / "golden" / "0.png"]
    result = invoke("caption", *pictures, "-b", caption_bundle, "--json")
    assert result.exit_code == 2
    assert [entry["image"] for entry in json.loads(result.stdout)["results"]] == [str(pictures[1])]
    assert result.stderr.startswith(f"error: {pictures[0]}: ")
    assert result.stderr.count("\n") == 1


def test_vqa_prints_the_answer_alone(invoke, vqa_bundle):
    case = json.loads((vqa_bundle / "manifest.json").read_text())["golden"]["cases"][0]
    result = invoke("vqa", vqa_bundle / case["image"], case["question"], "-b", vqa_bundle)
    assert (result.exit_code, result.stdout, result.stderr) == (0, case["text"] + "\n", "")


def test_vqa_json_of_one_question(invoke, vqa_bundle, picture):
    document = json.loads(invoke("vqa", picture, "what is red", "-b", vqa_bundle, "--json", "--top-k", "2").stdout)
    assert {"image", "question", "answer", "confidence", "top", "timing_ms", "provider", "bundle"} <= set(document)
    assert [set(entry) for entry in document["top"]] == [{"answer", "confidence"}] * 2
    assert document["top"][0] == {"answer": document["answer"], "confidence": document["confidence"]}
    assert document["timing_ms"]["encode"] > 0


def test_vqa_json_of_several_questions_encodes_the_picture_once(invoke, vqa_bundle, picture):
    document = json.loads(invoke("vqa", picture, "what is red", "is the cat green", "-b", vqa_bundle, "--json").stdout)
    assert [result["question"] for result in document["results"]] == ["what is red", "is the cat green"]
    assert all(result["timing_ms"]["encode"] == 0 for result in document["results"])


@pytest.mark.parametrize("quiet", [False, True])
def test_unknown_words_are_warned_of_unless_quiet(invoke, vqa_bundle, picture, quiet):
    result = invoke("vqa", picture, "what is the zebra", "-b", vqa_bundle, *(["--quiet"] if quiet else []))
    assert (result.exit_code, result.stdout.count("\n")) == (0, 1)
    expected = "warning: the model does not know 'zebra'; the answer may not fit the question\n"
    assert result.stderr == ("" if quiet else expected)


def test_verify(invoke, vqa_bundle):
    result = invoke("verify", vqa_bundle)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.count(" ok\n") == 3
    document = json.loads(invoke("verify", vqa_bundle, "--json").stdout)
    assert document["passed"] is True


def test_verify_of_other_weights_exits_with_1_after_the_whole_report(invoke, vqa_copy, rewrite):
    from dataclasses import replace

    from xattn_runtime.bundle.folder import open_bundle

    manifest = open_bundle(vqa_copy).manifest
    cases = (replace(manifest.golden.cases[0], text="never"), *manifest.golden.cases[1:])
    rewrite(vqa_copy, replace(manifest, golden=replace(manifest.golden, cases=cases)))
    result = invoke("verify", vqa_copy, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["passed"] is False
    assert result.stderr.startswith("error: ")
    assert "1 of 3 golden cases failed" in result.stderr


def test_providers(invoke):
    document = json.loads(invoke("providers", "--json").stdout)
    assert {"cpu", "cuda", "openvino"} <= {entry["name"] for entry in document["providers"]}
    assert 'pip install "xattn-edge[cpu]"' in invoke("providers").stdout


@pytest.mark.slow
def test_profile_takes_every_bundle_with_every_number_of_threads(invoke, vqa_bundle, caption_bundle):
    arguments = ("profile", vqa_bundle, caption_bundle, "--threads", "1,2", "--runs", "1", "--json")
    profiles = json.loads(invoke(*arguments).stdout)["profiles"]
    found = [(entry["task"], entry["threads"]) for entry in profiles]
    assert found == [("vqa", 1), ("vqa", 2), ("caption", 1), ("caption", 2)]


def test_profile_as_a_table(invoke, vqa_bundle):
    lines = invoke("profile", vqa_bundle, "--threads", "1", "--runs", "1").stdout.splitlines()
    assert lines[0].split()[:3] == ["bundle", "provider", "threads"]
    assert [line.split()[3] for line in lines[1:5]] == ["preprocess", "encode", "answer", "total"]
    assert lines[5].split()[:4] == ["bundle", "provider", "threads", "passes"]


@pytest.mark.slow
def test_profile_against_an_earlier_one(invoke, vqa_bundle, tmp_path):
    arguments = ("profile", vqa_bundle, "--threads", "1", "--time-budget", "1", "--precision", "1e-9")
    earlier, trace = tmp_path / "earlier.json", tmp_path / "trace.json"
    earlier.write_text(invoke(*arguments, "--json", "--trace", trace).stdout)
    assert {event["ph"] for event in json.loads(trace.read_text())["traceEvents"]} == {"M", "X"}
    again = invoke(*arguments, "--against", earlier, "--tolerance", "50")
    assert again.exit_code == 0
    assert "same" in again.stdout
    fast = json.loads(earlier.read_text())
    for times in fast["profiles"][0]["rounds"].values():
        times[:] = [value / 100 for value in times]
    earlier.write_text(json.dumps(fast))
    slower = invoke(*arguments, "--against", earlier, "--json")
    assert slower.exit_code == 1
    assert "to take no longer than before" in slower.stderr
    assert {change["verdict"] for change in json.loads(slower.stdout)["against"]} == {"worse"}


def test_data_list(invoke):
    names = [entry["name"] for entry in json.loads(invoke("data", "list", "--json").stdout)["data_sets"]]
    assert names == ["easy-vqa", "emoji", "sentiment"]
    data_sets, _, bundles = invoke("data", "list").stdout.partition("\n\n")
    assert [line.split()[0] for line in data_sets.splitlines()] == ["name", *names]
    assert [line.split()[0] for line in bundles.splitlines()] == ["bundle", *shipped_bundles()]


@pytest.mark.slow
def test_tune(invoke, vqa_copy):
    document = json.loads(invoke("tune", vqa_copy, "--time-budget", "1", "--dry-run", "--json").stdout)
    assert document["written"] is None
    assert document["goal"] == "latency"
    assert {candidate["threads"] for candidate in document["candidates"]} >= {1}
    assert document["default"] in document["candidates"]
    shown = invoke("tune", vqa_copy, "--time-budget", "1", "--goal", "memory")
    assert shown.exit_code == 0
    assert "default" in shown.stdout
