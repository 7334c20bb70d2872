"""Models that read regions of an image, from an object detector, in place of its pixels.

What LXMERT and VisualBERT share: their layers, their roles, answers by name, and made-up regions for golden cases. What
depends on the regions alone is the image encoder; it outputs image tokens with a mask, since images of a batch may have
different numbers of them.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn_export.families.base import GoldenInput, Role, TensorSpec
from xattn_export.families.base.standard_roles import classifier_role, image_token_specs, text_specs
from xattn_export.families.drawings import question_images
from xattn_export.families.layers.common import attend, fuse_linears, places
from xattn_runtime.preprocess.regions import RegionSpec

__all__ = [
    "RegionLayer",
    "SelfAttention",
    "TextTokens",
    "answer_role",
    "full_mask",
    "region_inputs",
    "region_role",
]

_COUNTS = (7, 12, 3, 9)
_SEED = 12


class TextTokens(nn.Module):
    """Token ids to vectors with their positions and the type of a text, normalised."""

    def __init__(self, embeddings: Any) -> None:
        super().__init__()
        self.words, self.positions = embeddings.word_embeddings, embeddings.position_embeddings
        self.kind = nn.Parameter(embeddings.token_type_embeddings.weight[0].detach(), requires_grad=False)
        self.norm = embeddings.LayerNorm

    def forward(self, input_ids: Tensor) -> Tensor:
        numbers = places(input_ids)
        return cast(Tensor, self.norm(self.words(input_ids) + self.kind + F.embedding(numbers, self.positions.weight)))


class SelfAttention(nn.Module):
    """Tokens attend to each other; added and normalised after."""

    def __init__(self, attention: Any, output: nn.Module) -> None:
        super().__init__()
        self.heads = attention.num_attention_heads
        self.qkv = fuse_linears(attention.query, attention.key, attention.value)
        self.output = output

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """`[batch, length, width]`; `mask` as for `attend`."""
        query, key, value = self.qkv(tokens).chunk(3, -1)
        return cast(Tensor, self.output(attend(query, key, value, self.heads, mask=mask), tokens))


class RegionLayer(nn.Module):
    """Self-attention and a feed-forward network, of text, of regions, or of both."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.attention = SelfAttention(layer.attention.self, layer.attention.output)
        self.intermediate, self.output = layer.intermediate, layer.output

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """`[batch, length, width]`; `mask` as for `attend`."""
        tokens = self.attention(tokens, mask)
        return cast(Tensor, self.output(self.intermediate(tokens), tokens))


def full_mask(tokens: Tensor) -> Tensor:
    """Int64 ones `[batch, length]` for tokens `[batch, length, width]`."""
    return torch.ones(tokens.shape[:2], dtype=torch.int64, device=tokens.device)


def region_role(
    module: nn.Module, reference: Callable[..., tuple[Tensor, ...]], regions: RegionSpec, *, attends: bool
) -> Role:
    """Regions, `[batch, regions, width]` each, to `image_tokens` and `image_mask`."""
    inputs = tuple(
        TensorSpec(name, ("batch", "regions", width), "normal") for name, (_, width) in regions.arrays.items()
    )
    return Role("image_encoder", module, reference, inputs, ("image_tokens", "image_mask"), attends=attends)


def answer_role(
    module: nn.Module,
    logits: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    *,
    vocabulary: int,
    width: int,
    longest: int,
    fewest: int = 1,
) -> Role:
    """Question, image tokens and the masks of both to logits and their softmax.

    `logits`: the original model behind the same inputs. `fewest`: tokens of the shortest question.
    """

    def reference(*inputs: Tensor) -> tuple[Tensor, ...]:
        values = logits(*inputs)
        return values, values.softmax(-1)

    inputs = (*text_specs(vocabulary, fewest=fewest), *image_token_specs("regions", width))
    return classifier_role(module, reference, inputs, longest)


def region_inputs(regions: RegionSpec) -> tuple[GoldenInput, ...]:
    """Made-up regions as .npz files, with a question each."""
    generator = np.random.default_rng(_SEED)
    inputs = []
    for count, image in zip(_COUNTS, question_images(), strict=True):
        features = generator.normal(size=(count, regions.feature_width)).astype(np.float32)
        arrays = {"features": np.maximum(features, 0)}  # as after a detector's rectifier
        if regions.box_width:
            arrays["boxes"] = np.sort(generator.random((count, regions.box_width)), 1).astype(np.float32)
        stream = io.BytesIO()
        np.savez_compressed(stream, allow_pickle=False, **arrays)
        inputs.append(GoldenInput(stream.getvalue(), image.texts))
    return tuple(inputs)
