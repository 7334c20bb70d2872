"""What holds for every attention: weights that sum to 1, masks, choices, gradients, errors that name shapes."""

import pytest
import torch

from xattn_edge.attention import (
    MECHANISMS,
    SIMILARITIES,
    AttentionOptions,
    CoAttention,
    CrossModalAttention,
    GraphAttention,
    HierarchicalAttention,
    MechanismConfig,
    MultiHopAttention,
    Tokens,
    phrases,
    regions,
    transformer_options,
)


def two(context):
    """The same tensor as keys and as values."""
    return context, context


def tokens(batch, count, width=8, present=None):
    mask = torch.ones(batch, count, dtype=torch.bool) if present is None else torch.tensor(present)
    return Tokens(torch.randn(batch, count, width), mask)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(3)


def test_the_parameters_have_the_names_and_shapes_of_the_equations():
    state = CrossModalAttention(5, 6, 7).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "q_linear.weight": (6, 5),
        "q_linear.bias": (6,),
        "k_linear.weight": (6, 6),
        "k_linear.bias": (6,),
        "v_linear.weight": (7, 6),
        "v_linear.bias": (7,),
    }


def test_by_default_it_is_the_softmax_of_plain_products():
    attention, query, context = CrossModalAttention(5, 6, 7), torch.randn(2, 3, 5), torch.randn(2, 4, 6)
    q, k, v = attention.q_linear(query), attention.k_linear(context), attention.v_linear(context)
    found = attention(query, context, context).output
    torch.testing.assert_close(found, torch.softmax(q @ k.transpose(1, 2), -1) @ v)


def test_keys_and_values_may_be_of_two_tensors():
    attention = CrossModalAttention(5, 6, 7)
    query, key, value = torch.randn(2, 3, 5), torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    output, weights = attention(query, key, value)
    shares = torch.softmax(attention.q_linear(query) @ attention.k_linear(key).transpose(1, 2), -1)
    torch.testing.assert_close(weights[:, 0], shares)
    torch.testing.assert_close(output, shares @ attention.v_linear(value))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("heads", [1, 4])
def test_as_in_transformers_it_is_the_attention_of_torch(heads, masked):
    """`torch.nn.MultiheadAttention` with the same weights; its masks say where attention is not allowed."""
    theirs = torch.nn.MultiheadAttention(8, heads, batch_first=True)
    torch.nn.init.normal_(theirs.in_proj_bias)
    torch.nn.init.normal_(theirs.out_proj.bias)
    attention = CrossModalAttention(8, 8, 8, transformer_options(heads))
    state = {"out_linear.weight": theirs.out_proj.weight, "out_linear.bias": theirs.out_proj.bias}
    for name, weight, bias in zip("qkv", theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3), strict=True):
        state |= {f"{name}_linear.weight": weight, f"{name}_linear.bias": bias}
    attention.load_state_dict(state)
    query, key, value = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    mask = torch.tensor([[True] * 5, [True, True, False, True, False]]) if masked else None
    output, weights = attention(query, key, value, mask=mask)
    padding = None if mask is None else ~mask
    expected = theirs(query, key, value, key_padding_mask=padding, average_attn_weights=False)
    torch.testing.assert_close(output, expected[0])
    torch.testing.assert_close(weights, expected[1])
    quick, nothing = attention(query, key, value, mask=mask, need_weights=False)
    assert nothing is None
    torch.testing.assert_close(quick, expected[0])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("weighting", ["soft", "hard"])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_masks(similarity, weighting, training):
    """Of the second row of the batch nothing may be seen; of the first, not the last two positions."""
    attention = CrossModalAttention(8, 8, 8, AttentionOptions(heads=2, similarity=similarity, weighting=weighting))
    attention.train(training)
    query, context = torch.randn(2, 3, 8, requires_grad=True), torch.randn(2, 5, 8, requires_grad=True)
    mask = torch.tensor([[True, True, True, False, False], [False] * 5])
    output, weights = attention(query, context, context, mask=mask)
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(2, 3))
    assert torch.equal(weights[0, :, :, 3:], torch.zeros(2, 3, 2))
    assert torch.equal(weights[1], torch.zeros(2, 3, 5))
    for found in (output, attention(query, context, context, mask=mask, need_weights=False).output):
        assert torch.equal(found[1], torch.zeros(3, 8))
        found.sum().backward(retain_graph=True)
        assert torch.isfinite(query.grad).all()
        assert torch.isfinite(context.grad).all()
        assert torch.equal(context.grad[0, 3:], torch.zeros(2, 8))


@pytest.mark.parametrize("training", [False, True])
def test_hard_attention_picks_exactly_one(training):
    attention = CrossModalAttention(8, 8, 8, AttentionOptions(heads=2, weighting="hard")).train(training)
    weights = attention(torch.randn(3, 4, 8), *two(torch.randn(3, 6, 8))).weights
    assert torch.equal(weights.sort(-1).values, torch.eye(6)[-1].expand(3, 2, 4, 6))


def test_of_equal_scores_the_first_is_picked():
    attention = CrossModalAttention(8, 8, 8, AttentionOptions(weighting="hard")).eval()
    weights = attention(torch.randn(1, 2, 8), *two(torch.randn(1, 1, 8).expand(1, 4, 8))).weights
    assert torch.equal(weights[0, 0].argmax(-1), torch.tensor([0, 0]))


@pytest.mark.parametrize("top_k", [1, 2])
def test_hard_attention_explores_in_training_and_learns_from_every_position(top_k):
    attention = CrossModalAttention(8, 8, 8, AttentionOptions(weighting="hard", top_k=top_k)).train()
    query, context = torch.randn(1, 1, 8) * 0.1, torch.randn(1, 4, 8, requires_grad=True)
    draws = torch.stack([attention(query, context, context).weights[0, 0, 0] for _ in range(200)])
    assert ((draws > 0).sum(-1) == top_k).all()
    torch.testing.assert_close(draws.sum(-1), torch.ones(200))
    assert (draws.amax(0) > 0).all()
    (attention(query, context, context).weights[0, 0, 0] * torch.tensor([1.0, 2.0, 4.0, 8.0])).sum().backward()
    assert (context.grad.abs().sum(-1) > 0).all()
    assert attention.q_linear.weight.grad.abs().sum() > 0


def test_draws_follow_the_softmax_of_the_scores():
    """Gumbel-max: the share of draws of a position is its soft weight."""
    hard = CrossModalAttention(4, 4, 4, AttentionOptions(weighting="hard")).train()
    soft = CrossModalAttention(4, 4, 4)
    soft.load_state_dict(hard.state_dict())
    query, context = torch.randn(1, 1, 4), torch.randn(1, 3, 4)
    share = hard(query.expand(1, 4000, 4), context, context).weights[0, 0].mean(0)
    torch.testing.assert_close(share, soft(query, context, context).weights[0, 0, 0], atol=0.04, rtol=0)


def test_dropout_is_of_weights_in_training_and_not_of_those_returned():
    attention = CrossModalAttention(8, 8, 8, AttentionOptions(dropout=0.5))
    query, context = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    output, weights = attention(query, context, context)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 1, 3))
    assert not torch.allclose(output, attention(query, context, context).output)
    attention.eval()
    quick = attention(query, context, context, need_weights=False)
    assert quick.weights is None
    torch.testing.assert_close(attention(query, context, context).output, quick.output)


@pytest.mark.parametrize("name", MECHANISMS)
def test_what_padding_holds_does_not_matter(name):
    config = MechanismConfig(name=name, options=AttentionOptions(similarity="scaled_dot"), neighbours=2)
    mechanism = config.build(8, 2).eval()
    text, image = tokens(1, 3, present=[[True, True, False]]), tokens(1, 4, present=[[True, False, True, True]])
    expected = mechanism(text, image)
    found = mechanism(
        *(Tokens(each.features.masked_fill(~each.mask[..., None], 9.0), each.mask) for each in (text, image))
    )
    for one, other, mask in zip(expected[:2], found[:2], (text.mask, image.mask), strict=True):
        if one is not None:
            torch.testing.assert_close(one[mask], other[mask])


@pytest.mark.parametrize("name", MECHANISMS)
@pytest.mark.parametrize("weighting", ["soft", "hard"])
def test_every_parameter_learns(name, weighting):
    """Of the similarity's keys the biases do not, nor do a single position's weights: so only whether there is one."""
    options = AttentionOptions(heads=2, similarity="additive", weighting=weighting)
    mechanism = MechanismConfig(name=name, options=options, neighbours=3).build(8, 2)
    exchange = mechanism(tokens(2, 4), tokens(2, 4))
    sum((each**2).sum() for each in exchange[:2] if each is not None).backward()
    still = [name for name, parameter in mechanism.named_parameters() if parameter.grad is None]
    assert not still


def test_shared_weights_are_there_once():
    options = AttentionOptions(heads=2)
    one = sum(parameter.numel() for parameter in CrossModalAttention(8, 8, 8, options).parameters())
    for mechanism, times in (
        (CoAttention(8, options), 2),
        (CoAttention(8, options, shared=True), 1),
        (MultiHopAttention(8, options, hops=4), 4),
        (MultiHopAttention(8, options, hops=4, shared=True), 1),
    ):
        assert sum(value.numel() for value in mechanism.state_dict().values()) == times * one


def test_grouped_queries_have_fewer_keys():
    attention = CrossModalAttention(8, 8, 8, AttentionOptions(heads=4, kv_heads=2))
    assert [tuple(each.shape) for each in attention.project(*two(torch.randn(2, 5, 8)))] == [(2, 2, 5, 2)] * 2


def test_regions_are_windows_of_the_feature_map():
    grid = Tokens(torch.arange(16.0).view(1, 16, 1), torch.ones(1, 16, dtype=torch.bool))
    assert regions(grid, 4, 2).features[0, :, :, 0].tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]


def test_phrases_are_words_that_follow_each_other():
    line = Tokens(torch.arange(1.0, 6).view(1, 5, 1), torch.ones(1, 5, dtype=torch.bool))
    found = phrases(line, 2)
    assert found.features[0, :, :, 0].tolist() == [[1, 2], [3, 4], [5, 0], [0, 0]]
    assert found.mask[0].tolist() == [[True, True], [True, True], [True, False], [False, False]]


def test_keys_and_values_are_of_the_same_tokens():
    with pytest.raises(ValueError, match=r"key and value of the same .* tokens, found \[2, 4, 8\] and \[2, 5, 8\]"):
        CrossModalAttention(8, 8, 8)(torch.randn(2, 3, 8), torch.randn(2, 4, 8), torch.randn(2, 5, 8))
    with pytest.raises(ValueError, match=r"value: expected the shape \[batch, keys, 8\], found \[2, 4, 7\]"):
        CrossModalAttention(8, 8, 8)(torch.randn(2, 3, 8), torch.randn(2, 4, 8), torch.randn(2, 4, 7))


BAD_INPUTS = [
    (torch.randn(2, 3, 5), torch.randn(2, 4, 8), None, r"query: .* \[batch, queries, 8\], found \[2, 3, 5\]"),
    (torch.randn(3, 8), torch.randn(2, 4, 8), None, r"query: .* \[batch, queries, 8\], found \[3, 8\]"),
    (torch.randn(2, 3, 8), torch.randn(2, 0, 8), None, r"key: .* at least one of keys, found \[2, 0, 8\]"),
    (torch.randn(2, 0, 8), torch.randn(2, 4, 8), None, r"query: .* at least one of queries, found \[2, 0, 8\]"),
    (torch.randn(2, 3, 8), torch.randn(1, 4, 8), None, r"same batch, found \[2, 3, 8\] and \[1, 4, 8\]"),
    (torch.randn(2, 3, 8), torch.randn(2, 4, 8), torch.ones(2, 4), "mask: expected bool.* found torch.float32"),
    (
        torch.randn(2, 3, 8),
        torch.randn(2, 4, 8),
        torch.ones(2, 1, 3, 4, dtype=torch.bool),
        r"mask: .* \[2, 4\] \(batch, keys\) or \[2, 3, 4\] .* found \[2, 1, 3, 4\]",
    ),
    (torch.randn(2, 3, 8), torch.randn(2, 4, 8), torch.ones(3, 4, dtype=torch.bool), r"mask: .* found \[3, 4\]"),
    (torch.randn(2, 3, 8), torch.randn(2, 4, 8), torch.ones(4, dtype=torch.bool), r"mask: .* found \[4\]"),
]


@pytest.mark.parametrize(("query", "context", "mask", "message"), BAD_INPUTS)
def test_wrong_shapes_are_named(query, context, mask, message):
    with pytest.raises(ValueError, match=message):
        CrossModalAttention(8, 8, 8)(query, context, context, mask=mask)


BAD_SIDES = [
    (tokens(2, 0), tokens(2, 4), r"text: .* at least one of tokens, found \[2, 0, 8\]"),
    (tokens(2, 3), tokens(2, 0), r"image: .* at least one of tokens, found \[2, 0, 8\]"),
    (tokens(2, 3), tokens(1, 4), r"same batch, found \[2, 3, 8\] and \[1, 4, 8\]"),
    (
        tokens(2, 3),
        Tokens(torch.randn(2, 4, 8), torch.ones(2, 1, 4, dtype=torch.bool)),
        r"image mask: expected the shape \[2, 4\] \(batch, tokens\), found \[2, 1, 4\]",
    ),
    (
        Tokens(torch.randn(2, 3, 8), torch.ones(2, 4, dtype=torch.bool)),
        tokens(2, 4),
        r"text mask: expected the shape \[2, 3\] \(batch, tokens\), found \[2, 4\]",
    ),
]


@pytest.mark.parametrize("name", MECHANISMS)
@pytest.mark.parametrize(("text", "image", "message"), BAD_SIDES)
def test_every_mechanism_names_the_side_that_is_wrong(name, text, image, message):
    with pytest.raises(ValueError, match=message):
        MechanismConfig(name=name, neighbours=2).build(8)(text, image)


def test_empty_groups_and_graphs_are_named():
    hierarchy, graph = HierarchicalAttention(8, 8, 8), GraphAttention(8, 8)
    with pytest.raises(ValueError, match=r"context: .* at least one of groups, found \[2, 0, 4, 8\]"):
        hierarchy(torch.randn(2, 3, 8), torch.randn(2, 0, 4, 8))
    with pytest.raises(
        ValueError, match=r"mask: expected the shape \[2, 2, 4\] \(batch, groups, members\), found \[2, 4\]"
    ):
        hierarchy(torch.randn(2, 3, 8), torch.randn(2, 2, 4, 8), mask=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"nodes: .* at least one of nodes, found \[2, 0, 8\]"):
        graph(torch.randn(2, 0, 8), torch.ones(2, 0, 0, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"edges: expected .*\[2, 4, 4\].*found \[2, 4\]"):
        graph(torch.randn(2, 4, 8), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="expected 16 tokens of a feature map of side 4, found 15"):
        regions(tokens(1, 15), 4, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CrossModalAttention(8, 9, 8, AttentionOptions(heads=2)), "dim_k: .* multiple of 2 heads, found 9"),
        (lambda: CrossModalAttention(8, 8, 9, AttentionOptions(heads=2)), "dim_v: .* multiple of 2 heads, found 9"),
        (lambda: HierarchicalAttention(8, 9, 8, options=AttentionOptions(heads=2)), "dim_k: .* found 9"),
        (
            lambda: HierarchicalAttention(8, 8, 8, "random"),  # type: ignore[arg-type]
            "order: expected one of groups_first, .* found 'random'",
        ),
        (lambda: AttentionOptions(heads=4, kv_heads=3), "kv_heads: expected a divisor of 4 heads, found 3"),
        (lambda: AttentionOptions(kv_heads=0), "kv_heads: expected at least 1, found 0"),
        (lambda: AttentionOptions(similarity="euclid"), "similarity: expected one of dot, .*additive.* found 'euclid'"),
        (lambda: AttentionOptions(weighting="firm"), "weighting: expected one of soft, hard, found 'firm'"),
        (lambda: AttentionOptions(weighting="hard", dropout=0.1), "dropout: expected 0 with hard weighting.*found 0.1"),
        (lambda: AttentionOptions(dropout=1.0), "dropout: expected 0 or more and less than 1, found 1.0"),
        (lambda: AttentionOptions(weighting="hard", temperature=0.0), "temperature: expected more than 0, found 0.0"),
        (lambda: AttentionOptions(top_k=2), "top_k, temperature: expected hard weighting.*found 2 and 1.0"),
        (lambda: MechanismConfig(name="telepathy"), "mechanism: expected one of text_to_image.*found 'telepathy'"),
        (lambda: MechanismConfig(name="multi_hop", hops=0), "hops: expected at least 1, found 0"),
        (
            lambda: MechanismConfig(name="hierarchical", window=3).build(8, 8),
            "window: expected a divisor of a side of 8 positions, found 3",
        ),
    ],
)
def test_impossible_mechanisms_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
