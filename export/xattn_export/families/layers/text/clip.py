"""The text encoder of CLIP and SigLIP around a checkpoint's own weights, over flat tensors.

It knows neither how states are pooled nor which tokens see each other: that is the family's affair.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from xattn_export.families.layers.clip import ClipLayer
from xattn_export.families.layers.common import places

__all__ = ["ClipTextEncoder"]


class ClipTextEncoder(nn.Module):
    """Token ids `[batch, length]` to states `[batch, length, width]`, normalised."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.words = model.embeddings.token_embedding
        self.positions = model.embeddings.position_embedding
        self.layers = nn.ModuleList(ClipLayer(layer) for layer in model.encoder.layers)
        self.norm = model.final_layer_norm

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """`mask` as for `attend`."""
        numbers = places(input_ids)
        tokens = self.words(input_ids) + F.embedding(numbers, self.positions.weight)
        for layer in self.layers:
            tokens = layer(tokens, mask)
        return cast(Tensor, self.norm(tokens))
