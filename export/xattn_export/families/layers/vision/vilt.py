"""ViLT's layers around a checkpoint's own weights, over flat tensors, with one `Attention` operator each.

The architecture is that of https://arxiv.org/abs/2102.03334; names are those of Transformers' modeling_vilt.py. Its
`visual_embed` loops over the images of a batch, interpolates to sizes that depend on them and draws patches in random
order; none of this can be traced. Here the sizes are arithmetic on tensors: an image's patches come row by row, and
their positions are products of weights that are bilinear interpolation written out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn_export.families.layers.common import attend, fuse_linears, padding_mask

if TYPE_CHECKING:
    from transformers import ViltForQuestionAnswering

__all__ = ["ViltAnswerGraph", "ViltCanvas", "ViltPatchGraph"]


@dataclass(frozen=True)
class ViltCanvas:
    """What images are laid on, above and on the left, zeros beside them: a square of `side_px`.

    most_patches: of `patch_px` squared, that an image can have.
    """

    side_px: int
    patch_px: int
    most_patches: int

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width."""
        return self.side_px, self.side_px

    @property
    def tokens(self) -> int:
        """Image tokens, one of which represents the whole image."""
        return 1 + self.most_patches


class ViltPatchGraph(nn.Module):
    """Images on canvases `[batch, 3, side, side]` to `image_tokens` `[batch, tokens, width]` and `image_mask`.

    Tokens are those of upstream's `image_embeds`: projected patches with interpolated positions, without modality. What
    an image has fewer than `ViltCanvas.tokens` is zero, and masked.
    """

    def __init__(self, model: ViltForQuestionAnswering, canvas: ViltCanvas) -> None:
        super().__init__()
        embeddings = model.vilt.embeddings
        self.projection = embeddings.patch_embeddings.projection
        self.first = embeddings.cls_token + embeddings.position_embeddings[:, :1]
        self.positions = embeddings.position_embeddings[0, 1:]
        self.grid = int(model.config.image_size) // canvas.patch_px
        self.canvas = canvas

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        batch = pixel_values.shape[0]
        height, width = self._size(pixel_values)
        number = torch.arange(self.canvas.most_patches, device=pixel_values.device)[None]
        filled = number < height * width
        # Counted, since a quotient of integers would be one of floats in the graph.
        ends = width[:, :, None] * torch.arange(1, self.canvas.side_px // self.canvas.patch_px)
        row = torch.where(filled, (number[:, :, None] >= ends).sum(-1), 0)
        column = number % width
        patches = self._patches(pixel_values, row, column) + self._positions(row, column, height, width)
        tokens = torch.where(filled[:, :, None], patches, 0.0)
        mask = torch.cat((torch.ones_like(filled[:, :1]), filled), 1).to(torch.int64)
        return torch.cat((self.first.expand(batch, -1, -1), tokens), 1), mask

    def _size(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Height and width in patches of each image, int64 `[batch, 1]`; a patch counts if its corner is not 0."""
        step = self.canvas.patch_px
        rows = (pixel_values[:, :, ::step, 0] != 0).any(1)
        columns = (pixel_values[:, :, 0, ::step] != 0).any(1)
        return rows.sum(1, keepdim=True).clamp(min=1), columns.sum(1, keepdim=True).clamp(min=1)

    def _patches(self, pixel_values: Tensor, row: Tensor, column: Tensor) -> Tensor:
        projected = self.projection(pixel_values)
        index = row * projected.shape[3] + column
        patches = projected.flatten(2).transpose(1, 2)
        return cast(Tensor, patches.gather(1, index[:, :, None].expand(-1, -1, patches.shape[2])))

    def _positions(self, row: Tensor, column: Tensor, height: Tensor, width: Tensor) -> Tensor:
        """`[batch, patches, width]`: bilinear between the positions of the grid, corners on corners."""
        down, across = self._weights(row, height), self._weights(column, width)
        return cast(Tensor, (down[:, :, :, None] * across[:, :, None, :]).flatten(2) @ self.positions)

    def _weights(self, place: Tensor, length: Tensor) -> Tensor:
        """`[batch, patches, grid]`: what each line of the grid counts at `place` of `length` lines."""
        scale = (self.grid - 1) / (length - 1).clamp(min=1).to(torch.float32)
        lines = torch.arange(self.grid, device=place.device, dtype=torch.float32)
        return F.relu(1 - (place.to(torch.float32) * scale)[:, :, None].sub(lines).abs())


class ViltAnswerGraph(nn.Module):
    """Question and image tokens to logits `[batch, answers]`, and the probability of each answer by itself.

    The model is trained on every answer apart, by binary cross-entropy: hence a sigmoid.
    """

    def __init__(self, model: ViltForQuestionAnswering) -> None:
        super().__init__()
        vilt = model.vilt
        self.text = vilt.embeddings.text_embeddings
        self.modalities = vilt.embeddings.token_type_embeddings
        self.layers = nn.ModuleList(ViltLayer(layer) for layer in vilt.encoder.layer)
        self.norm = vilt.layernorm
        self.pooler = vilt.pooler
        self.classifier = model.classifier

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, image_tokens: Tensor, image_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        words, image = self._words(input_ids) + self.modalities.weight[0], image_tokens + self.modalities.weight[1]
        tokens = torch.cat((words, image), 1)
        mask = padding_mask(torch.cat((attention_mask, image_mask), 1))
        for layer in self.layers:
            tokens = layer(tokens, mask)
        logits = self.classifier(self.pooler(self.norm(tokens[:, :1])))
        return logits, logits.sigmoid()

    def _words(self, input_ids: Tensor) -> Tensor:
        text = self.text
        # By lookup: a slice of the table would bind the lengths to its size in the exported program.
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        positions = F.embedding(places, text.position_embeddings.weight)
        words = text.word_embeddings(input_ids) + text.token_type_embeddings.weight[0] + positions
        return cast(Tensor, text.LayerNorm(words))


class ViltLayer(nn.Module):
    """Attention, then a feed-forward network, each on normalised tokens."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention = layer.attention.attention
        self.heads = attention.num_attention_heads
        self.qkv = fuse_linears(attention.query, attention.key, attention.value)
        self.attention_norm = layer.layernorm_before
        self.attention_output = layer.attention.output.dense
        self.intermediate = layer.intermediate
        self.output = layer.output
        self.output_norm = layer.layernorm_after

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        query, key, value = self.qkv(self.attention_norm(tokens)).chunk(3, -1)
        tokens = tokens + self.attention_output(attend(query, key, value, self.heads, mask=mask))
        return cast(Tensor, self.output(self.intermediate(self.output_norm(tokens)), tokens))
