"""Sentiment checkpoints of `xattn-edge train sentiment`: one graph from text, speech and frames to labels."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor, nn

from xattn_edge.models import SentimentConfig, SentimentModel, load_checkpoint
from xattn_export.families.base import Family, GoldenInput, Labels, Role, Source, TensorSpec
from xattn_export.families.base.standard_roles import classifier_role, text_specs
from xattn_export.families.own.checkpoint import image_steps, is_checkpoint, source_tokenizer
from xattn_export.families.own.text import text_encoder_graph
from xattn_runtime.errors import CheckpointError
from xattn_runtime.preprocess.speech import MelSpec

__all__ = ["XATTN_SENTIMENT"]

_TEXTS = ("a wonderful film, warm and funny", "dull and far too long")
_GOLDEN_SECONDS = 0.7
_GOLDEN_FRAMES = 3
_INPUTS = ("input_ids", "attention_mask", "log_mel", "log_mel_mask", "frame_values", "frame_mask")


class SentimentGraph(nn.Module):
    """All inputs of the model to logits and probabilities, `[batch, labels]`."""

    def __init__(self, model: SentimentModel) -> None:
        super().__init__()
        self.model = model
        self.text_encoder = text_encoder_graph(model.text_encoder)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        log_mel: Tensor,
        log_mel_mask: Tensor,
        frame_values: Tensor,
        frame_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        text = self.text_encoder(input_ids, attention_mask)
        speech = self.model.speech_encoder(log_mel, log_mel_mask.bool())
        frames = self.model.frame_encoder(frame_values, frame_mask.bool())
        logits = self.model.decide(text, speech, frames)
        return logits, logits.softmax(-1)


def _open(folder: Path) -> Source:
    checkpoint = load_checkpoint(folder, SentimentModel)
    model = checkpoint.model
    config = model.config
    try:
        speech = MelSpec(**checkpoint.recipe["speech"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'}: recipe: expected how speech was cut, as `speech`, found: {error}"
        ) from error

    def label_logits(inputs: Mapping[str, Tensor]) -> Tensor:
        return cast(Tensor, model(*(inputs[name] for name in _INPUTS))[0])

    return Source(
        name=checkpoint.name,
        task="sentiment",
        license=checkpoint.license,
        weights=(folder / "model.safetensors",),
        roles=(_role(model),),
        tokenizer=source_tokenizer(checkpoint, config.text.max_tokens),
        reference=Labels(speech, image_steps(checkpoint), config.frames.longest, config.labels, label_logits),
        golden_inputs=_recordings(speech, config.frames.image.image_size_px),
    )


def _role(model: SentimentModel) -> Role:
    config = model.config
    side = config.frames.image.image_size_px

    def reference(*inputs: Tensor) -> tuple[Tensor, ...]:
        logits = model(*inputs)
        return logits, logits.softmax(-1)

    return classifier_role(
        SentimentGraph(model),
        reference,
        (
            *text_specs(config.text.vocabulary, fewest=0),
            TensorSpec("log_mel", ("batch", "frames", config.speech.bands), "normal"),
            TensorSpec("log_mel_mask", ("batch", "frames"), "mask", fewest=0),
            TensorSpec("frame_values", ("batch", "pictures", 3, side, side), "normal"),
            TensorSpec("frame_mask", ("batch", "pictures"), "mask", fewest=0),
        ),
        config.text.max_tokens,
        attends=_attends(config),
    )


def _attends(config: SentimentConfig) -> bool:
    """Whether the graph holds the operator `Attention`, in self-attention or in the mechanism."""
    own = config.text.layers + config.speech.layers + config.frames.layers + config.frames.image.layers
    return own > 0 or (config.layers > 0 and config.mechanism.has_attention_operator)


def _recordings(spec: MelSpec, side_px: int) -> tuple[GoldenInput, ...]:
    """Texts alone, a sound alone, frames alone, and all together: export needs no data set."""
    time = np.arange(int(_GOLDEN_SECONDS * spec.rate_hz)) / spec.rate_hz
    sound = (0.3 * np.sin(2 * np.pi * (200 + 400 * time) * time) * np.hanning(len(time))).astype(np.float32)
    spoken = {"samples": sound, "rate_hz": np.array(spec.rate_hz)}
    seen = {"frames": np.stack([_face(number / _GOLDEN_FRAMES, side_px) for number in range(_GOLDEN_FRAMES)])}
    return (
        GoldenInput(_npz({}), _TEXTS),
        GoldenInput(_npz(spoken)),
        GoldenInput(_npz(seen)),
        GoldenInput(_npz(spoken | seen), _TEXTS),
    )


def _face(bend: float, side_px: int) -> np.typing.NDArray[np.uint8]:
    image = Image.new("RGB", (side_px, side_px), (90, 140, 200))
    draw = ImageDraw.Draw(image)
    draw.ellipse((2, 2, side_px - 3, side_px - 3), fill=(250, 210, 60))
    middle, height = side_px / 2, side_px * 0.3 * bend
    draw.arc(
        (middle * 0.5, middle * 1.2 - height, middle * 1.5, middle * 1.2 + height), 20, 160, fill=(0, 0, 0), width=2
    )
    return np.asarray(image)


def _npz(arrays: Mapping[str, np.typing.NDArray[np.generic]]) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


XATTN_SENTIMENT = Family(
    name="xattn-edge sentiment", recognises=lambda config: is_checkpoint(config, "sentiment"), open=_open
)
