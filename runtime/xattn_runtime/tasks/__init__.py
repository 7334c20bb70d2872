"""Tasks: a bundle that is loaded, and answers. `open_task` picks the class that the manifest's task asks for."""

from __future__ import annotations

from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.execution.session import SessionSettings
from xattn_runtime.generate.options import DecodingOptions
from xattn_runtime.retrieval.index import PictureIndex, look_at_folder, open_index, update_index
from xattn_runtime.retrieval.match import Match
from xattn_runtime.retrieval.search import search_index
from xattn_runtime.tasks.caption import Caption, CaptionTask, CaptionTiming, ScoredText
from xattn_runtime.tasks.retrieval import Classification, RetrievalTask
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
    "look_at_folder",
    "open_index",
    "open_task",
    "search_index",
    "update_index",
]

AnyTask = CaptionTask | VqaTask | RetrievalTask | SentimentTask
"""What `open_task` returns."""


def open_task(bundle: Bundle, provider: str | SessionSettings = "cpu", threads: int | None = None) -> AnyTask:
    """The task of an open bundle, on a provider by its name. Raises BundleError, ProviderError or DependencyError."""
    if bundle.manifest.task == "caption":
        return CaptionTask(bundle, provider, threads)
    if bundle.manifest.task == "retrieval":
        return RetrievalTask(bundle, provider, threads)
    if bundle.manifest.task == "sentiment":
        return SentimentTask(bundle, provider, threads)
    return VqaTask(bundle, provider, threads)
