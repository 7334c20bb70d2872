"""`python -m xattn_runtime.profiling BUNDLE`: the worker that `profile_matrix` starts."""

from __future__ import annotations

import sys

from xattn_runtime.profiling.measure.worker import serve

if __name__ == "__main__":
    sys.exit(serve(sys.argv[1:]))
