"""Times every stage of a bundle, in this process.

It calls the tasks as anybody would and keeps the clock; it knows no graph.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from xattn_runtime._reading import show
from xattn_runtime.errors import UserError
from xattn_runtime.profile.machine import describe_machine, peak_memory
from xattn_runtime.profile.report import ProfileReport, summarise
from xattn_runtime.providers import load_onnxruntime
from xattn_runtime.tasks import AnyTask, CaptionTask, RetrievalTask, SentimentTask, load
from xattn_runtime.tasks.encoding import EncodedImage, milliseconds_since
from xattn_runtime.tasks.sentiment import read_sample

if TYPE_CHECKING:
    from xattn_runtime.preprocess.image import ImageInput

__all__ = ["profile_bundle"]

Times = dict[str, list[float]]


def profile_bundle(
    bundle: str | os.PathLike[str],
    provider: str = "cpu",
    threads: int | None = None,
    runs: int = 20,
    warmup: int = 3,
    *,
    images: Sequence[ImageInput] = (),
    progress: Callable[[int, int], None] | None = None,
) -> ProfileReport:
    """Time `runs` passes over the golden images, or `images`, in turn, after `warmup` passes that do not count.

    `progress` is called with passes done and all passes, warm-up included. The peak memory is this whole process's,
    after the first pass: `profile_in_process` gives a bundle's own.
    Raises what `load` raises, ImageError, and UserError for bad counts.
    """
    if runs < 1 or warmup < 0:
        raise UserError(f"expected runs of at least 1 and warmup of at least 0, found {show(runs)} and {show(warmup)}")
    onnxruntime = load_onnxruntime()
    began = time.perf_counter()
    task = load(bundle, provider, threads)
    load_ms = milliseconds_since(began)
    manifest = task.bundle.manifest
    pictures = list(images) or [task.bundle.file(case.image) for case in manifest.golden.cases]
    times: Times = {}
    peak = None
    for done in range(warmup + runs):
        if done == warmup:
            times = {}
        encoded = _one_pass(task, pictures[done % len(pictures)], done, times)
        # What comes next may load a graph that answering does not need.
        peak = peak or peak_memory()
        if isinstance(task, CaptionTask) and encoded is not None:
            _steps(task, encoded, times)
        if progress is not None:
            progress(done + 1, warmup + runs)
    return ProfileReport(
        bundle=str(task.bundle.path),
        name=manifest.name,
        task=manifest.task,
        provider=provider,
        threads=task.settings.threads,
        runs=runs,
        warmup=warmup,
        load_ms=load_ms,
        stages={stage: summarise(measured) for stage, measured in times.items()},
        tokens_per_second=_tokens_per_second(times),
        peak_memory=peak or peak_memory(),
        onnxruntime_version=onnxruntime.__version__,
        machine=describe_machine(),
    )


def _one_pass(task: AnyTask, picture: ImageInput, index: int, times: Times) -> EncodedImage | None:
    """All that a user waits for."""
    cases = task.bundle.manifest.golden.cases
    if isinstance(task, SentimentTask):
        case = cases[index % len(cases)]
        timing = task.tell(read_sample(task.bundle.file(case.image), case.question)).timing_ms
        for stage, measured_ms in asdict(timing).items():
            _add(times, stage, measured_ms)
        return None
    began = time.perf_counter()
    encoded = task.encode(picture)
    _add(times, "preprocess", encoded.preprocess_ms)
    _add(times, "encode", encoded.encode_ms)
    if isinstance(task, CaptionTask):
        _add(times, "decode", task.caption(encoded).timing_ms.decode)
    elif isinstance(task, RetrievalTask):
        text_began = time.perf_counter()
        task.embed_texts([cases[index % len(cases)].query or ""])
        _add(times, "embed_text", milliseconds_since(text_began))
    else:
        answer = task.ask(encoded, cases[index % len(cases)].question or "")
        _add(times, "answer", answer.timing_ms.total)
    _add(times, "total", milliseconds_since(began))
    return encoded


def _steps(task: CaptionTask, encoded: EncodedImage, times: Times) -> None:
    """The same tokens one by one."""
    began = time.perf_counter()
    for i, _ in enumerate(task.steps(encoded)):
        _add(times, "step" if i else "prefill", milliseconds_since(began))
        began = time.perf_counter()


def _add(times: Times, stage: str, measured_ms: float) -> None:
    times.setdefault(stage, []).append(measured_ms)


def _tokens_per_second(times: Times) -> float | None:
    tokens = len(times.get("prefill", [])) + len(times.get("step", []))
    return 1000.0 * tokens / sum(times["decode"]) if tokens else None
