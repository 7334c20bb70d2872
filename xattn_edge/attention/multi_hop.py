"""The modalities read each other in turns, each time in the light of what was read before."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from xattn_edge.attention.checks import check_sides
from xattn_edge.attention.cross_modal import CrossModalAttention
from xattn_edge.attention.one_way import present_weights, read
from xattn_edge.attention.options import PLAIN, AttentionOptions
from xattn_edge.attention.protocol import Exchange, Tokens

__all__ = ["MultiHopAttention"]


class MultiHopAttention(nn.Module):
    """Text→image→text …: odd hops are `text += A(text, image)`, even hops `image += A(image, text)`.

    A reader that adds what it read to its next question is the hop of memory networks (Sukhbaatar et al., 2015, section
    2.2) and of stacked attention (Yang et al., 2016, section 3.3); here both sides take turns (Nam et al., 2017).

    Args:
        width: of both modalities.
        options: of every attention.
        hops: how many times one side reads the other.
        shared: whether all hops have the same weights.

    Raises:
        ValueError: no hop.
    """

    def __init__(self, width: int, options: AttentionOptions = PLAIN, *, hops: int = 3, shared: bool = False) -> None:
        super().__init__()
        if hops < 1:
            raise ValueError(f"hops: expected at least 1, found {hops}")
        self.hops = hops
        self.attentions = nn.ModuleList(
            CrossModalAttention(width, width, width, options) for _ in range(1 if shared else hops)
        )

    def forward(self, text: Tokens, image: Tokens, *, need_weights: bool = True) -> Exchange:
        """What each side reads in all its hops together; the image reads nothing where there is one hop only."""
        check_sides(text, image)
        sides = [text, image]
        reads: list[Tensor | None] = [None, None]
        weights: list[Tensor] = []
        for hop in range(self.hops):
            attention = cast(CrossModalAttention, self.attentions[hop % len(self.attentions)])
            side = hop % 2
            reader, earlier = sides[side], reads[side]
            attended = read(attention, reader, sides[1 - side], need_weights)
            sides[side] = Tokens(reader.features + attended.output, reader.mask)
            reads[side] = attended.output if earlier is None else earlier + attended.output
            weights += present_weights(attended)
        return Exchange(reads[0], reads[1], tuple(weights))
