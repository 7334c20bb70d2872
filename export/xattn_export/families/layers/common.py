"""The layers that graphs are re-expressed with: attention as one ONNX operator each, and fewer, wider products.

Tensors between layers stay `[batch, length, heads × head_width]`, as the operator takes them: no reshaping, no
transposing. What is cached, or computed once an image, is `[batch, heads, tokens, head_width]`, as the bundle format
says.
Only for export; torch computes them too. https://onnx.ai/onnx/operators/onnx__Attention.html
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn_edge.attention import KeyValue, split_heads

__all__ = [
    "RmsNorm",
    "attend",
    "attend_heads",
    "attend_with_cache",
    "embed_with_image",
    "for_each_image",
    "fuse_linears",
    "head",
    "image_places",
    "normalized",
    "padding_mask",
    "placed_image",
    "places",
]


class RmsNorm(nn.Module):
    """`x / sqrt(mean(x²) + epsilon) × weight`, over the last axis: written so that ONNX Runtime makes it one kernel."""

    def __init__(self, norm: Any, offset: float = 0.0) -> None:
        """`norm`: of Transformers, T5's or a Llama's; `offset`: added to its weight."""
        super().__init__()
        self.weight = nn.Parameter((norm.weight + offset).detach(), requires_grad=False) if offset else norm.weight
        self.epsilon = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps

    def forward(self, tokens: Tensor) -> Tensor:
        size = torch.sqrt(tokens.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return tokens / size * self.weight


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    *,
    kv_heads: int | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Attention over tensors of rank 3.

    Args:
        query: `[batch, length, heads × head_width]`.
        key: `[batch, tokens, kv_heads × head_width]`; `value` likewise.
        heads: of the query; `kv_heads`, where there are fewer, divides it (grouped queries).
        mask: bool, true where attention is allowed, or float, added to the scores: `[length, tokens]` or
            `[batch or 1, heads or 1, length, tokens]`.
        causal: the query at `i` sees the keys up to `i`.
        scale: of the scores; by default `1 / sqrt(head_width)`.

    Returns:
        `[batch, length, heads × head_width]`.
    """
    output, _, _, _ = torch.onnx.ops.attention(
        query,
        key,
        value,
        mask,
        is_causal=causal,
        q_num_heads=heads,
        kv_num_heads=kv_heads or heads,
        scale=scale,
    )
    return output


def attend_with_cache(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past: KeyValue,
    heads: int,
    *,
    kv_heads: int | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, KeyValue]:
    """Attention of new tokens to those of the cache and to each other, and the longer cache.

    Without `mask` it is causal: every token sees the whole cache, itself and the new tokens before it.

    Args:
        query, key, value: of the new tokens, as for `attend`.
        past: `[batch, kv_heads, past, head_width]` each; `past` may be 0.
        mask: as for `attend`, over `past + length` tokens.
        softcap: scores become `tanh(score / softcap) × softcap` before they are masked; None for none. Torch's own
            computation of the operator masks first: only the exported graph is right.
    """
    output, present_key, present_value, _ = torch.onnx.ops.attention(
        query,
        key,
        value,
        mask,
        past.key,
        past.value,
        is_causal=mask is None,
        q_num_heads=heads,
        kv_num_heads=kv_heads or heads,
        scale=scale,
        softcap=softcap or 0.0,
    )
    return output, KeyValue(present_key, present_value)


def attend_heads(query: Tensor, context: KeyValue, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Attention of `query` `[batch, length, heads × head_width]` to keys and values split into heads already.

    `context` is `[batch, heads, tokens, head_width]` each, `mask` as for `attend`; the shape of `query` comes out.
    """
    split = split_heads(query, context.key.shape[1])
    output, _, _, _ = torch.onnx.ops.attention(split, context.key, context.value, mask, scale=scale)
    return output.transpose(1, 2).flatten(2)


def embed_with_image(
    input_ids: Tensor, image_tokens: Tensor, words: nn.Embedding, placeholder: int, past: int
) -> Tensor:
    """Tokens to vectors; at the n-th `placeholder` of a row stands the row's n-th image token.

    After a cache a placeholder is a token like others: the image stands in the prompt.

    Args:
        input_ids: int64 `[batch, length]`, with as many placeholders a row as there are image tokens.
        image_tokens: `[batch, tokens, width]`.
        words: the table of vectors, of the same width.
        past: how many tokens the cache holds.

    Returns:
        `[batch, length, width]`.
    """
    is_image = image_places(input_ids, placeholder, past)
    return torch.where(is_image[..., None], placed_image(is_image, image_tokens), words(input_ids))


def image_places(input_ids: Tensor, placeholder: int, past: int) -> Tensor:
    """Where a prompt has image tokens, bool `[batch, length]`; nowhere after a cache of `past` tokens."""
    # A tensor, not a condition: one graph serves a prompt and what comes after it.
    is_prompt = torch.arange(past, past + 1, device=input_ids.device) == 0
    return (input_ids == placeholder) & is_prompt


def placed_image(is_image: Tensor, image_tokens: Tensor) -> Tensor:
    """The n-th image token `[batch, tokens, width]` at the n-th place of a row of `is_image` `[batch, length]`.

    What stands at the other places, `[batch, length, width]`, is of no use.
    """
    batch, tokens, _ = image_tokens.shape
    number = (is_image.long().cumsum(1) - 1).clamp(min=0)
    rows = torch.arange(batch, device=is_image.device)[:, None] * tokens
    return F.embedding(rows + number, image_tokens.flatten(0, 1))


def head(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`logits`, `next_token` and `next_log_prob` of logits `[batch, vocabulary]`."""
    return logits, logits.argmax(-1), logits.log_softmax(-1).amax(-1)


def for_each_image(rows: Tensor, tokens: Tensor) -> Tensor:
    """`rows` once for every image of `tokens` `[batch, tokens, …]`.

    No shape is read for it: OpenVINO would read it from the convolution of the pixels, and then, in int8-static, take
    one channel's range for all (docs/conformance.md).

    Args:
        rows: `[1, length, width]`, or `[width]` of a single one.

    Returns:
        `[batch, length, width]`.
    """
    return rows + tokens[:, :1, :1] * 0.0


def normalized(features: Tensor) -> Tensor:
    """`features` of length 1 along the last axis, as `functional.normalize`, but without reading a shape."""
    length: Tensor = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    return features / length.clamp_min(1e-12)


def padding_mask(attention_mask: Tensor, queries: int | None = None) -> Tensor:
    """Int64 `[batch, length]`, 1 for a token, to bool `[batch, 1, queries, length]`: every query sees all tokens.

    queries: how many there are; by default the tokens themselves.
    """
    rows = attention_mask.shape[1] if queries is None else queries
    return attention_mask.to(torch.bool)[:, None, None, :].expand(-1, 1, rows, -1)


def places(tokens: Tensor, past: int = 0) -> Tensor:
    """Numbers of the positions of new tokens `[batch, length, …]` after `past` others, `[length]`, for a lookup.

    A slice of a table of positions would bind the lengths to the table's size in the exported program.
    """
    return torch.arange(past, past + tokens.shape[1], device=tokens.device)


def fuse_linears(*linears: nn.Linear) -> nn.Linear:
    """One layer whose output is the outputs of `linears`, which share their input, one after the other.

    A missing bias counts as zeros, unless all are missing.
    """
    first = linears[0]
    biased = any(linear.bias is not None for linear in linears)
    fused = nn.Linear(first.in_features, sum(each.out_features for each in linears), bias=biased, device="meta")
    weights = torch.cat([each.weight for each in linears]).detach()
    fused.weight = nn.Parameter(weights, requires_grad=False)
    if biased:
        biases = [
            cast(Tensor, weights.new_zeros(each.out_features) if each.bias is None else each.bias) for each in linears
        ]
        fused.bias = nn.Parameter(torch.cat(biases).detach(), requires_grad=False)
    return fused
