"""Every mechanism by name: typed, frozen, and built from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from xattn_edge.attention.graph import GraphExchange
from xattn_edge.attention.hierarchical import HierarchicalExchange
from xattn_edge.attention.joint import JointSelfAttention
from xattn_edge.attention.multi_hop import MultiHopAttention
from xattn_edge.attention.one_way import ImageToText, TextToImage
from xattn_edge.attention.options import PLAIN, AttentionOptions
from xattn_edge.attention.two_way import CoAttention

__all__ = ["MECHANISMS", "MechanismConfig"]


@dataclass(frozen=True, kw_only=True)
class MechanismConfig:
    """How two modalities read each other.

    name: one of `MECHANISMS`.
    options: of every attention in it.
    hops: of `multi_hop`.
    shared: of `two_way` and `multi_hop`: the same weights in every direction and hop.
    neighbours: edges of a node to each modality, of `graph`.
    window: side of a region of a feature map, in positions, or length of a stretch of frames, of `hierarchical`.
    words: of a phrase, of `hierarchical`.

    Raises:
        ValueError: an unknown name, or a number below 1.
    """

    name: str
    options: AttentionOptions = PLAIN
    hops: int = 3
    shared: bool = False
    neighbours: int = 8
    window: int = 2
    words: int = 3

    def __post_init__(self) -> None:
        if self.name not in MECHANISMS:
            raise ValueError(f"mechanism: expected one of {', '.join(MECHANISMS)}, found {self.name!r}")
        for name in ("hops", "neighbours", "window", "words"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")

    @property
    def reads(self) -> tuple[bool, bool]:
        """Whether the text reads, and whether the image does."""
        return self.name != "image_to_text", self.name != "text_to_image" and (self.name, self.hops) != ("multi_hop", 1)

    def build(self, width: int, side: int | None = None) -> nn.Module:
        """The mechanism for modalities of `width`, with random weights; it is a `Mechanism`.

        `side` is that of the feature map that the image tokens are positions of, None where they are frames.

        Raises:
            ValueError: the heads do not divide the width, or the window does not divide the side.
        """
        return MECHANISMS[self.name](self, width, side)


MECHANISMS: Mapping[str, Callable[[MechanismConfig, int, int | None], nn.Module]] = MappingProxyType(
    {
        "text_to_image": lambda config, width, _: TextToImage(width, config.options),
        "image_to_text": lambda config, width, _: ImageToText(width, config.options),
        "two_way": lambda config, width, _: CoAttention(width, config.options, shared=config.shared),
        "multi_hop": lambda config, width, _: MultiHopAttention(
            width, config.options, hops=config.hops, shared=config.shared
        ),
        "self": lambda config, width, _: JointSelfAttention(width, config.options),
        "hierarchical": lambda config, width, side: HierarchicalExchange(
            width, config.options, side=side, window=config.window, words=config.words
        ),
        "graph": lambda config, width, _: GraphExchange(width, config.options, neighbours=config.neighbours),
    }
)
"""Name → mechanism."""
