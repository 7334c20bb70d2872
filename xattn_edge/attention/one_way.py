"""One modality reads the other: the words of a text look at an image, or its positions look at the words."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from xattn_edge.attention.checks import check_sides
from xattn_edge.attention.cross_modal import CrossModalAttention
from xattn_edge.attention.options import PLAIN, AttentionOptions
from xattn_edge.attention.protocol import Attended, Exchange, Tokens

__all__ = ["ImageToText", "TextToImage", "present_weights", "read"]


class TextToImage(nn.Module):
    """`text reads A(text, image)`: every word asks the image (Anderson et al., 2018, section 3.3).

    Args:
        width: of both modalities.
        options: of the attention.
    """

    def __init__(self, width: int, options: AttentionOptions = PLAIN) -> None:
        super().__init__()
        self.attention = CrossModalAttention(width, width, width, options)

    def forward(self, text: Tokens, image: Tokens, *, need_weights: bool = True) -> Exchange:
        """What the text reads; the image reads nothing."""
        check_sides(text, image)
        attended = read(self.attention, text, image, need_weights)
        return Exchange(attended.output, None, present_weights(attended))


class ImageToText(nn.Module):
    """`image reads A(image, text)`: every position of the image asks the words.

    Args:
        width: of both modalities.
        options: of the attention.
    """

    def __init__(self, width: int, options: AttentionOptions = PLAIN) -> None:
        super().__init__()
        self.attention = CrossModalAttention(width, width, width, options)

    def forward(self, text: Tokens, image: Tokens, *, need_weights: bool = True) -> Exchange:
        """What the image reads; the text reads nothing."""
        check_sides(text, image)
        attended = read(self.attention, image, text, need_weights)
        return Exchange(None, attended.output, present_weights(attended))


def read(attention: CrossModalAttention, query: Tokens, context: Tokens, need_weights: bool) -> Attended:
    """What `query` reads of the tokens of `context`."""
    attended = attention(
        query.features, context.features, context.features, mask=context.mask, need_weights=need_weights
    )
    return cast(Attended, attended)


def present_weights(*attended: Attended) -> tuple[Tensor, ...]:
    """The weights that are not None."""
    return tuple(each.weights for each in attended if each.weights is not None)
