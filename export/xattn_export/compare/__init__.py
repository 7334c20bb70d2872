"""Two bundles, or one on two providers, on the same examples: what they answer, and where they come to differ."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tokenizers import Tokenizer

from xattn_export.compare.layers import GraphPair, PairEngine
from xattn_export.compare.report import ChangedAnswer, CompareReport, Component, LayerError, TokenDifference
from xattn_export.graph.generator import GENERATOR
from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.bundle.manifest import ATTENTION_ROLE, WHOLE_ROLES
from xattn_runtime.errors import UserError
from xattn_runtime.execution.session import SessionSettings
from xattn_runtime.loader import load
from xattn_runtime.progress import Progress, silent
from xattn_runtime.tasks import TaskInput, TaskResult

if TYPE_CHECKING:
    from xattn_runtime.preprocess.image import ImageInput

__all__ = ["ChangedAnswer", "CompareReport", "Component", "LayerError", "TokenDifference", "compare_bundles"]

# Roles that run the whole of decoding, of which no step can be looked into, and what is another graph over again.
_LOOPS = (GENERATOR, ATTENTION_ROLE, *WHOLE_ROLES)
_THRESHOLD = 1e-3
_LOOKED_INTO = 4


class _TextSample(Protocol):
    @property
    def image(self) -> ImageInput: ...

    @property
    def text(self) -> str | None: ...

    @property
    def reference(self) -> str | None: ...


class _TextSamples(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def items(self) -> Sequence[_TextSample]: ...


def compare_bundles(
    bundles: tuple[Bundle, Bundle],
    settings: tuple[SessionSettings, SessionSettings],
    samples: _TextSamples,
    *,
    threshold: float = _THRESHOLD,
    looked_into: int = _LOOKED_INTO,
    progress: Progress = silent,
) -> CompareReport:
    """Answer `samples` with both, and look into the layers of both on the first of them.

    Args:
        bundles: of one task; the same one twice to compare providers.
        settings: provider and threads of each.
        samples: images with their questions, and the right answer where it is known.
        threshold: relative error above which a layer counts as parted.
        looked_into: how many samples the layers are compared on.
        progress: receives the current step and the share of all work that is done.

    Raises:
        UserError: tasks that differ, no samples, or bundles for retrieval, which answer nothing.
        BundleError, ProviderError: as loading and running raise them.
    """
    _check(bundles, samples)
    tasks = load(bundles[0], settings[0]), load(bundles[1], settings[1])
    changes, right, equal = [], [0, 0], 0
    for number, sample in enumerate(samples.items):
        progress(f"answering {samples.name}", 0.7 * number / len(samples.items))
        first, second = (task.answer(TaskInput(sample.image, sample.text)) for task in tasks)
        right = [
            count + (result.text == sample.reference) for count, result in zip(right, (first, second), strict=True)
        ]
        equal += first.text == second.text
        if first.text != second.text:
            changes.append(_change(number, sample, bundles[0], first, second))
    progress("looking into the layers", 0.7)
    components = _components(bundles, settings, samples.items[:looked_into], threshold)
    return CompareReport(
        first=f"{bundles[0].path} on {settings[0].name}",
        second=f"{bundles[1].path} on {settings[1].name}",
        data=samples.name,
        examples=len(samples.items),
        agreement=equal / len(samples.items),
        right=(right[0], right[1]) if all(sample.reference is not None for sample in samples.items) else None,
        threshold=threshold,
        components=components,
        changes=tuple(changes),
    )


def _check(bundles: tuple[Bundle, Bundle], samples: _TextSamples) -> None:
    first, second = (bundle.manifest.task for bundle in bundles)
    if first != second:
        raise UserError(f"{bundles[1].path}: expected a bundle for {first}, as {bundles[0].path} is, found {second}")
    if not samples.items:
        raise UserError(f"{samples.name}: expected examples to compare on, found none")


def _components(
    bundles: tuple[Bundle, Bundle],
    settings: tuple[SessionSettings, SessionSettings],
    samples: Sequence[_TextSample],
    threshold: float,
) -> dict[str, Component]:
    """The layers of every role that both have, along the first bundle's own decoding."""
    roles = [role for role in bundles[0].manifest.graphs if role not in _LOOPS and role in bundles[1].manifest.graphs]
    with tempfile.TemporaryDirectory(prefix="xattn-compare-") as place:
        pairs = {role: GraphPair.open(role, bundles, settings, Path(place)) for role in roles}
        graphs = {role: graph for role, graph in bundles[0].manifest.graphs.items() if role not in _LOOPS}
        stepwise = replace(bundles[0], manifest=replace(bundles[0].manifest, graphs=graphs))
        task = load(stepwise, replace(settings[0], engine=PairEngine(pairs)))
        for sample in samples:
            task.answer(TaskInput(sample.image, sample.text))
        return {role: pair.component(threshold) for role, pair in pairs.items()}


def _change(number: int, sample: _TextSample, bundle: Bundle, first: TaskResult, second: TaskResult) -> ChangedAnswer:
    image: Any = sample.image
    name = Path(image).name if isinstance(image, str | os.PathLike) else f"example {number}"
    token = _token_difference(bundle, first.token_ids, second.token_ids)
    return ChangedAnswer(number, name, sample.text, sample.reference, first.text, second.text, token)


def _token_difference(bundle: Bundle, first: tuple[int, ...], second: tuple[int, ...]) -> TokenDifference | None:
    tokenizer = Tokenizer.from_file(str(bundle.file(bundle.manifest.tokenizer.file)))
    for step, pair in enumerate(zip_longest(first, second)):
        if pair[0] != pair[1]:
            words = [None if token is None else tokenizer.id_to_token(token) for token in pair]
            return TokenDifference(step, *words)
    return None
