"""The operator `Attention` in torch as its standard has it, so that layers are compared without exporting each."""

from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.fixture
def standard_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own aligns causality with the first key, not the last, and caps scores after masking them.

    https://onnx.ai/onnx/operators/onnx__Attention.html
    """
    monkeypatch.setattr(torch.onnx.ops, "attention", _attention)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    past_key: Tensor,
    past_value: Tensor,
    *,
    is_causal: bool,
    q_num_heads: int,
    kv_num_heads: int,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor, Any]:
    queries, new_keys, new_values = (
        tensor.unflatten(-1, (heads, -1)).transpose(1, 2)
        for tensor, heads in ((query, q_num_heads), (key, kv_num_heads), (value, kv_num_heads))
    )
    keys, values = torch.cat((past_key, new_keys), 2), torch.cat((past_value, new_values), 2)
    repeated = q_num_heads // kv_num_heads
    scores = queries @ keys.repeat_interleave(repeated, 1).transpose(2, 3) * scale
    scores = torch.tanh(scores / softcap) * softcap if softcap else scores
    if is_causal:
        mask = torch.ones(scores.shape[2:], dtype=torch.bool).tril(past_key.shape[2])
    scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
    attended = scores.softmax(-1) @ values.repeat_interleave(repeated, 1)
    return attended.transpose(1, 2).flatten(2), keys, values, None
