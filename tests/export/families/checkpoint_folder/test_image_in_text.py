"""A decoder with image tokens among those of its prompt: exported in both forms, and compared so that errors show."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from xattn_edge.attention import split_heads
from xattn_edge.attention.caches import flatten, pairs
from xattn_export.families.checkpoint_folder.roles import decoder_role, head
from xattn_export.families.layers.common import attend_with_cache, embed_with_image
from xattn_export.parity import check_parity
from xattn_export.to_onnx import example_tensor, export_role
from xattn_runtime.errors import XattnError

WIDTH, HEADS, VOCABULARY, PLACEHOLDER = 8, 2, 30, 29
SIZES = {"batch": 3, "length": 9, "past": 2, "context": 4}


class Step(nn.Module):
    """Words and image, one layer of attention, a tied head."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)

    def forward(self, input_ids, image_tokens, *past):
        cache = pairs(past)[0]
        tokens = embed_with_image(input_ids, image_tokens, self.words, PLACEHOLDER, cache.key.shape[2])
        attended, present = attend_with_cache(tokens, tokens, tokens, cache, HEADS)
        return *head((tokens + attended)[:, -1] @ self.words.weight.T), *flatten([present])


def reference(words, scatter_later=False, from_end=False):
    """The same with `masked_scatter`, row by row."""

    def run(input_ids, image_tokens, key, value):
        tokens = words(input_ids)
        if not key.shape[2] or scatter_later:
            rows = zip(tokens, input_ids == PLACEHOLDER, image_tokens, strict=True)
            image = [(row, mask[:, None], one.flip(0) if from_end else one) for row, mask, one in rows]
            tokens = torch.stack([row.masked_scatter(mask, one) for row, mask, one in image])
        new = split_heads(tokens, HEADS)
        key, value = torch.cat((key, new), 2), torch.cat((value, new), 2)
        length, total = new.shape[2], key.shape[2]
        mask = torch.ones(length, total).tril(total - length).bool()
        attended = F.scaled_dot_product_attention(new, key, value, mask).transpose(1, 2).flatten(2)
        return *head((tokens + attended)[:, -1] @ words.weight.T), key, value

    return run


@pytest.fixture(scope="module")
def role():
    torch.manual_seed(3)
    module = Step().requires_grad_(False)
    return decoder_role(
        module,
        reference(module.words),
        vocabulary=VOCABULARY,
        layers=1,
        kv_heads=HEADS,
        head_width=WIDTH // HEADS,
        longest=40,
        image_width=WIDTH,
        placeholder=PLACEHOLDER,
    )


@pytest.mark.parametrize(("attention", "opset"), [("standard", 23), ("decomposed", 18)])
def test_the_image_stands_where_its_placeholders_are(role, attention, opset):
    model = export_role(role, attention, opset)
    assert [tensor.name for tensor in model.graph.input] == [
        "input_ids", "image_tokens", "past_key_0", "past_value_0",
    ]  # fmt: skip
    parity = check_parity(model, role)
    assert parity.largest_error < 2e-5
    for wrong in ({"scatter_later": True}, {"from_end": True}):
        with pytest.raises(XattnError, match="decoder: batch"):
            check_parity(model, replace(role, reference=reference(role.module.words, **wrong)))


def test_examples_have_a_placeholder_for_every_image_token(role):
    spec, generator = role.inputs[0], torch.Generator().manual_seed(1)
    ids = example_tensor(spec, SIZES, generator)
    assert ((ids == PLACEHOLDER).sum(1) == 4).all()
    assert len({tuple(row.tolist()) for row in ids == PLACEHOLDER}) == 3
    assert not (example_tensor(spec, SIZES | {"length": 3}, generator) == PLACEHOLDER).any()
    first = replace(spec, limit=2, placeholder=0)
    assert ((example_tensor(first, SIZES, generator) == 0).sum(1) == 4).all()
