"""Runs every allowed combination of the library end to end, and prints why each other one is refused.

    python scripts/check_combinations.py [--task vqa] [--part 1/4]

Mechanism × fusion × encoders × task, with random weights of a small model: build, a step of training, export with
standard operators only, int8, both bundles run and compute what torch computes. One line for each; the exit code is 1
if one fails. The whole takes hours: `--part` takes every n-th, beginning with its own number.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F

from xattn_edge.attention import MECHANISMS, SIMILARITIES, WEIGHTINGS, AttentionOptions, MechanismConfig
from xattn_edge.data.rated_sentences import LABELS, SPEECH
from xattn_edge.encoders import (
    IMAGE_ENCODERS,
    TEXT_ENCODERS,
    ImageEncoderConfig,
    SpeechEncoderConfig,
    TextEncoderConfig,
    VideoEncoderConfig,
)
from xattn_edge.fusion import FUSIONS, FusionConfig
from xattn_edge.models import (
    CaptionConfig,
    CaptionModel,
    Checkpoint,
    ModelConfig,
    RetrievalConfig,
    RetrievalModel,
    SentimentConfig,
    SentimentModel,
    VqaConfig,
    VqaModel,
    build_model,
    save_checkpoint,
)
from xattn_edge.training.pixels import image_preprocessing
from xattn_export import export_checkpoint, inspect_path, quantize_bundle
from xattn_runtime.verify.golden import verify_bundle

TASKS = ("vqa", "sentiment", "retrieval", "caption")
WIDTH, SIDE_PX, VOCABULARY, LONGEST = 48, 32, 24, 10
WORDS = ("[PAD]", "[UNK]", "[START]", "[END]", *(f"word{number}" for number in range(VOCABULARY - 4)))
OPTIONS = {
    "soft": AttentionOptions(heads=2, similarity="scaled_dot"),
    **{name: AttentionOptions(heads=2, weighting=name) for name in WEIGHTINGS if name != "soft"},
    **{name: AttentionOptions(heads=2, similarity=name) for name in SIMILARITIES if not name.endswith("dot")},
}


def image_encoder(name: str) -> ImageEncoderConfig:
    if name == "cnn":
        return ImageEncoderConfig(name=name, image_size_px=SIDE_PX, channels=(8, 16, 16), blocks=(1, 1))
    return ImageEncoderConfig(name=name, image_size_px=SIDE_PX, patch_px=8, layers=1, heads=2)


def text_encoder(name: str) -> TextEncoderConfig:
    layers = int(name == "transformer")
    return TextEncoderConfig(name=name, vocabulary=VOCABULARY, max_tokens=LONGEST, layers=layers, heads=2)


def fusion_of(name: str, modalities: int) -> FusionConfig:
    return FusionConfig(name=name, weights=(2.0, 1.0, 1.0)[:modalities] if FUSIONS[name].takes_weights else None)


def configuration(task: str, mechanism: str, options: str, fusion: str, image: str, text: str) -> ModelConfig:
    """The configuration; ValueError where it is forbidden."""
    how = MechanismConfig(name=mechanism, options=OPTIONS[options], hops=2, neighbours=2)
    if task == "vqa":
        return VqaConfig(
            image=image_encoder(image),
            text=text_encoder(text),
            mechanism=how,
            fusion=fusion_of(fusion, 2),
            layers=1,
            width=WIDTH,
            dropout=0.1,
            answers=("yes", "no", "red"),
        )
    if task == "caption":
        return CaptionConfig(
            image=image_encoder(image),
            mechanism=how,
            fusion=fusion_of(fusion, 2),
            layers=1,
            width=WIDTH,
            dropout=0.1,
            vocabulary=VOCABULARY,
            max_tokens=LONGEST,
            **{f"{name}_token_id": number for name, number in (("pad", 0), ("start", 2), ("end", 3))},
        )
    if task == "sentiment":
        return SentimentConfig(
            text=text_encoder(text),
            speech=SpeechEncoderConfig(bands=SPEECH.bands, longest=SPEECH.longest_frames, channels=4, heads=2),
            frames=VideoEncoderConfig(image=image_encoder(image), longest=6, heads=2),
            mechanism=how,
            fusion=fusion_of(fusion, 3),
            layers=1,
            width=WIDTH,
            dropout=0.1,
            labels=LABELS,
        )
    return RetrievalConfig(
        image=image_encoder(image),
        text=text_encoder(text),
        mechanism=how,
        rerank_layers=1,
        width=WIDTH,
        embedding=8,
        dropout=0.1,
    )


def combinations(tasks: tuple[str, ...]) -> Iterator[tuple[str, str, str, str, str, str]]:
    for task in tasks:
        # Retrieval has no decision to fuse to: its two sides meet in one space.
        fusions = tuple(FUSIONS) if task != "retrieval" else ("none",)
        # A caption has a decoder in the place of an encoder of text.
        texts = TEXT_ENCODERS if task != "caption" else ("decoder",)
        yield from product([task], MECHANISMS, OPTIONS, fusions, IMAGE_ENCODERS, texts)


def train_a_step(model: torch.nn.Module) -> None:
    """One step; every weight stays finite."""
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01)
    pixels, ids = torch.randn(3, 3, SIDE_PX, SIDE_PX), torch.randint(4, VOCABULARY, (3, 6))
    mask = torch.ones_like(ids)
    if isinstance(model, VqaModel):
        loss = F.cross_entropy(model(pixels, ids, mask), torch.tensor([0, 1, 2]))
    elif isinstance(model, CaptionModel):
        logits = model(pixels, ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    elif isinstance(model, SentimentModel):
        speech, frames = torch.randn(3, 20, SPEECH.bands), torch.randn(3, 2, 3, SIDE_PX, SIDE_PX)
        ones = [torch.ones(3, count, dtype=torch.int64) for count in (20, 2)]
        logits = model(ids, mask, speech, ones[0], frames, ones[1])
        loss = F.cross_entropy(logits, torch.tensor([0, 1, 2]))
    else:
        assert isinstance(model, RetrievalModel)
        image, text = model.encode_image(pixels), model.encode_text(ids, mask)
        near = model.embed_image(image) @ model.embed_text(text).T
        loss = F.cross_entropy(near, torch.arange(3)) + model.match(text, image).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    if not all(torch.isfinite(value).all() for value in model.state_dict().values()):
        raise ValueError("a weight is not finite after a step of training")


def take_all_the_way(config: ModelConfig, task: str, folder: Path) -> None:
    torch.manual_seed(0)
    model = build_model(config)
    train_a_step(model)
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token=WORDS[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    recipe = {"speech": asdict(SPEECH)} if task == "sentiment" else {}
    preprocessing = image_preprocessing(SIDE_PX)
    source, full, small = folder / "checkpoint", folder / "full.xattn", folder / "small.xattn"
    checkpoint = Checkpoint(
        source, task, "tiny", "Apache-2.0", config, model.eval(), tokenizer.to_str(), preprocessing, recipe
    )
    save_checkpoint(checkpoint)
    export_checkpoint(source, full, whole=False)
    quantize_bundle(full, small)
    for bundle in (full, small):
        if not inspect_path(bundle).to_dict()["standard"]:
            raise ValueError(f"{bundle.name}: an operator that is not standard")
        if not verify_bundle(bundle).passed:
            raise ValueError(f"{bundle.name}: another output than torch has")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, action="append")
    parser.add_argument("--part", default="1/1", help="take every n-th, from the first given on: 1/4")
    options = parser.parse_args()
    first, step = map(int, options.part.split("/"))
    torch.set_num_threads(1)
    counts = {"works": 0, "refused": 0, "fails": 0}
    for combination in list(combinations(tuple(options.task or TASKS)))[first - 1 :: step]:
        outcome = "works"
        try:
            config = configuration(*combination)
        except ValueError as error:
            outcome = f"refused: {error}"
        else:
            try:
                with tempfile.TemporaryDirectory() as folder:
                    take_all_the_way(config, combination[0], Path(folder))
            except Exception as error:
                traceback.print_exc()
                outcome = f"fails: {type(error).__name__}: {error}"
        counts[outcome.partition(":")[0]] += 1
        print(*combination, outcome, sep="\t", flush=True)
    print(*(f"{count} {name}" for name, count in counts.items()), sep=", ")
    return int(counts["fails"] > 0)


if __name__ == "__main__":
    sys.exit(main())
