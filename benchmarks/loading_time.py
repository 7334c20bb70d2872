"""Seconds to load a bundle, in a process that does nothing else. Run by `families.py`: BUNDLE THREADS."""

import sys
import time

import tokenizers  # noqa: F401  (importing it is no part of loading)

from xattn_runtime.execution.providers import load_onnxruntime
from xattn_runtime.loader import load


def main(bundle: str, threads: str) -> None:
    """Print the seconds."""
    load_onnxruntime()
    began = time.perf_counter()
    load(bundle, threads=int(threads))
    print(time.perf_counter() - began)


if __name__ == "__main__":
    main(*sys.argv[1:])
