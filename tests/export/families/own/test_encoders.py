"""Encoders as graphs: standard operators only, and what torch computes at every batch and length."""

import pytest
import torch
from torch import nn

from tests.support.slow import slow_after
from xattn_edge.encoders import CnnEncoder, PatchEncoder, SpeechEncoder, VideoEncoder
from xattn_export.decompose import decompose_attention
from xattn_export.families.base import Role, TensorSpec
from xattn_export.graph.conformance import examine
from xattn_export.parity import check_parity
from xattn_export.to_onnx import export_graph

WIDTH, LONGEST = 8, 25


class EncoderGraph(nn.Module):
    """Features where there are tokens, and their mask as int64."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, *inputs):
        tokens = self.encoder(inputs[0], *(mask.bool() for mask in inputs[1:]))
        return tokens.features.masked_fill(~tokens.mask[..., None], 0.0), tokens.mask.long()


@pytest.mark.parametrize(
    ("name", "encoder", "shape"),
    slow_after(
        1,
        [
            ("patches", lambda: PatchEncoder(8, 4, WIDTH, 1, 2), ("batch", 3, 8, 8)),
            ("speech", lambda: SpeechEncoder(8, LONGEST, 3, WIDTH, 1, 2), ("batch", "frames", 8)),
            (
                "video",
                lambda: VideoEncoder(CnnEncoder(8, (4, 6), (1,), WIDTH, 0, 2), LONGEST, WIDTH, 1, 2),
                ("batch", "frames", 3, 8, 8),
            ),
        ],
    ),
)
def test_encoders(name, encoder, shape):
    torch.manual_seed(8)
    graph = EncoderGraph(encoder()).eval()
    masked = "frames" in shape
    inputs = [TensorSpec("values", shape, "normal"), TensorSpec("mask", ("batch", "frames"), "mask")]
    inputs = tuple(inputs if masked else inputs[:1])
    role = Role(name, graph, lambda *tensors: graph(*tensors), inputs, ("features", "feature_mask"), LONGEST)
    model = export_graph(role, "standard", 23)
    for attentions, form in ((1, model), (0, decompose_attention(model, opset=18))):
        facts = examine(form)
        assert facts.standard
        assert facts.operators.get("Attention", 0) == attentions
        assert check_parity(form, role).cases == (8 if masked else 2)
