"""Every mechanism by name: typed, frozen, and built from it. A new one is a module and one row of `MECHANISMS`."""

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

__all__ = ["MECHANISMS", "MechanismConfig", "MechanismKind"]


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
        return MECHANISMS[self.name].reads(self)

    @property
    def projects_once(self) -> bool:
        """Whether keys and values of an image are the same for every text: no image token reads, and no text twice."""
        return MECHANISMS[self.name].projects_once

    @property
    def has_attention_operator(self) -> bool:
        """Whether its graph holds the ONNX operator `Attention`."""
        return self.options.is_one_operator and not MECHANISMS[self.name].has_groups

    def check_side(self, side: int) -> None:
        """Check that it can read a feature map of `side` positions along each side.

        Raises:
            ValueError: its regions do not fill the feature map.
        """
        if MECHANISMS[self.name].has_groups and side % self.window:
            raise ValueError(
                f"mechanism: window: expected a divisor of a side of {side} positions, which regions must fill, found "
                f"{self.window}"
            )

    def build(self, width: int, side: int | None = None) -> nn.Module:
        """The mechanism for modalities of `width`, with random weights; it is a `Mechanism`.

        `side` is that of the feature map that the image tokens are positions of, None where they are frames.

        Raises:
            ValueError: the heads do not divide the width, or the window does not divide the side.
        """
        return MECHANISMS[self.name].build(self, width, side)


@dataclass(frozen=True)
class MechanismKind:
    """A row of `MECHANISMS`.

    build: the module of a configuration, a width, and the side of the feature map.
    reads: whether the text reads, and whether the image does.
    projects_once: whether keys and values of an image are the same for every text.
    has_groups: whether it attends to groups and then to their members, which no single operator does.
    """

    build: Callable[[MechanismConfig, int, int | None], nn.Module]
    reads: Callable[[MechanismConfig], tuple[bool, bool]] = lambda _: (True, True)
    projects_once: bool = False
    has_groups: bool = False


MECHANISMS: Mapping[str, MechanismKind] = MappingProxyType(
    {
        "text_to_image": MechanismKind(
            lambda config, width, _: TextToImage(width, config.options),
            reads=lambda _: (True, False),
            projects_once=True,
        ),
        "image_to_text": MechanismKind(
            lambda config, width, _: ImageToText(width, config.options), reads=lambda _: (False, True)
        ),
        "two_way": MechanismKind(
            lambda config, width, _: CoAttention(width, config.options, shared=config.shared),
        ),
        "multi_hop": MechanismKind(
            lambda config, width, _: MultiHopAttention(width, config.options, hops=config.hops, shared=config.shared),
            reads=lambda config: (True, config.hops > 1),
        ),
        "self": MechanismKind(lambda config, width, _: JointSelfAttention(width, config.options)),
        "hierarchical": MechanismKind(
            lambda config, width, side: HierarchicalExchange(
                width, config.options, side=side, window=config.window, words=config.words
            ),
            has_groups=True,
        ),
        "graph": MechanismKind(
            lambda config, width, _: GraphExchange(width, config.options, neighbours=config.neighbours)
        ),
    }
)
"""Name → mechanism."""
