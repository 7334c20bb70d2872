"""What a search returns, and what it needs of a model: embeddings of images, and how near they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.bundle.folder import Bundle

if TYPE_CHECKING:
    from xattn_runtime.preprocess.image import ImageInput

__all__ = ["Embedder", "Embeddings", "Match"]

Embeddings = NDArray[np.float32]
"""float32 `[count, width]`, each of length 1."""


@dataclass(frozen=True)
class Match:
    """A candidate's place among the candidates.

    cosine: of its embedding and the query's.
    probability: that the two belong together, where the model says one: among these candidates, or by themselves.
    """

    index: int
    cosine: float
    probability: float | None


class Embedder(Protocol):
    """A model that embeds images, loaded."""

    bundle: Bundle

    @property
    def width(self) -> int:
        """Width of an embedding."""

    def embed_images(self, images: Sequence[ImageInput]) -> Embeddings:
        """float32 `[images, width]`; ImageError where an image cannot be used."""

    def rank(
        self, query: Embeddings, candidates: Embeddings | Sequence[Embeddings], top_k: int = 10
    ) -> tuple[Match, ...]:
        """The `top_k` of `candidates`, `[width]` each, that are nearest to `query` `[width]`, the nearest first."""
