"""Whatever is passed to the public calls: an answer, or one clear line, and never an error of Python's own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import fields
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import xattn_edge
from tests.support.slow import slow_after
from xattn_runtime import (
    DecodingOptions,
    EncodedImage,
    UserError,
    XattnError,
    default_bundle,
    errors,
    load,
    open_bundle,
    verify_bundle,
)

IMAGE = Path(__file__).resolve().parents[3] / "examples" / "gem-and-diamond.png"
QUESTION = "what color is the shape?"
VALUES: dict[str, Any] = {
    "None": None, "True": True, "0": 0, "-1": -1, "2**70": 2**70, "10**400": 10**400, "1.5": 1.5, "2.0": 2.0,
    "nan": math.nan, "inf": math.inf, "1e308": 1e308, "-1e308": -1e308, "1e-308": 1e-308, "1e-40": 1e-40,
    "-400.0": -400.0, "half": Fraction(1, 2), "'2'": "2", "''": "", "bytes": b"2", "[1]": [1], "[]": [], "{}": {},
    "{'a'}": {"a"}, "('a',)": ("a",), "object": object(), "type": int, "int64": np.int64(2), "uint8": np.uint8(2),
    "float32": np.float32(0.5), "float32 nan": np.float32(math.nan), "numpy bool": np.bool_(True),
    "array": np.array(2), "array of ints": np.array([1, 2]), "array of objects": np.array([None, "a"], dtype=object),
    "array of texts": np.array(["a", "b"]), "images in an array": np.zeros((3, 32, 32, 3), np.uint8), "complex": 1j,
    "function": lambda: 1, "path": Path("x"), "NUL": "a\0b", "half a character": "\ud800", "long": "x" * 100_000,
    "lines": "a\nb", "...": ..., "[None]": [None], "[['a']]": [["a"]], "[b'a']": [b"a"],
}  # fmt: skip
Call = Callable[[Any, Any], object]
OPTIONS = [field.name for field in fields(DecodingOptions)]


@cache
def seen(task: Any) -> EncodedImage:
    """The image, encoded once for all that is asked of it."""
    encoded: EncodedImage = task.encode(IMAGE)
    return encoded


@cache
def heat_map(task: Any) -> Any:
    return task.attention(IMAGE)


def decoded(name: str, **more: Any) -> Call:
    return lambda task, value: task.caption(seen(task), options=DecodingOptions(**{**more, name: value}))


# Task, and the call with one value in it.
CALLS: dict[str, tuple[str, Call]] = {
    "load bundle": ("", lambda _, value: load(value)),
    "open_bundle": ("", lambda _, value: open_bundle(value)),
    "default_bundle": ("", lambda _, value: default_bundle(value)),
    "load provider": ("", lambda _, value: load(default_bundle("vqa"), value)),
    "load threads": ("", lambda _, value: load(default_bundle("vqa"), threads=value)),
    "load task": ("", lambda _, value: load(default_bundle("vqa"), task=value)),
    "verify bundle": ("", lambda _, value: verify_bundle(value)),
    "verify provider": ("", lambda _, value: verify_bundle(default_bundle("vqa"), value)),
    "encode": ("caption", lambda task, value: task.encode(value)),
    "caption image": ("caption", lambda task, value: task.caption(value)),
    "caption prompt": ("caption", lambda task, value: task.caption(seen(task), value)),
    "caption beams": ("caption", lambda task, value: task.caption(seen(task), beams=value)),
    "caption max_new_tokens": ("caption", lambda task, value: task.caption(seen(task), max_new_tokens=value)),
    "caption options": ("caption", lambda task, value: task.caption(seen(task), options=value)),
    "stream image": ("caption", lambda task, value: list(task.stream(value))),
    "stream prompt": ("caption", lambda task, value: list(task.stream(seen(task), value))),
    "stream options": ("caption", lambda task, value: list(task.stream(seen(task), options=value))),
    "caption_each images": ("caption", lambda task, value: list(task.caption_each(value))),
    "caption_each image": ("caption", lambda task, value: list(task.caption_each([value]))),
    "caption_each batch": (
        "caption",
        lambda task, value: list(task.caption_each([seen(task)], batch=value, errors="raise")),
    ),
    "caption_each at_once": (
        "caption",
        lambda task, value: list(task.caption_each([seen(task)], at_once=value, errors="raise")),
    ),
    "caption_each errors": ("caption", lambda task, value: list(task.caption_each([seen(task)], errors=value))),
    "attention image": ("caption", lambda task, value: task.attention(value)),
    "attention options": ("caption", lambda task, value: task.attention(IMAGE, options=value)),
    "attention layer": ("caption", lambda task, value: heat_map(task).mean(layer=value)),
    "ask image": ("vqa", lambda task, value: task.ask(value, QUESTION)),
    "ask question": ("vqa", lambda task, value: task.ask(seen(task), value)),
    "ask top_k": ("vqa", lambda task, value: task.ask(seen(task), QUESTION, value)),
    "ask answers": ("vqa", lambda task, value: task.ask(seen(task), QUESTION, answers=value)),
    "ask options": ("vqa", lambda task, value: task.ask(seen(task), QUESTION, options=value)),
    "ask_many images": ("vqa", lambda task, value: task.ask_many(value, [QUESTION])),
    "ask_many questions": ("vqa", lambda task, value: task.ask_many([seen(task)], value)),
    "ask_many question": ("vqa", lambda task, value: task.ask_many([seen(task)], [value])),
    "heat map question": ("vqa", lambda task, value: task.attention(IMAGE, value)),
    "embed_images": ("retrieval", lambda task, value: task.embed_images(value)),
    "embed_images image": ("retrieval", lambda task, value: task.embed_images([value])),
    "embed_texts": ("retrieval", lambda task, value: task.embed_texts(value)),
    "embed_texts text": ("retrieval", lambda task, value: task.embed_texts([value])),
    "rank query": ("retrieval", lambda task, value: task.rank(value, task.embed_texts(["cat"]))),
    "rank candidates": ("retrieval", lambda task, value: task.rank(task.embed_texts(["cat"])[0], value)),
    "rank candidate": ("retrieval", lambda task, value: task.rank(task.embed_texts(["cat"])[0], [value])),
    "rank top_k": ("retrieval", lambda task, value: task.rank(*[task.embed_texts(["cat"])] * 2, value)),
    "classify image": ("retrieval", lambda task, value: task.classify(value, ["cat", "dog"])),
    "classify labels": ("retrieval", lambda task, value: task.classify(seen(task), value)),
    "classify label": ("retrieval", lambda task, value: task.classify(seen(task), ["cat", value])),
    "classify template": ("retrieval", lambda task, value: task.classify(seen(task), ["cat", "dog"], value)),
    "rerank text": ("retrieval", lambda task, value: task.rerank(value, [seen(task)], [0.1])),
    "rerank images": ("retrieval", lambda task, value: task.rerank("cat", value, [0.1])),
    "rerank cosines": ("retrieval", lambda task, value: task.rerank("cat", [seen(task)], value)),
    "rate text": ("sentiment", lambda task, value: task.rate(value)),
    "rate audio": ("sentiment", lambda task, value: task.rate("good", audio=value)),
    "rate samples": ("sentiment", lambda task, value: task.rate("good", audio=(value, 16_000))),
    "rate rate": ("sentiment", lambda task, value: task.rate("good", audio=(np.zeros(16_000, np.float32), value))),
    "rate frames": ("sentiment", lambda task, value: task.rate("good", frames=value)),
    "rate frame": ("sentiment", lambda task, value: task.rate("good", frames=[value])),
    "rate_utterance": ("sentiment", lambda task, value: task.rate_utterance(value)),
    **{f"options {name}": ("caption", decoded(name)) for name in OPTIONS},
    **{f"options of beams {name}": ("caption", decoded(name, beams=3)) for name in OPTIONS},
    **{f"options of draws {name}": ("caption", decoded(name, seed=1)) for name in OPTIONS},
}


@pytest.fixture(scope="module")
def tasks() -> dict[str, Any]:
    names: tuple[Any, ...] = ("caption", "vqa", "retrieval", "sentiment")
    return {name: load(default_bundle(name), threads=1) for name in names}


@pytest.mark.parametrize("name", slow_after(len(CALLS) - 2 * len(OPTIONS), list(CALLS)))
def test_one_clear_line_or_an_answer(tasks: dict[str, Any], name: str) -> None:
    task, call = CALLS[name]
    for value in VALUES.values():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                call(tasks.get(task), value)
            except UserError as error:
                assert str(error).isprintable()
                assert len(str(error)) <= 2100


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("load bundle", None, "bundle: expected a folder or the name of a bundle, found None"),
        ("load bundle", b"a.xattn", "bundle: expected a folder or the name of a bundle, found b'a.xattn'"),
        ("load provider", ["CPUExecutionProvider"], r"provider: expected text, found \['CPUExecutionProvider'\]"),
        ("load threads", "2", "threads: expected a whole number, 1 to .*, found '2'; leave it out"),
        ("load threads", True, "threads: expected a whole number, 1 to .*, found True"),
        ("load task", "vqq", r"expected a bundle for 'vqq', found one for vqa"),
        ("caption options", {"beams": 4}, r"options: expected DecodingOptions, .*, found {'beams': 4}"),
        ("caption beams", True, "beams: expected a whole number, found True"),
        ("options of beams length_penalty", 1e308, r"length_penalty: expected -1\d.\d to 1\d.\d for texts of up to"),
        ("options of beams length_penalty", -400.0, r"length_penalty: .* tokens, found -400"),
        ("options of beams early_stopping", 1, "early_stopping: expected True or False or 'never', found 1"),
        ("options n_best", None, "n_best: expected 1 to 64, found None"),
        ("options stop", "end", "stop: expected texts that are not empty, found 'end'"),
        ("options prefix", 3, "prefix: expected text, found 3"),
        ("options temperature", 10**400, "temperature: expected a number above 0; .*, found 1000"),
        (
            "caption_each images",
            "a.png",
            "images: expected several in a list, found the path 'a.png'; put",
        ),
        ("caption_each images", Path("a.png"), "images: expected several in a list, found the path"),
        (
            "caption_each images",
            Image.new("RGB", (9, 9)),
            "images: expected several in a list, found one image of 9",
        ),
        ("caption_each errors", "ignore", "errors: expected 'raise' or 'return', found 'ignore'"),
        ("ask_many questions", QUESTION, "questions: expected several in a list, found the text"),
        ("ask top_k", 2.0, "top_k: expected a whole number, at least 1, found 2.0"),
        ("embed_texts", "cat", "texts: expected several in a list, found the text 'cat'; put it"),
        ("rank query", np.zeros((2, 3)), r"query: expected numbers \[width\], found an array of float64 \[2, 3\]"),
        ("rank query", np.zeros(3), r"candidates: expected 3 numbers each, as in query, found"),
        ("rank candidates", [[1.0], [1.0, 2.0]], "candidates: expected numbers .*, found rows of different lengths"),
        ("rerank cosines", [0.1, 0.2], "cosines: expected one for each of 1 images, found 2"),
        ("rerank cosines", [math.nan], "cosines: expected finite numbers"),
        ("classify label", 3, "labels: expected texts, found 3 as number 2"),
        ("classify template", None, "template: expected text, found None"),
        ("rate text", "\ud800", r"text: expected Unicode text, found half a character in '\\ud800'"),
        ("rate audio", (16_000, np.zeros(16_000)), "audio: expected .* found the two the other way round; swap them"),
        (
            "rate audio",
            ([0.0] * 16_000, 16_000),
            "audio: expected samples in a numpy array, found",
        ),
        ("rate audio", b"RIFF", "audio: expected a WAV file, found a file of another kind, which begins with 'RIFF'"),
        ("rate audio", "a\0b", r"'a\\x00b': expected a WAV file, found"),
        ("rate audio", (1, 2, 3), "audio: expected a WAV file, its bytes, or .* found a tuple of 3"),
        ("rate rate", "16000", "audio: expected a whole number of samples a second, found '16000'"),
        (
            "rate frames",
            np.zeros((9, 9, 3), np.uint8),
            r"frames: expected several in a list, found one array \[9, 9, 3\]; put it into a list",
        ),
        ("attention layer", -1, "layer: expected 0 to 2, found -1"),
    ],
)
def test_what_the_line_says(tasks: dict[str, Any], name: str, value: object, message: str) -> None:
    task, call = CALLS[name]
    with pytest.raises(UserError, match=message):
        call(tasks.get(task), value)


def test_numbers_of_numpy_are_numbers(tasks: dict[str, Any]) -> None:
    model = tasks["caption"]
    plain = model.caption(IMAGE, options=DecodingOptions(beams=2, length_penalty=0.5, stop=("of",)))
    options = DecodingOptions(length_penalty=np.float32(0.5), stop=["of"], n_best=np.int8(1))  # type: ignore[arg-type]
    numpy = model.caption(IMAGE, beams=np.int64(2), options=options)
    assert numpy.token_ids == plain.token_ids
    assert len(tasks["vqa"].ask(IMAGE, QUESTION, np.int64(3)).top) == 3
    cold = DecodingOptions(temperature=1e-308, seed=1)
    assert model.caption(IMAGE, options=cold).token_ids == model.caption(IMAGE).token_ids


@pytest.mark.parametrize(
    ("name", "encode_by", "call"),
    [
        ("caption", "vqa", lambda task, image: task.caption(image)),
        ("caption", "retrieval", lambda task, image: list(task.stream(image))),
        ("caption", "vqa", lambda task, image: list(task.caption_each([IMAGE, image], errors="raise"))),
        ("vqa", "caption", lambda task, image: task.ask(image, QUESTION)),
        ("vqa", "caption", lambda task, image: task.ask_many([image], [QUESTION])),
        ("retrieval", "vqa", lambda task, image: task.classify(image, ["cat", "dog"])),
        ("retrieval", "vqa", lambda task, image: task.embed_images([image])),
    ],
)
def test_an_image_that_another_model_encoded(tasks: dict[str, Any], name: str, encode_by: str, call: Call) -> None:
    image = tasks[encode_by].encode(IMAGE)
    with pytest.raises(UserError, match=r"expected (one|a model) that"):
        call(tasks[name], image)


def test_an_encoded_image_may_stand_wherever_images_are_listed(tasks: dict[str, Any]) -> None:
    task = tasks["retrieval"]
    encoded = task.encode(IMAGE)
    expected = task.embed_images([IMAGE, IMAGE])
    np.testing.assert_allclose(task.embed_images([IMAGE, encoded]), expected, atol=1e-6)
    np.testing.assert_allclose(task.rerank("cat", [encoded], [0.1]), task.rerank("cat", [IMAGE], [0.1]), atol=1e-5)


def test_errors_are_one_line_that_can_be_read() -> None:
    assert str(UserError("a\nb\tc\x1b[0m")) == "a b\\tc\\x1b[0m"
    text = str(UserError("x" * 100_000 + "; the end"))
    assert text.endswith("; the end")
    assert len(text) < 2100


def test_every_error_is_at_the_top() -> None:
    classes = {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}
    assert "UserError" in classes and classes <= set(xattn_edge.__all__)
    assert all(issubclass(getattr(xattn_edge, name), XattnError) for name in classes)
