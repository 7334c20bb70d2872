"""Answers are those of each image as it was when it was given, and come as soon as they are there."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

import xattn_edge
from xattn_runtime.errors import ImageError, UserError
from xattn_runtime.preprocess.image import open_image
from xattn_runtime.tasks import CaptionTask, RetrievalTask, SentimentTask, VqaTask
from xattn_runtime.tasks.shared import image_encoder, prefetch
from xattn_runtime.tasks.shared.prefetch import ImageWork, compute_each

Noise = Callable[[int], Path]
SEEDS = range(20)


@pytest.fixture(scope="module")
def captioner(caption_bundle: Path) -> CaptionTask:
    return xattn_edge.load(caption_bundle, threads=1, task="caption")


@pytest.fixture(scope="module")
def answerer(vqa_bundle: Path) -> VqaTask:
    return xattn_edge.load(vqa_bundle, threads=1, task="vqa")


@pytest.fixture(scope="module")
def retriever() -> RetrievalTask:
    return xattn_edge.load(xattn_edge.default_bundle("retrieval"), threads=1, task="retrieval")


@pytest.fixture(scope="module")
def rater() -> SentimentTask:
    return xattn_edge.load(xattn_edge.default_bundle("sentiment"), threads=1, task="sentiment")


def _array(path: Path) -> Any:
    return np.asarray(Image.open(path).convert("RGB"))


def _one_buffer(paths: list[Path]) -> Iterator[Any]:
    buffer = np.empty_like(_array(paths[0]))
    for path in paths:
        buffer[:] = _array(path)
        yield buffer
    buffer[:] = 0


def _one_object(paths: list[Path]) -> Iterator[Any]:
    image = Image.fromarray(_array(paths[0]))
    for path in paths:
        image.paste(Image.fromarray(_array(path)))
        yield image
    image.paste((0, 0, 0), (0, 0, *image.size))


def _one_stream(paths: list[Path]) -> Iterator[Any]:
    stream = io.BytesIO()
    for path in paths:
        stream.seek(0)
        stream.truncate()
        stream.write(path.read_bytes())
        stream.seek(0)
        yield stream
    stream.close()


def _one_bytearray(paths: list[Path]) -> Iterator[Any]:
    content = bytearray()
    for path in paths:
        content[:] = path.read_bytes()
        yield content
    content[:] = b""


def _one_file(paths: list[Path]) -> Iterator[Any]:
    file = paths[0].with_name("camera.png")
    for path in paths:
        file.write_bytes(path.read_bytes())
        yield file
    file.unlink()


def _one_animation(paths: list[Path]) -> Iterator[Any]:
    stream = io.BytesIO()
    first, *others = [Image.open(path).convert("RGB") for path in paths]
    first.save(stream, "TIFF", save_all=True, append_images=others)
    yield from ImageSequence.Iterator(Image.open(stream))


SOURCES = [_one_buffer, _one_object, _one_stream, _one_bytearray, _one_file, _one_animation]


@pytest.mark.parametrize("held_bytes", [8 * 2**20, 0])
@pytest.mark.parametrize("source", SOURCES)
def test_captions_of_what_is_used_again(
    source: Any, held_bytes: int, captioner: CaptionTask, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_encoder, "_HELD_BYTES", held_bytes)
    paths = [noise(seed) for seed in SEEDS]
    right = [captioner.caption(path).token_ids for path in paths]
    assert len(set(right)) > 5
    for batch, at_once in ((1, 1), (3, 2), (8, 1)):
        found = captioner.caption_each(source(paths), batch=batch, at_once=at_once, errors="raise")
        assert [one.token_ids for one in found] == right


@pytest.mark.parametrize("source", SOURCES)
def test_answers_and_embeddings_of_what_is_used_again(
    source: Any, answerer: VqaTask, retriever: RetrievalTask, noise: Noise
) -> None:
    paths = [noise(seed) for seed in range(6)]
    right = [answerer.ask(path, "what is the cat").top for path in paths]
    for answer, top in zip(answerer.ask_many(source(paths), ["what is the cat"] * 6), right, strict=True):
        assert dict(answer.top) == pytest.approx(dict(top), abs=1e-5)
    assert np.allclose(retriever.embed_images(source(paths)), retriever.embed_images(paths), atol=1e-5)


def test_arrays_in_one_array_are_images_of_their_own(
    captioner: CaptionTask, answerer: VqaTask, retriever: RetrievalTask, rater: SentimentTask, noise: Noise
) -> None:
    paths = [noise(seed) for seed in range(6)]
    arrays = np.stack([_array(path) for path in paths])
    assert [one.text for one in captioner.caption_each(arrays, errors="raise")] == [
        captioner.caption(path).text for path in paths
    ]
    assert np.allclose(retriever.embed_images(arrays), retriever.embed_images(paths), atol=1e-5)
    answers = answerer.ask_many(arrays, ["dog"] * 6)
    assert [answer.top for answer in answers] == [one.top for one in answerer.ask_many(paths, ["dog"] * 6)]
    assert len({answer.top for answer in answers}) > 1
    assert rater.rate(frames=arrays).scores == rater.rate(frames=paths).scores == rater.rate(frames=iter(paths)).scores
    assert rater.rate(frames=_one_buffer(paths)).scores == rater.rate(frames=paths).scores


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "JPEG", "GIF", "WEBP", "TIFF"])
def test_one_image_that_pillow_has_not_decoded_yet(image_format: str, captioner: CaptionTask) -> None:
    noise, stream = Image.effect_noise((700, 700), 90).convert("RGB"), io.BytesIO()
    noise.save(stream, image_format)
    data = stream.getvalue()
    right = np.asarray(open_image(Image.open(io.BytesIO(data))).convert("RGB"))
    for _ in range(5):
        image = Image.open(io.BytesIO(data))
        with ThreadPoolExecutor(8) as pool:
            opened = list(pool.map(lambda _, image=image: open_image(image).convert("RGB"), range(8)))
        assert all(np.array_equal(np.asarray(one), right) for one in opened)
    text = captioner.caption(Image.open(io.BytesIO(data))).text
    image = Image.open(io.BytesIO(data))
    assert [one.text for one in captioner.caption_each([image] * 8, batch=2, errors="raise")] == [text] * 8


def test_an_image_that_is_changed_when_its_caption_is_there(captioner: CaptionTask, noise: Noise) -> None:
    images = [Image.open(noise(seed)).convert("RGB") for seed in range(12)]
    right = [captioner.caption(image).text for image in images]
    found = []
    for image, caption in zip(images, captioner.caption_each(images, batch=2, errors="raise"), strict=True):
        found.append(caption.text)
        image.paste((0, 0, 0), (0, 0, *image.size))
    assert found == right


@pytest.mark.parametrize(
    "one",
    [
        "a.png",
        Path("a.png"),
        b"abc",
        bytearray(b"abc"),
        Image.new("RGB", (4, 4)),
        np.zeros((4, 4, 3), np.uint8),
        {"features": np.zeros((1, 2))},
        io.BytesIO(b"abc"),
        7,
    ],
    ids=lambda one: type(one).__name__,
)
def test_one_image_in_place_of_several_is_refused(
    one: Any, captioner: CaptionTask, answerer: VqaTask, retriever: RetrievalTask, rater: SentimentTask
) -> None:
    for call in (
        lambda: captioner.caption_each(one, errors="raise"),
        lambda: captioner.caption_each(one),
        lambda: answerer.ask_many(one, ["dog"]),
        lambda: retriever.embed_images(one),
        lambda: retriever.rerank("a dog", one, [0.1]),
        lambda: rater.rate(frames=one),
    ):
        with pytest.raises(UserError, match=r"^(images|frames): expected several in a list, found") as caught:
            call()
        assert len(str(caught.value)) < 150


def test_one_text_in_place_of_several_is_refused(answerer: VqaTask, retriever: RetrievalTask, noise: Noise) -> None:
    with pytest.raises(UserError, match="texts: expected several in a list, found the text 'a dog'"):
        retriever.embed_texts("a dog")
    with pytest.raises(UserError, match="questions: expected several in a list, found the text 'dog'"):
        answerer.ask_many([noise(0)] * 3, "dog")
    with pytest.raises(UserError, match="texts: expected texts, found None as number 2"):
        retriever.embed_texts(["a dog", None])  # type: ignore[list-item]
    with pytest.raises(UserError, match="cosines: expected one for each of 1 images, found 2"):
        retriever.rerank("a dog", [noise(0)], [0.1, 0.2])


def test_an_open_file_is_read_once_for_a_map_of_attention(vqa_bundle: Path, noise: Noise) -> None:
    class Pipe(io.RawIOBase):
        """What can be read once."""

        def __init__(self) -> None:
            self._content = io.BytesIO(noise(0).read_bytes())

        def read(self, size: int = -1) -> bytes:
            return self._content.read(size)

    model = xattn_edge.load(xattn_edge.default_bundle("vqa"), threads=1, task="vqa")
    right = model.attention(noise(0), "what color is the shape?")
    found = model.attention(Pipe(), "what color is the shape?")  # type: ignore[arg-type]
    assert np.array_equal(found.image, right.image)
    assert np.array_equal(found.weights, right.weights)


def _work(compute: Callable[[Any], Any]) -> ImageWork[int, int, int, int]:
    return ImageWork(lambda image: image, lambda taken: taken, compute)


class _Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self._now = 0.0

    def perf_counter(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("at_once", [1, 3])
def test_from_a_slow_source_each_answer_comes_before_the_next_image_is_asked_for(
    batch: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, asked, ahead = _Clock(), [], []
    monkeypatch.setattr(prefetch, "time", clock)

    def camera() -> Iterator[int]:
        for number in range(6):
            asked.append(number)
            clock.sleep(1.0 if number else 0.0)
            yield number

    for number, result in enumerate(compute_each(camera(), _work(lambda part: part), batch, at_once), 1):
        assert result == number - 1
        ahead.append(len(asked) - number)
    # The second image is asked for before it is known how slow the source is.
    assert ahead in ([1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0])


def test_an_idle_model_takes_what_there_is_and_a_busy_one_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, may, parts = _Clock(), threading.Event(), []
    monkeypatch.setattr(prefetch, "time", clock)
    may.set()

    def compute(part: list[int]) -> list[int]:
        parts.append(len(part))
        clock.sleep(10.0)  # slower than the source
        assert may.wait(30)
        return part

    def video() -> Iterator[int]:
        for number in range(12):
            clock.sleep(0.1)
            if number == 1:
                may.clear()
            elif number == 6:
                may.set()
            yield number

    assert list(compute_each(video(), _work(compute), 4, 1)) == list(range(12))
    # The first alone, as nothing is known of the model; the second, as the model is idle; then what fills a batch.
    assert parts[:3] == [1, 1, 4]
    assert sum(parts) == 12


def test_images_are_asked_for_while_the_model_works_but_not_all_of_them() -> None:
    asked, is_ahead = [], threading.Event()

    def images() -> Iterator[int]:
        for number in range(40):
            asked.append(number)
            if number == 2:
                is_ahead.set()
            yield number

    def compute(part: list[int]) -> list[int]:
        assert is_ahead.wait(30), "no image of the next part was asked for while the model worked on the first"
        return part

    answers = compute_each(images(), _work(compute), 2, 1)
    assert next(answers) == 0
    assert 2 < len(asked) < 12
    answers.close()  # type: ignore[attr-defined]
    assert len(asked) < 12


def test_a_list_is_computed_in_whole_batches() -> None:
    parts = []
    work = _work(lambda part: (parts.append(len(part)), part)[1])
    assert list(compute_each(list(range(20)), work, 8, 2)) == list(range(20))
    assert sorted(parts) == [4, 8, 8]  # two at once, in any order


def test_what_a_source_raises_comes_after_the_answers_before_it(captioner: CaptionTask, noise: Noise) -> None:
    def source() -> Iterator[Path]:
        yield noise(0)
        yield noise(1)
        raise RuntimeError("the camera is gone")

    found = captioner.caption_each(source(), errors="raise")
    assert [next(found).text for _ in range(2)] == [captioner.caption(noise(seed)).text for seed in range(2)]
    with pytest.raises(RuntimeError, match="the camera is gone"):
        next(found)
    assert threading.active_count() < 50


def test_an_unusable_image_of_a_generator_is_returned_in_its_place(captioner: CaptionTask, noise: Noise) -> None:
    images: Iterator[Any] = iter([noise(0), io.BytesIO(b"no image"), np.zeros((3, 3)), noise(1)])
    found = list(captioner.caption_each(images))
    assert [isinstance(one, ImageError) for one in found] == [False, True, True, False]
