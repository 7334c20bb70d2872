"""What a comparison finds: answers that differ, the error of every component, and the layer where two graphs part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["ChangedAnswer", "CompareReport", "Component", "LayerError", "TokenDifference"]


@dataclass(frozen=True)
class LayerError:
    """A tensor that both graphs compute under one name, in the order of the first graph.

    relative_rms: root-mean-square of the difference over that of the first graph's values, over all runs; the graphs
    had the same inputs.
    """

    tensor: str
    operator: str
    relative_rms: float


@dataclass(frozen=True)
class Component:
    """A graph of one role in both bundles.

    layers: tensors that both have. parts_at: the first of them whose error is above the threshold, None where none is.
    jumps_at: the one at which the error grows most. relative_rms: the largest of the graph's outputs. note: why nothing
    could be compared.
    """

    role: str
    runs: int
    relative_rms: float | None
    parts_at: LayerError | None
    jumps_at: LayerError | None
    layers: tuple[LayerError, ...]
    note: str | None = None


@dataclass(frozen=True)
class TokenDifference:
    """The first step at which two generated texts differ, counted from 0; tokens as text, None where one has ended."""

    step: int
    first: str | None
    second: str | None


@dataclass(frozen=True)
class ChangedAnswer:
    """An example that the two answer differently. reference: the right answer where it is known."""

    number: int
    image: str
    text: str | None
    reference: str | None
    first: str
    second: str
    token: TokenDifference | None


@dataclass(frozen=True)
class CompareReport:
    """Two bundles, or one on two providers, on the same examples.

    first, second: bundle and provider. examples: how many were answered by both. agreement: the share of those whose
    answers are the same. right: how many answers of each equal the reference, None where there are none. threshold: of
    the relative error above which layers count as parted.
    """

    first: str
    second: str
    data: str
    examples: int
    agreement: float
    right: tuple[int, int] | None
    threshold: float
    components: Mapping[str, Component]
    changes: tuple[ChangedAnswer, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        values = asdict(self)
        values["components"] = {role: asdict(component) for role, component in self.components.items()}
        return values
