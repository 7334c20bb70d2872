"""The manifest's `calibration`: what makes confidences come true as often as they say.

Temperature scaling: logits are divided by one number, fitted to held-out answers, so that the order of answers stays.
Guo et al., On Calibration of Modern Neural Networks, 2017, https://arxiv.org/abs/1706.04599
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from xattn_runtime.json_reader import ObjectReader

__all__ = ["ConfidenceCalibration", "read_calibration"]


@dataclass(frozen=True)
class ConfidenceCalibration:
    """A temperature, and what it changed.

    data: where it was fitted. fitted, held_out: answers that it was fitted to, and others that it was tried on.
    ece_before, ece_after: the expected calibration error of the latter, from 0 to 1.
    """

    temperature: float
    data: str
    fitted: int
    held_out: int
    ece_before: float
    ece_after: float

    def to_dict(self) -> Mapping[str, Any]:
        """As JSON values; `read_calibration` takes them back."""
        return asdict(self)


def read_calibration(reader: ObjectReader) -> ConfidenceCalibration:
    """What a manifest says; BundleError for a key that is missing, unknown or of a wrong value."""
    calibration = ConfidenceCalibration(
        temperature=reader.positive("temperature"),
        data=reader.text("data"),
        fitted=reader.integer("fitted"),
        held_out=reader.integer("held_out"),
        ece_before=reader.number("ece_before"),
        ece_after=reader.number("ece_after"),
    )
    reader.finish()
    return calibration
