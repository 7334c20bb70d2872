"""Text decoders of Transformers around a checkpoint's own weights: GPT-2, BERT, RoBERTa and TrOCR.

Each attends to an image through keys and values that were computed once. Names are those of modeling_gpt2.py,
modeling_bert.py, modeling_roberta.py and modeling_trocr.py. It knows tokens and their cache, and no image.
GPT-2: https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf; BERT:
https://arxiv.org/abs/1810.04805; RoBERTa: https://arxiv.org/abs/1907.11692; TrOCR: https://arxiv.org/abs/2109.10282.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from xattn_edge.attention import KeyValue, split_heads
from xattn_edge.attention.caches import flatten, pairs
from xattn_export.families.layers.common import attend_heads, attend_with_cache, fuse_linears, head, places
from xattn_export.families.layers.text.bert import BertLayer, cross_projections

__all__ = ["DECODERS", "CrossDecoderGraph", "CrossKeys", "DecoderParts", "TrocrEmbeddings", "TrocrLayer", "activation"]


@dataclass(frozen=True)
class DecoderParts:
    """The parts of a decoding step.

    embeddings: token ids `[batch, length]` and the number of tokens before them → `[batch, length, width]`.
    layers: each has `with_cache(tokens, past, context)`, which returns tokens and the longer cache.
    head: vectors `[batch, width]` → logits `[batch, vocabulary]`.
    cross: of every layer, states of an image → cross-attention keys and values beside each other.
    longest: the most tokens that there are positions for.
    """

    embeddings: nn.Module
    layers: nn.ModuleList
    head: nn.Module
    cross: nn.ModuleList
    heads: int
    longest: int


class CrossKeys(nn.Module):
    """States `[batch, tokens, width]` to the cross-attention keys and values of every layer, `key_0`, `value_0`, …"""

    def __init__(self, projections: nn.ModuleList, heads: int) -> None:
        """`projections`: of every layer, states → keys and values beside each other."""
        super().__init__()
        self.projections = projections
        self.heads = heads

    def forward(self, states: Tensor) -> tuple[Tensor, ...]:
        """`[batch, heads, tokens, head_width]` each."""
        halves = (half for projection in self.projections for half in projection(states).chunk(2, -1))
        return tuple(split_heads(half, self.heads) for half in halves)


class CrossDecoderGraph(nn.Module):
    """One decoding step: tokens after a cache, attending to an image; logits of the last position alone."""

    def __init__(self, parts: DecoderParts) -> None:
        super().__init__()
        self.embeddings = parts.embeddings
        self.layers = parts.layers
        self.head = parts.head

    def forward(self, input_ids: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        """`caches` holds the past keys and values of every layer, then the cross keys and values."""
        past, cross = pairs(caches[: len(caches) // 2]), pairs(caches[len(caches) // 2 :])
        tokens = self.embeddings(input_ids, past[0].key.shape[2])
        present = []
        for layer, layer_past, layer_cross in zip(self.layers, past, cross, strict=True):
            tokens, layer_present = cast(Any, layer).with_cache(tokens, layer_past, layer_cross)
            present.append(layer_present)
        return *head(self.head(tokens[:, -1])), *flatten(present)


class Gpt2Linear(nn.Module):
    """GPT-2's `Conv1D`: a linear layer whose weight is kept as `[in, out]`, as a matrix product reads it."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.weight = layer.weight
        self.bias = layer.bias

    def forward(self, tokens: Tensor) -> Tensor:
        return cast(Tensor, tokens @ self.weight + self.bias)


class Gpt2Embeddings(nn.Module):
    """Words and learned positions."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.words = model.wte
        self.positions = model.wpe

    def forward(self, input_ids: Tensor, past: int) -> Tensor:
        return cast(Tensor, self.words(input_ids) + F.embedding(places(input_ids, past), self.positions.weight))


class Gpt2Layer(nn.Module):
    """Self-attention, cross-attention, a feed-forward network, each on normalised tokens."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention, cross = layer.attn, layer.crossattention
        self.heads = attention.num_heads
        self.scale = attention.scaling
        self.norm = layer.ln_1
        self.qkv = Gpt2Linear(attention.c_attn)
        self.attention_output = Gpt2Linear(attention.c_proj)
        self.cross_scale = cross.scaling
        self.cross_norm = layer.ln_cross_attn
        self.cross_query = Gpt2Linear(cross.q_attn)
        self.cross_output = Gpt2Linear(cross.c_proj)
        self.feed_forward_norm = layer.ln_2
        self.intermediate = Gpt2Linear(layer.mlp.c_fc)
        self.activation = activation(layer.mlp.act)
        self.output = Gpt2Linear(layer.mlp.c_proj)

    def with_cache(self, tokens: Tensor, past: KeyValue, context: KeyValue) -> tuple[Tensor, KeyValue]:
        """New tokens, causal, after those of the cache; and the longer cache."""
        query, key, value = self.qkv(self.norm(tokens)).chunk(3, -1)
        attended, present = attend_with_cache(query, key, value, past, self.heads, scale=self.scale)
        tokens = tokens + self.attention_output(attended)
        query = self.cross_query(self.cross_norm(tokens))
        tokens = tokens + self.cross_output(attend_heads(query, context, scale=self.cross_scale))
        widened = self.activation(self.intermediate(self.feed_forward_norm(tokens)))
        return cast(Tensor, tokens + self.output(widened)), present


class BertEmbeddings(nn.Module):
    """Words, the first token type, and learned positions, normalised."""

    def __init__(self, embeddings: Any, padding_id: int | None = None) -> None:
        super().__init__()
        self.words = embeddings.word_embeddings
        self.types = embeddings.token_type_embeddings
        self.positions = embeddings.position_embeddings
        self.norm = embeddings.LayerNorm
        self.padding_id = padding_id

    def forward(self, input_ids: Tensor, past: int) -> Tensor:
        if self.padding_id is None:
            positions = places(input_ids, past)
        else:
            positions = _places_after_padding(input_ids, past, self.padding_id)
        tokens = self.words(input_ids) + self.types.weight[0]
        return cast(Tensor, self.norm(tokens + F.embedding(positions, self.positions.weight)))


class TrocrEmbeddings(nn.Module):
    """Words, scaled where the model does so, and positions, learned or sinusoidal; normalised or not."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        positions = model.embed_positions
        self.words = model.embed_tokens
        self.norm = model.layernorm_embedding or nn.Identity()
        self.learned = isinstance(positions, nn.Embedding)
        self.offset = positions.offset
        self.padding_id = model.padding_idx
        self.positions = positions.weight if self.learned else nn.Buffer(positions.weights, persistent=False)

    def forward(self, input_ids: Tensor, past: int) -> Tensor:
        if self.learned:
            positions = places(input_ids, past) + self.offset
        else:
            positions = _places_after_padding(input_ids, past, self.padding_id)
        return cast(Tensor, self.norm(self.words(input_ids) + F.embedding(positions, self.positions)))


class TrocrLayer(nn.Module):
    """Self-attention, cross-attention, a feed-forward network, each normalised after."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention, cross = layer.self_attn, layer.encoder_attn
        self.heads = attention.num_heads
        self.qkv = fuse_linears(attention.q_proj, attention.k_proj, attention.v_proj)
        self.attention_output = attention.out_proj
        self.attention_norm = layer.self_attn_layer_norm
        self.cross_query = cross.q_proj
        self.cross_output = cross.out_proj
        self.cross_norm = layer.encoder_attn_layer_norm
        self.intermediate = layer.fc1
        self.activation = activation(layer.activation_fn)
        self.output = layer.fc2
        self.norm = layer.final_layer_norm

    def with_cache(self, tokens: Tensor, past: KeyValue, context: KeyValue) -> tuple[Tensor, KeyValue]:
        """New tokens, causal, after those of the cache; and the longer cache."""
        query, key, value = self.qkv(tokens).chunk(3, -1)
        attended, present = attend_with_cache(query, key, value, past, self.heads)
        tokens = self.attention_norm(tokens + self.attention_output(attended))
        attended = attend_heads(self.cross_query(tokens), context)
        tokens = self.cross_norm(tokens + self.cross_output(attended))
        return cast(Tensor, self.norm(tokens + self.output(self.activation(self.intermediate(tokens))))), present


def _gpt2(model: Any) -> DecoderParts:
    body, config = model.transformer, model.config
    return DecoderParts(
        embeddings=Gpt2Embeddings(body),
        layers=nn.ModuleList(Gpt2Layer(layer) for layer in body.h),
        head=nn.Sequential(body.ln_f, model.lm_head),
        cross=nn.ModuleList(Gpt2Linear(layer.crossattention.c_attn) for layer in body.h),
        heads=config.num_attention_heads,
        longest=config.max_position_embeddings,
    )


def _bert(model: Any) -> DecoderParts:
    return _bert_like(model, model.bert, model.cls, BertEmbeddings(model.bert.embeddings), 0)


def _roberta(model: Any) -> DecoderParts:
    padding_id = model.roberta.embeddings.padding_idx
    embeddings = BertEmbeddings(model.roberta.embeddings, padding_id)
    return _bert_like(model, model.roberta, model.lm_head, embeddings, padding_id + 1)


def _bert_like(model: Any, body: Any, head: nn.Module, embeddings: nn.Module, unused_positions: int) -> DecoderParts:
    crosses = [layer.crossattention.self for layer in body.encoder.layer]
    return DecoderParts(
        embeddings=embeddings,
        layers=nn.ModuleList(BertLayer(layer) for layer in body.encoder.layer),
        head=head,
        cross=cross_projections(crosses),
        heads=model.config.num_attention_heads,
        longest=model.config.max_position_embeddings - unused_positions,
    )


def _trocr(model: Any) -> DecoderParts:
    body, config = model.model.decoder, model.config
    if not config.use_learned_position_embeddings:
        _make_sinusoids(body)
    return DecoderParts(
        embeddings=TrocrEmbeddings(body),
        layers=nn.ModuleList(TrocrLayer(layer) for layer in body.layers),
        head=model.output_projection,
        cross=nn.ModuleList(
            fuse_linears(layer.encoder_attn.k_proj, layer.encoder_attn.v_proj) for layer in body.layers
        ),
        heads=config.decoder_attention_heads,
        longest=config.max_position_embeddings,
    )


def _make_sinusoids(body: Any) -> None:
    """Compute the table of positions: `from_pretrained` leaves it without values, since no file holds it."""
    positions = body.embed_positions
    rows = body.config.max_position_embeddings + positions.padding_idx + 1
    positions.weights = positions.get_embedding(rows, positions.embedding_dim, positions.padding_idx)


def _places_after_padding(input_ids: Tensor, past: int, padding_id: int) -> Tensor:
    """The same `[batch, length]` where positions begin after `padding_id`, which is that of padding itself."""
    is_token = (input_ids != padding_id).long()
    return (is_token.cumsum(1) + past) * is_token + padding_id


def activation(function: nn.Module) -> nn.Module:
    """The same function; GPT-2's, which Transformers writes out, as the one operator that it is."""
    return nn.GELU(approximate="tanh") if type(function).__name__ == "NewGELUActivation" else function


DECODERS: Mapping[str, Callable[[Any], DecoderParts]] = {
    "gpt2": _gpt2,
    "bert": _bert,
    "roberta": _roberta,
    "trocr": _trocr,
}
"""The parts of a decoder by the `model_type` of its configuration, made of Transformers' model for causal language."""
