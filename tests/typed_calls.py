"""The public calls with the types that their users expect. It is never run: mypy checks it, and so would fail first.

A change of a signature that breaks a user's typed program breaks this file.
"""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import assert_type

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import xattn_edge
import xattn_runtime
from xattn_export import (
    ExportReport,
    InspectReport,
    QuantizeReport,
    export_checkpoint,
    inspect_path,
    quantize_bundle,
)
from xattn_runtime import (
    Answer,
    Bundle,
    Caption,
    CaptionTask,
    Chat,
    Classification,
    DecodingOptions,
    EncodedImage,
    ImageError,
    Manifest,
    Match,
    ProfileDocument,
    ProviderStatus,
    RetrievalTask,
    Sentiment,
    SentimentTask,
    StreamedToken,
    Turn,
    VerificationReport,
    Video,
    VqaTask,
)
from xattn_runtime.tasks import Task

PATH = Path("image.png")


def loading() -> None:
    """A name of a task gives its class; without one, what all tasks have."""
    assert_type(xattn_runtime.load("emoji-caption", task="caption"), CaptionTask)
    assert_type(xattn_runtime.load(Path("x.xattn"), "cpu", 2, task="vqa"), VqaTask)
    assert_type(xattn_runtime.load("emoji-retrieval", provider="auto", task="retrieval"), RetrievalTask)
    assert_type(xattn_edge.load("sentiment", threads=1, task="sentiment"), SentimentTask)
    assert_type(xattn_edge.load("emoji-caption.xattn"), Task)
    with xattn_edge.load("emoji-caption", task="caption") as model:
        assert_type(model, CaptionTask)


def captions(model: CaptionTask) -> None:
    """One image, many, and a stream; an image in every form."""
    caption = model.caption("image.png", beams=4, max_new_tokens=12)
    assert_type(caption, Caption)
    assert_type(caption.text, str)
    assert_type(caption.token_ids, tuple[int, ...])
    assert_type(caption.score, float)
    pixels: NDArray[np.uint8] = np.zeros((8, 8, 3), np.uint8)
    for image in (PATH, PATH.read_bytes(), Image.open(PATH), pixels, model.encode(PATH)):
        assert_type(model.caption(image, options=DecodingOptions(temperature=0.7, seed=1)), Caption)
    with PATH.open("rb") as stream:
        for data in (stream, BytesIO(), bytearray(), memoryview(b"")):
            assert_type(model.caption(data), Caption)
    assert_type(model.encode(PATH), EncodedImage)
    assert_type(model.caption_each([PATH, "other.png"], batch=4, errors="raise"), Iterator[Caption])
    assert_type(model.caption_each([PATH], errors="return"), Iterator[Caption | ImageError])
    assert_type(model.stream(PATH, prompt="a picture of"), Iterator[StreamedToken])


def answers(model: VqaTask) -> None:
    """One question, and many at once."""
    answer = model.ask(PATH, "what color is the shape?", top_k=3)
    assert_type(answer, Answer)
    assert_type(answer.answer, str)
    assert_type(model.ask(model.encode(PATH), "is there a circle?").confidence, float)
    assert_type(model.ask_many([PATH, PATH], ["what shape?", "what color?"]), list[Answer])


def matches(model: RetrievalTask) -> None:
    """Embeddings, their ranking, and classes by their names."""
    assert_type(model.embed_images([PATH, Image.open(PATH)]), NDArray[np.float32])
    images, texts = model.embed_images([PATH]), model.embed_texts(["a red circle"])
    assert_type(model.rank(texts[0], images, top_k=1), tuple[Match, ...])
    assert_type(model.rerank("a red circle", [PATH], [0.3]), NDArray[np.float32])
    assert_type(model.classify(PATH, ["cat", "dog"]), Classification)


def sentiments(model: SentimentTask) -> None:
    """What is said, alone or with more."""
    sentiment = model.rate("a warm and funny film")
    assert_type(sentiment, Sentiment)
    assert_type(sentiment.label, str)


def bundles() -> None:
    """Files, proofs and measurements."""
    bundle = xattn_runtime.open_bundle("x.xattn")
    assert_type(bundle, Bundle)
    assert_type(bundle.manifest, Manifest)
    assert_type(xattn_edge.default_bundle("vqa"), Path)
    report = xattn_runtime.verify_bundle(bundle, "cpu", threads=1)
    assert_type(report, VerificationReport)
    assert_type(report.passed, bool)
    assert_type(xattn_runtime.profile_matrix([Path("x.xattn")], ["cpu"], [1, 2]), ProfileDocument)
    assert_type(xattn_runtime.provider_status(), tuple[ProviderStatus, ...])


def conversations(model: VqaTask) -> None:
    """Several images, a video, and turns."""
    assert_type(model.ask([PATH, "b.png", model.encode(PATH)], "what?"), Answer)
    assert_type(model.ask(Video([PATH, "b.png"], times=[0, 1.5], duration=3), "what?"), Answer)
    assert_type(model.encode([PATH, b""]), EncodedImage)
    chat = model.chat([PATH], system="Be brief.")
    assert_type(chat, Chat)
    assert_type(chat.ask("what?", beams=4, options=DecodingOptions(max_new_tokens=9)), Answer)
    assert_type(chat.stream("and?"), Iterator[StreamedToken])
    assert_type(chat.turns, tuple[Turn, ...])


def workstation() -> None:
    """From a checkpoint to a smaller bundle."""
    exported = export_checkpoint(Path("checkpoint"), Path("x.xattn"), attention="decomposed", opset=18)
    assert_type(exported, ExportReport)
    assert_type(exported.opset, int)
    assert_type(quantize_bundle(exported.bundle, Path("small.xattn"), mode="int8"), QuantizeReport)
    assert_type(inspect_path(Path("small.xattn")), InspectReport)
