"""What is trained, on what, for how long: a frozen recipe a task."""

from __future__ import annotations

from dataclasses import dataclass

from xattn_edge.encoders import ImageEncoderConfig

__all__ = ["EMOJI_CAPTION", "EMOJI_RETRIEVAL", "SENTIMENT", "SHAPES_VQA", "Recipe"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A model's size and its training; steps and batch are in optimizer steps and samples."""

    name: str
    data: str
    image_size_px: int
    channels: tuple[int, ...]
    blocks: tuple[int, ...]
    width: int
    heads: int
    image_layers: int
    layers: int
    """Cross-attention layers (visual question answering, re-ranking) or decoder layers (captioning)."""
    max_tokens: int
    dropout: float
    steps: int
    batch: int
    learning_rate: float
    weight_decay: float = 0.05
    warmup_steps: int = 200

    def image_encoder(self) -> ImageEncoderConfig:
        """The encoder of its images."""
        return ImageEncoderConfig(
            name="cnn",
            image_size_px=self.image_size_px,
            channels=self.channels,
            blocks=self.blocks,
            layers=self.image_layers,
            heads=self.heads,
        )


SHAPES_VQA = Recipe(
    name="shapes-vqa",
    data="easy-vqa",
    image_size_px=64,
    channels=(24, 48, 96),
    blocks=(1, 1),
    width=96,
    heads=4,
    image_layers=0,
    layers=2,
    max_tokens=32,
    dropout=0.0,
    steps=2500,
    batch=64,
    learning_rate=2e-3,
)
EMOJI_CAPTION = Recipe(
    name="emoji-caption",
    data="emoji",
    image_size_px=96,
    channels=(16, 32, 96, 192),
    blocks=(1, 1, 2),
    width=192,
    heads=4,
    image_layers=1,
    layers=3,
    max_tokens=48,
    dropout=0.0,
    steps=6000,
    batch=64,
    learning_rate=2e-3,
)
EMOJI_RETRIEVAL = Recipe(
    name="emoji-retrieval",
    data="emoji",
    image_size_px=96,
    channels=(16, 32, 96, 192),
    blocks=(1, 1, 2),
    width=192,
    heads=4,
    image_layers=1,
    layers=1,
    max_tokens=48,
    dropout=0.1,
    steps=600,
    batch=64,
    learning_rate=1e-3,
)
SENTIMENT = Recipe(
    name="sentiment",
    data="sentiment",
    image_size_px=32,
    channels=(8, 16, 32),
    blocks=(1, 1),
    width=96,
    heads=4,
    image_layers=0,
    layers=1,
    max_tokens=96,
    dropout=0.35,
    steps=700,
    batch=64,
    learning_rate=7e-4,
)
