"""Both modalities are one sequence that attends to itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xattn_edge.attention.checks import check_sides
from xattn_edge.attention.cross_modal import CrossModalAttention
from xattn_edge.attention.one_way import present_weights, read
from xattn_edge.attention.options import PLAIN, AttentionOptions
from xattn_edge.attention.protocol import Attended, Exchange, Tokens

__all__ = ["JointSelfAttention", "join", "split"]


class JointSelfAttention(nn.Module):
    """`[text; image] reads A([text; image], [text; image])`, the single stream of VisualBERT (Li et al., 2019).

    Args:
        width: of both modalities.
        options: of the attention.
    """

    def __init__(self, width: int, options: AttentionOptions = PLAIN) -> None:
        super().__init__()
        self.attention = CrossModalAttention(width, width, width, options)

    def forward(self, text: Tokens, image: Tokens, *, need_weights: bool = True) -> Exchange:
        """What each side reads of both; weights are `[batch, heads, text + image, text + image]`."""
        check_sides(text, image)
        both = join(text, image)
        return split(read(self.attention, both, both, need_weights), text)


def join(text: Tokens, image: Tokens) -> Tokens:
    """The tokens of the text, then those of the image."""
    return Tokens(torch.cat([text.features, image.features], 1), torch.cat([text.mask, image.mask], 1))


def split(attended: Attended, text: Tokens) -> Exchange:
    """What each side read, out of what the tokens that `join` returned read."""
    words = text.features.shape[1]
    output: Tensor = attended.output
    return Exchange(output[:, :words], output[:, words:], present_weights(attended))
