"""What every mode of `xattn-edge quantize` costs and saves, and what rounding better than to nearest gains.

    python benchmarks/quantization.py --work DIR

Three parts. The shipped models, quantized in every mode: size, the answers that stay as they are, and the metric of
their task on the official test split. BLIP-base with random weights: how far the logits move, for every mode and way of
rounding, calibrated on other images than those that are compared. Speed, all bundles taking turns in one process.
Prints Markdown tables, then one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xattn_export.quantize.base.options import Mode, Options

CHECKOUT = Path(__file__).resolve().parents[1]
TRAINED = {"shapes-vqa": "easy-vqa", "emoji-caption": "emoji"}
CALIBRATION_EXAMPLES = 32
CALIBRATION_IMAGES = 16
IMAGE_SIDES = (200, 160)
TIMED = ("total", "encode", "step")


@dataclass(frozen=True)
class Recipe:
    """Options of one quantization.

    components: role → a mode of its own, where the bundle has that role. has_data: whether it is calibrated on other
    examples than the golden inputs, on which errors of logits are measured.
    """

    mode: Mode
    options: Options = field(default_factory=Options)
    components: Mapping[str, Mode] = field(default_factory=dict)
    has_data: bool = True


RECIPES = {
    "fp16": Recipe("fp16"),
    "int8, without data": Recipe("int8", has_data=False),
    "int8, fitted": Recipe("int8"),
    "int8": Recipe("int8", Options(rounding="gptq")),
    "int8, SmoothQuant": Recipe("int8", Options(rounding="gptq", smooth=0.5)),
    "int8, cross int8": Recipe("int8", Options(rounding="gptq", cross="int8")),
    "int8-static, min-max": Recipe("int8-static", Options(rounding="gptq")),
    "int8-static, percentile": Recipe("int8-static", Options(rounding="gptq", range_method="percentile")),
    "int8-static, entropy": Recipe("int8-static", Options(rounding="gptq", range_method="entropy")),
    "int8-weight": Recipe("int8-weight", Options(rounding="gptq")),
    "int4, to nearest": Recipe("int4", Options(rounding="nearest")),
    "int4, HQQ": Recipe("int4", Options(rounding="hqq")),
    "int4, fitted": Recipe("int4"),
    "int4": Recipe("int4", Options(rounding="gptq")),
    "int4, asymmetric": Recipe("int4", Options(rounding="gptq", symmetric=False)),
}
LARGE_RECIPES = {
    name: RECIPES[name]
    for name in (
        "fp16",
        "int8, without data",
        "int8, fitted",
        "int8",
        "int8-weight",
        "int4, to nearest",
        "int4, HQQ",
        "int4, fitted",
        "int4",
        "int4, asymmetric",
    )
}
SPEED_RECIPES = {
    "int8": Recipe("int8"),
    "int8, decoder int4": Recipe("int8", Options(), {"decoder": "int4"}),
    "int8, decoder int4, cross int8": Recipe("int8", Options(cross="int8"), {"decoder": "int4"}),
}


def random_images(folder: Path) -> Path:
    """Rectangles and ellipses of random colours and places."""
    import numpy as np
    from PIL import Image, ImageDraw

    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(7)
    width, height = IMAGE_SIDES

    def colour() -> tuple[int, ...]:
        return tuple(int(value) for value in generator.integers(0, 256, 3))

    for number in range(CALIBRATION_IMAGES):
        image = Image.new("RGB", (width, height), colour())
        draw = ImageDraw.Draw(image)
        for shape in range(6):
            left, right = sorted(generator.integers(0, width, 2).tolist())
            top, bottom = sorted(generator.integers(0, height, 2).tolist())
            (draw.rectangle if shape % 2 else draw.ellipse)([left, top, right, bottom], fill=colour())
        image.save(folder / f"{number}.png")
    return folder


def quantized(source: Path, output: Path, recipe: Recipe, data: str) -> float:
    """Quantize `source` to `output` unless it exists; returns the seconds it took."""
    from xattn_edge.evaluation.samples import calibration_samples
    from xattn_export import quantize_bundle
    from xattn_runtime.bundle.folder import open_bundle

    began = time.perf_counter()
    if not output.exists():
        roles = open_bundle(source).manifest.graphs
        examples = calibration_samples(open_bundle(source), data, CALIBRATION_EXAMPLES) if recipe.has_data else None
        quantize_bundle(
            source,
            output,
            mode=recipe.mode,
            options=recipe.options,
            components={role: mode for role, mode in recipe.components.items() if role in roles},
            examples=examples,
        )
    return time.perf_counter() - began


def logit_errors(bundle: Path) -> dict[str, float]:
    """Relative RMS of the logits on the golden inputs, against the trained model: the mean and the largest."""
    from xattn_runtime.loader import load
    from xattn_runtime.verify.golden import measure

    errors = [case.relative_rms for case in measure(load(bundle))]
    return {"mean": statistics.mean(errors), "largest": max(errors)}


def folder_bytes(folder: Path) -> int:
    """Size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def weight_bytes(bundle: Path) -> int:
    """Size of its graphs, without tokenizer and golden cases."""
    return folder_bytes(bundle / "graphs")


def trained_models(
    work: Path, limit: int | None, recipes: Mapping[str, Recipe]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Model → recipe → sizes, errors of logits and metrics."""
    from xattn_edge.evaluation import evaluate
    from xattn_export import export_checkpoint

    results: dict[str, dict[str, dict[str, Any]]] = {}
    for model, data in TRAINED.items():
        source = work / f"{model}.xattn"
        if not source.exists():
            export_checkpoint(CHECKOUT / "checkpoints" / model, source)
        rows: dict[str, dict[str, Any]] = {"fp32": {"bytes": folder_bytes(source)}}
        rows["fp32"]["metrics"] = evaluate(source, data, limit=limit).per_metric
        for name, recipe in recipes.items():
            output = work / f"{model} {name}.xattn"
            seconds = quantized(source, output, recipe, data)
            rows[name] = {"seconds": seconds, "bytes": folder_bytes(output), "logits": logit_errors(output)}
            rows[name]["metrics"] = evaluate(output, data, limit=limit).per_metric
            shutil.rmtree(output)
            print(f"{model}, {name}: {rows[name]['metrics']}", file=sys.stderr)
        results[model] = rows
    return results


def large_model(source: Path, work: Path, recipes: Mapping[str, Recipe]) -> dict[str, dict[str, Any]]:
    """Recipe → size and errors of logits."""
    images, rows = random_images(work / "images"), {}
    for name, recipe in recipes.items():
        output = work / f"large {name}.xattn"
        seconds = quantized(source, output, recipe, str(images))
        rows[name] = {
            "seconds": seconds,
            "ratio": weight_bytes(output) / weight_bytes(source),
            "logits": logit_errors(output),
        }
        shutil.rmtree(output)
        print(f"large, {name}: {rows[name]}", file=sys.stderr)
    return rows


def prepare_speed(source: Path, work: Path, data: str) -> dict[str, Path]:
    """The bundles to be timed, made where they are not there."""
    bundles = {"fp32": source}
    for name, recipe in SPEED_RECIPES.items():
        bundles[name] = work / f"speed {source.stem} {name}.xattn"
        quantized(source, bundles[name], recipe, data)
    return bundles


def speed(bundles: Mapping[str, Path], rounds: int) -> dict[str, dict[str, float]]:
    """Medians in ms of a whole answer, and of its parts, at the threads that the runtime chooses; all take turns."""
    from xattn_edge.evaluation.samples import calibration_samples
    from xattn_export.quantize.calibration.examples import run_example
    from xattn_runtime.bundle.folder import open_bundle
    from xattn_runtime.loader import load

    tasks = {name: load(path) for name, path in bundles.items()}
    example = calibration_samples(open_bundle(bundles["fp32"]), "golden", 1).items[0]
    times: dict[str, list[dict[str, float]]] = {name: [] for name in tasks}
    for task in tasks.values():
        run_example(task, example)
    case = replace(tasks["fp32"].bundle.manifest.golden.cases[0], question=example.text)
    for _ in range(rounds):
        for name, task in tasks.items():
            stages = task.timed(example.image, case)
            times[name].append({key: statistics.median(stages[key]) for key in TIMED if key in stages})
    return {
        name: {key: statistics.median(one[key] for one in measured) for key in measured[0]}
        for name, measured in times.items()
    }


def print_trained(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Markdown: a table a model."""
    for model, rows in results.items():
        metrics = list(rows["fp32"]["metrics"])
        print(f"\n| {model} | size | logits, relative RMS | {' | '.join(metrics)} |")
        print("|---|---|---|" + "---|" * len(metrics))
        for name, row in rows.items():
            error = f"{row['logits']['mean']:.4f}" if "logits" in row else ""
            cells = [f"{row['bytes'] / rows['fp32']['bytes']:.2f}", error]
            cells += [f"{row['metrics'][metric]:.2f}" for metric in metrics]
            print(f"| {name} | {' | '.join(cells)} |")


def print_large(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Markdown."""
    print("\n| BLIP-base | size | logits, relative RMS: mean | largest | made in, s |\n|---|---|---|---|---|")
    for name, row in rows.items():
        logits = row["logits"]
        cells = [f"{row['ratio']:.2f}", f"{logits['mean']:.4f}", f"{logits['largest']:.4f}", f"{row['seconds']:.0f}"]
        print(f"| {name} | {' | '.join(cells)} |")


def print_speed(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Markdown."""
    print("\n| model | bundle | answer, ms | × | encoder, ms | step, ms |\n|---|---|---|---|---|---|")
    for model, rows in results.items():
        for name, row in rows.items():
            parts = [f"{row[key]:.2f}" if key in row else "" for key in ("encode", "step")]
            share = rows["fp32"]["total"] / row["total"]
            print(f"| {model} | {name} | {row['total']:.2f} | {share:.2f} | {' | '.join(parts)} |")


def main() -> None:
    """Run the requested measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder to keep bundles in, and to find them")
    parser.add_argument(
        "--large", type=Path, help="an fp32 bundle of BLIP-base, as benchmarks/families.py --work makes"
    )
    parser.add_argument("--limit", type=int, help="evaluate only so many examples of each part of a test split")
    parser.add_argument("--only", action="append", help="of trained and large only this row of the table; repeat")
    parser.add_argument("--rounds", type=int, default=30, help="turns of each bundle; of the large one a tenth")
    parser.add_argument("--parts", default="trained,large,speed", help="which of trained, large, speed to measure")
    parser.add_argument("--only-make", action="store_true", help="make the bundles whose speed is measured, and end")
    options = parser.parse_args()
    parts = options.parts.split(",")
    trained, large = (_chosen(recipes, options.only) for recipes in (RECIPES, LARGE_RECIPES))
    document: dict[str, Any] = {"machine": {"processor": platform.machine(), "cores": os.cpu_count()}}
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if "trained" in parts:
            document["trained"] = trained_models(work, options.limit, trained)
            print_trained(document["trained"])
        if "large" in parts and options.large:
            document["large"] = large_model(options.large, work, large)
            print_large(document["large"])
        if "speed" in parts:
            document["speed"] = _speeds(options, work)
            print_speed(document["speed"])
    print("\n" + json.dumps(document))


def _chosen(recipes: Mapping[str, Recipe], only: list[str] | None) -> dict[str, Recipe]:
    return {name: recipe for name, recipe in recipes.items() if only is None or name in only}


def _speeds(options: argparse.Namespace, work: Path) -> dict[str, dict[str, dict[str, float]]]:
    from xattn_export import export_checkpoint

    results = {}
    for model, data in TRAINED.items():
        source = work / f"{model}.xattn"
        if not source.exists():
            export_checkpoint(CHECKOUT / "checkpoints" / model, source)
        bundles = prepare_speed(source, work, data)
        results[model] = {} if options.only_make else speed(bundles, options.rounds)
    if options.large:
        bundles = prepare_speed(options.large, work, str(random_images(work / "images")))
        results["BLIP-base"] = {} if options.only_make else speed(bundles, max(3, options.rounds // 10))
    return results


if __name__ == "__main__":
    main()
