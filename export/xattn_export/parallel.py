"""Runs computations in parallel, each in a process forked from this one: they share the loaded model without a copy.

torch's exporter keeps a single core busy, and afterwards holds on to weights that it has seen, which a process releases
at its end. It knows nothing of what is computed.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import TypeVar, cast

import torch

from xattn_runtime.errors import XattnError
from xattn_runtime.json_reader import one_line

__all__ = ["run_parallel"]

_Result = TypeVar("_Result")


@contextmanager
def run_parallel(works: Sequence[Callable[[], _Result]]) -> Iterator[Iterator[_Result]]:
    """Run each of `works` in its own process; yields their results, which must be picklable, in the order of `works`.

    Each result is available as soon as its work is done. Where processes cannot be forked, the works run in this one,
    one after the other. All processes are ended at the end of the block, also where it fails or is interrupted.
    Asking for the next result raises what its work raised; XattnError where its process was ended from outside.
    """
    if not _can_fork():
        yield (work() for work in works)
        return
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in works]
    processes = [
        context.Process(target=_do, args=(work, sender), daemon=True)
        for work, (_, sender) in zip(works, pipes, strict=True)
    ]
    try:
        for process, (_, sender) in zip(processes, pipes, strict=True):
            with warnings.catch_warnings(), _interruption_deferred(), _collection_paused():
                # Of locks that other threads may hold: torch computes on one thread there, and ONNX Runtime not at all.
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            sender.close()
        yield (cast(_Result, _received(receiver)) for receiver, _ in pipes)
    finally:
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()


@contextmanager
def _interruption_deferred() -> Iterator[None]:
    """Ctrl-C takes effect at the end: an error raised while libraries reset their locks after a fork would be lost."""
    if threading.current_thread() is not threading.main_thread():  # which alone is interrupted
        yield
        return
    interruptions: list[int] = []
    former = signal.signal(signal.SIGINT, lambda number, frame: interruptions.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
    if interruptions:
        signal.raise_signal(signal.SIGINT)


@contextmanager
def _collection_paused() -> Iterator[None]:
    """No garbage collection: collecting an ONNX Runtime session in a fork would wait for threads that it lacks."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _can_fork() -> bool:
    """Whether libraries survive a fork: only on Linux."""
    return sys.platform == "linux" and not multiprocessing.current_process().daemon


def _do(work: Callable[[], object], sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else that library prints a warning
    torch.set_num_threads(1)
    gc.freeze()  # what there was before the fork is never collected here
    gc.enable()
    try:
        result: object = work()
    except Exception as error:  # raised again where the result is waited for
        error.add_note(traceback.format_exc())
        result = error
    try:
        sender.send(result)
    except OSError:  # nobody waits for it any more
        return
    except Exception as error:  # what cannot be pickled
        sender.send(XattnError(one_line(error)))


def _received(receiver: Connection) -> object:
    try:
        result = receiver.recv()
    except EOFError as error:
        raise XattnError(
            "expected a process that this one started to end by itself, found that it was ended; "
            "is there enough memory?"
        ) from error
    if isinstance(result, Exception):
        raise result
    return result
