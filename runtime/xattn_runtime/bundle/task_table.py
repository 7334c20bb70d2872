"""The table of tasks: one row says what a manifest of the task holds, and what runs, measures and evaluates it.

It is data alone. The class that a row names lies in `tasks/`, and is imported by `tasks/table.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["TASKS", "TaskSpec"]


@dataclass(frozen=True)
class TaskSpec:
    """Everything about a task that is data.

    runs: the class that runs it, as MODULE:NAME.
    roles: the sets of roles that a bundle may have: which of them it has decides how the task is done.
    metric: the name of the value that stands for a bundle, and `data_sets` those that it is evaluated on.
    default_bundle: the name of the bundle that comes with the package, if one does.
    text_key: what a golden case calls the text beside its image; None where there is none. text_required: whether every
        case has that text.
    answers: whether it answers an input; otherwise it only embeds.
    takes_batches: whether several inputs go through the model together.
    has_whole_graphs: whether a bundle may hold the whole model in one graph, and one that outputs attention
        weights.
    has_similarity: whether the manifest says how embeddings are compared.
    has_speech: whether an input is an .npz of speech and frames, and the manifest says how they are preprocessed.
    """

    runs: str
    roles: tuple[tuple[str, ...], ...]
    metric: str
    data_sets: tuple[str, ...] = ()
    default_bundle: str | None = None
    text_key: Literal["question", "query"] | None = None
    text_required: bool = True
    answers: bool = True
    takes_batches: bool = False
    has_whole_graphs: bool = False
    has_similarity: bool = False
    has_speech: bool = False


TASKS: Mapping[str, TaskSpec] = {
    "caption": TaskSpec(
        runs="xattn_runtime.tasks.caption:CaptionTask",
        roles=(("image_encoder", "decoder"), ("image_encoder", "text_encoder", "decoder")),
        metric="exact_match",
        data_sets=("emoji",),
        default_bundle="emoji-caption.xattn",
        takes_batches=True,
        has_whole_graphs=True,
    ),
    "vqa": TaskSpec(
        runs="xattn_runtime.tasks.vqa:VqaTask",
        roles=(
            ("image_encoder", "classifier"),
            ("image_encoder", "text_encoder", "decoder"),
            ("image_encoder", "decoder"),
        ),
        metric="accuracy",
        data_sets=("easy-vqa",),
        default_bundle="shapes-vqa.xattn",
        text_key="question",
        has_whole_graphs=True,
    ),
    "retrieval": TaskSpec(
        runs="xattn_runtime.tasks.retrieval:RetrievalTask",
        roles=(("image_encoder", "text_encoder"), ("image_encoder", "text_encoder", "reranker")),
        metric="recall_at_1",
        data_sets=("emoji",),
        default_bundle="emoji-retrieval.xattn",
        text_key="query",
        answers=False,
        has_similarity=True,
    ),
    "sentiment": TaskSpec(
        runs="xattn_runtime.tasks.sentiment:SentimentTask",
        roles=(("classifier",),),
        metric="accuracy",
        data_sets=("sentiment",),
        default_bundle="sentiment.xattn",
        text_key="question",
        text_required=False,
        has_speech=True,
    ),
}
