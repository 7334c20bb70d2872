"""Several images in a question, conversations, and what is kept of prompts: beside numpy without a cache."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.runtime.preprocess.test_image_in_text import END, IMAGE, LAYOUT, SPEC, folder, greedy
from tests.support.tiny_bundle import STEPS
from xattn_runtime.bundle.decoding import Decoding
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.bundle.manifest import Manifest
from xattn_runtime.errors import BundleError, ImageError, QuestionError, UserError
from xattn_runtime.generate.cache import Cache
from xattn_runtime.generate.decoder import DecoderStep
from xattn_runtime.generate.options import DecodingOptions
from xattn_runtime.loader import load
from xattn_runtime.preprocess.prompts.chat import ChatSpec, Turn
from xattn_runtime.preprocess.prompts.video import Video, VideoLayout
from xattn_runtime.tasks import EncodedImage, VqaTask
from xattn_runtime.tasks.shared.kept import KeptPrompts, PromptBudget

__all__ = ["folder"]

TEMPLATE = (
    "{% for message in messages %}{% for part in message.content %}{% if part.type == 'text' %} {{ part.text }} "
    "{% else %}<{{ part.type }}>{% endif %}{% endfor %}{% if message.role == 'user' %} is {% endif %}{% endfor %}"
)
VIDEO = VideoLayout("what {video} {question} is", "the {count} of {duration} ", "cat {time} {image} ", "dog", 3)
WHAT, IS, THE, CAT, RED = 4, 5, 6, 9, 7

Noise = Callable[[int], Path]
Rewrite = Callable[[Path, Manifest], Manifest]


@pytest.fixture
def bundle(folder: Path, rewrite: Rewrite) -> Path:
    manifest = open_bundle(folder).manifest
    cases = tuple(replace(case, question="the cat") for case in manifest.golden.cases)
    layout = replace(LAYOUT, most_images=4, between=" a ")
    chat = ChatSpec(TEMPLATE, video="<video>")
    changed = replace(
        manifest,
        task="vqa",
        tokenizer=replace(SPEC, max_tokens=30, image_layout=layout, video_layout=VIDEO, chat=chat),
        decoding=Decoding((), (END,), 0, 8, max_positions=60),
        golden=replace(manifest.golden, cases=cases),
        video_steps=STEPS,
    )
    rewrite(folder, changed)
    return folder


@pytest.fixture
def task(bundle: Path) -> VqaTask:
    return load(bundle, threads=1, task="vqa")


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens every run of a decoder is given."""
    lengths: list[int] = []
    run = DecoderStep._run

    def counted(self: DecoderStep, outputs: Any, input_ids: Any, *others: Any) -> Any:
        lengths.append(input_ids.shape[1])
        return run(self, outputs, input_ids, *others)

    monkeypatch.setattr(DecoderStep, "_run", counted)
    return lengths


def image_tokens(encoded: EncodedImage) -> np.ndarray:
    tokens: np.ndarray = encoded.tensors["image_tokens"][0]
    return tokens


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_question_about_several_images(task: VqaTask, noise: Noise, count: int) -> None:
    files = [noise(seed) for seed in range(count)]
    tokens = np.concatenate([image_tokens(task.encode(file)) for file in files])
    written = [token for number in range(count) for token in ([12] if number else []) + IMAGE]
    expected = greedy(tokens, [*written, WHAT, CAT, IS])
    one_by_one: list[Path | EncodedImage] = [task.encode(files[0]), *files[1:]]
    assert [task.ask(seen, "cat").token_ids for seen in (files, one_by_one, task.encode(files))] == [expected] * 3


def test_a_question_about_a_video(task: VqaTask, noise: Noise) -> None:
    files = [noise(seed) for seed in range(2)]
    tokens = np.concatenate([image_tokens(task.encode(file)) for file in files])
    # The vocabulary knows neither numbers nor times.
    unknown = Tokenizer.from_file(str(task.bundle.root / "tokenizer.json")).encode
    text = "what the two of 0:01:02 " + "".join(f"cat {time} on {'<image>' * 4} on " for time in ("00:01", "01:02"))
    expected = greedy(tokens, unknown(f"{text}dog red is", add_special_tokens=False).ids)
    video = Video(files, [1.9, 62])
    assert task.ask(video, "red").token_ids == expected == task.ask(task.encode(video), "red").token_ids
    assert task.ask(files, "red").token_ids != expected


def test_the_next_question_costs_its_own_words(task: VqaTask, noise: Noise, fed: list[int]) -> None:
    encoded = task.encode([noise(1), noise(2)])
    for number, (question, ids) in enumerate((("cat", [CAT]), ("the red cat", [THE, RED, CAT]), ("cat", [CAT]))):
        fed.clear()
        answer = task.ask(encoded, question)
        prompt = [*IMAGE, 12, *IMAGE, WHAT, *ids, IS]
        assert answer.token_ids == greedy(image_tokens(encoded), prompt)
        # All up to the last image token, with the first question alone; then the mark after it, and the question.
        assert fed[: 2 - min(number, 1)] == [*[12][number:], 1 + 2 + len(ids)]
        assert set(fed[2 - min(number, 1) :]) <= {1}
    anew = task.ask([noise(1), noise(2)], "cat", beams=4)
    assert task.ask(encoded, "cat", beams=4).token_ids == anew.token_ids
    ranked = [task.ask(seen, "cat", answers=["red", "the dog"]).top for seen in (encoded, [noise(1), noise(2)])]
    assert ranked[0] == ranked[1]
    logits, computed_anew = (task.logits(seen, "cat", [RED, CAT]) for seen in (encoded, replace(encoded, prompts=None)))
    np.testing.assert_allclose(logits, computed_anew, rtol=1e-5)


def test_what_is_kept_is_bounded_and_no_part_of_a_copy(task: VqaTask, noise: Noise) -> None:
    encoded = [task.encode(noise(seed)) for seed in range(3)]
    kept = [image.prompts for image in encoded]
    budget = PromptBudget(most_bytes=2 * 320)  # an image's five tokens take 5 × 2 × 8 × 4 bytes
    task._answerer.generator._budget = budget  # type: ignore[attr-defined]
    for image in encoded:
        task.ask(image, "cat")
    assert [one is not None and one.size_bytes for one in kept] == [0, 320, 320]
    assert task.ask(encoded[0], "cat").token_ids == task.ask(noise(0), "cat").token_ids
    assert [one is not None and one.size_bytes for one in kept] == [320, 0, 320]
    for twin in (copy.deepcopy(encoded[0]), pickle.loads(pickle.dumps(encoded[0]))):  # noqa: S301 - our own
        assert twin.prompts is not None and twin.prompts.size_bytes == 0
        assert task.ask(twin, "cat").token_ids == task.ask(encoded[0], "cat").token_ids


def test_of_an_image_the_last_prompts_are_kept() -> None:
    kept, cache = KeptPrompts(), Cache({"past_key_0": np.zeros((1, 1, 2, 1), np.float32)})
    for ids in ((1, 2), (1, 3), (1, 2), (1, 4)):
        kept.keep(ids, cache)
    assert [kept.find(ids) is cache for ids in ((1, 2), (1, 3), (1, 4), (1,))] == [True, False, True, False]


def test_threads_ask_about_one_image(task: VqaTask, noise: Noise) -> None:
    encoded = task.encode(noise(1))
    questions = ["cat", "red", "the cat", "red cat"] * 8
    expected = {question: task.ask(noise(1), question).token_ids for question in questions}
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda question: task.ask(encoded, question).token_ids, questions))
    assert found == [expected[question] for question in questions]


def written_out(turns: tuple[Turn, ...], images: int) -> str:
    """The conversation, without a sandbox."""
    text, waiting = "", "on <image><image><image><image> on" * images
    for turn in turns:
        text += (waiting if turn.role == "user" else "") + f" {turn.text} "
        if turn.role == "user":
            text, waiting = f"{text} is ", ""
    return text


@pytest.mark.parametrize("system", [None, "the dog"])
@pytest.mark.parametrize("how", ["ask", "stream", "beams"])
def test_a_conversation_is_answered_as_if_it_were_computed_anew(
    task: VqaTask, noise: Noise, fed: list[int], system: str | None, how: str
) -> None:
    files = [noise(1), noise(3)]
    chat, encode = task.chat(files, system), Tokenizer.from_file(str(task.bundle.root / "tokenizer.json")).encode
    tokens = image_tokens(task.encode(files))
    for number, question in enumerate(("cat", "red", "the cat")):
        prompt = encode(written_out((*chat.turns, Turn("user", question)), 2)).ids
        known = chat._state.ids
        fed.clear()
        options = DecodingOptions(max_new_tokens=5)
        if how == "stream":
            pieces = list(chat.stream(question, options))
            ids = tuple(piece.token_id for piece in pieces if piece.token_id != END)
            assert "".join(piece.text for piece in pieces).strip() == chat.turns[-1].text
        else:
            answer = chat.ask(question, 3 if how == "beams" else None, options)
            ids = answer.token_ids
            assert answer.answer == chat.turns[-1].text
        if how != "beams":
            assert ids == greedy(tokens, prompt)[:5]
            assert chat._state.ids[: len(prompt)] == tuple(prompt)
            common = next((at for at, (a, b) in enumerate(zip(known, prompt, strict=False)) if a != b), len(known))
            assert number == 0 or sum(fed[:1]) == len(prompt) - common
        assert chat.turns[-2:] == (Turn("user", question), Turn("assistant", chat.turns[-1].text))
    assert [turn.role for turn in chat.turns[system is not None :]] == ["user", "assistant"] * 3


def test_a_stream_that_is_left_leaves_what_was_said(task: VqaTask, noise: Noise) -> None:
    chat, picture = task.chat(noise(1)), noise(1)
    stream = chat.stream("cat")
    said = [next(stream), next(stream)]
    assert chat.turns == ()
    stream.close()  # type: ignore[attr-defined]
    assert len(chat.turns) == 2
    full = task.chat(picture).ask("cat")
    assert full.token_ids[:2] == tuple(piece.token_id for piece in said)
    assert full.answer.startswith(chat.turns[1].text)
    assert chat.ask("red").token_ids


def test_a_conversation_beyond_the_positions(task: VqaTask, noise: Noise) -> None:
    chat = task.chat(noise(1))
    with pytest.raises(QuestionError) as error:
        for _ in range(12):
            chat.ask("the red cat")
    assert str(error.value).startswith(
        "question: expected a conversation of at most 59 tokens, its images and all that was said included, found 6"
    )
    assert str(error.value).endswith("; begin a new chat")


def test_a_closed_model_says_nothing_more(task: VqaTask, noise: Noise) -> None:
    chat = task.chat(noise(1))
    task.close()
    with pytest.raises(UserError, match="expected an open model, found one that was closed"):
        chat.ask("cat")


def bad_calls(task: VqaTask, noise: Noise) -> dict[str, Callable[[], object]]:
    file = noise(1)
    return {
        r"images: expected at most 4, as this model takes in a question, found 5; ask about fewer": lambda: task.ask(
            [file] * 5, "cat"
        ),
        r"images: expected one or more, found none": lambda: task.chat([]),
        r"video: expected at most 3 frames, found 4; leave some out": lambda: task.ask(
            Video([file] * 4, range(4)), "cat"
        ),
        r"video: expected a list of frames, one or more, found \[\]": lambda: task.encode(Video([], [])),
        r"image 2 of 2: expected one image, found several encoded as one": lambda: task.ask(
            [file, task.encode([file] * 2)], "cat"
        ),
        r"frame 2 of 2: .*nothing.png": lambda: task.ask(Video([file, "nothing.png"], [0, 1]), "cat"),
        r"question: expected no '<image>', which stands for a part of the image": lambda: task.ask(
            [file] * 2, "cat <image>"
        ),
        r"question: expected no '<image>', which stands for an image": lambda: task.chat(file).ask("cat <image>"),
        r"system: expected no '<image>', which stands for an image": lambda: task.chat(file, "<image>"),
        r"question: expected a question, found an empty text": lambda: task.chat(file).ask(" "),
        r"beams: expected 1, as what is streamed cannot be taken back, found 2": lambda: task.chat(file).stream(
            "cat", DecodingOptions(beams=2)
        ),
    }


@pytest.mark.parametrize("number", range(11))
def test_bad_input_is_one_line(task: VqaTask, noise: Noise, number: int) -> None:
    message, call = list(bad_calls(task, noise).items())[number]
    with pytest.raises(UserError, match=f"^{message}"):
        call()


def test_a_model_of_one_image_and_no_conversations(vqa_bundle: Path, noise: Noise) -> None:
    task = load(vqa_bundle, task="vqa")
    assert task.ask([noise(1)], "the cat").answer == task.ask(noise(1), "the cat").answer
    with pytest.raises(UserError, match=r"images: expected one, as this model takes in a question, found 2"):
        task.ask([noise(1)] * 2, "the cat")
    with pytest.raises(UserError, match=r"video: expected images, as this model takes no videos, found one"):
        task.ask(Video([noise(1)], [0]), "the cat")
    with pytest.raises(
        UserError, match="expected a bundle of a model that holds conversations, found one that answers"
    ):
        task.chat(noise(1))


def test_videos_need_their_preprocessing(bundle: Path, rewrite: Rewrite) -> None:
    rewrite(bundle, replace(open_bundle(bundle).manifest, video_steps=None))
    with pytest.raises(BundleError, match="expected preprocessing of videos together with a video_layout"):
        load(bundle)


def test_images_that_stand_in_no_text_hold_no_conversation(vqa_bundle: Path, tmp_path: Path, rewrite: Rewrite) -> None:
    manifest = open_bundle(vqa_bundle).manifest
    data = manifest.to_dict()
    data["tokenizer"]["chat"] = ChatSpec(TEMPLATE).to_dict()
    from xattn_runtime.bundle.manifest import parse

    with pytest.raises(BundleError, match="chat: expected an image_layout beside it, found None"):
        parse(data)


def test_an_image_of_another_model(task: VqaTask, vqa_bundle: Path, noise: Noise) -> None:
    with pytest.raises(ImageError, match="expected one that this model encoded"):
        task.ask([load(vqa_bundle, task="vqa").encode(noise(1)), noise(2)], "cat")
