"""One row makes a similarity, a weighting or a fusion known everywhere: in mechanisms, in models, and in graphs."""

import onnx
import pytest
import torch
from torch import nn

from tests.export.families.own.test_combinations import write_checkpoint
from tests.support.slow import slow_after
from xattn_edge.attention import (
    SIMILARITIES,
    WEIGHTINGS,
    AttentionOptions,
    AttentionSimilarity,
    MechanismConfig,
    ProductSimilarity,
    Tokens,
    WeightingKind,
)
from xattn_edge.fusion import FUSIONS, EarlyHead, FusionConfig, FusionKind, Sum
from xattn_export import export_checkpoint
from xattn_export.families.table import family_of
from xattn_export.graph.conformance import examine
from xattn_runtime.verify.golden import verify_bundle


class NegativeDistance(AttentionSimilarity):
    """`-|q - k|²`, written out."""

    def forward(self, query, key):
        return -(query[..., :, None, :] - key[..., None, :, :]).square().sum(-1)


class HalvedProduct(ProductSimilarity):
    """`q · k / 2`."""

    def scale(self):
        return 0.5


@pytest.fixture(params=slow_after(1, [NegativeDistance, HalvedProduct]))
def similarity(request, monkeypatch):
    monkeypatch.setattr("xattn_edge.attention.options.SIMILARITIES", {**SIMILARITIES, "new": request.param})
    return request.param


def test_a_similarity_is_one_row(similarity, tmp_path):
    """Its mechanism reads by it; the graph holds the operator `Attention` where it is a product, and equals torch."""
    options = AttentionOptions(heads=2, similarity="new")
    mechanism = MechanismConfig(name="text_to_image", options=options).build(8)
    text, image = (Tokens(torch.randn(1, count, 8), torch.ones(1, count, dtype=torch.bool)) for count in (3, 4))
    attention = mechanism.attention
    query = attention.q_linear(text.features).view(1, 3, 2, 4).transpose(1, 2)
    key = attention.k_linear(image.features).view(1, 4, 2, 4).transpose(1, 2)
    scores = similarity(2, 4)(query, key)
    torch.testing.assert_close(mechanism(text, image).weights[0], scores.softmax(-1))
    write_checkpoint(tmp_path / "checkpoint", "text_to_image", "sum", "patches", "lstm", options)
    role = family_of(tmp_path / "checkpoint").open(tmp_path / "checkpoint").roles[1]
    assert role.attends is (similarity is HalvedProduct)
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "new.xattn", command="pytest", whole=False)
    assert verify_bundle(tmp_path / "new.xattn").passed
    operators = examine(onnx.load(tmp_path / "new.xattn" / "graphs" / "classifier.onnx")).operators
    assert operators.get("Attention", 0) == (similarity is HalvedProduct)


class EvenWeighting(nn.Module):
    """The same weight for every position."""

    def forward(self, scores, mask):
        allowed = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.expand(scores.shape)
        return allowed / allowed.sum(-1, keepdim=True).clamp(min=1)


def test_a_weighting_is_one_row(monkeypatch):
    kind = WeightingKind(lambda top_k, temperature: EvenWeighting(), False, frozenset())
    monkeypatch.setattr("xattn_edge.attention.options.WEIGHTINGS", {**WEIGHTINGS, "even": kind})
    with pytest.raises(ValueError, match="dropout: expected 0 with even weighting"):
        AttentionOptions(weighting="even", dropout=0.1)
    with pytest.raises(ValueError, match="expected hard weighting, as even weighting has neither"):
        AttentionOptions(weighting="even", top_k=2)
    config = MechanismConfig(name="text_to_image", options=AttentionOptions(weighting="even"))
    assert not config.has_attention_operator
    text, image = (Tokens(torch.randn(1, count, 8), torch.ones(1, count, dtype=torch.bool)) for count in (3, 4))
    assert torch.equal(config.build(8)(text, image).weights[0], torch.full((1, 1, 3, 4), 0.25))


def test_a_fusion_is_one_row(monkeypatch, tmp_path):
    kind = FusionKind(lambda config, widths, outputs: EarlyHead(Sum(widths, max(widths)), max(widths), outputs))
    monkeypatch.setattr("xattn_edge.fusion.fusions.FUSIONS", {**FUSIONS, "new": kind})
    assert isinstance(FusionConfig(name="new").build((8, 8), 3), EarlyHead)
    model, _ = write_checkpoint(tmp_path / "new", "two_way", "new", "patches", "lstm", AttentionOptions())
    assert isinstance(model.head, EarlyHead)
    assert family_of(tmp_path / "new").open(tmp_path / "new").task == "vqa"
