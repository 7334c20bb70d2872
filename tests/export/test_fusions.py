"""Every fusion as a graph: standard operators only, and what torch computes, whichever modalities are missing."""

import pytest
import torch
from torch import nn

from xattn_edge.fusion import FUSIONS, FusionConfig
from xattn_export.conformance import examine
from xattn_export.families.base import Role, TensorSpec
from xattn_export.parity import check_parity
from xattn_export.to_onnx import export_graph

MODALITIES, WIDTH, OUTPUTS = 3, 6, 4


class FusionGraph(nn.Module):
    """A head over flat tensors; which modalities are there is the sign of a number each."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, presence, *modalities):
        return (self.head(modalities, presence > 0).output,)


@pytest.mark.parametrize("name", FUSIONS)
def test_fusions(name):
    torch.manual_seed(4)
    weights = (1.0, 2.0, 3.0) if name == "late_weighted" else None
    head = FusionConfig(name=name, weights=weights).build((WIDTH,) * MODALITIES, OUTPUTS)
    graph = FusionGraph(head).eval()
    inputs = (
        TensorSpec("presence", ("batch", MODALITIES), "normal"),
        *(TensorSpec(f"modality_{number}", ("batch", WIDTH), "normal") for number in range(MODALITIES)),
    )
    role = Role(name, graph, lambda *tensors: graph(*tensors), inputs, ("logits",), attends=False)
    model = export_graph(role, "decomposed", 18)
    assert examine(model).standard
    assert check_parity(model, role).cases == 2
