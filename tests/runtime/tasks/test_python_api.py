"""A loaded model as callers use it: lists, streams, many threads, and when it is closed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import xattn_edge
from xattn_runtime.errors import ImageError, UserError
from xattn_runtime.execution.session import HeldGraph, hold_graph
from xattn_runtime.tasks import CaptionTask, DecodingOptions, VqaTask

QUESTIONS = ("what is the cat", "is the house red", "dog")
Noise = Callable[[int], Path]


@pytest.fixture(scope="module")
def captioner(caption_bundle: Path) -> CaptionTask:
    return xattn_edge.load(caption_bundle, provider="cpu", threads=1, task="caption")


@pytest.fixture(scope="module")
def answerer(vqa_bundle: Path) -> VqaTask:
    return xattn_edge.load(vqa_bundle, threads=1, task="vqa")


def test_a_list_of_images_in_every_form(captioner: CaptionTask, noise: Noise) -> None:
    path = noise(1)
    forms: list[Any] = [
        path,
        str(path),
        path.read_bytes(),
        Image.open(path),
        np.asarray(Image.open(path)),
        captioner.encode(path),
    ]
    found = list(captioner.caption_each(forms, errors="raise"))
    assert {caption.token_ids for caption in found} == {captioner.caption(path).token_ids}
    assert found[-1].timing_ms.encode == found[-1].timing_ms.preprocess == 0
    assert list(captioner.caption_each([], errors="raise")) == []


def test_a_bad_image_among_others_is_named(captioner: CaptionTask, noise: Noise, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"^image 2: image given as bytes: expected an image"):
        list(captioner.caption_each([noise(0), b"", noise(1)], errors="raise"))
    with pytest.raises(ImageError, match=f"^image 2: {tmp_path / 'none.png'}: expected an image, found no such file"):
        list(captioner.caption_each([noise(0), tmp_path / "none.png"], errors="raise"))
    assert len(list(captioner.caption_each([noise(0), noise(1)], errors="raise"))) == 2


def test_streamed_tokens_are_the_caption(captioner: CaptionTask, noise: Noise) -> None:
    lengths = set()
    for seed in range(6):
        tokens = list(captioner.stream(noise(seed)))
        caption = captioner.caption(noise(seed))
        assert "".join(token.text for token in tokens) == caption.text
        assert [token.token_id for token in tokens][: len(caption.token_ids)] == list(caption.token_ids)
        assert np.mean([token.log_prob for token in tokens]) == pytest.approx(caption.score, abs=1e-5)
        assert [token.last for token in tokens] == [False] * (len(tokens) - 1) + [True]
        lengths.add(len(tokens))
    assert len(lengths) > 2


def test_a_stream_is_computed_as_it_is_read_and_may_be_left(
    captioner: CaptionTask, noise: Noise, monkeypatch: Any
) -> None:
    decoder, runs = captioner._generator.decoder, []
    run = decoder.next_token
    monkeypatch.setattr(decoder, "next_token", lambda *a, **k: (runs.append(1), run(*a, **k))[1])
    longest = max(range(6), key=lambda seed: len(captioner.caption(noise(seed)).token_ids))
    runs.clear()
    stream = captioner.stream(noise(longest))
    assert not runs
    next(stream)
    assert len(runs) == 1
    del stream
    assert len(list(captioner.stream(noise(longest)))) == len(runs) - 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (DecodingOptions(beams=2), "beams: expected 1, as what is streamed cannot be taken back, found 2"),
        (DecodingOptions(n_best=3, seed=1), "n_best: expected 1, as what is streamed cannot be taken back, found 3"),
        (DecodingOptions(max_new_tokens=0), "max_new_tokens: expected 1 to 12, this bundle's limit, found 0"),
    ],
)
def test_what_cannot_be_streamed_is_said_before_the_first_token(
    captioner: CaptionTask, noise: Noise, options: DecodingOptions, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        captioner.stream(noise(0), options=options)


def test_many_threads_at_once_get_what_one_gets(captioner: CaptionTask, answerer: VqaTask, noise: Noise) -> None:
    paths = [noise(seed) for seed in range(6)]
    sampled, searched = DecodingOptions(temperature=1.0, seed=3), DecodingOptions(beams=3)
    calls: list[Callable[[], object]] = []
    for path in paths:
        calls += [
            lambda path=path: captioner.caption(path).token_ids,
            lambda path=path: captioner.caption(path, options=searched).token_ids,
            lambda path=path: captioner.caption(path, options=sampled).token_ids,
            lambda path=path: tuple(token.token_id for token in captioner.stream(path)),
            lambda path=path: tuple(one.token_ids for one in captioner.caption_each(paths, errors="raise")),
            *(lambda path=path, asked=asked: answerer.ask(path, asked).answer for asked in QUESTIONS),
        ]
    alone = [call() for call in calls]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda place: calls[place % len(calls)](), range(10 * len(calls))))
    assert together == alone * 10


def test_the_decoder_is_loaded_once_by_many_threads(caption_bundle: Path, noise: Noise, monkeypatch: Any) -> None:
    task = CaptionTask(xattn_edge.load(caption_bundle).bundle, threads=1)
    task._generator._decoder = hold_graph(task.bundle, "decoder", task.settings)
    opened: list[str] = []
    held_open = HeldGraph.open
    monkeypatch.setattr(HeldGraph, "open", lambda held: (opened.append(held.role), held_open(held))[1])
    path = noise(1)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: task.caption(path, beams=2).text, range(8)))
    assert opened == ["decoder"]


@pytest.mark.parametrize("fixture", ["caption_bundle", "vqa_bundle"])
def test_a_closed_model_says_so(request: pytest.FixtureRequest, fixture: str, noise: Noise) -> None:
    task: Any
    with xattn_edge.load(request.getfixturevalue(fixture)) as task:
        encoded = task.encode(noise(0))
    for _ in range(2):
        with pytest.raises(UserError, match="expected an open model, found one that was closed; load it again"):
            task.encode(noise(0))
        task.close()
    assert encoded.tensors
    with pytest.raises(AttributeError, match="no attribute 'captions'"):
        task.captions()


def test_each_picture_gives_a_caption_or_its_error(captioner: CaptionTask, noise: Noise, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    images: list[Any] = [noise(0), tmp_path / "bad.png", noise(1).read_bytes(), tmp_path / "none.png"]
    images += map(noise, range(2, 30))
    for batch in (1, 2, 8, 100):
        found = list(captioner.caption_each(iter(images), batch=batch))
        assert [isinstance(one, ImageError) for one in found] == [place in (1, 3) for place in range(len(images))]
        texts = [one.text for one in found if not isinstance(one, ImageError)]
        assert texts == [captioner.caption(noise(seed)).text for seed in range(30)]
    side_by_side = list(captioner.caption_each(images, batch=2, at_once=3))
    assert [getattr(one, "text", str(one)) for one in side_by_side] == [getattr(one, "text", str(one)) for one in found]
    assert list(captioner.caption_each([], errors="raise")) == []
    assert all(isinstance(one, ImageError) for one in captioner.caption_each([b""] * 9, batch=2))
    with pytest.raises(UserError, match="max_new_tokens"):
        captioner.caption_each(images, max_new_tokens=0, errors="raise")
    with pytest.raises(UserError, match="at_once: expected at least 1, found 0"):
        captioner.caption_each(images, at_once=0, errors="raise")


def test_the_other_tasks_answer_many_threads_and_close(noise: Noise) -> None:
    paths = [noise(seed) for seed in range(4)]
    with xattn_edge.load(xattn_edge.default_bundle("retrieval"), threads=1, task="retrieval") as retriever:
        alone = [retriever.embed_images([path]) for path in paths]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda path: retriever.embed_images([path]), paths * 8))
        assert all(np.array_equal(one, alone[place % 4]) for place, one in enumerate(together))
    with xattn_edge.load(xattn_edge.default_bundle("sentiment"), threads=1, task="sentiment") as rater:
        texts = ["a warm and funny film", "a dull mess", "it was all right"]
        expected = [rater.rate(text).scores for text in texts]
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda text: rater.rate(text).scores, texts * 8)) == expected * 8
    for call in (lambda: retriever.embed_images(paths), lambda: rater.rate("a film")):
        with pytest.raises(UserError, match="found one that was closed"):
            call()
