"""Runs every graph of the default models and of a small model of each family in engines that are not ours.

    python scripts/check_conformance.py --node node_folder [--only BLIP] [--record results.jsonl]

In both forms of attention and every precision; prints the table of docs/conformance.md and each failure. With --record
what is done is kept there, and a second run resumes after it. Takes about half an hour.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.utils import logging

from tests.parity.small_families import SMALL_FAMILIES
from xattn_export import export_checkpoint, quantize_bundle
from xattn_export.engines import ENGINES
from xattn_export.engines.verify import verify_in_engine
from xattn_export.quantize.calibration.examples import golden_examples
from xattn_export.quantize.modes.table import mode_names
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.bundle.manifest import Attention
from xattn_runtime.errors import DependencyError, UserError, XattnError

CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"
# Blocks of weights need opset 21.
FORMS: dict[Attention, int] = {"standard": 23, "decomposed": 21}


def bundles(name: str, place: Path) -> Iterator[tuple[str, str, Path]]:
    """Form, mode and folder of every bundle of a model, made in `place`."""
    family = SMALL_FAMILIES.get(name)
    source = CHECKPOINTS / name if family is None else family.save(place / "model")
    for form, opset in FORMS.items():
        exported = place / f"{form}.xattn"
        task = None if family is None else family.task
        export_checkpoint(source, exported, task=task, attention=form, opset=opset)
        if family is not None:
            forget_texts(exported)
        yield form, "fp32", exported
        for mode in mode_names()[1:]:
            quantized = place / f"{form}-{mode}.xattn"
            examples = golden_examples(open_bundle(exported)) if mode == "int8-static" else None
            try:
                quantize_bundle(exported, quantized, mode=mode, examples=examples)
            except (UserError, XattnError) as error:
                print(f"{name}, {form}: no {mode}: {error}", file=sys.stderr)
                continue
            yield form, mode, quantized


def forget_texts(bundle: Path) -> None:
    """Leave numbers alone to compare: texts of random weights change with the last bit."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    for case in manifest["golden"]["cases"]:
        case.pop("text", None)
    path.write_text(json.dumps(manifest))


def check(name: str, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for every graph of every bundle of a model, in every engine."""
    with tempfile.TemporaryDirectory(prefix="conformance-") as place:
        for form, mode, bundle in bundles(name, Path(place)):
            for engine in ENGINES:
                for graph in verify_in_engine(bundle, engine, folder, threads=1).graphs:
                    row = {"model": name, "form": form, "mode": mode, "engine": engine, "graph": graph.role}
                    error = (graph.error or "").partition(", found: ")[2][:300]
                    yield row | {
                        "passed": graph.passed, "relative_rms": graph.relative_rms, "texts": graph.texts, "error": error
                    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: a row for each model, a column for each engine, graphs that passed of graphs that there are."""
    total: Counter[tuple[str, str]] = Counter((row["model"], row["engine"]) for row in rows)
    passed: Counter[tuple[str, str]] = Counter((row["model"], row["engine"]) for row in rows if row["passed"])
    lines = [f"| model | {' | '.join(ENGINES)} |", "|---|" + "---|" * len(ENGINES)]
    for model in dict.fromkeys(row["model"] for row in rows):
        cells = [f"{passed[model, engine]} of {total[model, engine]}" for engine in ENGINES]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--node", type=Path, default=Path(), help="folder with the node_modules")
    parser.add_argument("--only", help="models whose name has this in it")
    parser.add_argument("--record", type=Path, help="file of results, a line each; models in it are not run again")
    arguments = parser.parse_args()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    record = arguments.record
    rows = [json.loads(line) for line in record.read_text().splitlines()] if record and record.exists() else []
    done = {row["model"] for row in rows}
    for name in (*sorted(path.name for path in CHECKPOINTS.iterdir()), *SMALL_FAMILIES):
        if name in done or (arguments.only and arguments.only not in name):
            continue
        try:
            results = list(check(name, arguments.node))
        except DependencyError as error:
            sys.exit(f"error: {error}")
        rows += results
        if record:
            with record.open("a") as stream:
                stream.writelines(json.dumps(row) + "\n" for row in results)
        print(f"{name}: {sum(row['passed'] for row in results)} of {len(results)}", file=sys.stderr)
    print("\n".join(table(rows)))
    for row in rows:
        if not row["passed"]:
            print(json.dumps(row))


if __name__ == "__main__":
    main()
