"""What all towers of layers one after the other have in common: which of the tokens on the way come out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["WHOLE", "Features", "Tower"]


@dataclass(frozen=True)
class Features:
    """Which of a tower's tokens are read.

    layers: after which layers, as Transformers counts hidden states: 0 is before the first layer, -1 after the last
        one, before the last norm; tokens of several are put beside each other. None is what the model itself gives.
    first: whether the first token, which in most towers is the class token, is among them.
    """

    layers: tuple[int, ...] | None = None
    first: bool = True


WHOLE = Features()
"""All that the model itself gives."""


class Tower(nn.Module):
    """Images `[batch, 3, side, side]` to tokens `[batch, tokens, width]`, with no more layers than these need."""

    def __init__(
        self,
        embeddings: nn.Module,
        layers: Iterable[nn.Module],
        norm: nn.Module | None,
        features: Features,
    ) -> None:
        """What the tower is made of.

        Args:
            embeddings: images to tokens.
            layers: tokens to as many.
            norm: what the model's own result has gone through after the last layer.
        """
        super().__init__()
        every = list(layers)
        count = len(every) + 1
        self.read = (count - 1,) if features.layers is None else tuple(number % count for number in features.layers)
        self.embeddings = embeddings
        self.layers = nn.ModuleList(every[: max(self.read)])
        self.norm = norm if features.layers is None else None
        self.skipped = 0 if features.first else 1

    def forward(self, pixel_values: Tensor) -> Tensor:
        states = [cast(Tensor, self.embeddings(pixel_values))]
        for layer in self.layers:
            states.append(layer(states[-1]))
        found = [states[number] for number in self.read]
        tokens = found[0] if len(found) == 1 else torch.cat(found, -1)
        tokens = tokens if self.norm is None else self.norm(tokens)
        return tokens[:, self.skipped :] if self.skipped else tokens
