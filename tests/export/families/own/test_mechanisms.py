"""Attention as a graph: standard operators only, and what torch computes at every batch and length.

Whole mechanisms are in test_combinations.py, as parts of models that go all the way.
"""

import pytest
import torch
from torch import nn

from xattn_edge.attention import (
    AttentionOptions,
    CrossModalAttention,
    MechanismConfig,
    Tokens,
)
from xattn_export.decompose import decompose_attention
from xattn_export.families.base import Role, TensorSpec
from xattn_export.graph.conformance import examine
from xattn_export.parity import check_parity
from xattn_export.to_onnx import choose_opset, export_graph

WIDTH, LONGEST = 8, 9


def role(name, module, inputs, outputs, attends):
    """A role whose reference is the module itself, in evaluation mode and with random weights of a sane size."""
    torch.manual_seed(2)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return Role(
        name, module.eval(), lambda *tensors: module(*tensors), inputs, outputs, longest=LONGEST, attends=attends
    )


def check(role, attentions):
    """In both forms where attention is the operator; the decomposed one is made of the other, as the exporter does."""
    model = export_graph(role, "standard", choose_opset("standard", None))
    forms = {attentions: model}
    if attentions:
        forms[0] = decompose_attention(model, opset=choose_opset("decomposed", None))
    for count, form in forms.items():
        facts = examine(form)
        assert facts.standard
        assert facts.operators.get("Attention", 0) == count
        assert check_parity(form, role).cases == 8


def sequence(name, count, fewest=1):
    """Tokens and their mask; with `fewest` 0 some rows are masked throughout."""
    return (
        TensorSpec(name, ("batch", count, WIDTH), "normal"),
        TensorSpec(f"{name}_mask", ("batch", count), "mask", fewest=fewest),
    )


class ExchangeGraph(nn.Module):
    """A mechanism over flat tensors; padding reads zeros."""

    def __init__(self, mechanism):
        super().__init__()
        self.mechanism = mechanism

    def forward(self, text, text_mask, image, image_mask):
        sides = Tokens(text, text_mask.bool()), Tokens(image, image_mask.bool())
        exchange = self.mechanism(*sides, need_weights=False)
        pairs = zip(exchange[:2], sides, strict=True)
        read = tuple(found.masked_fill(~side.mask[..., None], 0.0) for found, side in pairs if found is not None)
        # A side that reads nothing passes by, so that its mask is used all the same.
        return read if len(read) == 2 else (*read, sum(each.mask.sum() for each in sides))


@pytest.mark.slow
def test_groups_of_frames_whose_number_differs():
    graph = ExchangeGraph(MechanismConfig(name="hierarchical").build(WIDTH))
    inputs = (*sequence("text", "length"), *sequence("image", "context"))
    check(role("frames", graph, inputs, ("text_read", "image_read"), False), 0)


class AttentionGraph(nn.Module):
    """An attention over flat tensors; with its weights, where they are wanted."""

    def __init__(self, attention, need_weights):
        super().__init__()
        self.attention = attention
        self.need_weights = need_weights

    def forward(self, query, context, context_mask):
        found = self.attention(query, context, context, mask=context_mask.bool(), need_weights=self.need_weights)
        return (found.output, found.weights) if self.need_weights else (found.output,)


INPUTS = (TensorSpec("query", ("batch", "length", WIDTH), "normal"), *sequence("context", "context", fewest=0))


@pytest.mark.parametrize(
    ("similarity", "weighting", "top_k"),
    [("dot", "hard", 2), ("additive", "soft", 1)],
)
def test_weights(similarity, weighting, top_k):
    """Fully masked rows among them."""
    options = AttentionOptions(heads=2, similarity=similarity, weighting=weighting, top_k=top_k)
    graph = AttentionGraph(CrossModalAttention(WIDTH, WIDTH, WIDTH, options), True)
    check(role(similarity, graph, INPUTS, ("output", "weights"), False), 0)


@pytest.mark.parametrize(("similarity", "kv_heads"), [("dot", 4), ("scaled_dot", 2)])
def test_soft_attention_by_products_is_one_operator(similarity, kv_heads):
    """Fully masked rows among them."""
    options = AttentionOptions(heads=4, kv_heads=kv_heads, similarity=similarity)
    graph = AttentionGraph(CrossModalAttention(WIDTH, WIDTH, WIDTH, options), False)
    check(role(similarity, graph, INPUTS, ("output",), True), 1)
