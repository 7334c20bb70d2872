"""Co-attention layers of MMF checkpoints (facebookresearch/mmf), as layers around the attention of this library.

ViLBERT's `BertConnectionLayer` and LXMERT's `LXMERTXLayer`, by their equations in `mmf/models/vilbert.py` and
`mmf/models/lxmert.py`. Both normalise after adding: `x ← norm(x + W a + b)`, then `x ← norm(x + feed_forward(x))`.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn_edge.attention import Attended, AttentionOptions, CrossModalAttention, Tokens
from xattn_edge.models.wrappers import without_wrappers
from xattn_runtime.errors import CheckpointError

__all__ = ["MMF_LAYERS", "MmfCoAttentionLayer", "bare_state", "load_mmf_layers", "read_mmf_checkpoint"]

_NORM_EPSILON = 1e-12
_MODELS = ("vilbert", "lxmert")
# A side's names for: what it asks with, and what is asked of the other side; then its output and feed-forward block.
_VILBERT = {
    "text": (
        "biattention.query2",
        "biattention.{}1",
        "biOutput.dense2",
        "biOutput.LayerNorm2",
        "t_intermediate",
        "t_output",
    ),
    "image": (
        "biattention.query1",
        "biattention.{}2",
        "biOutput.dense1",
        "biOutput.LayerNorm1",
        "v_intermediate",
        "v_output",
    ),
}
_LXMERT_CROSS = (
    "visual_attention.att.query",
    "visual_attention.att.{}",
    "visual_attention.output.dense",
    "visual_attention.output.LayerNorm",
)
_LXMERT = {
    "text": (*_LXMERT_CROSS, "lang_inter", "lang_output", "lang_self_att"),
    "image": (*_LXMERT_CROSS, "visn_inter", "visn_output", "visn_self_att"),
}
MMF_LAYERS = {
    "vilbert": r"(?:^|\.)encoder\.c_layer\.(\d+)\.(.+)$",
    "lxmert": r"(?:^|\.)encoder\.x_layers\.(\d+)\.(.+)$",
}
"""Model → where its co-attention layers stand among the names of a checkpoint."""

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class _Widths:
    """Of a side, of the other, inside of the attention, and inside of the feed-forward block."""

    own: int
    other: int
    inner: int
    feed_forward: int


class _Side(nn.Module):
    """What one side reads of the other, taken in; then self-attention, if the model has it; then feed-forward.

    `CrossModalAttention` asks in the width of its context: a context narrower than the inner width is filled up with
    zeros, which the keys and values weigh with zeros, so that nothing changes.
    """

    def __init__(self, widths: _Widths, heads: int, *, attends_itself: bool) -> None:
        super().__init__()
        options = AttentionOptions(heads=heads, similarity="scaled_dot")
        self.inner = max(widths.inner, widths.other)
        if self.inner != widths.inner:
            raise ValueError(f"widths: expected a context of at most {widths.inner}, found {widths.other}")
        self.attention = CrossModalAttention(widths.own, self.inner, self.inner, options)
        self.output, self.norm = nn.Linear(self.inner, widths.own), nn.LayerNorm(widths.own, eps=_NORM_EPSILON)
        self.self_attention = (
            CrossModalAttention(widths.own, widths.own, widths.own, options) if attends_itself else None
        )
        self.self_output = nn.Linear(widths.own, widths.own) if attends_itself else None
        self.self_norm = nn.LayerNorm(widths.own, eps=_NORM_EPSILON) if attends_itself else None
        self.wide, self.narrow = nn.Linear(widths.own, widths.feed_forward), nn.Linear(widths.feed_forward, widths.own)
        self.feed_forward_norm = nn.LayerNorm(widths.own, eps=_NORM_EPSILON)

    def forward(self, own: Tokens, other: Tokens) -> Tokens:
        context = F.pad(other.features, (0, self.inner - other.features.shape[-1]))
        read = cast(
            Attended, self.attention(own.features, context, context, mask=other.mask, need_weights=False)
        ).output
        features = self.norm(own.features + self.output(read))
        if self.self_attention is not None and self.self_output is not None and self.self_norm is not None:
            seen = cast(
                Attended, self.self_attention(features, features, features, mask=own.mask, need_weights=False)
            ).output
            features = self.self_norm(features + self.self_output(seen))
        return Tokens(self.feed_forward_norm(features + self.narrow(F.gelu(self.wide(features)))), own.mask)


class MmfCoAttentionLayer(nn.Module):
    """Text and image read each other at once, neither of what the other has read."""

    def __init__(self, text: _Side, image: _Side) -> None:
        super().__init__()
        self.text, self.image = text, image

    def forward(self, text: Tokens, image: Tokens) -> tuple[Tokens, Tokens]:
        """Tokens of both sides, `[batch, tokens, width of the side]`, with what they read."""
        return self.text(text, image), self.image(image, text)


def read_mmf_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file of MMF by name; nothing in the file but tensors and plain values is loaded.

    Raises:
        CheckpointError: no such file, or one that holds something else.
    """
    try:
        stored: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path}: expected a checkpoint of tensors alone, found: {reason}") from error
    state = stored.get("model", stored) if isinstance(stored, dict) else stored
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: expected a checkpoint with names and tensors, found {type(state).__name__}")
    return {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def bare_state(state: State, known: re.Pattern[str]) -> State:
    """Without what wrapped the model in training, so that as many names as possible begin as those that are known."""
    bare, taken = without_wrappers(state, lambda names: sum(bool(known.match(name)) for name in names))
    if taken:
        logging.getLogger("xattn_edge").info(f"state: {taken} is taken off the names of its tensors")
    return bare


def load_mmf_layers(state: State, model: Literal["vilbert", "lxmert"], heads: int) -> tuple[MmfCoAttentionLayer, ...]:
    """The co-attention layers of an MMF checkpoint, with its weights, in evaluation mode.

    Args:
        state: of `read_mmf_checkpoint`; what is no part of a co-attention layer is left alone.
        heads: `bi_num_attention_heads` of ViLBERT, `num_attention_heads` of LXMERT.

    Raises:
        CheckpointError: another model, no such layer, or a layer with a tensor that is missing or does not fit.
    """
    if model not in _MODELS:
        raise CheckpointError(f"model: expected one of {', '.join(_MODELS)}, found {model!r}")
    layers: dict[int, dict[str, Tensor]] = {}
    for name, tensor in bare_state(state, re.compile(f".*{MMF_LAYERS[model]}")).items():
        if match := re.search(MMF_LAYERS[model], name):
            layers.setdefault(int(match[1]), {})[match[2]] = tensor
    if not layers:
        raise CheckpointError(f"state: expected co-attention layers of {model}, found none among {len(state)} tensors")
    return tuple(_layer(layers[number], model, heads, number) for number in sorted(layers))


def _layer(state: State, model: str, heads: int, number: int) -> MmfCoAttentionLayer:
    names = _VILBERT if model == "vilbert" else _LXMERT
    try:
        sides = [_side(state, names[side], heads) for side in ("text", "image")]
    except (KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{model}: co-attention layer {number}: missing or of another shape: {reason}") from error
    return MmfCoAttentionLayer(*sides).eval()


def _side(state: State, names: tuple[str, ...], heads: int) -> _Side:
    query, other, output, norm, wide, narrow, *own = names
    inner, width = state[f"{query}.weight"].shape
    context = state[other.format("key") + ".weight"].shape[1]
    widths = _Widths(width, context, inner, len(state[f"{wide}.dense.weight"]))
    side = _Side(widths, heads, attends_itself=bool(own))
    loaded = {
        **_attention(state, "attention", query, other, side.inner, heads),
        **_renamed(state, {output: "output", norm: "norm", f"{wide}.dense": "wide", f"{narrow}.dense": "narrow"}),
        **_renamed(state, {f"{narrow}.LayerNorm": "feed_forward_norm"}),
    }
    for part in own:
        loaded |= _attention(state, "self_attention", f"{part}.self.query", f"{part}.self.{{}}", width, heads)
        loaded |= _renamed(state, {f"{part}.output.dense": "self_output", f"{part}.output.LayerNorm": "self_norm"})
    side.load_state_dict(loaded)
    return side


def _attention(state: State, name: str, query: str, other: str, inner: int, heads: int) -> dict[str, Tensor]:
    """Queries, keys and values; the product after the heads is that of the layer itself, so that ours is none."""
    renamed = _renamed(state, {query: f"{name}.q_linear"})
    for kind, ours in (("key", "k_linear"), ("value", "v_linear")):
        weight = state[other.format(kind) + ".weight"]
        renamed[f"{name}.{ours}.weight"] = F.pad(weight, (0, inner - weight.shape[1]))
        renamed[f"{name}.{ours}.bias"] = state[other.format(kind) + ".bias"]
    return renamed | ({f"{name}.out_linear.weight": torch.eye(inner)} if heads > 1 else {})


def _renamed(state: State, names: Mapping[str, str]) -> dict[str, Tensor]:
    return {
        f"{ours}.{part}": state[f"{theirs}.{part}"] for theirs, ours in names.items() for part in ("weight", "bias")
    }
