"""Both modalities read each other at once."""

from __future__ import annotations

from typing import cast

from torch import nn

from xattn_edge.attention.checks import check_sides
from xattn_edge.attention.cross_modal import CrossModalAttention
from xattn_edge.attention.one_way import present_weights, read
from xattn_edge.attention.options import PLAIN, AttentionOptions
from xattn_edge.attention.protocol import Exchange, Tokens

__all__ = ["CoAttention"]


class CoAttention(nn.Module):
    """`text reads A(text, image)` and `image reads B(image, text)`, neither of what the other has read.

    With weights of their own this is the co-attention of ViLBERT (Lu et al., 2019, figure 2b); with shared ones, A = B,
    that of LXMERT (Tan and Bansal, 2019, section 2.2).

    Args:
        width: of both modalities.
        options: of both attentions.
        shared: whether both directions have the same weights.
    """

    def __init__(self, width: int, options: AttentionOptions = PLAIN, *, shared: bool = False) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(
            CrossModalAttention(width, width, width, options) for _ in range(1 if shared else 2)
        )

    def forward(self, text: Tokens, image: Tokens, *, need_weights: bool = True) -> Exchange:
        """What each side reads; weights are those of the text, then those of the image."""
        check_sides(text, image)
        by_text = read(cast(CrossModalAttention, self.attentions[0]), text, image, need_weights)
        by_image = read(cast(CrossModalAttention, self.attentions[-1]), image, text, need_weights)
        return Exchange(by_text.output, by_image.output, present_weights(by_text, by_image))
