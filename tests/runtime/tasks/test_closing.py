"""Closing: what runs finishes, what comes later is refused, and nothing waits for anything."""

from __future__ import annotations

import gc
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.slow import slow_after
from xattn_runtime import CaptionTask, UserError, default_bundle, load
from xattn_runtime.tasks.shared.image_encoder import ImageReader

CLOSED = "expected an open model, found one that was closed; load it again"
IMAGE = Path(__file__).resolve().parents[3] / "examples" / "gem-and-diamond.png"
QUESTION = "what color is the shape?"
Call = Callable[[Any], object]
CALLS: dict[str, tuple[str, Call]] = {
    "caption": ("caption", lambda task: task.caption(IMAGE).text),
    "beams": ("caption", lambda task: task.caption(IMAGE, beams=2).text),
    "many": ("caption", lambda task: [one.text for one in task.caption_each([IMAGE] * 20, at_once=2, errors="raise")]),
    "stream": ("caption", lambda task: [token.text for token in task.stream(IMAGE)]),
    "heat map": ("caption", lambda task: task.attention(IMAGE).words),
    "question": ("vqa", lambda task: task.ask(IMAGE, QUESTION).answer),
    "questions": ("vqa", lambda task: [one.answer for one in task.ask_many([IMAGE] * 70, [QUESTION] * 70)]),
    "heat map of a question": ("vqa", lambda task: task.attention(IMAGE, QUESTION).text),
    "embedding": ("retrieval", lambda task: task.embed_images([IMAGE, IMAGE]).tolist()),
    "sentiment": ("sentiment", lambda task: task.rate("good", frames=[Image.open(IMAGE).convert("RGB")] * 3).label),
}


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Two events: an image is about to be prepared; it may be."""
    began, may = threading.Event(), threading.Event()

    def wait(method: Any) -> Any:
        def waiting(self: Any, image: Any) -> Any:
            began.set()
            assert may.wait(30)
            return method(self, image)

        return waiting

    from xattn_runtime.preprocess.pipeline import Pipeline

    monkeypatch.setattr(ImageReader, "prepare", wait(ImageReader.prepare))
    monkeypatch.setattr(Pipeline, "__call__", wait(Pipeline.__call__))
    yield began, may
    may.set()


@pytest.mark.parametrize("kind", slow_after(5, list(CALLS)))
def test_a_running_call_finishes_and_later_ones_are_refused(
    gate: tuple[threading.Event, threading.Event], kind: str
) -> None:
    began, may = gate
    name: Any
    name, call = CALLS[kind]
    with load(default_bundle(name)) as task:
        may.set()
        right = call(task)
    began.clear(), may.clear()
    task, answers = load(default_bundle(name)), []
    thread = threading.Thread(target=lambda: answers.append(call(task)))
    thread.start()
    assert began.wait(30)
    closers = [threading.Thread(target=task.close) for _ in range(2)]
    for closer in closers:
        closer.start()
    for closer in closers:  # although the call has not ended
        closer.join(30)
        assert not closer.is_alive()
    with pytest.raises(UserError, match=CLOSED):
        call(task)
    may.set()
    thread.join(30)
    assert answers == [right]


@pytest.mark.parametrize(
    "begin", [lambda task: task.stream(IMAGE), lambda task: task.caption_each([IMAGE] * 9, batch=2, errors="raise")]
)
def test_closing_in_a_loop_over_what_it_gives_lets_the_loop_end(begin: Callable[[CaptionTask], Iterator[Any]]) -> None:
    with load(default_bundle("caption"), task="caption") as task:
        right = [one.text for one in begin(task)]
    texts = []
    with load(default_bundle("caption"), task="caption") as task:
        for one in begin(task):
            task.close()
            with pytest.raises(UserError, match=CLOSED):
                begin(task)
            texts.append(one.text)
    assert texts == right


def test_an_iterator_that_was_not_begun_is_a_running_call() -> None:
    task = load(default_bundle("caption"), task="caption")
    stream = task.stream(IMAGE)
    task.close()
    assert "".join(token.text for token in stream) == "gem stone to the left of a diamond suit"


@pytest.mark.parametrize("begun", [False, True])
def test_what_is_let_go_half_way_frees_the_model(begun: bool) -> None:
    task = load(default_bundle("caption"), task="caption")
    session = weakref.ref(task._images.session)
    iterators: list[Iterator[Any]] = [
        task.stream(IMAGE),
        task.caption_each([IMAGE] * 40, batch=2, at_once=2, errors="raise"),
    ]
    if begun:
        assert all(next(iterator) for iterator in iterators)
    task.close()
    gc.collect()
    assert session() is not None
    iterators.clear()
    gc.collect()
    assert session() is None


def test_a_closed_model_frees_its_graphs_at_once() -> None:
    with load(default_bundle("caption"), task="caption") as task:
        task.caption(IMAGE)
        session = weakref.ref(task._images.session)
    assert session() is None
    assert task.bundle.manifest.task == "caption"
    assert task.settings.name == "cpu"
    with pytest.raises(AttributeError, match="no attribute 'captions'"):
        task.captions()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["caption", "vqa", "retrieval", "sentiment"])
def test_a_model_is_not_sent_to_another_process(name: Any) -> None:
    with load(default_bundle(name)) as task, pytest.raises(UserError, match="cannot be pickled or copied"):
        pickle.dumps(task)
