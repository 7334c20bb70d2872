"""What runs first on a remote machine, sent there by `client.py`: reports Python and packages, unpacks, and serves.

It may use only what every Python 3 has, since it is there to say that this is too old or that packages are missing.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

_NEEDED = {"numpy": "numpy", "onnxruntime": "onnxruntime", "PIL": "pillow", "tokenizers": "tokenizers"}
_BLOCK = 2**20


def main() -> int:
    """Obey what comes on standard input; the exit code."""
    stream, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "w", encoding="utf-8")
    # Whatever prints from here on must not come between the answers.
    os.dup2(2, 1)
    missing = [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]
    _write(answers, {"found": {"python": list(sys.version_info[:3]), "missing": missing}})
    header = stream.readline()
    if not header:
        return 0
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="xattn-edge-") as folder:
        try:
            _unpack(json.loads(header), stream, Path(folder))
        except OSError as error:
            message = "expected room for the bundles in " + folder + ", found: " + str(error.strerror)
            _write(answers, {"error": {"type": "OutputError", "message": message}})
            return 2
        os.chdir(folder)
        sys.path.insert(0, folder)
        from xattn_runtime.profiling.remote.server import serve

        try:
            return serve(stream, answers)
        finally:
            os.chdir("/")


def _unpack(files: list[tuple[str, int]], stream: IO[bytes], folder: Path) -> None:
    """The files that `files` lists with their sizes, whose bytes follow one after the other."""
    for name, size in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            while size:
                block = stream.read(min(size, _BLOCK))
                if not block:
                    raise OSError(0, "the connection was lost")
                file.write(block)
                size -= len(block)


def _write(answers: IO[str], line: dict[str, Any]) -> None:
    answers.write(json.dumps(line) + "\n")
    answers.flush()


if __name__ == "__main__":
    code = main()
    # A thread still waits for standard input, which would keep the interpreter from ending in peace.
    os._exit(code)
