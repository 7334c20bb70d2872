from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xattn_runtime.bundle.manifest import parse
from xattn_runtime.errors import BundleError
from xattn_runtime.json_reader import unsafe_path_reason
from xattn_runtime.preprocess.steps import Resize

Change = Callable[[dict[str, Any]], object]


def _read(bundle: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    return data


@pytest.mark.parametrize("fixture", ["caption_bundle", "vqa_bundle"])
def test_what_is_written_reads_back_the_same(fixture: str, request: pytest.FixtureRequest) -> None:
    data = _read(request.getfixturevalue(fixture))
    assert parse(data).to_dict() == data


def test_optional_keys_come_back(caption_bundle: Path) -> None:
    data = _read(caption_bundle)
    data["provenance"]["from_bundle"] = "other"
    data["evaluation"] = [{"metric": "bleu", "value": 0.5}]
    data["session_options"] = {"session.qdq_matmulnbits_accuracy_level": "1"}
    assert parse(data).to_dict() == data


def test_steps_are_typed(caption_bundle: Path) -> None:
    assert Resize(16, 16, "bicubic") in parse(_read(caption_bundle)).image_steps


WRONG: list[tuple[Change, str]] = [
    (
        lambda d: d.update(schema_version=2),
        "schema_version: expected 1, the one version that this runtime reads",
    ),
    (lambda d: d.update(schema_version=True), "schema_version: expected 1"),
    (lambda d: d.pop("schema_version"), "schema_version: expected 1, found no such key"),
    (lambda d: d.update(name="Big Name"), "name: expected a string like"),
    (lambda d: d.update(task="speech"), "task: expected one of caption, vqa, retrieval, sentiment, found 'speech'"),
    (lambda d: d.update(attention="flash"), "attention: expected one of standard, decomposed"),
    (lambda d: d.update(opset=17), "opset: expected an integer of at least 18, found 17"),
    (lambda d: d.update(opset=True), "opset: expected an integer"),
    (lambda d: d.update(attention="standard", opset=22), "opset: expected an integer of at least 23, found 22"),
    (lambda d: d.update(extra=1), "extra: expected only the keys"),
    (lambda d: d["graphs"].pop("decoder"), "graphs.decoder: expected an object, found no such key"),
    (lambda d: d["graphs"].update(other={"file": "x", "precision": "fp32"}), "graphs.other: expected only the keys"),
    (
        lambda d: d["graphs"]["decoder"].update(precision="int3"),
        "graphs.decoder.precision: expected one of fp32, fp16, int8",
    ),
    (lambda d: d["graphs"]["decoder"].update(file="../x"), "graphs.decoder.file: expected a relative path inside"),
    (lambda d: d["graphs"]["decoder"].update(file="gone.onnx"), "files: expected an entry for 'gone.onnx'"),
    (lambda d: d["tokenizer"].update(max_tokens=0), "tokenizer.max_tokens: expected an integer of at least 1, found 0"),
    (lambda d: d["tokenizer"].update(file="/etc/passwd"), "it is absolute"),
    (lambda d: d["decoding"].pop("end_token_ids"), "decoding.end_token_ids: expected a list of integers"),
    (lambda d: d["decoding"].update(end_token_ids=[-1]), "decoding.end_token_ids: expected a list of integers"),
    (lambda d: d["decoding"].update(max_new_tokens=1.5), "decoding.max_new_tokens: expected an integer"),
    (lambda d: d.update(session_options={"session.x": "1"}), "session_options: expected only session."),
    (
        lambda d: d.update(session_options={"session.disable_prepacking": 1}),
        "session_options: expected an object of",
    ),
    (lambda d: d["golden"].update(relative_rms=0), "golden.relative_rms: expected a number above 0, found 0"),
    (lambda d: d["golden"].update(relative_rms=float("inf")), "golden.relative_rms: expected a number above 0"),
    (lambda d: d["golden"].update(cases=[]), "golden.cases: expected at least one golden case"),
    (lambda d: d["golden"]["cases"][1].pop("token_ids"), "golden.cases[1].token_ids: expected a list"),
    (lambda d: d["files"].update({"a\\b": {}}), "it holds a backslash"),
    (lambda d: d["files"].update({"manifest.json": {}}), "the manifest"),
    (lambda d: d["files"]["tokenizer.json"].update(sha256="AB"), "files.tokenizer.json.sha256: expected a string like"),
    (lambda d: d["files"]["tokenizer.json"].update(bytes=-1), "files.tokenizer.json.bytes: expected an integer"),
    (lambda d: d.update(evaluation=[1]), "evaluation: expected a list of objects"),
    (lambda d: d.update(provenance=[]), "provenance: expected an object, found []"),
    (lambda d: d["preprocessing"].update(text=[]), "preprocessing.text: expected only the keys image"),
    (lambda d: d["preprocessing"].update(image=[]), "found no step"),
    (lambda d: d["preprocessing"]["image"].pop(0), "preprocessing.image: expected flatten →"),
    (lambda d: d["preprocessing"]["image"].reverse(), "preprocessing.image: expected flatten →"),
    (lambda d: d["preprocessing"]["image"].pop(2), "preprocessing.image: expected flatten →"),
    (lambda d: d["preprocessing"]["image"][1].update(op="crop"), "preprocessing.image[1].op: expected one of flatten"),
    (lambda d: d["preprocessing"]["image"][0].update(background=[0, 0, 256]), "image[0].background: expected a list"),
    (lambda d: d["preprocessing"]["image"][0].update(background=[0, 0]), "image[0].background: expected 3 integers"),
    (lambda d: d["preprocessing"]["image"][2].update(filter="area"), "image[2].filter: expected one of nearest"),
    (
        lambda d: d["preprocessing"]["image"][2].update(width_px=10**6),
        "image[2].width_px: expected at most 8192",
    ),
    (lambda d: d["preprocessing"]["image"][3].update(factor="1"), "image[3].factor: expected a number above 0"),
    (lambda d: d["preprocessing"]["image"][4].update(std=[1, 1, 0]), "image[4].std: expected 3 numbers"),
    (lambda d: d["preprocessing"]["image"][4].update(mean=[1, 1]), "image[4].mean: expected a list of 3 numbers"),
    (lambda d: d["preprocessing"]["image"][4].update(eps=1), "image[4].eps: expected only the keys"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_values_are_named(caption_bundle: Path, change: Change, message: str) -> None:
    data = _read(caption_bundle)
    change(data)
    with pytest.raises(BundleError) as caught:
        parse(data, "here/manifest.json")
    assert message in str(caught.value)
    assert str(caught.value).startswith("here/manifest.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("labels"), "labels: expected a list"),
        (lambda d: d.update(labels=["a", "a"]), "labels: expected a list of different"),
        (lambda d: d["golden"]["cases"][0].pop("question"), "golden.cases[0].question: expected a string"),
        (lambda d: d.update(decoding={}), "decoding: expected only the keys"),
    ],
)
def test_wrong_values_of_vqa(vqa_bundle: Path, change: Change, message: str) -> None:
    data = _read(vqa_bundle)
    change(data)
    with pytest.raises(BundleError, match=r"manifest\.json: ") as caught:
        parse(data)
    assert message in str(caught.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    key=st.sampled_from(["graphs", "tokenizer", "decoding", "preprocessing", "golden", "files", "opset", "name"]),
    value=_JSON,
)
def test_any_json_in_any_place_is_refused_in_words(key: str, value: object, caption_bundle: Path) -> None:
    data = {**_read(caption_bundle), key: value}
    try:
        parse(data)
    except BundleError as error:
        assert "\n" not in str(error)
    else:
        assert key in {"opset", "name"}


@pytest.mark.parametrize(
    "path", ["", "/a", "C:/a", "a\\b", "../a", "a/../b", "a//b", "./a", "a/", "a\nb", "a\0b", ".."]
)
def test_paths_that_leave(path: str) -> None:
    assert unsafe_path_reason(path) is not None


@pytest.mark.parametrize("path", ["a", "graphs/a.onnx", "a/b/c", "..a", "a..b/é"])
def test_paths_that_stay(path: str) -> None:
    assert unsafe_path_reason(path) is None
