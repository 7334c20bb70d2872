"""Every mechanism against its equations written out in loops, on random shapes, weights and masks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.edge.attention import reference
from xattn_edge.attention import (
    MECHANISMS,
    SIMILARITIES,
    AttentionOptions,
    CrossModalAttention,
    GraphAttention,
    HierarchicalAttention,
    MechanismConfig,
    Tokens,
)

WIDTH = 8
TOLERANCE = 1e-6
few = settings(max_examples=25, deadline=None)


@st.composite
def options(draw):
    """Any similarity, weighting and number of heads that go together."""
    heads, kv_heads = draw(st.sampled_from([(1, None), (2, None), (4, 2), (2, 1)]))
    weighting, top_k = draw(st.sampled_from([("soft", 1), ("hard", 1), ("hard", 3)]))
    similarity = draw(st.sampled_from(list(SIMILARITIES)))
    return AttentionOptions(heads=heads, kv_heads=kv_heads, similarity=similarity, weighting=weighting, top_k=top_k)


sizes = st.integers(1, 5)
seeds = st.integers(0, 2**31)


def masks(rng, *shape):
    """Some positions left out, and some rows altogether."""
    return (rng.random(shape) < 0.7) & (rng.random(shape[:-1])[..., None] < 0.85)


def tokens(rng, batch, count, width=WIDTH):
    return Tokens(torch.from_numpy(rng.normal(size=(batch, count, width))), torch.from_numpy(masks(rng, batch, count)))


def compare(found, expected):
    if expected[0] is None:
        assert found is None
    else:
        np.testing.assert_allclose(found.detach().numpy(), np.array(expected), atol=TOLERANCE, rtol=0)


@few
@pytest.mark.parametrize("similarity", SIMILARITIES)
@given(options(), seeds, st.tuples(sizes, sizes, sizes), st.sampled_from([None, 2, 3]))
def test_cross_modal_attention(similarity, options, seed, shape, rank):
    options = AttentionOptions(**{**vars(options), "similarity": similarity})
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    batch, queries, count = shape
    module = CrossModalAttention(6, 8, 4, options).double().eval()
    query, context = (torch.from_numpy(rng.normal(size=(batch, n, w))) for n, w in ((queries, 6), (count, 8)))
    full = masks(rng, batch, queries, count)
    mask = {None: np.ones_like(full), 2: full[:, :1].repeat(queries, 1), 3: full}[rank]
    given = {None: None, 2: torch.from_numpy(mask[:, 0]), 3: torch.from_numpy(mask)}[rank]
    found = module(query, context, context, mask=given)
    values = reference.weights_of(module)
    expected = [
        reference.attention(values, options, query[b].numpy(), context[b].numpy(), mask[b]) for b in range(batch)
    ]
    compare(found.output, [each[0] for each in expected])
    compare(found.weights, [each[1] for each in expected])
    compare(module(query, context, context, mask=given, need_weights=False).output, [each[0] for each in expected])


@few
@pytest.mark.parametrize("order", ["groups_first", "members_first"])
@given(options(), seeds, st.tuples(sizes, sizes, sizes, sizes))
def test_hierarchical_attention(order, options, seed, shape):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    batch, queries, groups, members = shape
    module = HierarchicalAttention(6, 8, 4, order, options).double().eval()
    query = torch.from_numpy(rng.normal(size=(batch, queries, 6)))
    context = torch.from_numpy(rng.normal(size=(batch, groups, members, 8)))
    mask = masks(rng, batch, groups, members)
    found = module(query, context, mask=torch.from_numpy(mask))
    values = reference.weights_of(module)
    expected = [
        reference.hierarchical(values, options, order, query[b].numpy(), context[b].numpy(), mask[b])
        for b in range(batch)
    ]
    compare(found.output, [each[0] for each in expected])
    compare(found.weights, [each[1] for each in expected])


@few
@given(options(), seeds, sizes, sizes)
def test_graph_attention_with_edges_given(options, seed, batch, count):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    module = GraphAttention(8, 4, options).double().eval()
    nodes, there = tokens(rng, batch, count)
    edges = rng.random((batch, count, count)) < 0.4
    found = module(nodes, torch.from_numpy(edges), mask=there)
    values = reference.sub(reference.weights_of(module), "attention.")
    for b in range(batch):
        present = there[b].numpy()
        allowed = (edges[b] | np.eye(count, dtype=bool)) & present[:, None] & present[None, :]
        expected = reference.attention(values, options, nodes[b].numpy(), nodes[b].numpy(), allowed)
        compare(found.output[b], expected[0])
        compare(found.weights[b], expected[1])


REFERENCES = {
    "text_to_image": reference.text_to_image,
    "image_to_text": reference.image_to_text,
    "two_way": reference.two_way,
    "multi_hop": reference.multi_hop,
    "self": reference.self_attention,
    "graph": reference.graph,
}


@few
@pytest.mark.parametrize("name", MECHANISMS)
@given(options(), seeds, st.tuples(sizes, sizes), st.sampled_from([None, 2, 4]), st.booleans(), st.integers(1, 4))
def test_mechanisms(name, options, seed, shape, side, shared, count):
    """`count` is that of hops, of neighbours and of words in a phrase."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    config = MechanismConfig(name=name, options=options, hops=count, shared=shared, neighbours=count, words=count)
    module = config.build(WIDTH, side).double().eval()
    batch, words = shape
    text, image = tokens(rng, batch, words), tokens(rng, batch, side**2 if side else 5)
    found, quick = module(text, image), module(text, image, need_weights=False)
    values = reference.weights_of(module)
    samples = [[(each.features[b].numpy(), each.mask[b].numpy()) for each in (text, image)] for b in range(batch)]
    if name == "hierarchical":
        expected = [reference.hierarchical_exchange(values, config, *sample, side) for sample in samples]
    else:
        expected = [REFERENCES[name](values, config, *sample) for sample in samples]
    for exchange in (found, quick):
        compare(exchange.text, [each[0] for each in expected])
        compare(exchange.image, [each[1] for each in expected])
    assert quick.weights == ()
    for weights in found.weights:
        sums = weights.flatten(3).sum(-1)
        assert bool(((sums - 1).abs() < TOLERANCE).logical_or(sums == 0).all())
