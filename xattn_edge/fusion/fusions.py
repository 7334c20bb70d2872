"""Every fusion by name: typed, frozen, and built from it. A new one is a module and one row of `FUSIONS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from xattn_edge.fusion.adaptive import AdaptiveFusion
from xattn_edge.fusion.bilinear import BilinearFusion
from xattn_edge.fusion.dynamic import DynamicFusion
from xattn_edge.fusion.early import Concatenation, Sum
from xattn_edge.fusion.heads import EarlyHead, HybridHead, LateHead
from xattn_edge.fusion.late import LearnedDecision, WeightedDecision

__all__ = ["FUSIONS", "FusionConfig", "FusionKind"]


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """How modalities become a decision.

    name: one of `FUSIONS`.
    weights: of the modalities, for `late_weighted` alone, which needs them.
    drop: probability of a modality to be left out in training, of `adaptive`.
    rank: of `bilinear`.

    Raises:
        ValueError: an unknown name, or weights with another fusion, or none with that one.
    """

    name: str
    weights: tuple[float, ...] | None = None
    drop: float = 0.2
    rank: int = 4

    def __post_init__(self) -> None:
        if self.name not in FUSIONS:
            raise ValueError(f"fusion: expected one of {', '.join(FUSIONS)}, found {self.name!r}")
        if (self.weights is not None) != FUSIONS[self.name].takes_weights:
            weighted = ", ".join(name for name, kind in FUSIONS.items() if kind.takes_weights)
            raise ValueError(
                f"weights: expected with {weighted}, and with no other fusion, found {self.weights} with {self.name}"
            )

    def check_modalities(self, count: int, names: str) -> None:
        """Check that it can fuse `count` modalities, called `names` in the error.

        Raises:
            ValueError: it has another number of weights.
        """
        if self.weights is not None and len(self.weights) != count:
            raise ValueError(f"fusion: weights: expected {count}, of {names}, found {len(self.weights)}")

    def build(self, widths: Sequence[int], outputs: int) -> nn.Module:
        """The head from modalities of these widths to logits, with random weights; it is a `Fusion`.

        Raises:
            ValueError: fewer than two modalities, or numbers that the fusion cannot have.
        """
        if len(widths) < 2:
            raise ValueError(f"widths: expected those of at least two modalities, found {list(widths)}")
        return FUSIONS[self.name].build(self, tuple(widths), outputs)


Build = Callable[[FusionConfig, tuple[int, ...], int], nn.Module]


@dataclass(frozen=True)
class FusionKind:
    """A row of `FUSIONS`.

    build: the head of a configuration, the widths of the modalities, and the number of outputs.
    takes_weights: whether it needs `weights`.
    """

    build: Build
    takes_weights: bool = False


def _early(make: Build) -> FusionKind:
    """A head on features that are as wide, once fused, as the widest modality."""
    return FusionKind(
        lambda config, widths, outputs: EarlyHead(make(config, widths, max(widths)), max(widths), outputs)
    )


def _late(make: Callable[[FusionConfig, int], nn.Module], *, takes_weights: bool = False) -> FusionKind:
    return FusionKind(
        lambda config, widths, outputs: LateHead(make(config, len(widths)), widths, outputs), takes_weights
    )


def _hybrid(config: FusionConfig, widths: tuple[int, ...], outputs: int) -> nn.Module:
    early = EarlyHead(Concatenation(widths, max(widths)), max(widths), outputs)
    return HybridHead(early, LateHead(LearnedDecision(len(widths) + 1), widths, outputs))


FUSIONS: Mapping[str, FusionKind] = MappingProxyType(
    {
        "concatenation": _early(lambda _, widths, width: Concatenation(widths, width)),
        "sum": _early(lambda _, widths, width: Sum(widths, width)),
        "late_mean": _late(lambda _, modalities: WeightedDecision(modalities)),
        "late_weighted": _late(
            lambda config, modalities: WeightedDecision(modalities, config.weights), takes_weights=True
        ),
        "late_learned": _late(lambda _, modalities: LearnedDecision(modalities)),
        "hybrid": FusionKind(_hybrid),
        "dynamic": _early(lambda _, widths, width: DynamicFusion(widths, width)),
        "adaptive": _early(lambda config, widths, width: AdaptiveFusion(widths, width, config.drop)),
        "bilinear": _early(lambda config, widths, width: BilinearFusion(widths, width, config.rank)),
    }
)
"""Name → head."""
