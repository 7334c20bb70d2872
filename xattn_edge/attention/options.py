"""How an attention scores and weighs: typed, frozen, by name."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from xattn_edge.attention.similarity import SIMILARITIES, Similarity
from xattn_edge.attention.weighting import WEIGHTINGS, HardWeighting, SoftWeighting

__all__ = ["PLAIN", "AttentionOptions"]


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """What an attention is, apart from the widths of what it is given.

    heads: of the queries.
    kv_heads: of keys and values, where there are fewer; divides `heads` (grouped queries, Ainslie et al., 2023).
    similarity: a name of `SIMILARITIES`.
    weighting: `soft` or `hard`.
    top_k, temperature: of hard weighting.
    dropout: of soft weights, in training.

    Raises:
        ValueError: an unknown name or an impossible combination; says which and why.
    """

    heads: int = 1
    kv_heads: int | None = None
    similarity: str = "dot"
    weighting: str = "soft"
    top_k: int = 1
    temperature: float = 1.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, known in (("similarity", tuple(SIMILARITIES)), ("weighting", WEIGHTINGS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, found {getattr(self, name)!r}")
        for name, number in (("heads", self.heads), ("kv_heads", self.key_heads), ("top_k", self.top_k)):
            if number < 1:
                raise ValueError(f"{name}: expected at least 1, found {number}")
        if self.heads % self.key_heads:
            raise ValueError(f"kv_heads: expected a divisor of {self.heads} heads, found {self.kv_heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected 0 or more and less than 1, found {self.dropout}")
        if self.temperature <= 0:
            raise ValueError(f"temperature: expected more than 0, found {self.temperature}")
        if self.weighting == "hard" and self.dropout:
            raise ValueError(
                f"dropout: expected 0 with hard weighting, which has no weights to spare, found {self.dropout}"
            )
        if self.weighting == "soft" and (self.top_k, self.temperature) != (1, 1.0):
            raise ValueError(
                f"top_k, temperature: expected hard weighting, as soft weighting has neither, "
                f"found {self.top_k} and {self.temperature}"
            )

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads

    def build_similarity(self, head_width: int) -> Similarity:
        """The similarity, for heads of this width."""
        return SIMILARITIES[self.similarity](self.heads, head_width)

    def build_weighting(self) -> nn.Module:
        """The weighting."""
        return HardWeighting(self.top_k, self.temperature) if self.weighting == "hard" else SoftWeighting()


PLAIN = AttentionOptions()
"""One head, dot product, softmax."""
