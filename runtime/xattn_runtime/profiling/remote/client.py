"""Profiling on another machine over ssh: sends the runtime and the bundles to it, and brings the document back.

One connection does it all: `bootstrap.py` runs on it from its source and unpacks what follows into a temporary folder,
which it removes however it ends; `server.py` measures. Nothing is installed; that Python needs the runtime's packages.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import IO, Any, cast

from xattn_runtime import errors
from xattn_runtime.bundle.folder import MANIFEST_FILE, open_bundle
from xattn_runtime.profiling.matrix import ProfileOptions, Trace
from xattn_runtime.profiling.worker_process import ProfileCombination
from xattn_runtime.progress import Progress, silent
from xattn_runtime.version import installed_version

__all__ = ["Host", "profile_on_host"]

_OPTIONS = ("BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=15", "ServerAliveCountMax=4")
_SSH_FAILED, _NOT_RUN, _NOT_FOUND = 255, 126, 127
_OLDEST_PYTHON = (3, 11)
_COPIED = 0.1
# What ssh says, what that means, and what to do.
_REASONS = (
    (
        "IDENTIFICATION HAS CHANGED",
        "that its key is not the one known here",
        "find out why, then run ssh-keygen -R {name}",
    ),
    ("Host key verification failed", "that its key is not known here", "run ssh {host} once and compare the key"),
    ("Permission denied", "that it lets nobody in without a password", "give it a key with ssh-copy-id {host}"),
    ("Too many authentication failures", "that none of the keys fits", "name one by IdentityFile in ~/.ssh/config"),
    ("resolve hostname", "no machine of that name", "check the name"),
    ("onnection refused", "that nothing listens there", "start sshd there, or name its port in ~/.ssh/config"),
    ("timed out", "that it does not answer", "check that it is on and in reach"),
    ("No route to host", "that it cannot be reached", "check that it is on and in reach"),
    ("unreachable", "that it cannot be reached", "check that it is on and in reach"),
)


@dataclass(frozen=True)
class Host:
    """name: as ssh takes it: a host, user@host, an entry of ~/.ssh/config, ssh://user@host:port.

    python: the remote interpreter; a leading ~/ is its user's home. ssh: the command that connects, with its options.
    """

    name: str
    python: str = "python3"
    ssh: str = "ssh"


def profile_on_host(
    host: Host,
    bundles: Sequence[str | os.PathLike[str]],
    providers: Sequence[str] = ("cpu",),
    threads: Sequence[int | None] = (None,),
    batches: Sequence[int] = (1,),
    options: ProfileOptions | None = None,
    progress: Progress = silent,
    traces: dict[ProfileCombination, Trace] | None = None,
) -> dict[str, Any]:
    """What `profile_matrix` gives on `host`, as JSON values in which `host` says where.

    KeyboardInterrupt, once something has been measured, ends the measuring: the document then says `interrupted`.

    Raises:
        UserError: the machine cannot be reached or lets nobody in, its Python or a package is missing.
        BundleError: a bundle here is damaged.
        XattnError: the connection was lost, or the other end failed.
    """
    options = options or ProfileOptions()
    names = {f"bundles/{number}.xattn": os.fspath(bundle) for number, bundle in enumerate(bundles)}
    images = {f"images/{number}{Path(image).suffix}": image for number, image in enumerate(options.images)}
    files = _files(names, images)
    order = {
        "bundles": list(names),
        "providers": list(providers),
        "threads": list(threads),
        "batches": list(batches),
        "options": asdict(replace(options, images=list(images))),
        "traces": traces is not None,
    }
    progress(f"connect to {host.name}", 0.0)
    with _connected(host) as connection:
        connection.check_python(connection.answer("found")["found"])
        progress(f"copy to {host.name}", 0.0)
        connection.send(files, order)
        answer = connection.answer("document", lambda text, share: progress(_named(text, names), _COPIED + 0.9 * share))
    written = {remote: json.dumps(local)[1:-1] for remote, local in names.items()}
    document = cast("dict[str, Any]", json.loads(_named(json.dumps(answer["document"]), written)))
    for combination, roles in answer["traces"] if traces is not None else []:
        cast("dict[ProfileCombination, Trace]", traces)[
            ProfileCombination(**{**combination, "bundle": names[combination["bundle"]]})
        ] = roles
    return {**document, "host": host.name, "version": installed_version()}


class _Connection:
    """ssh at work. What goes wrong is raised in words that say where."""

    def __init__(self, host: Host, process: subprocess.Popen[bytes], complaints: IO[bytes]) -> None:
        self._host, self._process, self._complaints = host, process, complaints
        self._orders = cast("IO[bytes]", process.stdin)
        self._begun = False
        # A thread reads, since Ctrl-C amidst a line would lose the line.
        self._lines: Queue[bytes] = Queue()
        Thread(target=self._listen, args=(cast("IO[bytes]", process.stdout),), daemon=True).start()

    def check_python(self, installed: Mapping[str, Any]) -> None:
        """UserError where it is too old, or lacks what the runtime needs."""
        python, name = self._host.python, self._host.name
        version = ".".join(map(str, installed["python"]))
        if tuple(installed["python"]) < _OLDEST_PYTHON:
            oldest = ".".join(map(str, _OLDEST_PYTHON))
            raise errors.UserError(
                f"{name}: expected Python {oldest} or newer, found {python} to be {version}; name another with "
                "--host-python"
            )
        if missing := " ".join(installed["missing"]):
            raise errors.UserError(
                f"{name}: expected {missing.replace(' ', ', ')} in {python} ({version}), found none; there, run "
                f"{python} -m pip install {missing}, or name another Python with --host-python"
            )
        self._begun = True

    def send(self, files: Mapping[str, Path], order: Mapping[str, Any]) -> None:
        """The files, then the order."""
        sizes = [(name, path.stat().st_size) for name, path in files.items()]
        try:
            self._orders.write(json.dumps(sizes).encode() + b"\n")
            for name, size in sizes:
                with files[name].open("rb") as file:
                    shutil.copyfileobj(file, self._orders, 2**20)
                    if file.tell() != size:
                        raise errors.BundleError(f"{files[name]}: expected {size} bytes, found that it was changed")
            self._orders.write(json.dumps(order).encode() + b"\n")
            self._orders.flush()
        except BrokenPipeError:  # it has ended: what it left to read says more
            return

    def answer(self, expected: str, progress: Progress = silent) -> dict[str, Any]:
        """The line that holds `expected`; Ctrl-C stops the remote process, and waits for its results."""
        stopped = False
        while True:
            try:
                line = self._lines.get()
            except KeyboardInterrupt:
                if stopped or not self._begun:
                    raise
                stopped = self._stop()
                continue
            if not line:
                raise self._failure()
            # What a remote login prints by itself is none of ours.
            message = json.loads(line) if line.startswith(b"{") else {}
            if expected in message:
                return cast("dict[str, Any]", message)
            if "interrupted" in message:
                raise KeyboardInterrupt
            if "error" in message:
                kind = getattr(errors, message["error"]["type"], errors.XattnError)
                raise kind(f"{self._host.name}: {message['error']['message']}")
            if "progress" in message:
                progress(*message["progress"])

    def _listen(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                self._lines.put(line)
        self._lines.put(b"")

    def _stop(self) -> bool:
        with contextlib.suppress(OSError):  # it has ended already
            self._orders.write(b"stop\n")
            self._orders.flush()
        return True

    def _failure(self) -> errors.XattnError:
        code = self._process.wait()
        self._complaints.seek(0)
        lines = [line for line in self._complaints.read().decode(errors="replace").splitlines() if line.strip()]
        last, host, python = lines[-1].strip() if lines else "it said nothing", self._host.name, self._host.python
        if code in (_NOT_RUN, _NOT_FOUND):
            return errors.UserError(
                f"{host}: expected the Python {python}, found: {last}; name another with --host-python"
            )
        if code != _SSH_FAILED:
            return errors.XattnError(f"{host}: expected a profile, found that {python} ended with {code}: {last}")
        if self._begun:
            return errors.XattnError(f"{host}: expected a profile, found that the connection was lost: {last}")
        text = " ".join(lines)
        for words, reason, advice in _REASONS:
            if words in text:
                advised = advice.format(host=host, name=host.rpartition("@")[2])
                return errors.UserError(f"{host}: expected to log in by ssh, found {reason} ({last}); {advised}")
        return errors.UserError(f"{host}: expected to log in by ssh, found: {last}; try ssh {host} true")


@contextmanager
def _connected(host: Host) -> Iterator[_Connection]:
    if not host.name or host.name.startswith("-") or any(character.isspace() for character in host.name):
        raise errors.UserError(f"--host: expected a machine such as user@device, found {host.name!r}")
    source = (Path(__file__).parent / "bootstrap.py").read_bytes()
    remote_command = (
        f"exec {_quoted(host.python)} -c {shlex.quote(f'import sys;exec(sys.stdin.buffer.read({len(source)}))')}"
    )
    command = [*shlex.split(host.ssh), "-T", *(f"-o{option}" for option in _OPTIONS), "--", host.name, remote_command]
    with tempfile.TemporaryFile() as complaints:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                # Ctrl-C is ours to handle: the other end is asked for what it has.
                start_new_session=True,
            )
        except OSError as error:
            raise errors.DependencyError(
                f"--host: expected the program {command[0]}, found: {error.strerror}; install an OpenSSH client"
            ) from error
        try:
            stream = cast("IO[bytes]", process.stdin)
            with contextlib.suppress(BrokenPipeError):  # it has ended: what it left to read says more
                stream.write(source)
                stream.flush()
            yield _Connection(host, process, complaints)
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Closing its input ends the other end too, which cleans up behind itself."""
    with contextlib.suppress(OSError):
        cast("IO[bytes]", process.stdin).close()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _quoted(python: str) -> str:
    """For a shell, which still is to know the home."""
    return f"~/{shlex.quote(python[2:])}" if python.startswith("~/") else shlex.quote(python)


def _files(bundles: Mapping[str, str], images: Mapping[str, Any]) -> dict[str, Path]:
    """What is sent: its remote path → its local path."""
    root = Path(__file__).resolve().parents[2]
    files = {
        f"xattn_runtime/{path.relative_to(root).as_posix()}": path
        for path in sorted(root.rglob("*.py"))
        if "defaults" not in path.relative_to(root).parts
    }
    for name, folder in bundles.items():
        opened = open_bundle(folder)
        files |= {f"{name}/{file}": opened.path / file for file in (MANIFEST_FILE, *opened.manifest.files)}
    for name, image in images.items():
        if not Path(image).is_file():
            raise errors.ImageError(f"{image}: expected an image, found no such file; check the path")
        files[name] = Path(image)
    return files


def _named(text: str, names: Mapping[str, str]) -> str:
    """`text` with the bundles' names as they are here."""
    for remote, local in names.items():
        text = text.replace(remote, local)
    return text
