"""Attention step by step equals torch's own."""

import pytest
import torch
from torch.nn import functional as F

from xattn_export.decompose import decomposed_attention, explicit_attention

MASKS = {
    "none": None,
    "bool": torch.tensor([[True, False, True, True, False], [True, True, True, False, False]]),
    "float": torch.tensor([[0.0, -1.0, 2.0, 0.5, 0.0], [1.0, 0.0, float("-inf"), 0.0, 3.0]]),
    "batch": torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()[:, None, None, :],
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_equals_torch(mask, scale):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 4, 2, 8, generator=generator)
    key, value = (torch.randn(3, 4, 5, 8, generator=generator) for _ in range(2))
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=MASKS[mask], scale=scale)
    found = explicit_attention(query, key, value, attn_mask=MASKS[mask], scale=scale)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("options", [{"dropout_p": 0.1}, {"is_causal": True}, {"enable_gqa": True}])
def test_what_it_does_not_compute_is_refused(options):
    tensor = torch.zeros(1, 1, 1, 1)
    with pytest.raises(NotImplementedError):
        explicit_attention(tensor, tensor, tensor, **options)


def test_torch_is_as_before_afterwards():
    original = F.scaled_dot_product_attention
    with pytest.raises(RuntimeError), decomposed_attention():
        assert F.scaled_dot_product_attention is explicit_attention
        raise RuntimeError
    assert F.scaled_dot_product_attention is original
