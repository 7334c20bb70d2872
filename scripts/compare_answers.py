"""What the command line answers with every bundle of a folder, as JSON: on two processors or providers, then compared.

python scripts/compare_answers.py ask BUNDLES IMAGES [PROVIDER] > HERE.json
python scripts/compare_answers.py compare HERE.json THERE.json
"""

from __future__ import annotations

import contextlib
import io
import json
import platform
import sys
from pathlib import Path
from typing import Any

QUESTIONS = ("what color is the shape?", "what shape is in the image?", "is there a red shape?")
# By how much a probability or a log-probability may differ. Products of int8 are exact everywhere, but activations are
# rounded to it after sums of float32 whose order is the processor's own; sums over 4-bit weights are rounded as well.
MOST_DIFFERENCE = {"fp32": 1e-4, "fp16": 0.01, "int8": 0.02, "int4": 0.05}


def collect_answers(bundles: Path, folder: Path, provider: str = "cpu") -> dict[str, Any]:
    """`{"processor", "versions", "bundles": {name: {"precision", "worst_golden", "answers": [[text, number]]}}}`."""
    import numpy

    from xattn_runtime.execution.providers import load_onnxruntime

    images = [str(path) for path in sorted(folder.glob("*.png"))]
    return {
        "processor": platform.machine(),
        "versions": {"onnxruntime": load_onnxruntime().__version__, "numpy": numpy.__version__},
        "bundles": {bundle.name: _answers_of(bundle, images, provider) for bundle in sorted(bundles.glob("*.xattn"))},
    }


def _answers_of(bundle: Path, images: list[str], provider: str) -> dict[str, Any]:
    options = ("--provider", provider, "--json")
    manifest = json.loads((bundle / "manifest.json").read_text())
    verified = _command("verify", str(bundle), *options)
    if manifest["task"] == "caption":
        captions = _command("caption", *images, "--bundle", str(bundle), *options)["results"]
        answers = [[[one["caption"], one["token_ids"]], one["score"]] for one in captions]
    else:
        reports = [_command("vqa", image, *QUESTIONS, "--bundle", str(bundle), *options) for image in images]
        answers = [[one["answer"], one["confidence"]] for image in reports for one in image["results"]]
    precisions = {graph["precision"] for graph in manifest["graphs"].values()}
    return {
        "precision": next(name for name in ("int4", "int8", "fp16", "fp32") if name in precisions),
        "worst_golden": max(case["relative_rms"] for case in verified["cases"]),
        "answers": answers,
    }


def _command(*arguments: str) -> dict[str, Any]:
    """The JSON document that `xattn-edge ARGUMENTS` prints; SystemExit where it fails."""
    from xattn_edge.commands import main

    printed, sys.argv = io.StringIO(), ["xattn-edge", *arguments]
    with contextlib.redirect_stdout(printed):
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise SystemExit(
                    f"xattn-edge {' '.join(arguments)}: exit code {end.code}: {printed.getvalue()}"
                ) from end
    document: dict[str, Any] = json.loads(printed.getvalue())
    return document


def compare(first: dict[str, Any], second: dict[str, Any]) -> int:
    """Print a line a bundle; 1 where an answer differs, or a number by more than its precision allows, else 0."""
    failed = 0
    for name, mine in first["bundles"].items():
        yours, allowed = second["bundles"][name], MOST_DIFFERENCE[mine["precision"]]
        pairs = list(zip(mine["answers"], yours["answers"], strict=True))
        same = sum(one[0] == other[0] for one, other in pairs)
        difference = max(abs(one[1] - other[1]) for one, other in pairs)
        fits = same == len(pairs) and difference <= allowed
        failed += not fits
        print(
            f"  {name:24} {same} of {len(pairs)} answers the same, largest difference {difference:.1e} (at most "
            f"{allowed:.0e}), golden cases {yours['worst_golden']:.1e}{'' if fits else '   FAILED'}"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    verb, first, second, *provider = sys.argv[1:]
    if verb == "ask":
        print(json.dumps(collect_answers(Path(first), Path(second), *provider)))
    else:
        sys.exit(compare(json.loads(Path(first).read_text()), json.loads(Path(second).read_text())))
