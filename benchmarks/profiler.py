"""Whether the profiler can be trusted: beside bare loops, beside numpy, and in telling a slow-down from none.

    OMP_NUM_THREADS=1 python benchmarks/profiler.py [--bundle emoji-caption.xattn] [--tries 100]

Everything in one process, taking turns, but for the tries: each of them is two profiles, one after the other, as two
calls of `profile` and `profile --against` are. In half of them the second has 10 % of its time added, waiting. Prints
Markdown, then one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from xattn_runtime.bundle import default_bundle
from xattn_runtime.profile.against import compare_documents
from xattn_runtime.profile.limits import product_rate
from xattn_runtime.profile.matrix import _reference_ms
from xattn_runtime.profile.passes import Passes
from xattn_runtime.session import open_session
from xattn_runtime.tasks import load

DELAY = 0.1
ROUNDS, PASSES = 10, 12
TOLERANCE = 0.05


def timed(work: Callable[[], object]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


def beside_bare_loops(bundle: Path, turns: int) -> dict[str, float]:
    """The profiler's stage over the same graph in a bare loop; and its pass over the same calls without it."""
    task = load(bundle)
    passes, session = Passes(task), open_session(task.bundle, "image_encoder", task.settings)
    picture = task.bundle.file(task.bundle.manifest.golden.cases[0].image)
    inputs = {"pixel_values": task._encoder._prepare(picture)["pixel_values"][None]}
    outputs = list(session.output_shapes)
    bare, stage, plain, total = [], [], [], []
    for turn in range(turns + 5):
        found = passes._alone(picture, 0, times := {})
        run = timed(lambda: session._held.graph.run(outputs, inputs))
        whole = timed(lambda: task.caption(task.encode(picture)))
        if turn >= 5 and found is not None:
            bare.append(run)
            stage.append(times["encode"][0])
            plain.append(whole)
            total.append(times["total"][0])
    ratio = statistics.median(stage) / statistics.median(bare)
    return {"stage over bare loop": ratio, "pass over plain calls": statistics.median(total) / statistics.median(plain)}


def beside_numpy(repeats: int = 30) -> float:
    """The rate of products that floors are made of, over that of numpy's BLAS, on one thread."""
    rows, inner, columns = 512, 768, 1536
    left, right = np.ones((rows, inner), np.float32), np.ones((inner, columns), np.float32)
    best = min(timed(lambda: left @ right) for _ in range(repeats))
    return product_rate(1) / (2 * rows * inner * columns / (best / 1000))


def profiled(passes: Passes, share: float) -> dict[str, Any]:
    """A document of the rounds of one stage, of which every pass is made slower by `share`."""
    rounds, reference = [], []
    for _ in range(ROUNDS):
        reference.append(_reference_ms())
        rounds.append(statistics.median((1 + share) * passes.run()["total"][0] for _ in range(PASSES)))
    profile = {"name": "model", "provider": "cpu", "threads": 1, "batch": 1, "rounds": {"total": rounds}}
    return {"profiles": [profile], "reference_ms": reference}


def tries(bundle: Path, count: int) -> dict[str, int]:
    """How often nothing is called the same, and how often the slow-down is found."""
    passes = Passes(load(bundle, threads=1))
    profiled(passes, 0.0)
    same = found = 0
    for _ in range(count):
        old, new, slow = (profiled(passes, share) for share in (0.0, 0.0, DELAY))
        same += compare_documents(old, new, TOLERANCE)[0].verdict == "same"
        found += compare_documents(old, slow, TOLERANCE)[0].verdict == "worse"
    return {"same": same, "found": found, "tries": count}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="of captions; the one that ships without it")
    parser.add_argument("--tries", type=int, default=100)
    parser.add_argument("--turns", type=int, default=200)
    options = parser.parse_args()
    bundle = options.bundle or default_bundle("caption")
    found: dict[str, Any] = beside_bare_loops(bundle, options.turns)
    found["rate of products over numpy's"] = beside_numpy()
    print("| | ratio |\n|---|---|")
    for name, value in found.items():
        print(f"| {name} | {value:.3f} |")
    found |= tries(bundle, options.tries)
    print(f"\nnothing changed, and called the same: {found['same']} of {found['tries']}")
    print(f"10 % slower, and called worse: {found['found']} of {found['tries']}\n\n{json.dumps(found)}")


if __name__ == "__main__":
    main()
