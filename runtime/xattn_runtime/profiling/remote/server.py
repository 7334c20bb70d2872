"""Profiling at the other end of a connection: takes one order on a stream, and answers with lines.

    {"bundles": […], "providers": […], "threads": […], "batches": […], "options": {…}, "traces": bool}
        → {"progress": [text, share]} …, then {"document": {…}, "traces": [[combination, {role: [event]}]]},
          or {"interrupted": true}, or {"error": {"type", "message"}}

A line "stop" ends the measuring, as Ctrl-C does; so does the end of the stream, when nobody listens any more.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from dataclasses import asdict
from typing import IO, Any

from xattn_runtime.errors import XattnError
from xattn_runtime.profiling.matrix import ProfileOptions, Trace, profile_matrix
from xattn_runtime.profiling.worker_process import ProfileCombination

__all__ = ["serve"]


def serve(orders: IO[bytes], answers: IO[str]) -> int:
    """Profile what the first line of `orders` asks for; the exit code."""
    order = json.loads(orders.readline())
    threading.Thread(target=_stop_on_order, args=(orders,), daemon=True).start()
    traces: dict[ProfileCombination, Trace] = {}
    try:
        document = profile_matrix(
            order["bundles"],
            order["providers"],
            order["threads"],
            order["batches"],
            ProfileOptions(**order["options"]),
            lambda text, share: _write(answers, {"progress": [text, share]}),
            traces if order["traces"] else None,
        )
        trace_rows = [[asdict(combination), roles] for combination, roles in traces.items()]
        answer: dict[str, Any] = {"document": document.to_dict(), "traces": trace_rows}
    except KeyboardInterrupt:
        answer = {"interrupted": True}
    except XattnError as error:
        answer = {"error": {"type": type(error).__name__, "message": str(error)}}
    # The stream ends soon, which is no longer a reason to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _write(answers, answer)
    return 0


def _stop_on_order(orders: IO[bytes]) -> None:
    # One line or the end of the stream, it means the same.
    orders.readline()
    os.kill(os.getpid(), signal.SIGINT)


def _write(answers: IO[str], line: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        answers.write(json.dumps(line, allow_nan=False) + "\n")
        answers.flush()
