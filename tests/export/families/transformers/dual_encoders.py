"""What the tests of CLIP and SigLIP share: what Transformers itself embeds and compares, and pictures in files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.export.families.conftest import noise_pictures
from xattn_runtime.loader import load
from xattn_runtime.tasks import RetrievalTask

TOLERANCE = 1e-4
LABELS = ("red circle", "blue square", "a", "green triangle and yellow circle", "two dogs")
SIZES_PX = ((36, 36), (1, 1), (7, 3), (200, 31), (31, 200))

Inputs = Callable[[list[Image.Image], list[str]], Any]


def write_pictures(place: Path) -> list[Path]:
    """Noise of odd sizes, one in grey and one with transparency."""
    files = []
    for number, (picture, size) in enumerate(zip(noise_pictures(len(SIZES_PX)), SIZES_PX, strict=True)):
        files.append(place / f"{number}.png")
        picture.resize(size).convert(("RGB", "L", "RGBA", "RGB", "P")[number]).save(files[-1])
    return files


def load_retriever(bundle: Path) -> RetrievalTask:
    """A bundle of either, loaded."""
    return load(bundle, threads=1, task="retrieval")


def check_embeddings(task: RetrievalTask, model: Any, inputs: Inputs, files: Sequence[Path]) -> None:
    """Embeddings alone and in batches against `get_image_features` and `get_text_features`, brought to length 1."""
    for count in (1, 3, len(files)):
        pictures = [Image.open(file).convert("RGB") for file in files[:count]]
        texts = list(LABELS[-count:])
        given = inputs(pictures, texts)
        with torch.no_grad():
            images = model.get_image_features(given["pixel_values"]).pooler_output
            words = model.get_text_features(given["input_ids"], given.get("attention_mask")).pooler_output
        for found, expected in ((task.embed_images(files[:count]), images), (task.embed_texts(texts), words)):
            wanted = (expected / expected.norm(dim=-1, keepdim=True)).numpy()
            assert found.shape == wanted.shape
            assert np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()
            assert count == 1 or np.abs(wanted[0] - wanted[1]).max() > 100 * TOLERANCE


def check_probabilities(
    task: RetrievalTask, model: Any, inputs: Inputs, files: Sequence[Path], activation: Callable[..., torch.Tensor]
) -> None:
    """Probabilities from a file to every label against those of the model's own forward."""
    template = "picture of a {label}"
    for file in files:
        with Image.open(file) as picture, torch.no_grad():
            given = inputs([picture.convert("RGB")], [template.format(label=label) for label in LABELS])
            logits = model(**given).logits_per_image[0]
        expected = dict(zip(LABELS, activation(logits).tolist(), strict=True))
        found = task.classify(file, LABELS, template)
        assert [score.label for score in found.scores] == sorted(LABELS, key=lambda label: -expected[label])
        assert (found.label, found.probability) == (found.scores[0].label, found.scores[0].probability)
        for score in found.scores:
            assert abs(score.probability - expected[score.label]) <= TOLERANCE * max(expected.values())
