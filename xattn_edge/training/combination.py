"""Which mechanism, similarity, weighting and fusion a training takes, and the model that they make of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

from xattn_edge.attention import AttentionOptions, MechanismConfig
from xattn_edge.encoders import ImageEncoderConfig, TextEncoderConfig
from xattn_edge.fusion import FusionConfig
from xattn_edge.models import CrossModalCaptionConfig, CrossModalVqaConfig
from xattn_edge.training.recipes import Recipe
from xattn_runtime.errors import UserError

__all__ = ["Combination"]

_TEXT_COUNTS_TWICE = (2.0, 1.0, 1.0)


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
        told = [field for field in fields(self)[1:] if field.name != "layers"]
        chosen = [str(getattr(self, field.name)) for field in told if getattr(self, field.name) != field.default]
        return "-".join([self.mechanism, *chosen]).replace("_", "-")

    def mechanism_config(self, heads: int) -> MechanismConfig:
        """The mechanism; ValueError for an unknown name."""
        options = AttentionOptions(heads=heads, similarity=self.similarity, weighting=self.weighting)
        return MechanismConfig(name=self.mechanism, options=options, hops=self.hops)

    def fusion_config(self, modalities: int) -> FusionConfig:
        """The fusion; with `late_weighted` the text, which comes first, counts twice. ValueError: an unknown name."""
        weights = _TEXT_COUNTS_TWICE[:modalities] if self.fusion == "late_weighted" else None
        return FusionConfig(name=self.fusion, weights=weights)

    def config(
        self, recipe: Recipe, vocabulary: int, answers: tuple[str, ...], text_encoder: str = "lstm"
    ) -> CrossModalVqaConfig:
        """The model for questions about pictures, of the size of `recipe`; UserError for what does not go together."""
        with self._told():
            return CrossModalVqaConfig(
                image=_image_encoder(recipe),
                text=TextEncoderConfig(
                    name=text_encoder,
                    vocabulary=vocabulary,
                    max_tokens=recipe.max_tokens,
                    layers=2 * (text_encoder == "transformer"),
                    heads=recipe.heads,
                ),
                mechanism=self.mechanism_config(recipe.heads),
                fusion=self.fusion_config(modalities=2),
                layers=self.layers,
                width=recipe.width,
                dropout=recipe.dropout,
                answers=answers,
            )

    def caption_config(
        self, recipe: Recipe, vocabulary: int, *, pad_token_id: int, start_token_id: int, end_token_id: int
    ) -> CrossModalCaptionConfig:
        """The model that describes pictures, of the size of `recipe`; UserError for what does not go together."""
        with self._told():
            return CrossModalCaptionConfig(
                image=replace(_image_encoder(recipe), layers=recipe.image_layers, heads=recipe.heads),
                mechanism=self.mechanism_config(recipe.heads),
                fusion=self.fusion_config(modalities=2),
                layers=self.layers,
                width=recipe.width,
                dropout=recipe.dropout,
                vocabulary=vocabulary,
                max_tokens=recipe.max_tokens,
                pad_token_id=pad_token_id,
                start_token_id=start_token_id,
                end_token_id=end_token_id,
            )

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise UserError(f"{self.label()}: {error}") from error


def _image_encoder(recipe: Recipe) -> ImageEncoderConfig:
    return ImageEncoderConfig(
        name="cnn", image_size_px=recipe.image_size_px, channels=recipe.channels, blocks=recipe.blocks
    )
