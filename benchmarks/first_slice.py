"""ONNX Runtime against eager torch on the two models of this repository, and the command line's start.

    python benchmarks/first_slice.py

Every engine runs in a process of its own, and all take turns, a round each, so that drift of the machine hits all
alike; what counts is the ratio. torch generates with its KV cache. Each side starts from decoded pixels and ends with
the text. Prints Markdown tables, then one JSON document.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
ENGINES = ("torch eager", "ORT fp32", "ORT int8")
QUESTION = "what color is the shape?"


def load_images(task: str, count: int) -> list[Any]:
    """Pixels of held-out images: scenes for captioning, official test images for questions."""
    from itertools import islice

    import numpy as np
    from PIL import Image

    if task == "caption":
        from xattn_edge.data.emoji_captions import EmojiCaptions

        return [sample.pixels for sample in islice(EmojiCaptions().test_samples("unseen-pairs"), count)]
    from xattn_edge.data.easy_vqa import EasyVqa

    paths = sorted({sample.image for sample in EasyVqa().samples("test")})[:count]
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths]


def torch_runner(task: str, checkpoint: Path, threads: int) -> Callable[[Any], str]:
    """Image to text in eager torch."""
    import torch
    from tokenizers import Tokenizer

    from xattn_edge.models import load_checkpoint
    from xattn_export.families.own.checkpoint import image_steps
    from xattn_runtime.preprocess.pipeline import Pipeline

    torch.set_num_threads(threads)
    loaded = load_checkpoint(checkpoint)
    model: Any = loaded.model
    config: Any = loaded.config
    tokenizer = Tokenizer.from_str(loaded.tokenizer_json)
    pipeline = Pipeline(image_steps(loaded))
    question = torch.tensor([tokenizer.encode(QUESTION).ids])

    @torch.inference_mode()
    def run(image: Any) -> str:
        pixel_values = torch.from_numpy(pipeline(image))[None]
        if task == "caption":
            return str(tokenizer.decode(model.generate(pixel_values)[0]))
        logits = model(pixel_values, question, torch.ones_like(question))
        return str(config.answers[int(logits.argmax())])

    return run


def onnxruntime_runner(task: str, bundle: Path, threads: int) -> Callable[[Any], str]:
    """Image to text by the runtime."""
    from xattn_runtime import load

    if task == "caption":
        captioner = load(bundle, threads=threads, task="caption")
        return lambda image: captioner.caption(image).text
    answerer = load(bundle, threads=threads, task="vqa")
    return lambda image: answerer.ask(image, QUESTION).answer


def worker(connection: Connection, engine: str, task: str, source: Path, threads: int, count: int) -> None:
    """Answers each message with the milliseconds of every image and the texts."""
    run = (torch_runner if engine == "torch eager" else onnxruntime_runner)(task, source, threads)
    batch = load_images(task, count)
    for image in batch[:3]:
        run(image)
    while connection.recv():
        times, texts = [], []
        for image in batch:
            began = time.perf_counter()
            texts.append(run(image))
            times.append((time.perf_counter() - began) * 1e3)
        connection.send((times, texts))


def compare(task: str, sources: dict[str, Path], threads: int, rounds: int, count: int) -> dict[str, Any]:
    """Median milliseconds per image of each engine, taking turns."""
    context = multiprocessing.get_context("spawn")
    connections, processes = {}, []
    for engine, source in sources.items():
        connections[engine], theirs = context.Pipe()
        process = context.Process(target=worker, args=(theirs, engine, task, source, threads, count), daemon=True)
        process.start()
        processes.append(process)
    times: dict[str, list[float]] = {engine: [] for engine in sources}
    texts: dict[str, list[str]] = {}
    for _ in range(rounds):
        for engine, connection in connections.items():
            connection.send(True)
            measured, texts[engine] = connection.recv()
            times[engine] += measured
    for connection in connections.values():
        connection.send(False)
    for process in processes:
        process.join()
    medians = {engine: statistics.median(values) for engine, values in times.items()}
    agreement = {engine: sum(map(str.__eq__, texts[engine], texts["torch eager"])) / count for engine in sources}
    return {"task": task, "threads": threads, "n": rounds * count, "median_ms": medians, "agreement": agreement}


def start(task: str, runs: int) -> dict[str, float]:
    """Wall time and peak memory of the installed command, from process start to printed answer."""
    examples = {"caption": ["gem-and-diamond.png"], "vqa": ["blue-triangle.png", QUESTION]}
    executable = Path(sys.executable).with_name("xattn-edge")
    arguments = [str(executable), task, str(CHECKOUT / "examples" / examples[task][0]), *examples[task][1:]]
    seconds, peak = [], 0
    for _ in range(runs + 1):
        began = time.perf_counter()
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds.append(time.perf_counter() - began)
        if status:
            raise SystemExit(f"{' '.join(arguments)}: exit status {status}")
        peak = max(peak, usage.ru_maxrss * 1024)
    return {"median_s": statistics.median(seconds[1:]), "least_s": min(seconds[1:]), "peak_memory_mb": peak / 1e6}


def make_bundles(name: str, folder: Path) -> dict[str, Path]:
    """Both bundles of a checkpoint, and the checkpoint itself, by engine."""
    from xattn_export import export_checkpoint, quantize_bundle

    checkpoint, fp32, int8 = CHECKOUT / "checkpoints" / name, folder / f"{name}.xattn", folder / f"{name}-int8.xattn"
    export_checkpoint(checkpoint, fp32)
    quantize_bundle(fp32, int8)
    return dict(zip(ENGINES, (checkpoint, fp32, int8), strict=True))


def print_tables(comparisons: list[dict[str, Any]], starts: dict[str, dict[str, float]]) -> None:
    """Markdown."""
    print(
        "\n| task | threads | " + " | ".join(f"{engine}, ms" for engine in ENGINES) + " | fp32 × | int8 × | same text |"
    )
    print("|---|---" + "|---" * (len(ENGINES) + 3) + "|")
    for row in comparisons:
        medians, eager = row["median_ms"], row["median_ms"]["torch eager"]
        cells = [f"{medians[engine]:.2f}" for engine in ENGINES]
        cells += [f"{eager / medians[engine]:.1f}" for engine in ENGINES[1:]]
        same = ", ".join(f"{100 * row['agreement'][engine]:.0f} %" for engine in ENGINES[1:])
        print(f"| {row['task']} | {row['threads']} | {' | '.join(cells)} | {same} |")
    print("\n| command | median, s | least, s | peak memory, MB |\n|---|---|---|---|")
    for task, values in starts.items():
        cells = [f"{values['median_s']:.2f}", f"{values['least_s']:.2f}", f"{values['peak_memory_mb']:.0f}"]
        print(f"| `xattn-edge {task}` | {' | '.join(cells)} |")


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="turns of each engine")
    parser.add_argument("--pictures", type=int, default=20, help="images per turn")
    parser.add_argument("--starts", type=int, default=10, help="starts of the command line")
    options = parser.parse_args()
    starts = {task: start(task, options.starts) for task in ("vqa", "caption")}
    comparisons = []
    with tempfile.TemporaryDirectory() as folder:
        for task, name in (("vqa", "shapes-vqa"), ("caption", "emoji-caption")):
            sources = make_bundles(name, Path(folder))
            for threads in (2, 1):
                comparisons.append(compare(task, sources, threads, options.rounds, options.pictures))
    print_tables(comparisons, starts)
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    print("\n" + json.dumps({"machine": machine, "comparisons": comparisons, "starts": starts}))


if __name__ == "__main__":
    main()
