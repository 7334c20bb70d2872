"""Ratios of decoding: the whole graph, the runtime's loop, beams, batches, encoded images, folders.

    python benchmarks/decoding.py BUNDLE... [--images 1000 [--kind jpeg] [--side-px 128]] [--rounds 7]

Bundles for captioning, best with the role `whole`, or for visual question answering. All variants of a bundle take
turns in one process; each figure is the median of the rounds' ratios, since a shared machine drifts by a factor of two
within minutes. Prints a Markdown table a bundle, then one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.bundle.task_table import TASKS
from xattn_runtime.execution.session import GraphSession, default_threads, open_session
from xattn_runtime.loader import load
from xattn_runtime.tasks import CaptionTask, DecodingOptions, VqaTask
from xattn_runtime.tasks.shared.image_encoder import PreparedImage

IMAGE = Path(__file__).resolve().parents[1] / "examples" / "gem-and-diamond.png"
BATCH = 8
ANSWER_TOKENS = 4
"""Of an answer that is generated, at most, its end counted: weights that are random would never end one."""
QUESTION_WORDS = ("what color is the shape?", "word1 word2 word3 word4 word5")
Run = Callable[[], object]


def random_images(count: int, side_px: int = 256) -> list[np.ndarray]:
    """Coarse coloured noise, uint8 `[side, side, 3]`."""
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    sides = (side_px, side_px)
    return [np.asarray(Image.fromarray(each).resize(sides, Image.Resampling.BICUBIC)) for each in cells]


def interleaved(variants: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of every variant in every round, after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            began = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - began)
    return times


def ratio(times: Mapping[str, list[float]], one: str, other: str) -> float:
    return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))


@contextmanager
def counted_runs() -> Iterator[list[float]]:
    """Seconds spent in sessions, added up in the first item."""
    spent, plain = [0.0], GraphSession.run

    def run(self: GraphSession, *arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return plain(self, *arguments, **options)
        finally:
            spent[0] += time.perf_counter() - began

    GraphSession.run = run  # type: ignore[method-assign]
    try:
        yield spent
    finally:
        GraphSession.run = plain  # type: ignore[method-assign]


def save_images(place: Path, count: int, kind: str, side_px: int) -> None:
    """Write `count` images: noise as PNG or JPEG, or the held-out images of the emoji set, as many of each split."""
    if kind == "emoji":
        from xattn_edge.data.emoji_captions import SPLITS, EmojiCaptions

        emoji = EmojiCaptions()
        splits = [islice(emoji.test_samples(split), -(-count // len(SPLITS))) for split in SPLITS]
        images = [sample.pixels for sample in chain(*splits)][:count]
    else:
        images = random_images(count, side_px)
    suffix = "jpg" if kind == "jpeg" else "png"
    for number, image in enumerate(images):
        Image.fromarray(image).save(place / f"{number:05}.{suffix}")


def captioning(task: CaptionTask, rounds: int, count: int, kind: str, side_px: int) -> dict[str, float]:
    one = np.asarray(Image.open(IMAGE).convert("RGB"))
    other = np.ascontiguousarray(one[:, ::-1])
    encoded = task.encode(one)
    mirrored = task.encode(other)
    length = len(task.caption(one).token_ids) + 1
    fixed = DecodingOptions(min_new_tokens=length, max_new_tokens=length, beams=1)
    beams = DecodingOptions(min_new_tokens=length, max_new_tokens=length, beams=4)

    def steps() -> None:
        for _ in task.steps(encoded, length):
            pass

    def both() -> None:
        task.encode(one)
        steps()

    variants: dict[str, Run] = {
        "caption": lambda: task.caption(one),
        "two": lambda: list(task.caption_each([one, other], errors="raise")),
        "encode": lambda: task.encode(one),
        "decode": lambda: task.caption(encoded),
        "decode two": lambda: list(task.caption_each([encoded, mirrored], errors="raise")),
        "steps": steps,
        "both": both,
        "greedy": lambda: task.caption(one, options=fixed),
        "beams": lambda: task.caption(one, options=beams),
    }
    if "whole" in task.bundle.manifest.graphs:
        whole, inputs = open_session(task.bundle, "whole", task.settings), {"images": one[None]}
        variants["whole"] = lambda: whole.run(("token_ids", "log_probs"), inputs)
    times = interleaved(variants, rounds)
    alone = {name: interleaved({name: variants[name]}, rounds)[name] for name in ("encode", "steps")}
    apart = statistics.median(alone["encode"]) + statistics.median(alone["steps"])
    shares: dict[str, list[float]] = {"decode": [], "steps": []}
    with counted_runs() as spent:
        for _ in range(rounds):
            for name, task_shares in shares.items():
                spent[0], began = 0.0, time.perf_counter()
                variants[name]()
                task_shares.append((time.perf_counter() - began) / spent[0])
    report = {"caption, ms": 1000 * statistics.median(times["caption"]), "tokens": float(length)}
    if "whole" in times:
        report["whole graph / the runtime's caption"] = ratio(times, "whole", "caption")
        report["whole graph / the runtime's loop, a step at a time"] = ratio(times, "whole", "both")
    report |= {
        "decoding / its session runs": statistics.median(shares["decode"]),
        "streaming, a step at a time / its session runs": statistics.median(shares["steps"]),
        "encode and decode in turn / each alone": statistics.median(times["both"]) / apart,
        "beam 4 / greedy, as many tokens": ratio(times, "beams", "greedy"),
        "throughput of 2 images / of 1": 2 * ratio(times, "caption", "two"),
        "throughput of 2 images / of 1, encoded before": 2 * ratio(times, "decode", "decode two"),
    }
    return report | (folder(task, count, kind, side_px) if count else {})


def folder(task: CaptionTask, count: int, kind: str, side_px: int) -> dict[str, float]:
    """Time from image files to a file of captions, and of the graphs alone for the same images, ready in memory.

    Opening the images costs the cores time too: `of what the cores can do` is beside the processor time of opening
    them and of the graphs, shared among the cores without a gap.
    """
    from xattn_edge.commands.shared.console import Console
    from xattn_edge.commands.shared.many import caption_to_file, open_for_many

    many, batches = open_for_many(task.bundle, "cpu", None)
    options, console = DecodingOptions(), Console(as_json=False, quiet=True)
    of_graphs, of_cores = [], []
    with tempfile.TemporaryDirectory(prefix="xattn-decoding-") as name:
        place = Path(name) / "images"
        place.mkdir()
        save_images(place, count, kind, side_px)
        for number in range(3):
            began = time.process_time()
            ready = [many._images.prepare(file) for file in sorted(place.iterdir())]
            _caption_ready(many, ready, options)
            least = (time.process_time() - began) / default_threads()
            began = time.perf_counter()
            _caption_ready(task, ready, options)
            bare = time.perf_counter() - began
            began = time.perf_counter()
            output = Path(name) / f"{number}.jsonl"
            caption_to_file(console, many, [place], output, None, options, recursive=False, batches=batches)
            spent = time.perf_counter() - began
            of_graphs.append(bare / spent)
            of_cores.append(least / spent)
    return {
        f"throughput of a folder of {count:,} ({kind}) / of bare inference": statistics.median(of_graphs),
        f"throughput of a folder of {count:,} ({kind}) / of what the cores can do": statistics.median(of_cores),
    }


def _caption_ready(task: CaptionTask, ready: list[PreparedImage], options: DecodingOptions) -> None:
    for start in range(0, len(ready), BATCH):
        part = list(task._images.encode_prepared(ready[start : start + BATCH]))
        task._caption_encoded(part, [False] * len(part), None, options)


def answering(task: VqaTask, rounds: int) -> dict[str, float]:
    image = random_images(1)[0]
    words = next(words for words in QUESTION_WORDS if not _unknown(task, words))
    encoded = task.encode(image)
    options = None if task.labels is not None else DecodingOptions(beams=1, max_new_tokens=ANSWER_TOKENS)

    variants: dict[str, Run] = {
        "first": lambda: task.ask(image, words, options=options),
        "second": lambda: task.ask(encoded, words, options=options),
    }
    times = interleaved(variants, rounds)
    return {
        "answer tokens": float(len(task.ask(encoded, words, options=options).token_ids)),
        "first question, ms": 1000 * statistics.median(times["first"]),
        "second question of an image / first": ratio(times, "second", "first"),
    }


def _unknown(task: VqaTask, words: str) -> bool:
    from xattn_runtime.errors import QuestionError

    try:
        return bool(task.ask(random_images(1)[0], words).unknown_words)
    except QuestionError:
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=0, help="in the folder; 0 leaves it out")
    parser.add_argument(
        "--kind",
        choices=("png", "jpeg", "emoji"),
        default="png",
        help="of the images in the folder: noise as PNG or JPEG, or the emoji of the test split, PNG of 96 px",
    )
    parser.add_argument("--side-px", type=int, default=256, help="of noise in the folder")
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    report = {}
    for path in arguments.bundles:
        bundle = open_bundle(path)
        if TASKS[bundle.manifest.task].text_key is None:
            captioner = load(bundle, threads=arguments.threads, task="caption")
            measured = captioning(captioner, arguments.rounds, arguments.images, arguments.kind, arguments.side_px)
        else:
            measured = answering(load(bundle, threads=arguments.threads, task="vqa"), arguments.rounds)
        report[str(path)] = measured
        print(f"\n| {path.name} | |\n|---|---|")
        print("\n".join(f"| {name} | {value:.3g} |" for name, value in measured.items()))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
