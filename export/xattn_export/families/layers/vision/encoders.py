"""Image encoders of Transformers around a checkpoint's own weights: ViT, DeiT and Swin, for images of one size.

ViT: https://arxiv.org/abs/2010.11929; DeiT: https://arxiv.org/abs/2012.12877; Swin: https://arxiv.org/abs/2103.14030.
Names are those of modeling_vit.py, modeling_deit.py and modeling_swin.py. It knows images and their tokens, no text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn_export.families.layers.common import attend, for_each_image, fuse_linears
from xattn_runtime.errors import CheckpointError

__all__ = ["ENCODERS", "check_encoder", "image_size_px"]


class VitEncoder(nn.Module):
    """Image `[batch, 3, height, width]` to tokens `[batch, special + patches, width]`, normalised.

    The special token is ViT's class token; DeiT has a distillation token after it.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        embeddings = model.embeddings
        self.patches = embeddings.patch_embeddings
        special = [embeddings.cls_token]
        if model.config.model_type == "deit":
            special.append(embeddings.distillation_token)
        self.special = nn.Parameter(torch.cat(special, 1), requires_grad=False)
        self.positions = embeddings.position_embeddings
        self.layers = nn.ModuleList(VitLayer(layer) for layer in model.layers)
        self.norm = model.layernorm

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patches(pixel_values)
        tokens = torch.cat((for_each_image(self.special, patches), patches), 1) + self.positions
        for layer in self.layers:
            tokens = layer(tokens)
        return cast(Tensor, self.norm(tokens))


class VitLayer(nn.Module):
    """Attention, then a feed-forward network, each on normalised tokens."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.attention = VitAttention(layer.attention)
        self.attention_norm = layer.layernorm_before
        self.feed_forward = layer.mlp
        self.feed_forward_norm = layer.layernorm_after

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.attention_norm(tokens))
        return cast(Tensor, tokens + self.feed_forward(self.feed_forward_norm(tokens)))


class VitAttention(nn.Module):
    """Attention of tokens to each other, with one product for queries, keys and values."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.heads = attention.num_attention_heads
        self.scale = attention.scaling
        self.qkv = fuse_linears(attention.q_proj, attention.k_proj, attention.v_proj)
        self.output = attention.o_proj

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        query, key, value = self.qkv(tokens).chunk(3, -1)
        return cast(Tensor, self.output(attend(query, key, value, self.heads, mask=mask, scale=self.scale)))


class SwinEncoder(nn.Module):
    """Image `[batch, 3, height, width]` to the tokens of the last stage `[batch, patches, width]`, normalised."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.embeddings = model.embeddings
        self.norm = model.layernorm
        grid = _swin_grid(model.config)
        layers: list[nn.Module] = []
        for stage in model.encoder.layers:
            layers += [SwinLayer(block, grid) for block in stage.blocks]
            if stage.downsample is not None:
                layers.append(SwinMerging(stage.downsample, grid))
                grid = (-(-grid[0] // 2), -(-grid[1] // 2))
        self.layers = nn.ModuleList(layers)

    def forward(self, pixel_values: Tensor) -> Tensor:
        tokens, _ = self.embeddings(pixel_values)
        for layer in self.layers:
            tokens = layer(tokens)
        return cast(Tensor, self.norm(tokens))


class SwinLayer(nn.Module):
    """Attention within windows, shifted or not, then a feed-forward network, each on normalised tokens.

    Padding, shift and windows of a grid of one size are one choice of tokens; what undoes them is another.
    """

    places: Tensor
    back: Tensor
    barred: Tensor | None

    def __init__(self, block: Any, grid: tuple[int, int]) -> None:
        super().__init__()
        window = min(block.window_size, *grid)
        shift = 0 if min(grid) <= block.window_size else block.shift_size
        places = _window_places(grid, window, shift)
        self.area = window * window
        self.windows = len(places)
        self.padded = bool((places == grid[0] * grid[1]).any())
        self.attention = VitAttention(block.attention)
        self.bias = block.attention.relative_position_bias
        self.attention_norm = block.layernorm_before
        self.feed_forward = block.mlp
        self.feed_forward_norm = block.layernorm_after
        self.register_buffer("places", places.flatten(), persistent=False)
        self.register_buffer("back", places.flatten().argsort()[: grid[0] * grid[1]], persistent=False)
        self.register_buffer("barred", _shift_mask(grid, window, shift) if shift else None, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.attention_norm(tokens)
        chosen = _choose(normed, self.places, self.padded)
        windows = chosen.reshape(-1, self.area, tokens.shape[2])
        attended = self.attention(windows, self._mask(tokens.shape[0]))
        attended = attended.reshape(-1, self.windows * self.area, tokens.shape[2])
        tokens = tokens + attended.index_select(1, self.back)
        return cast(Tensor, tokens + self.feed_forward(self.feed_forward_norm(tokens)))

    def _mask(self, batch: int) -> Tensor:
        """`[1 or batch × windows, heads, area, area]`, added to the scores."""
        bias = self.bias()
        if self.barred is None:
            return cast(Tensor, bias)
        mask = (bias + self.barred[:, None])[None]
        return cast(Tensor, mask.expand(batch, -1, -1, -1, -1).flatten(0, 1))


class SwinMerging(nn.Module):
    """Every two by two tokens become one of twice the width."""

    places: Tensor

    def __init__(self, merging: Any, grid: tuple[int, int]) -> None:
        super().__init__()
        self.reduction = merging.reduction
        self.norm = merging.norm
        self.padded = grid[0] % 2 == 1 or grid[1] % 2 == 1
        numbers = _numbered(grid, 2)
        quarters = [numbers[row::2, column::2] for column in range(2) for row in range(2)]
        self.register_buffer("places", torch.stack(quarters, -1).flatten(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        chosen = _choose(tokens, self.places, self.padded)
        merged = chosen.reshape(-1, len(self.places) // 4, 4 * tokens.shape[2])
        return cast(Tensor, self.reduction(self.norm(merged)))


def _choose(tokens: Tensor, places: Tensor, padded: bool) -> Tensor:
    """Tokens at `places`; where `padded`, the place after the last one holds zeros."""
    return (F.pad(tokens, (0, 0, 0, 1)) if padded else tokens).index_select(1, places)


def _numbered(grid: tuple[int, int], multiple: int) -> Tensor:
    """The numbers of the tokens of a grid, padded below and on the right to multiples; padding has the next number."""
    height, width = grid
    numbers = torch.arange(height * width).view(height, width)
    return F.pad(numbers, (0, -width % multiple, 0, -height % multiple), value=height * width)


def _windows(values: Tensor, window: int) -> Tensor:
    """`[height, width]` to `[windows, window × window]`."""
    height, width = values.shape
    parts = values.view(height // window, window, width // window, window)
    return parts.transpose(1, 2).reshape(-1, window * window)


def _window_places(grid: tuple[int, int], window: int, shift: int) -> Tensor:
    """Which token of the grid is where in the windows, `[windows, window × window]`."""
    return _windows(_numbered(grid, window).roll((-shift, -shift), (0, 1)), window)


def _shift_mask(grid: tuple[int, int], window: int, shift: int) -> Tensor:
    """-100 where two tokens of a window come from different sides of the image, `[windows, area, area]`."""
    sides = []
    for size in grid:
        place = torch.arange(size + -size % window)
        sides.append((place >= len(place) - window).long() + (place >= len(place) - shift).long())
    regions = _windows(sides[0][:, None] * 3 + sides[1], window)
    return (regions[:, None] != regions[:, :, None]).float() * -100.0


def image_size_px(config: Any) -> tuple[int, int]:
    """Height and width of the images that an encoder with this configuration takes."""
    size = config.image_size
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def check_encoder(path: Path, config: Any) -> None:
    """Refuse what no graph is made for, or what Transformers itself cannot run.

    Raises:
        CheckpointError: names the key of `path`, and its value.
    """
    if config.model_type != "swin":
        return
    grid = _swin_grid(config)
    for _ in config.depths:
        if min(grid) < config.window_size:
            raise CheckpointError(
                f"{path}: encoder.window_size: expected at most {min(grid)}, the fewest tokens along a side of a "
                f"stage's grid, found {config.window_size}"
            )
        grid = (-(-grid[0] // 2), -(-grid[1] // 2))


def _swin_grid(config: Any) -> tuple[int, int]:
    """Rows and columns of patches; an image is padded to whole ones."""
    height, width = image_size_px(config)
    patch = config.patch_size
    rows, columns = (patch, patch) if isinstance(patch, int) else patch
    return -(-height // rows), -(-width // columns)


ENCODERS: Mapping[str, Callable[[Any], nn.Module]] = {"vit": VitEncoder, "deit": VitEncoder, "swin": SwinEncoder}
"""The graph of an encoder by the `model_type` of its configuration; it takes Transformers' model."""
