"""From a decoder's vectors to logits, as the causal language models of Transformers do it."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

__all__ = ["LanguageHead"]


class LanguageHead(nn.Module):
    """Vectors `[…, width]` to logits `[…, vocabulary]`: divided (Granite), or capped (Gemma 2, PaliGemma 2).

    Whether a model divides or caps is said by the class that has the head, not by the text model: Gemma 3 with images
    ignores the cap of its text configuration.
    """

    def __init__(self, linear: Any, *, divisor: float = 1.0, softcap: float | None = None) -> None:
        """`linear`: the weights, which may be those of the words (tied)."""
        super().__init__()
        self.linear = linear
        self.divisor = divisor
        self.softcap = softcap

    def forward(self, tokens: Tensor) -> Tensor:
        logits = cast(Tensor, self.linear(tokens))
        if self.divisor != 1.0:
            logits = logits / self.divisor
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap
