"""How often the attention of questions falls on the shape that they are about, on the test split of easy-VQA.

    python benchmarks/attention_on_shape.py BUNDLE [--questions 1000]

BUNDLE was exported with --with-attention. An image of easy-VQA has one shape on an even ground: its pixels are those
that differ from the ground. An image token counts as on the shape where its cell of the grid has a pixel of it.
Reported, for the mean over words, layers and heads: how often the part most attended to is on the shape, what share of
the attention is, and what share of all cells is, as attention without a preference would have it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xattn_edge.data.easy_vqa import EasyVqa
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.tasks import VqaTask
from xattn_runtime.tasks.shared.attention_maps import Attender, hold_attention

_DIFFERENT = 24


def on_shape(image: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.bool_]:
    """Cells `[rows, columns]` of an image `[height, width, 3]` that contain a pixel of the shape."""
    ground = np.median(image.reshape(-1, 3), axis=0)
    shape = np.abs(image.astype(int) - ground).max(axis=2) > _DIFFERENT
    parts = [np.array_split(band, columns, axis=1) for band in np.array_split(shape, rows, axis=0)]
    return np.array([[bool(cell.any()) for cell in band] for band in parts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--questions", type=int, default=1000, help="spread over the test split")
    arguments = parser.parse_args()
    task = VqaTask(open_bundle(arguments.bundle), threads=1)
    attender = Attender(task.bundle, hold_attention(task.bundle, task.settings))
    samples = EasyVqa().samples("test")
    chosen = samples[:: max(1, len(samples) // arguments.questions)][: arguments.questions]
    measured = []
    for sample in chosen:
        encoded = task.encode(sample.image)
        ids = task.question_ids(sample.question)
        weights = attender.of_question(encoded.tensors, ids).mean(axis=(0, 1, 2))
        cells = on_shape(np.asarray(Image.open(sample.image).convert("RGB")), *weights.shape)
        measured.append((cells.reshape(-1)[weights.argmax()], weights[cells].sum() / weights.sum(), cells.mean()))
    hit, mass, area = np.array(measured, dtype=np.float64).mean(axis=0)
    print("| questions | most attended to is on the shape | attention on the shape | cells on the shape |")
    print("|---|---|---|---|")
    print(f"| {len(measured)} | {hit:.1%} | {mass:.1%} | {area:.1%} |")
    print(
        json.dumps(
            {"questions": len(measured), "hit": hit, "mass": mass, "area": area, "bundle": str(arguments.bundle)}
        )
    )


if __name__ == "__main__":
    main()
