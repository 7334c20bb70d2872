"""How an attention scores and weighs: typed, frozen, by name."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from xattn_edge.attention.similarity import SIMILARITIES, AttentionSimilarity, ProductSimilarity
from xattn_edge.attention.weighting import WEIGHTINGS

__all__ = ["PLAIN", "AttentionOptions", "transformer_options"]


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """What an attention is, apart from the widths of its inputs.

    heads: of the queries.
    kv_heads: of keys and values, where there are fewer; divides `heads` (grouped queries, Ainslie et al., 2023).
    similarity: a name of `SIMILARITIES`.
    weighting: a name of `WEIGHTINGS`.
    top_k, temperature: of hard weighting.
    dropout: of soft weights, in training.
    output_bias: whether the outputs of the heads go through a linear map with a bias, also that of a single head, as in
        `torch.nn.MultiheadAttention`. Without it the map has no bias, and there is none for a single head.

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
    output_bias: bool = False

    def __post_init__(self) -> None:
        for name, known in (("similarity", tuple(SIMILARITIES)), ("weighting", tuple(WEIGHTINGS))):
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
        self._check_weighting()

    def _check_weighting(self) -> None:
        used = WEIGHTINGS[self.weighting].options
        if self.dropout and "dropout" not in used:
            raise ValueError(
                f"dropout: expected 0 with {self.weighting} weighting, which has no weights to spare, "
                f"found {self.dropout}"
            )
        if (self.top_k, self.temperature) != (1, 1.0) and "top_k" not in used:
            choosing = " or ".join(name for name, kind in WEIGHTINGS.items() if "top_k" in kind.options)
            raise ValueError(
                f"top_k, temperature: expected {choosing} weighting, as {self.weighting} weighting has neither, "
                f"found {self.top_k} and {self.temperature}"
            )

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def is_one_operator(self) -> bool:
        """Whether the whole is one ONNX operator `Attention` where nobody needs the weights: a softmax of products."""
        return WEIGHTINGS[self.weighting].is_softmax and issubclass(SIMILARITIES[self.similarity], ProductSimilarity)

    def build_similarity(self, head_width: int) -> AttentionSimilarity:
        """The similarity, for heads of this width."""
        return SIMILARITIES[self.similarity](self.heads, head_width)

    def build_weighting(self) -> nn.Module:
        """The weighting."""
        return WEIGHTINGS[self.weighting].build(self.top_k, self.temperature)


PLAIN = AttentionOptions()
"""One head, dot product, softmax."""


def transformer_options(heads: int) -> AttentionOptions:
    """The attention of Transformers (Vaswani et al., 2017, section 3.2), as `torch.nn.MultiheadAttention` has it."""
    return AttentionOptions(heads=heads, similarity="scaled_dot", output_bias=True)
