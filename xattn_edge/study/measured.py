"""What a study measured of one combination."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["CombinationResult"]


@dataclass(frozen=True, kw_only=True)
class CombinationResult:
    """One combination: accuracy in percent by seed, bytes and milliseconds by precision; or why it is forbidden."""

    task: str
    mechanism: str
    fusion: str
    accuracies: tuple[float, ...] = ()
    width: int = 0
    parameters: int = 0
    bytes: Mapping[str, int] = field(default_factory=dict)
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    forbidden: str | None = None

    @property
    def mean(self) -> float:
        """Of accuracy."""
        return statistics.fmean(self.accuracies)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of accuracy over seeds; None of a single one."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)
