"""Modalities in, a decision out: where in between they are fused is what the heads differ in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from xattn_edge.fusion.protocol import Fused, without_missing

__all__ = ["EarlyHead", "HybridHead", "LateHead"]


class EarlyHead(nn.Module):
    """Features are fused, then classified: `C f(x_1, …, x_M) + c`; `c` for a sample of which nothing is present.

    Args:
        fusion: of features; a `Fusion`.
        width: of its output.
        outputs: classes.
    """

    def __init__(self, fusion: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.fusion = fusion
        self.classifier = nn.Linear(width, outputs)

    def forward(self, modalities: Sequence[Tensor], present: Tensor | None = None) -> Fused:
        """`[batch, width of each]` to logits `[batch, outputs]`, and the weights of the fusion."""
        fused = self.fusion(modalities, present)
        return Fused(self.classifier(fused.output), fused.weights)


class LateHead(nn.Module):
    """Each modality is classified, then the decisions are fused: `f(C_1 x_1 + c_1, …, C_M x_M + c_M)`.

    Args:
        fusion: of decisions; a `Fusion`.
        widths: of the modalities.
        outputs: classes.
    """

    def __init__(self, fusion: nn.Module, widths: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.fusion = fusion
        self.classifiers = nn.ModuleList(nn.Linear(width, outputs) for width in widths)

    def decide(self, modalities: Sequence[Tensor], present: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """The logits of each modality, `[batch, outputs]`, and which are present."""
        parts, present = without_missing(modalities, self.widths, present)
        return [classifier(part) for classifier, part in zip(self.classifiers, parts, strict=True)], present

    def forward(self, modalities: Sequence[Tensor], present: Tensor | None = None) -> Fused:
        """`[batch, width of each]` to logits `[batch, outputs]`, and the weights of the decisions."""
        return cast(Fused, self.fusion(*self.decide(modalities, present)))


class HybridHead(nn.Module):
    """The decision on fused features is one more among those of the modalities (Atrey et al., 2010, section 3.3).

    Args:
        early: head on fused features.
        late: head whose fusion takes one decision more than it has modalities; the last is that of `early`.
    """

    def __init__(self, early: EarlyHead, late: LateHead) -> None:
        super().__init__()
        self.early, self.late = early, late

    def forward(self, modalities: Sequence[Tensor], present: Tensor | None = None) -> Fused:
        """`[batch, width of each]` to logits `[batch, outputs]`, and weights `[batch, modalities + 1]`."""
        together = self.early(modalities, present).output
        decisions, present = self.late.decide(modalities, present)
        some = present.any(-1, keepdim=True)
        return cast(Fused, self.late.fusion([*decisions, together], torch.cat([present, some], 1)))
