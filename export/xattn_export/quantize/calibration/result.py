"""The result of calibrating one graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from xattn_export.quantize.base.passing import Observed
from xattn_export.quantize.passes.key_values import StoredSeries

__all__ = ["Calibration"]


@dataclass(frozen=True)
class Calibration:
    """The result of calibrating a graph; empty where its plan needs none.

    overflowing: the nodes, by name, whose values would leave the range of fp16. key_values: those that are to be
    stored in fewer bits, by their `stored_name`.
    """

    observed: Observed = field(default_factory=Observed)
    overflowing: frozenset[str] = frozenset()
    key_values: Mapping[str, StoredSeries] = field(default_factory=dict)
