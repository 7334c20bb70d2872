"""Image-text retrieval: pictures and texts to embeddings of one space, and what is nearest to what.

It joins preprocessing, tokenizer and the two encoders of one bundle, and knows nothing of the model in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xattn_runtime._reading import show
from xattn_runtime.bundle import Bundle
from xattn_runtime.errors import BundleError, UserError
from xattn_runtime.manifest import Similarity
from xattn_runtime.preprocess.text import TextCodec
from xattn_runtime.session import GraphSession, open_session
from xattn_runtime.tasks.encoding import EncodedImage, ImageEncoder, padded, session_settings

if TYPE_CHECKING:
    from xattn_runtime.preprocess.image import ImageInput

__all__ = ["Match", "RetrievalTask"]

_TEXT_BATCH = 64
_IMAGE_OUTPUT, _TEXT_OUTPUT = "image_embeddings", "text_embeddings"

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


class RetrievalTask:
    """A retrieval bundle, loaded. Safe to call from one thread at a time."""

    def __init__(self, bundle: Bundle, provider: str = "cpu", threads: int | None = None) -> None:
        """Load the graphs of `bundle`; `threads` within an operator, by default the cores, at most 4.

        Raises BundleError, ProviderError or DependencyError.
        """
        manifest = bundle.manifest
        if manifest.similarity is None:
            raise BundleError(f"{bundle.path}: expected a bundle for retrieval, found one for {manifest.task}")
        self.bundle = bundle
        self.settings = session_settings(provider, threads)
        self._similarity = manifest.similarity
        self._images = ImageEncoder(bundle, self.settings)
        self._texts = open_session(bundle, "text_encoder", self.settings)
        _check_widths(self._images.session, self._texts)
        self._codec = TextCodec(bundle.file(manifest.tokenizer.file), manifest.tokenizer)

    def encode(self, image: ImageInput) -> EncodedImage:
        """The image, encoded, and what that cost; ImageError where it cannot be used."""
        return self._images.encode(image)

    def embed_images(self, images: Sequence[ImageInput]) -> Embeddings:
        """Embeddings of pictures; ImageError where one cannot be used."""
        found = [encoded.tensors[_IMAGE_OUTPUT] for encoded in self._images.encode_many(images)]
        return np.concatenate(found) if found else self._none()

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        """Embeddings of texts; QuestionError where one is empty, too long, or of no known word."""
        ids = [self._codec.encode_question(text).ids for text in texts]
        parts = [ids[start : start + _TEXT_BATCH] for start in range(0, len(ids), _TEXT_BATCH)]
        found = [self._texts.run([_TEXT_OUTPUT], padded(part))[0] for part in parts]
        return np.concatenate(found) if found else self._none()

    def rank(
        self, query: Embeddings, candidates: Embeddings | Sequence[Embeddings], top_k: int = 10
    ) -> tuple[Match, ...]:
        """The `top_k` of `candidates`, `[width]` each, that are nearest to `query` `[width]`, the nearest first.

        Raises UserError for a `top_k` below 1.
        """
        if top_k < 1:
            raise UserError(f"top_k: expected at least 1, found {show(top_k)}")
        cosines = np.asarray(candidates, dtype=np.float32).reshape(len(candidates), len(query)) @ query
        probabilities = _probabilities(cosines, self._similarity)
        order = np.argsort(-cosines, kind="stable")[:top_k]
        return tuple(
            Match(int(i), float(cosines[i]), None if probabilities is None else float(probabilities[i])) for i in order
        )

    def _none(self) -> Embeddings:
        width = self._texts.output_shapes[_TEXT_OUTPUT][1]
        return np.zeros((0, width if isinstance(width, int) else 0), dtype=np.float32)


def _probabilities(cosines: NDArray[np.float32], similarity: Similarity) -> NDArray[np.float64] | None:
    scores = similarity.scale * cosines.astype(np.float64) + similarity.bias
    if similarity.kind == "cosine" or not len(scores):
        return None
    if similarity.kind == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-scores)), dtype=np.float64)
    weights = np.exp(scores - scores.max())
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def _check_widths(images: GraphSession, texts: GraphSession) -> None:
    one, other = images.output_shapes[_IMAGE_OUTPUT][1], texts.output_shapes[_TEXT_OUTPUT][1]
    if isinstance(one, int) and isinstance(other, int) and one != other:
        raise BundleError(
            f"{texts.path}: output {_TEXT_OUTPUT}: expected width {one}, as {images.path} gives, found {other}; "
            "export it again"
        )
