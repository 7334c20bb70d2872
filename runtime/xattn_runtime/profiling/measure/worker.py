"""The process in which one bundle runs on one provider: it obeys lines on its standard input, and answers with lines.

    {"do": "warm"}                            → {"warm": passes}
    {"do": "turn", "seconds": s, "passes": n} → {"turn": what `take_turn` gives}
    {"do": "memory"}                          → {"memory": {…}}
    {"do": "load"}                            → {"load": ms} of loading once more
    {"do": "optimize", "folder": path}        → {"optimize": graphs written} and verified
    {"do": "nodes", "passes": n}              → {"nodes": {role: [event, …]}}

The first line that it writes is {"ready": {…}}, or {"error": {"type", "message"}} at any time.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from xattn_runtime import errors
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.bundle.manifest import Manifest
from xattn_runtime.execution.device_profile import digests_of
from xattn_runtime.execution.loading import SessionTuning
from xattn_runtime.execution.machine import memory_use
from xattn_runtime.execution.providers import load_onnxruntime
from xattn_runtime.execution.session import SessionSettings
from xattn_runtime.loader import load
from xattn_runtime.profiling.measure.estimates import is_warm
from xattn_runtime.profiling.measure.nodes import read_trace
from xattn_runtime.profiling.measure.passes import Passes
from xattn_runtime.profiling.measure.reference import Reference
from xattn_runtime.profiling.measure.sensors import find_energy_counter
from xattn_runtime.profiling.measure.turns import take_turn
from xattn_runtime.tasks.shared.image_encoder import milliseconds_since
from xattn_runtime.verify.golden import chosen_settings, verify_bundle

__all__ = ["serve"]

_MOST_WARMUP_PASSES = 60
_MOST_WARMUP_SECONDS = 5.0


def serve(arguments: Sequence[str]) -> int:
    """Load what `arguments` name, obey until standard input ends, return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m xattn_runtime.profiling", description="Profile one bundle.")
    parser.add_argument("bundle")
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--image", action="append", default=[])
    parser.add_argument("--no-spinning", action="store_true")
    parser.add_argument("--no-arena", action="store_true")
    parser.add_argument("--optimized", type=Path)
    options = parser.parse_args(arguments)
    try:
        worker = _Worker(options)
        for line in sys.stdin:
            order = json.loads(line)
            _write({order["do"]: getattr(worker, order.pop("do"))(**order)})
    except errors.XattnError as error:
        _write({"error": {"type": type(error).__name__, "message": str(error)}})
        return error.exit_code
    return 0


class _Worker:
    """The loaded bundle. Its public methods are the orders."""

    def __init__(self, options: argparse.Namespace) -> None:
        onnxruntime = load_onnxruntime()
        self._options = options
        self._before = memory_use()
        _out_of_page_cache(Path(options.bundle))
        began = time.perf_counter()
        task = load(options.bundle, _settings(options), options.threads)
        cold_ms = milliseconds_since(began)
        self._passes = Passes(task, options.image, options.batch)
        self._passes.run()
        self._reference: Reference | None = None
        # What comes next loads the graphs again, which answering does not.
        self._used = memory_use()
        warm_ms = self.load()
        gc.collect()
        self._counter = find_energy_counter()
        manifest = task.bundle.manifest
        _write(
            {
                "ready": {
                    "name": manifest.name,
                    "task": manifest.task,
                    "bundle_bytes": sum(entry.bytes for entry in manifest.files.values()),
                    "provider": task.settings.name,
                    "threads": task.settings.threads,
                    "load_cold_ms": cold_ms,
                    "load_warm_ms": warm_ms,
                    "onnxruntime_version": onnxruntime.__version__,
                    "metric": _metric(manifest),
                }
            }
        )

    def warm(self) -> int:
        """Pass until nothing gets faster; how many passes that took."""
        totals: list[float] = []
        began = time.perf_counter()
        while len(totals) < _MOST_WARMUP_PASSES and time.perf_counter() - began < _MOST_WARMUP_SECONDS:
            totals += self._passes.run()["total"]
            if is_warm(totals):
                break
        return len(totals)

    def turn(self, seconds: float, passes: int) -> dict[str, Any]:
        """Passes for so many seconds or a little more, at most `passes`, at least one."""
        if self._reference is None:
            self._reference = Reference(self._passes.task.settings.threads)
        return take_turn(self._passes, self._reference, seconds, passes, self._counter.read)

    def memory(self) -> dict[str, Any]:
        """What the process held at most in loading and its first pass, how much of it came with the bundle; and now."""
        self._reference = None
        gc.collect()
        before, used = self._before.resident_bytes, self._used
        known = used.peak_bytes is not None and before is not None
        return {
            "peak_bytes": used.peak_bytes,
            "steady_bytes": memory_use().resident_bytes,
            "working_set_bytes": (used.peak_bytes or 0) - (before or 0) if known else None,
            "memory_unknown_because": used.unknown_because,
        }

    def nodes(self, passes: int) -> dict[str, list[dict[str, Any]]]:
        """ONNX Runtime's own events, role by role, of a few passes of the bundle loaded once more."""
        with tempfile.TemporaryDirectory() as folder:
            settings = replace(self._passes.task.settings, tuning=SessionTuning(trace=Path(folder)))
            traced = Passes(load(self._options.bundle, settings), self._options.image, self._options.batch)
            for _ in range(passes):
                traced.run()
            # Closing the sessions writes the files.
            del traced
            gc.collect()
            return {path.name.partition(".")[0]: read_trace(path) for path in sorted(Path(folder).glob("*.json"))}

    def load(self) -> float:
        """Milliseconds of loading the bundle once more, with all its checks; those of optimized graphs included."""
        began = time.perf_counter()
        if self._options.optimized is not None:
            digests_of(self._options.optimized)
        load(self._options.bundle, self._passes.task.settings, self._options.threads)
        return milliseconds_since(began)

    def optimize(self, folder: str) -> int:
        """Write the graphs that answering uses as ONNX Runtime optimizes them, and verify the bundle with these."""
        settings = self._passes.task.settings
        written = replace(settings, tuning=replace(settings.tuning, optimize_into=Path(folder)))
        Passes(load(self._options.bundle, written), self._options.image, self._options.batch).run()
        used = replace(settings, tuning=replace(settings.tuning, optimized=Path(folder)))
        verify_bundle(self._options.bundle, used).raise_if_failed()
        return len(list(Path(folder).glob("*.onnx")))


def _settings(options: argparse.Namespace) -> SessionSettings:
    settings = chosen_settings(options.provider, options.threads, open_bundle(options.bundle))
    if not options.no_spinning and not options.no_arena and options.optimized is None:
        return settings
    tuning = SessionTuning(not options.no_spinning, not options.no_arena, optimized=options.optimized)
    return replace(settings, tuning=tuning)


def _metric(manifest: Manifest) -> dict[str, Any] | None:
    """What the bundle last scored on held-out data, if its manifest says so."""
    if not manifest.evaluation:
        return None
    record = manifest.evaluation[-1]
    return {"name": f"{record.get('metric')} on {record.get('data')}", "value": record.get("value")}


def _out_of_page_cache(folder: Path) -> None:
    """Ask the system to forget the files, so that loading reads them from the disk."""
    if not hasattr(os, "posix_fadvise"):
        return
    with contextlib.suppress(OSError):  # a folder that cannot be seen, which opening it says better
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError), path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _write(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)
