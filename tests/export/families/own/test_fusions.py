"""Every fusion as a graph: standard operators only, and what torch computes, whichever modalities are missing."""

import pytest
import torch
from torch import nn

from xattn_edge.fusion import FUSIONS, FusionConfig
from xattn_export.families.base import Role, TensorSpec
from xattn_export.graph.conformance import examine
from xattn_export.parity import check_parity
from xattn_export.to_onnx import export_graph

MODALITIES, WIDTH, OUTPUTS = 3, 6, 4


class FusionGraph(nn.Module):
    """All heads over flat tensors; a modality is there where a number of its own is positive."""

    def __init__(self, heads):
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, presence, *modalities):
        return tuple(head(modalities, presence > 0).output for head in self.heads)


@pytest.mark.slow
def test_fusions():
    torch.manual_seed(4)
    weights = {"late_weighted": (1.0, 2.0, 3.0)}
    configs = [FusionConfig(name=name, weights=weights.get(name)) for name in FUSIONS]
    graph = FusionGraph(config.build((WIDTH,) * MODALITIES, OUTPUTS) for config in configs).eval()
    inputs = (
        TensorSpec("presence", ("batch", MODALITIES), "normal"),
        *(TensorSpec(f"modality_{number}", ("batch", WIDTH), "normal") for number in range(MODALITIES)),
    )
    outputs = tuple(f"{name}_logits" for name in FUSIONS)
    role = Role("fusions", graph, lambda *tensors: graph(*tensors), inputs, outputs, attends=False)
    model = export_graph(role, "decomposed", 18)
    assert examine(model).standard
    assert check_parity(model, role).cases == 2
