"""A text becomes text tokens, by a bidirectional LSTM or by a Transformer; both are called alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xattn_edge.attention import Tokens
from xattn_edge.encoders.transformer import SelfAttentionLayer, attend_to_each_other

__all__ = ["LstmTextEncoder", "TransformerTextEncoder"]


class LstmTextEncoder(nn.Module):
    """Bidirectional LSTM (Hochreiter and Schmidhuber, 1997) over word embeddings.

    Args:
        vocabulary: number of token ids.
        width: features of a token; even, half of it for each direction.
    """

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width // 2, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """Int64 `[batch, length]` both, padded on the right, to `[batch, length, width]` and its mask."""
        lengths = attention_mask.sum(1).clamp(min=1)
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embedding(input_ids), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        tokens, _ = nn.utils.rnn.pad_packed_sequence(
            self.lstm(packed)[0], batch_first=True, total_length=input_ids.shape[1]
        )
        return Tokens(self.norm(tokens), attention_mask.bool())


class TransformerTextEncoder(nn.Module):
    """Word and position embeddings, then self-attention layers that leave padding out.

    Args:
        vocabulary: number of token ids.
        width: features of a token.
        max_tokens: longest question, in tokens.
        layers: number of self-attention layers.
        heads: attention heads of each.
        dropout: probability, in training.
    """

    def __init__(
        self, vocabulary: int, width: int, max_tokens: int, layers: int, heads: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.randn(max_tokens, width) * 0.02)
        self.layers = nn.ModuleList(SelfAttentionLayer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """Int64 `[batch, length]` both, padded on the right, to `[batch, length, width]` and its mask."""
        mask = attention_mask.bool()
        words = self.embedding(input_ids) + self.position[: input_ids.shape[1]]
        return Tokens(self.norm(attend_to_each_other(self.layers, words, mask)), mask)
