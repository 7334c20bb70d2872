"""Bundles that answer: `load` picks the class that the manifest's task asks for."""

from __future__ import annotations

import os

from xattn_runtime.bundle.folder import Bundle, open_bundle
from xattn_runtime.execution.session import SessionSettings
from xattn_runtime.generate.options import DecodingOptions
from xattn_runtime.retrieval.index import PictureIndex, look_at_folder, open_index, update_index
from xattn_runtime.retrieval.search import search_index
from xattn_runtime.tasks.caption import Caption, CaptionTask, CaptionTiming, ScoredText
from xattn_runtime.tasks.retrieval import Classification, Match, RetrievalTask
from xattn_runtime.tasks.sentiment import Sentiment, SentimentTask
from xattn_runtime.tasks.shared.image_encoder import EncodedImage
from xattn_runtime.tasks.shared.streaming import StreamedToken
from xattn_runtime.tasks.vqa import Answer, AnswerTiming, VqaTask

__all__ = [
    "Answer",
    "AnswerTiming",
    "AnyTask",
    "Caption",
    "CaptionTask",
    "CaptionTiming",
    "Classification",
    "DecodingOptions",
    "EncodedImage",
    "Match",
    "PictureIndex",
    "RetrievalTask",
    "ScoredText",
    "Sentiment",
    "SentimentTask",
    "StreamedToken",
    "VqaTask",
    "load",
    "look_at_folder",
    "open_index",
    "search_index",
    "update_index",
]

AnyTask = CaptionTask | VqaTask | RetrievalTask | SentimentTask
"""What `load` gives."""


def load(
    bundle: str | os.PathLike[str] | Bundle, provider: str | SessionSettings = "cpu", threads: int | None = None
) -> AnyTask:
    """The task of `bundle`, a folder or an open bundle, ready to run on `provider`.

    provider: a name of `xattn-edge providers`; `NAME,cpu` lets the CPU run what NAME refuses, `NAME=LIBRARY` takes a
        plugin by its path, and `auto` and `arm` choose what gives the golden outputs of this bundle.
    threads: within an operator, by default the cores, at most 4.
    Raises BundleError, ProviderError or DependencyError.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    if opened.manifest.task == "caption":
        return CaptionTask(opened, provider, threads)
    if opened.manifest.task == "retrieval":
        return RetrievalTask(opened, provider, threads)
    if opened.manifest.task == "sentiment":
        return SentimentTask(opened, provider, threads)
    return VqaTask(opened, provider, threads)
