"""`load`: from a bundle's folder to the task that answers, on the provider that was asked for or that proves itself."""

from __future__ import annotations

import os
from typing import Literal, overload

from xattn_runtime.arguments import text
from xattn_runtime.bundle.folder import Bundle, open_bundle
from xattn_runtime.bundle.task_table import TASKS
from xattn_runtime.errors import BundleError
from xattn_runtime.execution.providers import RESOLVED_ON_DEVICE
from xattn_runtime.execution.session import SessionSettings
from xattn_runtime.json_reader import show
from xattn_runtime.tasks import CaptionTask, RetrievalTask, SentimentTask, Task, VqaTask, open_task

__all__ = ["load"]

_Place = str | os.PathLike[str] | Bundle
_Provider = str | SessionSettings


@overload
def load(
    bundle: _Place, provider: _Provider = "cpu", threads: int | None = None, *, task: Literal["caption"]
) -> CaptionTask: ...


@overload
def load(
    bundle: _Place, provider: _Provider = "cpu", threads: int | None = None, *, task: Literal["vqa"]
) -> VqaTask: ...


@overload
def load(
    bundle: _Place, provider: _Provider = "cpu", threads: int | None = None, *, task: Literal["retrieval"]
) -> RetrievalTask: ...


@overload
def load(
    bundle: _Place, provider: _Provider = "cpu", threads: int | None = None, *, task: Literal["sentiment"]
) -> SentimentTask: ...


@overload
def load(
    bundle: _Place, provider: _Provider = "cpu", threads: int | None = None, *, task: str | None = None
) -> Task: ...


def load(bundle: _Place, provider: _Provider = "cpu", threads: int | None = None, *, task: str | None = None) -> Task:
    """The task of `bundle`, a folder or an open bundle, ready to run on `provider`.

    provider: a name of `xattn-edge providers`; `NAME,cpu` lets the CPU run what NAME refuses, `NAME=LIBRARY` takes a
        plugin by its path, and `auto` and `arm` choose the first that reproduces the golden outputs of this bundle.
    threads: within an operator, by default the cores, at most 4.
    task: `caption`, `vqa`, `retrieval` or `sentiment`; with it, what is returned has that task's type.
    Raises BundleError, for a bundle of another task too, ProviderError or DependencyError.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    if task is not None and text("task", task) != opened.manifest.task:
        wanted = task if task in TASKS else show(task)
        raise BundleError(f"{opened.path}: expected a bundle for {wanted}, found one for {opened.manifest.task}")
    if isinstance(provider, str) and provider in RESOLVED_ON_DEVICE:
        from xattn_runtime.verify.golden import chosen_settings

        provider = chosen_settings(provider, threads, opened)
    return open_task(opened, provider, threads)
