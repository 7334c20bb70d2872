"""Profiles a bundle in a process of its own, so that the peak memory is that bundle's alone.

The two ends of one pipe are here: `serve` writes JSON lines on standard output, `profile_in_process` reads them.
A line is {"progress": [done, all]}, {"report": {…}} or {"error": {"type", "message"}}.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, cast

from xattn_runtime import errors
from xattn_runtime.profile.measure import profile_bundle
from xattn_runtime.profile.report import ProfileReport

__all__ = ["profile_in_process", "serve"]


def profile_in_process(
    bundle: str | os.PathLike[str],
    provider: str = "cpu",
    threads: int | None = None,
    runs: int = 20,
    warmup: int = 3,
    *,
    images: Sequence[str | os.PathLike[str]] = (),
    progress: Callable[[int, int], None] | None = None,
) -> ProfileReport:
    """As `profile_bundle`, in a fresh Python process; `images` are paths.

    Raises the same errors, and XattnError where the process dies, for instance for want of memory.
    """
    command = [sys.executable, "-m", "xattn_runtime.profile"]
    command += [f"--provider={provider}", f"--runs={runs}", f"--warmup={warmup}"]
    command += [f"--threads={threads}"] if threads is not None else []
    command += [f"--image={os.fspath(image)}" for image in images]
    command += ["--", os.fspath(bundle)]
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=complaints, stdin=subprocess.DEVNULL, env=_environment()
        )
        try:
            report = _read(cast("IO[bytes]", process.stdout), progress)
        except BaseException:
            # Where the caller is interrupted, the worker must not go on alone.
            process.kill()
            raise
        finally:
            process.communicate()
        if report is None:
            complaints.seek(0)
            last = complaints.read().decode(errors="replace").strip().splitlines()[-1:]
            raise errors.XattnError(
                f"{bundle}: expected a profile, found that its process ended with code {process.returncode}"
                f"{': ' + last[0] if last else ''}; try fewer threads or more memory"
            )
    return report


def serve(arguments: Sequence[str]) -> int:
    """The worker: profile as `arguments` say, write JSON lines, return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m xattn_runtime.profile", description="Profile one bundle.")
    parser.add_argument("bundle")
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--image", action="append", default=[])
    options = parser.parse_args(arguments)
    try:
        report = profile_bundle(
            options.bundle,
            options.provider,
            options.threads,
            options.runs,
            options.warmup,
            images=options.image,
            progress=lambda done, total: _write({"progress": [done, total]}),
        )
    except errors.XattnError as error:
        _write({"error": {"type": type(error).__name__, "message": str(error)}})
        return error.exit_code
    _write({"report": report.to_dict()})
    return 0


def _write(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def _read(stream: IO[bytes], progress: Callable[[int, int], None] | None) -> ProfileReport | None:
    for line in stream:
        message = json.loads(line)
        if "error" in message:
            kind = getattr(errors, message["error"]["type"], errors.XattnError)
            raise kind(message["error"]["message"])
        if "report" in message:
            return ProfileReport.from_dict(message["report"])
        if progress is not None:
            progress(*message["progress"])
    return None


def _environment() -> dict[str, str]:
    """This environment, in which the worker finds this very package even where it is not installed."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
