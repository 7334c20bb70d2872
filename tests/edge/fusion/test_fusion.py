"""Every fusion against its equation written out, and what holds for all: missing modalities, weights, errors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.edge.fusion import reference
from xattn_edge.fusion import (
    FUSIONS,
    AdaptiveFusion,
    BilinearFusion,
    DynamicFusion,
    FusionConfig,
    Sum,
    WeightedDecision,
)

OUTPUTS = 3
WEIGHED = ("late_mean", "late_weighted", "late_learned", "hybrid", "dynamic", "adaptive")


def config_of(name, modalities, **values):
    weights = tuple(range(1, modalities + 1)) if name == "late_weighted" else None
    return FusionConfig(name=name, weights=weights, **values)


def build(name, widths):
    head = config_of(name, len(widths)).build(widths, OUTPUTS)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return head


@settings(max_examples=20, deadline=None)
@pytest.mark.parametrize("name", FUSIONS)
@given(st.integers(0, 2**31), st.integers(1, 4), st.lists(st.integers(1, 5), min_size=2, max_size=4), st.integers(1, 3))
def test_equations(name, seed, batch, widths, rank):
    """To 1e-6 in float64, any modalities missing."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    widths = [widths[0]] * len(widths) if name == "sum" else widths
    config = config_of(name, len(widths), rank=rank)
    head = config.build(widths, OUTPUTS).double().eval()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    modalities = [torch.from_numpy(rng.normal(size=(batch, width))) for width in widths]
    present = rng.random((batch, len(widths))) < 0.7
    found = head(modalities, torch.from_numpy(present))
    values = {key: value.detach().double().numpy() for key, value in head.state_dict().items()}
    for b in range(batch):
        sample = [x[b].numpy() if there else None for x, there in zip(modalities, present[b], strict=True)]
        logits, weights = reference.head(name, config, values, widths, sample)
        np.testing.assert_allclose(found.output[b].detach().numpy(), logits, atol=1e-6)
        assert (weights is None) == (found.weights is None)
        if weights is not None:
            np.testing.assert_allclose(found.weights[b].detach().numpy(), weights, atol=1e-6)


@pytest.mark.parametrize("name", FUSIONS)
def test_what_a_missing_modality_holds_does_not_matter(name):
    """Not even where it is not a number, for the output or a gradient."""
    head = build(name, (4, 4, 4))
    head.eval()
    modalities = [torch.randn(2, 4, requires_grad=True) for _ in range(3)]
    present = torch.tensor([[True, False, True], [True, True, False]])
    expected = head(modalities, present).output
    broken = [each.detach().clone() for each in modalities]
    broken[1][0], broken[2][1] = float("nan"), float("inf")
    broken = [each.requires_grad_() for each in broken]
    found = head(broken, present).output
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    found.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters() if parameter.grad is not None)
    assert all(torch.isfinite(each.grad).all() for each in broken)
    assert torch.equal(broken[1].grad[0], torch.zeros(4))


@pytest.mark.parametrize("name", WEIGHED)
def test_weights_sum_to_one_over_what_is_there(name):
    head = build(name, (4, 4, 4)).eval()
    present = torch.tensor([[True, False, True], [True, True, True], [False, False, False]])
    weights = head([torch.randn(3, 4) for _ in range(3)], present).weights
    weights = weights.mean(-1) if weights.ndim == 3 else weights
    torch.testing.assert_close(weights.sum(1), torch.tensor([1.0, 1.0, 0.0]))
    assert weights[0, 1] == 0


@pytest.mark.parametrize("name", FUSIONS)
def test_without_a_word_all_are_there(name):
    head = build(name, (4, 4)).eval()
    modalities = [torch.randn(2, 4) for _ in range(2)]
    everything = torch.ones(2, 2, dtype=torch.bool)
    torch.testing.assert_close(head(modalities).output, head(modalities, everything).output)


@pytest.mark.parametrize("name", FUSIONS)
def test_every_parameter_learns(name):
    head = build(name, (4, 4))
    head([torch.randn(8, 4) for _ in range(2)]).output.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())


def test_a_gate_of_two_is_the_gated_multimodal_unit():
    fusion = DynamicFusion((3, 5), 4)
    x, y = torch.randn(2, 3), torch.randn(2, 5)
    one, other = (gate(torch.cat([x, y], -1)) for gate in fusion.gate)
    z = torch.sigmoid(one - other)
    expected = z * torch.tanh(fusion.project[0](x)) + (1 - z) * torch.tanh(fusion.project[1](y))
    torch.testing.assert_close(fusion([x, y]).output, expected)


def test_gates_depend_on_the_sample_and_adaptive_weights_do_not():
    x, y = torch.randn(2, 4), torch.randn(2, 4)
    gates, weights = (build(name, (4, 4)).eval()([x, y]).weights for name in ("dynamic", "adaptive"))
    assert not torch.allclose(gates[0], gates[1])
    assert torch.equal(weights[0], weights[1])


def test_bilinear_of_rank_one_is_the_product_of_two():
    fusion = BilinearFusion((3, 5), 4, rank=1)
    x, y = torch.randn(2, 3), torch.randn(2, 5)
    expected = torch.tanh(fusion.factors[0](x)) * torch.tanh(fusion.factors[1](y))
    torch.testing.assert_close(fusion([x, y]).output, expected)


def test_adaptive_fusion_leaves_modalities_out_in_training_but_never_all():
    torch.manual_seed(1)
    fusion = AdaptiveFusion((4, 4), 4, drop=0.5)
    modalities = [torch.randn(400, 4) for _ in range(2)]
    present = torch.tensor([[True, True]] * 200 + [[True, False]] * 200)
    weights = fusion(modalities, present).weights
    assert torch.equal(weights[200:], torch.tensor([[1.0, 0.0]]).expand(200, 2))
    assert {tuple(row) for row in weights[:200].tolist()} == {(0.5, 0.5), (1.0, 0.0), (0.0, 1.0)}
    fusion.eval()
    assert torch.equal(fusion(modalities).weights, torch.full((400, 2), 0.5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FusionConfig(name="hope"), "fusion: expected one of concatenation.*found 'hope'"),
        (lambda: FusionConfig(name="late_weighted"), "weights: expected with late_weighted.*found None"),
        (lambda: FusionConfig(name="sum", weights=(1.0, 2.0)), r"weights: .* found \(1.0, 2.0\) with sum"),
        (lambda: FusionConfig(name="sum").build((4,), 3), r"at least two modalities, found \[4\]"),
        (lambda: FusionConfig(name="sum").build((4, 5), 3), r"expected 5 of every modality .* found \[4, 5\]"),
        (lambda: FusionConfig(name="adaptive", drop=1.0).build((4, 4), 3), "drop: expected 0 or more .* found 1.0"),
        (lambda: FusionConfig(name="bilinear", rank=0).build((4, 4), 3), "rank: expected at least 1, found 0"),
        (lambda: WeightedDecision(2, [1.0]), r"weights: expected 2 above 0, .* found \[1.0\]"),
        (lambda: WeightedDecision(2, [1.0, 0.0]), r"weights: expected 2 above 0, .* found \[1.0, 0.0\]"),
    ],
)
def test_impossible_fusions_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("modalities", "present", "message"),
    [
        ([torch.randn(2, 4)], None, "modalities: expected 2, found 1"),
        ([torch.randn(2, 4), torch.randn(2, 5)], None, r"modality 1: .* \[batch, 4\], found \[2, 5\]"),
        ([torch.randn(2, 4), torch.randn(3, 4)], None, r"modality 1: expected a batch of 2, found \[3, 4\]"),
        ([torch.randn(0, 4), torch.randn(0, 4)], None, r"modality 0: .* at least one of batch, found \[0, 4\]"),
        ([torch.randn(2, 4)] * 2, torch.ones(2, 2), "present: expected bool"),
        ([torch.randn(2, 4)] * 2, torch.ones(2, 3, dtype=torch.bool), r"present: .* \[2, 2\] .* found \[2, 3\]"),
    ],
)
def test_wrong_shapes_are_named(modalities, present, message):
    with pytest.raises(ValueError, match=message):
        Sum((4, 4), 4)(modalities, present)
