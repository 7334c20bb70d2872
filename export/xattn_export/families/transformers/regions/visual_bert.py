"""VisualBERT: visual question answering over the regions of an image, by choosing among answers.

One transformer reads the words of the question and the regions together; the answer is read at the last word.
https://arxiv.org/abs/1908.03557
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
from xattn_export.families.layers.common import padding_mask
from xattn_export.families.transformers.answer_labels import answer_labels
from xattn_export.families.transformers.regions.common import (
    RegionLayer,
    TextTokens,
    answer_role,
    full_mask,
    region_inputs,
    region_role,
)
from xattn_runtime.errors import CheckpointError
from xattn_runtime.preprocess.regions import RegionSpec

if TYPE_CHECKING:
    from transformers import VisualBertForQuestionAnswering

__all__ = ["VISUAL_BERT"]

# The answer is read one before the token that ends the question.
_AFTER_ANSWER = 2


class VisualBertRegionGraph(nn.Module):
    """Features `[batch, regions, width]` to `image_tokens`, normalised, and `image_mask`."""

    def __init__(self, model: VisualBertForQuestionAnswering) -> None:
        super().__init__()
        embeddings: Any = model.visual_bert.embeddings
        self.projection = embeddings.visual_projection
        # Regions have no order, hence one position, and the second type of token.
        place = embeddings.visual_position_embeddings.weight[0] + embeddings.visual_token_type_embeddings.weight[1]
        self.place = nn.Parameter(place.detach(), requires_grad=False)
        self.norm = embeddings.LayerNorm

    def forward(self, visual_features: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.norm(self.projection(visual_features) + self.place)
        return tokens, full_mask(tokens)


class VisualBertAnswerGraph(nn.Module):
    """Question and image tokens to logits and probabilities, `[batch, answers]`."""

    def __init__(self, model: VisualBertForQuestionAnswering) -> None:
        super().__init__()
        self.embed = TextTokens(model.visual_bert.embeddings)
        self.layers = nn.ModuleList(RegionLayer(layer) for layer in model.visual_bert.encoder.layer)
        self.head = model.cls

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, image_tokens: Tensor, image_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        tokens = torch.cat((self.embed(input_ids), image_tokens), 1)
        mask = padding_mask(torch.cat((attention_mask, image_mask), 1), tokens.shape[1])
        for layer in self.layers:
            tokens = layer(tokens, mask)
        place = (attention_mask.sum(1) - _AFTER_ANSWER)[:, None, None].expand(-1, 1, tokens.shape[-1])
        logits = self.head(tokens.gather(1, place)[:, 0])
        return logits, logits.softmax(-1)


def _open(folder: Path) -> Source:
    from transformers import VisualBertForQuestionAnswering

    model, weights = load_model(folder, VisualBertForQuestionAnswering, unused=(r"\.position_ids$", r"\.pooler\."))
    config = model.config
    if config.bypass_transformer:
        raise CheckpointError(
            f"{folder / 'config.json'}: bypass_transformer: expected false, found true: Transformers itself cannot "
            "compute it with a batch of masks"
        )
    regions = RegionSpec(config.visual_embedding_dim, 0)

    def answer(inputs: Mapping[str, Tensor], question_ids: tuple[int, ...]) -> Tensor:
        question = torch.tensor([question_ids])
        output = model(question, torch.ones_like(question), visual_embeds=inputs["visual_features"])
        return cast(Tensor, output.logits[0])

    return Source(
        name=name_of(folder),
        task="vqa",
        license=license_of(folder),
        weights=weights,
        roles=(
            region_role(VisualBertRegionGraph(model), partial(_encode, model), regions, attends=False),
            answer_role(
                VisualBertAnswerGraph(model),
                partial(_answer, model),
                vocabulary=config.vocab_size,
                width=config.hidden_size,
                longest=config.max_position_embeddings,
                fewest=_AFTER_ANSWER,
            ),
        ),
        tokenizer=source_tokenizer(folder, config.max_position_embeddings, writes=False),
        reference=ChoosesOverRegions(regions, answer_labels(folder, config.num_labels), answer),
        golden_inputs=region_inputs(regions),
    )


def _encode(model: VisualBertForQuestionAnswering, features: Tensor) -> tuple[Tensor, Tensor]:
    """The model's own embeddings of regions after any text."""
    text = torch.zeros(features.shape[0], 1, dtype=torch.int64)
    tokens = model.visual_bert.embeddings(text, visual_embeds=features)[:, 1:]
    return tokens, full_mask(tokens)


def _answer(
    model: VisualBertForQuestionAnswering, input_ids: Tensor, attention_mask: Tensor, tokens: Tensor, mask: Tensor
) -> Tensor:
    """The model's own forward, with `tokens` in place of what its embeddings made of regions."""
    features = torch.zeros(*tokens.shape[:2], model.config.visual_embedding_dim)
    handle = model.visual_bert.embeddings.register_forward_hook(
        lambda *call: torch.cat((call[2][:, : input_ids.shape[1]], tokens), 1)
    )
    try:
        output = model(input_ids, attention_mask, visual_embeds=features, visual_attention_mask=mask)
    finally:
        handle.remove()
    return cast(Tensor, output.logits)


# Other classes of VisualBERT have tensors of the same names.
VISUAL_BERT = transformers_family(
    "VisualBERT VQA", _open, {"VisualBertForQuestionAnswering": "visual_bert"}, by_model_type=False
)
