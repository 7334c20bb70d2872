"""What a vision-language model says of itself: a row that names its parts, and the little that is its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from xattn_export.families.base import SourceTokenizer
from xattn_export.families.layers.towers.tower import WHOLE, Features
from xattn_runtime.preprocess.pipeline import Pipeline
from xattn_runtime.preprocess.steps import Step

__all__ = ["Architecture", "Opened", "PrefixMask", "Written"]

PrefixMask = Literal["causal", "prompt", "images"]
"""Which tokens of a prompt see what comes after them: none, all of them, or those of an image within the image."""


@dataclass(frozen=True)
class Opened:
    """A folder and what was read from it.

    model: Transformers' own. steps, pipeline: preprocessing of an image. tokens: image tokens of an image, or of each
        of its tiles.
    """

    folder: Path
    model: Any
    steps: tuple[Step, ...]
    pipeline: Pipeline
    tokens: int

    @property
    def side_px(self) -> int:
        """Of an image, or of a tile."""
        return self.pipeline.size_px[0]


@dataclass(frozen=True)
class Written:
    """How texts and images are put to a model.

    tokenizer: that of the folder, with the templates of questions and captions, and how an image is written.
    video_steps: preprocessing of a frame of a video, of a model that takes videos.
    """

    tokenizer: SourceTokenizer
    video_steps: tuple[Step, ...] | None = None


def _image_features(model: Any, pixels: Tensor) -> Iterable[Tensor]:
    features: Iterable[Tensor] = model.get_image_features(pixels).pooler_output
    return features


@dataclass(frozen=True)
class Architecture:
    """A vision-language model as a combination of parts.

    Tower and connector are those of `TOWERS` and `CONNECTORS` by the configuration's types, the language model that of
    `LANGUAGE_MODELS`.

    name: what its author calls it.
    classes: of Transformers → the `model_type` of their `config.json`.
    language_models: the types of text models that it is proved with.
    written: what is opened, and the tokenizer in its folder → how texts and images are put to it.
    features: which of a tower's tokens the connector reads, by the model's configuration.
    mask: which tokens of a prompt see what comes after them.
    first_position: the number of the first token's position.
    head: Transformers' model → vectors `[…, width]` to logits.
    image_features: Transformers' model and pixels `[images, 3, side, side]` → the image tokens of each.
    draws: whether its published folders ask `generate()` to draw tokens, in the place of which a bundle takes the best.
    lists_features: whether its `forward` takes known image tokens as a list rather than as one tensor.
    """

    name: str
    classes: Mapping[str, str]
    language_models: tuple[str, ...]
    written: Callable[[Opened, SourceTokenizer], Written]
    features: Callable[[Any], Features] = lambda config: WHOLE
    mask: PrefixMask = "causal"
    first_position: int = 0
    head: Callable[[Any], nn.Module] = lambda model: model.lm_head
    image_features: Callable[[Any, Tensor], Iterable[Tensor]] = _image_features
    draws: bool = False
    lists_features: bool = False
