"""LXMERT: visual question answering over the regions of an image, by choosing among answers.

Text and regions each have an encoder of their own; then they attend to each other in both directions.
https://arxiv.org/abs/1908.07490
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from xattn_export.families.base import ChoosesOverRegions, Source
from xattn_export.families.checkpoint_folder.classes import transformers_family
from xattn_export.families.checkpoint_folder.folder import (
    license_of,
    load_model,
    name_of,
)
from xattn_export.families.checkpoint_folder.tokenizer import source_tokenizer
from xattn_export.families.layers.common import attend, fuse_linears, padding_mask
from xattn_export.families.transformers.answer_labels import answer_labels
from xattn_export.families.transformers.regions.common import (
    RegionLayer,
    SelfAttention,
    TextTokens,
    answer_role,
    full_mask,
    region_inputs,
    region_role,
)
from xattn_runtime.preprocess.regions import RegionSpec

if TYPE_CHECKING:
    from transformers import LxmertForQuestionAnswering

__all__ = ["LXMERT"]


class LxmertRegionGraph(nn.Module):
    """Features `[batch, regions, width]` and boxes `[batch, regions, 4]` to `image_tokens` and `image_mask`."""

    def __init__(self, model: LxmertForQuestionAnswering) -> None:
        super().__init__()
        encoder = model.lxmert.encoder
        self.embed = encoder.visn_fc
        self.layers = nn.ModuleList(RegionLayer(layer) for layer in encoder.r_layers)

    def forward(self, visual_features: Tensor, visual_boxes: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.embed(visual_features, visual_boxes)
        for layer in self.layers:
            tokens = layer(tokens, None)
        return tokens, full_mask(tokens)


class LxmertAnswerGraph(nn.Module):
    """Question and image tokens to logits and probabilities, `[batch, answers]`."""

    def __init__(self, model: LxmertForQuestionAnswering) -> None:
        super().__init__()
        encoder = model.lxmert.encoder
        self.embed = TextTokens(model.lxmert.embeddings)
        self.text_layers = nn.ModuleList(RegionLayer(layer) for layer in encoder.layer)
        self.cross_layers = nn.ModuleList(LxmertCrossLayer(layer) for layer in encoder.x_layers)
        self.pool = model.lxmert.pooler
        self.head = model.answer_head

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, image_tokens: Tensor, image_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        text, regions = self.embed(input_ids), image_tokens
        for layer in self.text_layers:
            text = layer(text, padding_mask(attention_mask, text.shape[1]))
        # What the last layer makes of the regions, nothing looks at: the exported graph is without it.
        for layer in self.cross_layers:
            text, regions = layer(text, attention_mask, regions, image_mask)
        logits = self.head(self.pool(text))
        return logits, logits.softmax(-1)


class LxmertCrossLayer(nn.Module):
    """Text and regions attend to each other, by the same weights in both directions, and then each to itself."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        cross = layer.visual_attention
        self.heads = cross.att.num_attention_heads
        # Each side needs query, key and value: one product per side.
        self.qkv = fuse_linears(cross.att.query, cross.att.key, cross.att.value)
        self.cross_output = cross.output
        self.text_attention = SelfAttention(layer.lang_self_att.self, layer.lang_self_att.output)
        self.text_intermediate, self.text_output = layer.lang_inter, layer.lang_output
        self.region_attention = SelfAttention(layer.visn_self_att.self, layer.visn_self_att.output)
        self.region_intermediate, self.region_output = layer.visn_inter, layer.visn_output

    def forward(self, text: Tensor, text_mask: Tensor, regions: Tensor, region_mask: Tensor) -> tuple[Tensor, Tensor]:
        text_query, text_key, text_value = self.qkv(text).chunk(3, -1)
        region_query, region_key, region_value = self.qkv(regions).chunk(3, -1)
        mask = padding_mask(region_mask, text.shape[1])
        seen = self.cross_output(attend(text_query, region_key, region_value, self.heads, mask=mask), text)
        mask = padding_mask(text_mask, regions.shape[1])
        read = self.cross_output(attend(region_query, text_key, text_value, self.heads, mask=mask), regions)
        text = self.text_attention(seen, padding_mask(text_mask, text.shape[1]))
        regions = self.region_attention(read, padding_mask(region_mask, regions.shape[1]))
        return (
            self.text_output(self.text_intermediate(text), text),
            self.region_output(self.region_intermediate(regions), regions),
        )


def _open(folder: Path) -> Source:
    from transformers import LxmertForQuestionAnswering

    model, weights = load_model(folder, LxmertForQuestionAnswering)
    config = model.config
    regions = RegionSpec(config.visual_feat_dim, config.visual_pos_dim)

    def answer(inputs: Mapping[str, Tensor], question_ids: tuple[int, ...]) -> Tensor:
        question = torch.tensor([question_ids])
        output = model(question, inputs["visual_features"], inputs["visual_boxes"], torch.ones_like(question))
        return cast(Tensor, output.question_answering_score[0])

    return Source(
        name=name_of(folder),
        task="vqa",
        license=license_of(folder),
        weights=weights,
        roles=(
            region_role(LxmertRegionGraph(model), partial(_encode, model), regions, attends=config.r_layers > 0),
            answer_role(
                LxmertAnswerGraph(model),
                partial(_answer, model),
                vocabulary=config.vocab_size,
                width=config.hidden_size,
                longest=config.max_position_embeddings,
            ),
        ),
        tokenizer=source_tokenizer(folder, config.max_position_embeddings, writes=False),
        reference=ChoosesOverRegions(regions, answer_labels(folder, config.num_qa_labels), answer),
        golden_inputs=region_inputs(regions),
    )


def _encode(model: LxmertForQuestionAnswering, features: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The model's own region encoder."""
    encoder = model.lxmert.encoder
    tokens = encoder.visn_fc(features, boxes)
    for layer in encoder.r_layers:
        tokens = layer(tokens)[0]
    return tokens, full_mask(tokens)


def _answer(
    model: LxmertForQuestionAnswering, input_ids: Tensor, attention_mask: Tensor, tokens: Tensor, mask: Tensor
) -> Tensor:
    """The model's own forward, without its region encoder: its input is the output of that encoder."""
    encoder = model.lxmert.encoder
    embed, layers = encoder.visn_fc, encoder.r_layers
    encoder.visn_fc, encoder.r_layers = _PassedBy(), nn.ModuleList()
    try:
        output = model(input_ids, tokens, tokens, attention_mask, mask)
    finally:
        encoder.visn_fc, encoder.r_layers = embed, layers
    return cast(Tensor, output.question_answering_score)


class _PassedBy(nn.Module):
    """Returns the features unchanged."""

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        return features


LXMERT = transformers_family("LXMERT VQA", _open, {"LxmertForQuestionAnswering": "lxmert"})
