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
from xattn_export.families.layers.common import RmsNorm
from xattn_export.families.layers.language.layer import DecoderLayer, LayerKind
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
    """

    layers: LayerKind = field(default_factory=LayerKind)
    windows: Literal["none", "by type", "all"] = "none"
    axes: PositionAxes = "one"
    positions_by_type: bool = False
    partly_rotated: bool = False


class LanguageDecoder(nn.Module):
    """Vectors `[batch, length, width]` after a cache to as many, normalised; and the longer cache.

    The cache is a layer's rotated keys, and values, `[batch, kv_heads, past, head_width]`: fewer heads than queries
    have, where these are grouped. It keeps all tokens, also of layers that see a window.
    """

    def __init__(self, model: Any, kind: DecoderKind) -> None:
        """`model`: the text model of Transformers, such as `LlamaModel`."""
        super().__init__()
        config = model.config
        self.scale = float(getattr(model, "embedding_multiplier", 1.0))
        softcap = config.attn_logit_softcapping if kind.layers.softcaps else None
        self.layers = nn.ModuleList(
            DecoderLayer(layer, kind.layers, config.num_attention_heads, config.num_key_value_heads, softcap)
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
            used.index(layer_type) if getattr(layer.self_attn, "use_rope", True) else None
            for layer_type, layer in zip(types, model.layers, strict=True)
        ]

    @property
    def head_width(self) -> int:
        """Of keys and values."""
        return cast(DecoderLayer, self.layers[0]).head_width

    def forward(
        self,
        tokens: Tensor,
        past: Sequence[KeyValue],
        position_ids: Tensor | None = None,
        blocks: Blocks | None = None,
        added: Sequence[Tensor] = (),
    ) -> tuple[Tensor, list[KeyValue]]:
        """One step.

        Args:
            tokens: what the text model of Transformers takes as `inputs_embeds`.
            position_ids: int64 `[batch, length]`, or `[3, batch, length]` where positions have three axes; by default
                those after the cache.
            blocks: of the new tokens, where some see more than those before them.
            added: `[batch, length, width]` each, to what the first, second, … layer makes (DeepStack).
        """
        before, length = past[0].key.shape[2], tokens.shape[1]
        rotations = [cast(Rotation, scheme(before, length, position_ids)) for scheme in self.positions]
        masks = {
            window: None if window is None and blocks is None else mask_of(before, tokens, window, blocks)
            for window in dict.fromkeys(self.windows)
        }
        tokens = tokens if self.scale == 1.0 else tokens * self.scale
        present = []
        for number, (layer, layer_past) in enumerate(zip(self.layers, past, strict=True)):
            scheme = self.scheme_of[number]
            rotation = None if scheme is None else rotations[scheme]
            tokens, layer_present = cast(DecoderLayer, layer).with_cache(
                tokens, layer_past, rotation, masks[self.windows[number]]
            )
            tokens = tokens + added[number] if number < len(added) else tokens
            present.append(layer_present)
        return self.norm(tokens), present


def _window(config: Any, kind: DecoderKind, layer: int) -> int | None:
    if kind.windows == "none" or config.sliding_window is None:
        return None
    if kind.windows == "all" or config.layer_types[layer] == "sliding_attention":
        return int(config.sliding_window)
    return None
