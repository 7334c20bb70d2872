"""ONNX Runtime for Node (`onnxruntime-node`) and for browsers (`onnxruntime-web`, its WebAssembly), both run by Node.

A process of Node holds the graphs of a bundle; tensors go to it and come back through pipes (`node_worker.mjs`).
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from xattn_export.engines.signature import Signature
from xattn_runtime.errors import DependencyError

__all__ = ["NodeGraph", "NodeProcess"]

Tensor = NDArray[Any]


class NodeProcess:
    """Node with one of the packages loaded. `close` ends it; so does the end of this process."""

    def __init__(self, package: str, folder: Path) -> None:
        """Start it; DependencyError unless Node is here and `folder` has `node_modules` with the package."""
        node = shutil.which("node")
        if node is None:
            raise DependencyError(
                f"engine {package}: expected Node.js on the PATH, found none; install Node.js 20 or newer"
            )
        if not (folder / "node_modules" / package).is_dir():
            raise DependencyError(
                f"engine {package}: expected {folder / 'node_modules' / package}, found none; install it with "
                f"ONNXRUNTIME_NODE_INSTALL=skip npm install --prefix {folder} {package}"
            )
        with as_file(files("xattn_export.engines") / "node_worker.mjs") as worker:
            self._process = subprocess.Popen(
                [node, str(worker), str(folder), package],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            self.request({"path": None, "external": [], "options": {}})  # Node has read the file once it answers

    def request(self, head: Mapping[str, Any], tensors: Sequence[Tensor] = ()) -> tuple[dict[str, Any], IO[bytes]]:
        """Send one; the head of the reply, and the stream that its tensors are to be read from.

        Raises RuntimeError with the words of ONNX Runtime, or where Node has ended.
        """
        requests, replies = self._process.stdin, self._process.stdout
        assert requests is not None and replies is not None
        try:
            requests.write(json.dumps(head).encode() + b"\n")
            for tensor in tensors:
                requests.write(tensor.tobytes())
            requests.flush()
            line = replies.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise RuntimeError(f"Node ended with exit code {self._process.wait()}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply and head["path"] is not None:
            raise RuntimeError(reply["error"])
        return reply, replies

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


class NodeGraph:
    """A graph that a `NodeProcess` holds."""

    def __init__(self, process: NodeProcess, path: Path, signature: Signature, options: Mapping[str, str]) -> None:
        """Load it with the session's `options`; RuntimeError where ONNX Runtime refuses it."""
        self._process, self._path = process, str(path.resolve())
        external = [{"name": name, "path": str(file)} for name, file in signature.external.items()]
        process.request({"path": self._path, "external": external, "options": dict(options)})

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The named outputs for `inputs`."""
        arrays = {name: np.asarray(value, order="C") for name, value in inputs.items()}
        head = {
            "path": self._path,
            "inputs": [
                {"name": name, "type": value.dtype.name, "dims": list(value.shape), "bytes": value.nbytes}
                for name, value in arrays.items()
            ],
            "outputs": list(outputs),
        }
        reply, stream = self._process.request(head, list(arrays.values()))
        return [_read(tensor, stream) for tensor in reply["outputs"]]


def _read(tensor: Mapping[str, Any], stream: IO[bytes]) -> Tensor:
    if tensor["words"] is not None:
        return np.array(tensor["words"], dtype=object).reshape(tensor["dims"])
    return np.frombuffer(stream.read(tensor["bytes"]), dtype=tensor["type"]).reshape(tensor["dims"])
