"""Projected keys and values, causal masks, and the layer of Transformers made of attention."""

import math

import pytest
import torch

from xattn_edge.attention import CrossModalAttention, KeyValue, causal_mask, transformer_options
from xattn_edge.encoders import SelfAttentionLayer


def written_out(attention, queries, context, mask=None):
    """Softmax(q kᵀ / √width) v, a head at a time, with loops instead of reshaping."""
    heads = attention.options.heads
    width = queries.shape[-1] // heads
    outputs = []
    for head in range(heads):
        rows = slice(head * width, (head + 1) * width)
        q, k, v = (
            tokens @ linear.weight[rows].T + linear.bias[rows]
            for tokens, linear in (
                (queries, attention.q_linear),
                (context, attention.k_linear),
                (context, attention.v_linear),
            )
        )
        scores = q @ k.transpose(1, 2) / math.sqrt(width)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        outputs.append(scores.softmax(-1) @ v)
    return torch.cat(outputs, -1) @ attention.out_linear.weight.T + attention.out_linear.bias


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_of_projected_keys_is_the_formula(heads):
    torch.manual_seed(0)
    attention = CrossModalAttention(8, 8, 8, transformer_options(heads))
    queries, context = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    found = attention.attend(queries, attention.project(context, context), need_weights=False)
    torch.testing.assert_close(found.output, written_out(attention, queries, context))


def test_a_mask_leaves_positions_out():
    torch.manual_seed(0)
    attention = CrossModalAttention(8, 8, 8, transformer_options(2))
    tokens, mask = torch.randn(1, 4, 8), causal_mask(4, 0, torch.device("cpu"))
    found = attention.attend(tokens, attention.project(tokens, tokens), mask, need_weights=False)
    torch.testing.assert_close(found.output, written_out(attention, tokens, tokens, mask))


def test_projected_keys_have_the_documented_shape():
    context = torch.randn(2, 5, 8)
    projected = CrossModalAttention(6, 8, 8, transformer_options(4)).project(context, context)
    assert isinstance(projected, KeyValue)
    assert [tuple(tensor.shape) for tensor in projected] == [(2, 4, 5, 2)] * 2


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="dim_k: expected a positive multiple of 3 heads, found 8"):
        SelfAttentionLayer(8, 3)


def test_causal_mask_after_a_past():
    assert causal_mask(2, 3, torch.device("cpu")).int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_a_layer_adds_to_its_input():
    """With the last linear maps at zero a residual layer passes its input through."""
    layer = SelfAttentionLayer(8, 2)
    for linear in (layer.attention.out_linear, layer.feed_forward[-1]):
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    tokens = torch.randn(2, 3, 8)
    assert torch.equal(layer(tokens), tokens)
