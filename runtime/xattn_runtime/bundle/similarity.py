"""The manifest's `similarity`: how an image and a text are compared in retrieval."""

from __future__ import annotations

from dataclasses import dataclass

from xattn_runtime.json_reader import ObjectReader

__all__ = ["Similarity", "read_similarity"]

_KINDS = ("cosine", "softmax", "sigmoid")


@dataclass(frozen=True)
class Similarity:
    """How an image and a text are compared in retrieval: by `scale` times the cosine of their embeddings plus `bias`.

    kind: what makes a probability of it: `softmax` over the candidates, `sigmoid` for each, or `cosine`: nothing does.
    """

    kind: str
    scale: float = 1.0
    bias: float = 0.0


def read_similarity(reader: ObjectReader) -> Similarity:
    """What a manifest says; BundleError for a key that is missing, unknown or of a wrong value."""
    similarity = Similarity(reader.text("kind", choices=_KINDS), reader.positive("scale"), reader.number("bias"))
    reader.finish()
    return similarity
