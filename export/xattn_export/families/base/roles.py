"""One graph of a bundle, as a family describes it: its module, what the module must compute, its inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from xattn_runtime.bundle.contract import key_value_names

__all__ = ["Role", "Symbol", "TensorSpec", "cross_specs", "key_value_specs"]

Symbol = Literal[
    "batch", "length", "past", "frozen", "rows", "context", "regions", "frames", "pictures", "patches", "images"
]


@dataclass(frozen=True)
class TensorSpec:
    """An input of a role.

    name: as in the bundle format.
    shape: an int for a static axis, else its symbol: `length` new tokens after `past` ones, and `frozen` ones before
        these in a split cache, of `rows` as many as the batch or one for all, and `context` tokens of
        another text, or of an image, or `regions` of an image, that they attend to; `frames` of speech, `pictures` (the
        frames) of a video; `patches` of an image, `images` in a prompt.
    values: what sane values are: `normal` (float32), `token_ids` (int64 below `limit`), `mask` (int64, 1 for a token
        and 0 for the padding on its right), `image` (float32, zeros below and to the right of an image), `grid` (int64
        `[2]`, rows and columns of `patches`), or `grids` (int64 `[batch, images, 2]`, rows and columns of the image
        tokens of each image, `context` in all, zeros for an image that a row lacks).
    sizes_px: heights and widths that images have, in pixels; of `image`.
    fewest: tokens of the shortest row of a mask.
    ends_with: of token ids, the last one of every row, where the model looks for it.
    placeholder: of token ids, the one that marks an image token; a row has it `context` times where it is long
        enough, and else not at all.
    in_runs: of token ids, whether the placeholders of each image, as the `grids` beside them say, stand together.
    """

    name: str
    shape: tuple[int | Symbol, ...]
    values: Literal["normal", "token_ids", "mask", "image", "grid", "grids"]
    limit: int = 0
    sizes_px: tuple[tuple[int, int], ...] = ()
    ends_with: int | None = None
    placeholder: int | None = None
    in_runs: bool = False
    fewest: int = 1


@dataclass(frozen=True)
class Role:
    """One graph of a bundle.

    name: `image_encoder`, `text_encoder`, `decoder` or `classifier`.
    module: what is exported; takes the inputs in order, returns the outputs in order. It may hold symbolic ONNX
        operators, which torch cannot compute.
    reference: the original model behind the same inputs and outputs; what the graph must compute.
    longest: the most positions (`past` and `length` together), for a role that has them.
    attends: whether the module computes attention, which `standard` then demands as the operator `Attention`.
    prefix: how much `past` holds at the least: the image tokens that a cache begins with.
    traced: of a role whose cache is split, the role that is exported before it is.
    """

    name: str
    module: nn.Module
    reference: Callable[..., tuple[Tensor, ...]]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    longest: int | None = None
    attends: bool = True
    prefix: int = 0
    traced: Role | None = None


def key_value_specs(
    series: str, layers: int, heads: int, tokens: int | Symbol, head_width: int
) -> tuple[TensorSpec, ...]:
    """The keys and values of `series` that a role takes: `SERIES_key_0`, `SERIES_value_0`, …, of `tokens` each."""
    return tuple(
        TensorSpec(name, ("batch", heads, tokens, head_width), "normal") for name in key_value_names(series, layers)
    )


def cross_specs(layers: int, heads: int, image_tokens: int, head_width: int) -> tuple[TensorSpec, ...]:
    """The cross keys and values that a decoder or classifier takes, `cross_key_0`, `cross_value_0`, …"""
    return key_value_specs("cross", layers, heads, image_tokens, head_width)
