"""Text encoders of ours as graphs: an LSTM as the operator, a Transformer as it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xattn_edge.attention import Tokens
from xattn_edge.encoders import LstmTextEncoder

__all__ = ["text_encoder_graph"]

_ONNX_LSTM_OPSET = 14
# torch stacks the gates as input, forget, cell, output; ONNX as input, output, forget, cell.
_ONNX_GATE_ORDER = (0, 3, 1, 2)


def text_encoder_graph(encoder: nn.Module) -> nn.Module:
    """A module that computes what `encoder` does, from ids and mask to tokens, and can be exported."""
    return LstmGraph(encoder) if isinstance(encoder, LstmTextEncoder) else encoder


class LstmGraph(nn.Module):
    """A bidirectional LSTM text encoder as the ONNX operator `LSTM`, which takes the length of every row.

    Only for export: torch cannot compute it. https://onnx.ai/onnx/operators/onnx__LSTM.html
    """

    def __init__(self, encoder: LstmTextEncoder) -> None:
        super().__init__()
        self.embedding = encoder.embedding
        self.norm = encoder.norm
        self.hidden_size = encoder.lstm.hidden_size
        self.weight = nn.Parameter(_both_directions(encoder.lstm, "weight_ih"), requires_grad=False)
        self.recurrence = nn.Parameter(_both_directions(encoder.lstm, "weight_hh"), requires_grad=False)
        biases = [_both_directions(encoder.lstm, name) for name in ("bias_ih", "bias_hh")]
        self.bias = nn.Parameter(torch.cat(biases, 1), requires_grad=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """Int64 `[batch, length]` both to `[batch, length, width]` and its mask."""
        batch, length = input_ids.shape
        words = self.embedding(input_ids).transpose(0, 1)
        states = torch.onnx.ops.symbolic(
            "LSTM",
            (words, self.weight, self.recurrence, self.bias, attention_mask.sum(1).to(torch.int32)),
            {"direction": "bidirectional", "hidden_size": self.hidden_size},
            dtype=torch.float32,
            shape=(length, 2, batch, self.hidden_size),
            version=_ONNX_LSTM_OPSET,
        )
        return Tokens(self.norm(states.permute(2, 0, 1, 3).flatten(2)), attention_mask.bool())


def _both_directions(lstm: nn.LSTM, name: str) -> Tensor:
    """A parameter of the first layer, forward and backward, gates in ONNX order: `[2, 4 × hidden, …]`."""
    directions = []
    for suffix in ("_l0", "_l0_reverse"):
        gates = getattr(lstm, name + suffix).detach().chunk(4)
        directions.append(torch.cat([gates[i] for i in _ONNX_GATE_ORDER]))
    return torch.stack(directions)
