"""A decoder of the Llama kind around a checkpoint's own weights, over flat tensors.

It knows vectors and their cache; what the vectors stand for, words or an image, and what is made of the result, is the
family's affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from torch import Tensor, nn

from xattn_edge.attention import KeyValue
from xattn_edge.attention.caches import flatten, pairs
from xattn_export.families.layers.common import RmsNorm
from xattn_export.families.layers.language.convolution import ConvolutionLayer
from xattn_export.families.layers.language.layer import DecoderLayer, LayerKind
from xattn_export.families.layers.language.lfm2 import under_names_of_llama
from xattn_export.families.layers.language.masks import Blocks, mask_of
from xattn_export.families.layers.language.positions import PositionAxes, Rotation, positions_of

__all__ = ["DecoderKind", "LanguageDecoder"]


@dataclass(frozen=True)
class DecoderKind:
    """What the decoder of one `model_type` has beside Llama's.

    windows: which layers see only a window: none, those of that type, or all where the configuration has a window.
    axes: of positions.
    positions_by_type: layers of each type have rotary positions of their own.
    partly_rotated: a part of a head may have no positions.
    convolves: layers of the type `conv` have a short convolution in place of attention, as LFM2's.
    """

    layers: LayerKind = field(default_factory=LayerKind)
    windows: Literal["none", "by type", "all"] = "none"
    axes: PositionAxes = "one"
    positions_by_type: bool = False
    partly_rotated: bool = False
    convolves: bool = False


class LanguageDecoder(nn.Module):
    """Vectors `[batch, length, width]` after a cache to as many, normalised; and what the next step needs.

    The cache is a layer's rotated keys, and values, `[batch, kv_heads, past, head_width]`: fewer heads than queries
    have, where these are grouped. It keeps all tokens, also of layers that see a window. A layer that convolves keeps
    a state `[batch, width, kernel - 1]` instead.
    """

    def __init__(self, model: Any, kind: DecoderKind) -> None:
        """`model`: the text model of Transformers, such as `LlamaModel`."""
        super().__init__()
        model = under_names_of_llama(model) if kind.convolves else model
        config = model.config
        self.scale = float(getattr(model, "embedding_multiplier", 1.0))
        softcap = config.attn_logit_softcapping if kind.layers.softcaps else None
        self.layers = nn.ModuleList(
            ConvolutionLayer(layer)
            if hasattr(layer, "conv")
            else DecoderLayer(layer, kind.layers, config.num_attention_heads, config.num_key_value_heads, softcap)
            for layer in model.layers
        )
        self.norm = RmsNorm(model.norm, kind.layers.norm_offset)
        self.windows = [_window(config, kind, layer) for layer in range(len(self.layers))]
        types: list[str | None] = list(config.layer_types) if kind.positions_by_type else [None] * len(self.layers)
        used = sorted(set(types), key=str)
        self.positions = nn.ModuleList(
            positions_of(model.rotary_emb, config, self.head_width, kind.axes, layer_type) for layer_type in used
        )
        self.scheme_of = [
            used.index(layer_type)
            if hasattr(layer, "self_attn") and getattr(layer.self_attn, "use_rope", True)
            else None
            for layer_type, layer in zip(types, model.layers, strict=True)
        ]

    @property
    def attention_layers(self) -> int:
        """How many layers have keys and values."""
        return sum(isinstance(layer, DecoderLayer) for layer in self.layers)

    @property
    def head_width(self) -> int:
        """Of keys and values."""
        return next(layer.head_width for layer in self.layers if isinstance(layer, DecoderLayer))

    @property
    def states(self) -> list[tuple[int, int]]:
        """Of every layer that convolves the width of its state, and of how many tokens it is."""
        return [layer.state for layer in self.layers if isinstance(layer, ConvolutionLayer)]

    def forward(self, tokens: Tensor, past: Sequence[KeyValue], **options: Any) -> tuple[Tensor, list[KeyValue]]:
        """`step` of a decoder without states, its cache in pairs."""
        tokens, present = self.step(tokens, flatten(past), **options)
        return tokens, pairs(present)

    def step(
        self,
        tokens: Tensor,
        past: Sequence[Tensor],
        position_ids: Tensor | None = None,
        blocks: Blocks | None = None,
        added: Sequence[Tensor] = (),
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One step.

        Args:
            tokens: what the text model of Transformers takes as `inputs_embeds`.
            past: keys and values of every layer that attends, `key_0`, `value_0`, `key_1`, …, then the state of every
                layer that convolves. The next step's come out in this order.
            position_ids: int64 `[batch, length]`, or `[3, batch, length]` where positions have three axes; by default
                those after the cache.
            blocks: of the new tokens, where some see more than those before them.
            added: `[batch, length, width]` each, to what the first, second, … layer makes (DeepStack).
        """
        caches, states = pairs(past[: 2 * self.attention_layers]), list(past[2 * self.attention_layers :])
        before, length = caches[0].key.shape[2], tokens.shape[1]
        rotations = [cast(Rotation, scheme(before, length, position_ids)) for scheme in self.positions]
        masks = {
            window: None if window is None and blocks is None else mask_of(before, tokens, window, blocks)
            for window in dict.fromkeys(self.windows)
        }
        tokens = tokens if self.scale == 1.0 else tokens * self.scale
        present: list[KeyValue] = []
        last_states: list[Tensor] = []
        for number, layer in enumerate(self.layers):
            if isinstance(layer, ConvolutionLayer):
                tokens, state = layer.with_state(tokens, states[len(last_states)])
                last_states.append(state)
            else:
                scheme = self.scheme_of[number]
                tokens, cache = cast(DecoderLayer, layer).with_cache(
                    tokens,
                    caches[len(present)],
                    None if scheme is None else rotations[scheme],
                    masks[self.windows[number]],
                )
                present.append(cache)
            tokens = tokens + added[number] if number < len(added) else tokens
        return self.norm(tokens), (*flatten(present), *last_states)


def _window(config: Any, kind: DecoderKind, layer: int) -> int | None:
    if kind.windows == "none" or config.sliding_window is None:
        return None
    if kind.windows == "all" or config.layer_types[layer] == "sliding_attention":
        return int(config.sliding_window)
    return None
