"""Cross-modal retrieval: an image and a text as vectors of one space, and how well the two of a pair match."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn_edge.attention import MechanismConfig, Tokens
from xattn_edge.attention.checks import check_heads
from xattn_edge.encoders.configs import ImageEncoderConfig, TextEncoderConfig
from xattn_edge.models.layer import CrossModalLayer, masked_mean

__all__ = ["RetrievalConfig", "RetrievalModel"]

_FIRST_SCALE, _LARGEST_SCALE = 1 / 0.07, 100.0


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """Two encoders that meet in one space, and cross-attention that looks again at the best of them.

    image, text: the encoders. width: of their tokens. embedding: of the common space.
    mechanism: how both read each other in re-ranking. rerank_layers: how often; 0 for a model that does not re-rank.

    Raises:
        ValueError: parts that do not go together; says which and why.
    """

    image: ImageEncoderConfig
    text: TextEncoderConfig
    mechanism: MechanismConfig
    rerank_layers: int
    width: int
    embedding: int
    dropout: float

    def __post_init__(self) -> None:
        heads = {
            "mechanism": self.mechanism.options.heads,
            "image encoder": self.image.heads,
            "text encoder": self.text.heads,
        }
        check_heads(self.width, heads)
        self.text.check_width(self.width)
        self.mechanism.check_side(self.image.side)
        if self.rerank_layers < 0 or self.embedding < 1:
            raise ValueError(
                f"expected 0 or more rerank_layers and an embedding of at least 1, found {self.rerank_layers} and "
                f"{self.embedding}"
            )


class RetrievalModel(nn.Module):
    """Embeddings of length 1 by a dual encoder (Radford et al., 2021), and a match of a text and an image.

    The match is that of ALBEF (Li et al., 2021): what text and image read from each other, classified as one or two.
    """

    def __init__(self, config: RetrievalConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = config.image.build(config.width)
        self.text_encoder = config.text.build(config.width, config.dropout)
        self.image_projection = nn.Linear(config.width, config.embedding)
        self.text_projection = nn.Linear(config.width, config.embedding)
        self.log_scale = nn.Parameter(torch.tensor(math.log(_FIRST_SCALE)))
        self.layers = nn.ModuleList(
            CrossModalLayer(config.mechanism, config.width, config.image.side, config.dropout)
            for _ in range(config.rerank_layers)
        )
        self.matcher = nn.Linear(2 * config.width, 1) if config.rerank_layers else None

    @property
    def scale(self) -> Tensor:
        """The factor of a cosine before the softmax over candidates."""
        return self.log_scale.exp().clamp(max=_LARGEST_SCALE)

    def encode_image(self, pixel_values: Tensor) -> Tokens:
        """Image tokens of `pixel_values` `[batch, 3, side, side]`."""
        return cast(Tokens, self.image_encoder(pixel_values))

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """Text tokens of int64 `[batch, length]`, padded on the right."""
        return cast(Tokens, self.text_encoder(input_ids, attention_mask))

    def embed_image(self, image: Tokens) -> Tensor:
        """`[batch, embedding]`, each of length 1."""
        return F.normalize(self.image_projection(masked_mean(*image)), dim=-1)

    def embed_text(self, text: Tokens) -> Tensor:
        """`[batch, embedding]`, each of length 1."""
        return F.normalize(self.text_projection(masked_mean(*text)), dim=-1)

    def match(self, text: Tokens, image: Tokens) -> Tensor:
        """Logits `[batch, 1]` that text and image of a row belong together.

        Raises:
            ValueError: a model without re-ranking.
        """
        if self.matcher is None:
            raise ValueError("rerank_layers: expected at least 1 to match, found 0")
        for layer in self.layers:
            text, image = layer(text, image)
        return cast(Tensor, self.matcher(torch.cat([masked_mean(*text), masked_mean(*image)], -1)))

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Cosines `[images, texts]` times the scale."""
        images = self.embed_image(self.encode_image(pixel_values))
        return self.scale * images @ self.embed_text(self.encode_text(input_ids, attention_mask)).T
