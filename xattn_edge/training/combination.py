"""The mechanism, similarity, weighting and fusion of a training, and the model that they make of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from xattn_edge.attention import AttentionOptions, MechanismConfig, transformer_options
from xattn_edge.encoders import TextEncoderConfig
from xattn_edge.fusion import FUSIONS, FusionConfig
from xattn_edge.models import CaptionConfig, VqaConfig
from xattn_edge.training.recipes import Recipe
from xattn_runtime.errors import UserError

__all__ = ["Combination", "caption_config", "vqa_config"]

_TEXT_COUNTS_TWICE = (2.0, 1.0, 1.0)
_TEXT_LAYERS = 2


@dataclass(frozen=True, kw_only=True)
class Combination:
    """Names out of the library (`docs/mechanisms.md`), the number of hops of `multi_hop`, and of layers."""

    mechanism: str = "text_to_image"
    similarity: str = "scaled_dot"
    weighting: str = "soft"
    fusion: str = "concatenation"
    hops: int = 3
    layers: int = 2

    def label(self) -> str:
        """What is chosen, without what is left as it is by default: `two-way-cosine`; `text-to-image` at the least."""
        options = [field for field in fields(self)[1:] if field.name != "layers"]
        chosen = [str(getattr(self, field.name)) for field in options if getattr(self, field.name) != field.default]
        return "-".join([self.mechanism, *chosen]).replace("_", "-")

    def mechanism_config(self, heads: int) -> MechanismConfig:
        """The mechanism; ValueError for an unknown name."""
        options = AttentionOptions(heads=heads, similarity=self.similarity, weighting=self.weighting)
        return MechanismConfig(name=self.mechanism, options=options, hops=self.hops)

    def fusion_config(self, modalities: int) -> FusionConfig:
        """The fusion; with weights, the text, which comes first, counts twice. ValueError: an unknown name."""
        weighted = self.fusion in FUSIONS and FUSIONS[self.fusion].takes_weights
        return FusionConfig(name=self.fusion, weights=_TEXT_COUNTS_TWICE[:modalities] if weighted else None)


def vqa_config(
    recipe: Recipe,
    vocabulary: int,
    answers: tuple[str, ...],
    *,
    text_encoder: str = "lstm",
    combination: Combination | None = None,
) -> VqaConfig:
    """The model for questions about images, of the size of `recipe`.

    Without a combination it has Transformer layers, in which the text reads the image and then decides alone.

    Raises:
        UserError: parts that do not go together.
    """
    with _named(combination):
        mechanism, fusion = _reading(recipe, combination)
        return VqaConfig(
            image=recipe.image_encoder(),
            text=TextEncoderConfig(
                name=text_encoder,
                vocabulary=vocabulary,
                max_tokens=recipe.max_tokens,
                layers=_TEXT_LAYERS * (text_encoder == "transformer"),
                heads=recipe.heads,
            ),
            mechanism=mechanism,
            image_norm=combination is not None,
            fusion=fusion,
            layers=recipe.layers if combination is None else combination.layers,
            width=recipe.width,
            dropout=recipe.dropout,
            answers=answers,
        )


def caption_config(
    recipe: Recipe,
    vocabulary: int,
    *,
    pad_token_id: int,
    start_token_id: int,
    end_token_id: int,
    combination: Combination | None = None,
) -> CaptionConfig:
    """The model that describes images, of the size of `recipe`.

    Without a combination it has Transformer layers, and what has been said decides alone.

    Raises:
        UserError: parts that do not go together.
    """
    with _named(combination):
        mechanism, fusion = _reading(recipe, combination)
        return CaptionConfig(
            image=recipe.image_encoder(),
            mechanism=mechanism,
            fusion=fusion,
            layers=recipe.layers if combination is None else combination.layers,
            width=recipe.width,
            dropout=recipe.dropout,
            vocabulary=vocabulary,
            max_tokens=recipe.max_tokens,
            pad_token_id=pad_token_id,
            start_token_id=start_token_id,
            end_token_id=end_token_id,
        )


def _reading(recipe: Recipe, combination: Combination | None) -> tuple[MechanismConfig, FusionConfig | None]:
    if combination is None:
        return MechanismConfig(name="text_to_image", options=transformer_options(recipe.heads)), None
    return combination.mechanism_config(recipe.heads), combination.fusion_config(modalities=2)


@contextmanager
def _named(combination: Combination | None) -> Iterator[None]:
    """A ValueError becomes a UserError that names the combination."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error) if combination is None else f"{combination.label()}: {error}") from error
