"""The inputs and outputs of every fusion, and the checks of them.

A modality is one vector a sample, and may be missing from some samples. Fusions of features make one vector of them,
fusions of decisions one decision of the decision of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from xattn_edge.attention.checks import check_mask, check_tokens

__all__ = ["Fused", "Fusion", "all_present", "without_missing"]


class Fused(NamedTuple):
    """What fusion makes of the modalities.

    output: float `[batch, width]`; 0 for a sample of which no modality is present.
    weights: how much each modality counted, `[batch, modalities]`, or `[batch, modalities, width]` where that differs
        between features: they sum to 1 over the modalities, and are 0 for a missing one. None where it has none.
    """

    output: Tensor
    weights: Tensor | None


class Fusion(Protocol):
    """Several modalities become one vector."""

    def __call__(self, modalities: Sequence[Tensor], present: Tensor | None = None) -> Fused:
        """Fuse `modalities`, each `[batch, width of its own]`.

        `present` is bool `[batch, modalities]`, true where the sample has the modality; what a missing one holds does
        not matter. Without it all are present.
        """
        ...


def without_missing(
    modalities: Sequence[Tensor], widths: Sequence[int], present: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    """The modalities with zeros in place of missing ones, and which are present, `[batch, modalities]`.

    Raises:
        ValueError: another number of modalities than widths, or a shape that does not fit; says what was expected.
    """
    if len(modalities) != len(widths):
        raise ValueError(f"modalities: expected {len(widths)}, found {len(modalities)}")
    for number, (each, width) in enumerate(zip(modalities, widths, strict=True)):
        check_tokens(f"modality {number}", each, "batch", width=width)
        if not torch.compiler.is_exporting() and len(each) != len(modalities[0]):
            raise ValueError(f"modality {number}: expected a batch of {len(modalities[0])}, found {list(each.shape)}")
    if present is None:
        return list(modalities), all_present(modalities)
    check_mask("present", present, {"batch": modalities[0].shape[0], "modalities": len(modalities)})
    columns = present.unbind(1)
    return [each.masked_fill(~column[:, None], 0.0) for each, column in zip(modalities, columns, strict=True)], present


def all_present(modalities: Sequence[Tensor]) -> Tensor:
    """Bool `[batch, modalities]`, true throughout."""
    return modalities[0].new_ones((modalities[0].shape[0], len(modalities)), dtype=torch.bool)
