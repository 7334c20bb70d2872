"""BART's layers around a checkpoint's own weights, over flat tensors, with one `Attention` operator each.

The architecture is that of https://arxiv.org/abs/1910.13461; names are those of Transformers' modeling_bart.py. TrOCR's
decoder is BART's, layer by layer. It knows layers, and no image.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from xattn_export.families.layers.common import attend, fuse_linears, padding_mask, places
from xattn_export.families.layers.text.decoders import DecoderParts, TrocrEmbeddings, TrocrLayer

__all__ = ["BartEncoder", "bart_decoder"]


class BartEncoder(nn.Module):
    """Embedded tokens `[batch, length, width]` and their int64 mask `[batch, length]` to the tokens' states."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.offset = model.embed_positions.offset
        self.positions = model.embed_positions
        self.norm = model.layernorm_embedding
        self.layers = nn.ModuleList(BartEncoderLayer(layer) for layer in model.layers)

    def forward(self, embedded: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = self.norm(embedded + F.embedding(places(embedded, self.offset), self.positions.weight))
        mask = padding_mask(attention_mask)
        for layer in self.layers:
            tokens = layer(tokens, mask)
        return cast(Tensor, tokens)


class BartEncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each normalised after."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention = layer.self_attn
        self.heads = attention.num_heads
        self.qkv = fuse_linears(attention.q_proj, attention.k_proj, attention.v_proj)
        self.attention_output = attention.out_proj
        self.attention_norm = layer.self_attn_layer_norm
        self.intermediate = layer.fc1
        self.activation = layer.activation_fn
        self.output = layer.fc2
        self.norm = layer.final_layer_norm

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).chunk(3, -1)
        attended = attend(query, key, value, self.heads, mask=mask)
        tokens = self.attention_norm(tokens + self.attention_output(attended))
        return cast(Tensor, self.norm(tokens + self.output(self.activation(self.intermediate(tokens)))))


def bart_decoder(model: Any, head: nn.Module) -> DecoderParts:
    """The parts of a decoding step of BART's decoder `model`, with `head` for its logits."""
    crosses = [layer.encoder_attn for layer in model.layers]
    return DecoderParts(
        embeddings=TrocrEmbeddings(model),
        layers=nn.ModuleList(TrocrLayer(layer) for layer in model.layers),
        head=head,
        cross=nn.ModuleList(fuse_linears(cross.k_proj, cross.v_proj) for cross in crosses),
        heads=model.config.decoder_attention_heads,
        longest=model.config.max_position_embeddings,
    )
