"""From a task's row of the table to the class that runs it."""

from __future__ import annotations

from importlib import import_module

from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.bundle.task_table import TASKS
from xattn_runtime.execution.session import SessionSettings
from xattn_runtime.tasks.protocol import Task

__all__ = ["open_task", "task_class"]


def task_class(name: str) -> type[Task]:
    """The class of the task `name`, a key of `TASKS`."""
    module, _, attribute = TASKS[name].runs.partition(":")
    cls: type[Task] = getattr(import_module(module), attribute)
    return cls


def open_task(bundle: Bundle, provider: str | SessionSettings = "cpu", threads: int | None = None) -> Task:
    """The task of an open bundle, on a provider by its name. Raises BundleError, ProviderError or DependencyError."""
    return task_class(bundle.manifest.task)(bundle, provider, threads)
