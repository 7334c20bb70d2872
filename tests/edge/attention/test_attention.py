"""Attention and the layers made of it, against the formulas written out."""

import math

import pytest
import torch

from xattn_edge.attention import KeyValue, MultiHeadAttention, causal_mask
from xattn_edge.encoders import SelfAttentionLayer
from xattn_edge.fusion import CrossAttentionLayer


def written_out(attention, queries, context, mask=None):
    """Softmax(q kᵀ / √width) v, a head at a time, with loops instead of reshaping."""
    width = queries.shape[-1] // attention.heads
    heads = []
    for head in range(attention.heads):
        rows = slice(head * width, (head + 1) * width)
        q = queries @ attention.query.weight[rows].T + attention.query.bias[rows]
        k = context @ attention.key.weight[rows].T + attention.key.bias[rows]
        v = context @ attention.value.weight[rows].T + attention.value.bias[rows]
        scores = q @ k.transpose(1, 2) / math.sqrt(width)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        heads.append(scores.softmax(-1) @ v)
    return torch.cat(heads, -1) @ attention.output.weight.T + attention.output.bias


@pytest.mark.parametrize(("heads", "context_width"), [(1, None), (4, None), (2, 12)])
def test_multi_head_attention_is_the_formula(heads, context_width):
    torch.manual_seed(0)
    attention = MultiHeadAttention(8, heads, context_width)
    queries, context = torch.randn(2, 3, 8), torch.randn(2, 5, context_width or 8)
    found = attention(queries, attention.project_context(context))
    torch.testing.assert_close(found, written_out(attention, queries, context))


def test_a_mask_leaves_positions_out():
    torch.manual_seed(0)
    attention = MultiHeadAttention(8, 2)
    tokens, mask = torch.randn(1, 4, 8), causal_mask(4, 0, torch.device("cpu"))
    found = attention(tokens, attention.project_context(tokens), mask)
    torch.testing.assert_close(found, written_out(attention, tokens, tokens, mask))


def test_projected_context_has_the_documented_shape():
    context = MultiHeadAttention(8, 4, 6).project_context(torch.randn(2, 5, 6))
    assert isinstance(context, KeyValue)
    assert [tuple(tensor.shape) for tensor in context] == [(2, 4, 5, 2)] * 2


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="3 heads do not divide a width of 8"):
        MultiHeadAttention(8, 3)


def test_causal_mask_after_a_past():
    assert causal_mask(2, 3, torch.device("cpu")).int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


@pytest.mark.parametrize("layer", [SelfAttentionLayer(8, 2), CrossAttentionLayer(8, 2)])
def test_layers_add_to_their_input(layer):
    """With the last linear maps at zero a residual layer passes its input through."""
    for linear in (layer.attention.output, layer.feed_forward[-1]):
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    tokens = torch.randn(2, 3, 8)
    if isinstance(layer, CrossAttentionLayer):
        assert torch.equal(layer(tokens, layer.project_context(torch.randn(2, 5, 8))), tokens)
    else:
        assert torch.equal(layer(tokens), tokens)
