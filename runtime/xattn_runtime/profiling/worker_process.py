"""The other end of `worker.py`: starts the process of one combination, gives it orders, and waits only so long."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Thread
from typing import IO, Any, cast

from xattn_runtime import errors
from xattn_runtime.profiling.measure.child_process import environment, python_command

__all__ = ["ProfileCombination", "WorkerProcess"]


_CRASHED = (", a crash", "update its driver or onnxruntime, or try another provider")
# By exit code: what it is like, and what to do. Numbers of signals, as Windows lacks the names.
_ENDS = {
    -9: (", as when memory runs out", "close other programs, or try a smaller bundle or fewer threads"),
    -11: _CRASHED,
    -6: _CRASHED,
    -4: (", an instruction that this processor lacks", "install an onnxruntime that is made for it"),
}


@dataclass(frozen=True)
class ProfileCombination:
    """What is measured: a bundle on a provider with so many threads, None for the default, and images at once.

    spinning, arena, optimized: as in `SessionTuning`.
    """

    bundle: str
    provider: str
    threads: int | None
    batch: int
    spinning: bool = True
    arena: bool = True
    optimized: str | None = None


class WorkerProcess:
    """The process of one combination. Orders raise XattnError where it fails, dies or takes too long."""

    def __init__(self, combination: ProfileCombination, images: Sequence[str], time_limit_s: float) -> None:
        """Start it; `ready` is what it reports when the bundle is loaded."""
        self.combination, self._time_limit_s = combination, time_limit_s
        command = [*python_command("xattn_runtime.profiling"), f"--provider={combination.provider}"]
        command += [f"--batch={combination.batch}", *(f"--image={image}" for image in images)]
        command += [f"--threads={combination.threads}"] if combination.threads is not None else []
        command += [] if combination.spinning else ["--no-spinning"]
        command += [] if combination.arena else ["--no-arena"]
        command += [] if combination.optimized is None else [f"--optimized={combination.optimized}"]
        command += ["--", combination.bundle]
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115  closed in end()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            env=environment(),
            # Ctrl-C is the parent's to handle: it ends its workers itself.
            start_new_session=True,
        )
        self._lines: Queue[bytes] = Queue()
        Thread(target=self._listen, args=(cast("IO[bytes]", self._process.stdout),), daemon=True).start()
        try:
            self.ready: dict[str, Any] = self._answer("ready")
        except KeyboardInterrupt:
            self.end()
            raise

    def order(self, do: str, **arguments: Any) -> Any:
        """What the worker answers to an order."""
        line = json.dumps({"do": do, **arguments}) + "\n"
        stream = cast("IO[bytes]", self._process.stdin)
        try:
            stream.write(line.encode())
            stream.flush()
        except OSError:  # it has died: what it left to read says more
            pass
        return self._answer(do)

    def end(self) -> None:
        """End the process, whatever it does, and what it may have started."""
        if self._process.poll() is None and hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # it leads a group of its own
        self._process.kill()
        self._process.communicate()
        self._complaints.close()

    def _listen(self, stream: IO[bytes]) -> None:
        for line in stream:
            self._lines.put(line)
        self._lines.put(b"")

    def _answer(self, expected: str) -> Any:
        try:
            line = self._lines.get(timeout=self._time_limit_s)
        except Empty:
            self.end()
            raise errors.XattnError(
                f"{self._what}: expected an answer within {self._time_limit_s:g} s, found none; it was ended; "
                "raise --time-limit, or try another provider"
            ) from None
        message = json.loads(line) if line.strip() else {}
        if expected in message:
            return message[expected]
        if "error" in message:
            self.end()
            raise getattr(errors, message["error"]["type"], errors.XattnError)(message["error"]["message"])
        raise errors.XattnError(self._death())

    def _death(self) -> str:
        code = self._process.wait()
        self._complaints.seek(0)
        last = self._complaints.read().decode(errors="replace").strip().splitlines()[-1:]
        self.end()
        how = f"signal {-code}" if code < 0 else f"code {code}"
        hint, advice = _ENDS.get(code, ("", "try it by `xattn-edge verify`, or on another provider"))
        return (
            f"{self._what}: expected a profile, found that its process ended with {how}{hint}"
            f"{': ' + last[0] if last else ''}; {advice}"
        )

    @property
    def _what(self) -> str:
        return f"{self.combination.bundle} on {self.combination.provider}"
