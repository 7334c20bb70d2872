"""Whether this processor reaches the peak that floors are computed from, compared with numpy's matrix product.

    python benchmarks/floors.py [--threads 1 2] [--rounds 20]

The peak in float32 of `xattn_runtime.profiling.measure.limits` (ONNX Runtime's own kernels) over that of numpy's `@`
(OpenBLAS), of the same size, on as many threads, best of all tries, in turns. Both are libraries of kernels: a
processor for which one of them has none shows here. Each number of threads has a process of its own, as OpenBLAS reads
it once. Prints
Markdown, then one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

from xattn_runtime.execution.session import default_threads

ROWS, INNER, COLUMNS = 512, 768, 1536
PRODUCTS_A_ROUND = 30


def compare(threads: int, rounds: int) -> dict[str, float]:
    """Operations a second of both, in this process."""
    import numpy as np

    from xattn_runtime.profiling.measure.limits import product_rate

    generator = np.random.default_rng(0)
    left = generator.normal(size=(ROWS, INNER)).astype(np.float32)
    right = generator.normal(size=(INNER, COLUMNS)).astype(np.float32)
    ours, numpys = 0.0, 0.0
    for _ in range(rounds):
        ours = max(ours, product_rate(threads))
        for _ in range(PRODUCTS_A_ROUND):
            began = time.perf_counter()
            left @ right
            numpys = max(numpys, 2 * ROWS * INNER * COLUMNS / (time.perf_counter() - began))
    return {"threads": threads, "onnxruntime": ours, "numpy": numpys, "ratio": ours / numpys}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, default_threads()}))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--here", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here is not None:
        print(json.dumps(compare(options.here, options.rounds)))
        return
    results = []
    for threads in options.threads:
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(names, str(threads))}
        command = [sys.executable, __file__, f"--here={threads}", f"--rounds={options.rounds}"]
        results.append(json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout))
    print("| threads | 10⁹ operations a second, peak for floors | numpy | ratio |\n|---|---|---|---|")
    for one in results:
        print(f"| {one['threads']} | {one['onnxruntime'] / 1e9:.1f} | {one['numpy'] / 1e9:.1f} | {one['ratio']:.3f} |")
    print(f"\n{json.dumps(results)}")


if __name__ == "__main__":
    main()
