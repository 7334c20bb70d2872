"""Checkpoints of format 1 in the form of format 2: the configuration, and the names of the tensors.

Format 1 had two models for a question and two for a caption, one of plain Transformer layers and one of any mechanism,
and an attention of its own in Transformer layers. Format 2 has one of each, which computes the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["config_of_format_2", "tensors_of_format_2"]

Json = Mapping[str, Any]
# The first pattern that a name holds is replaced, of each group of patterns.
_ATTENTION = tuple(
    (rf"((?:^|\.)(?:self_)?attention)\.{old}\.", rf"\1.{new}.")
    for old, new in (("query", "q_linear"), ("key", "k_linear"), ("value", "v_linear"), ("output", "out_linear"))
)
_FRAMES = ((r"^frame_encoder\.picture\.", "frame_encoder.image_encoder."),)
_PLAIN_LAYER = (
    ("attention_norm", "norms.0"),
    ("attention", "mechanism.attention"),
    ("feed_forward_norm", "after.0.0"),
    ("feed_forward", "after.0.1"),
)
_PLAIN_VQA = (
    *((rf"^cross_layers\.(\d+)\.{old}\.", rf"layers.\1.{new}.") for old, new in _PLAIN_LAYER),
    (r"^norm\.", "text_norm."),
    (r"^classifier\.", "head."),
)
_PLAIN_CAPTION = (
    *((rf"^layers\.(\d+)\.cross\.{old}\.", rf"layers.\1.cross.{new}.") for old, new in _PLAIN_LAYER),
    (r"^norm\.", "text_norm."),
)
_CAPTION = (
    (r"^layers\.(\d+)\.read_norm\.", r"layers.\1.cross.norms.0."),
    (r"^layers\.(\d+)\.read\.", r"layers.\1.cross.mechanism.attention."),
    (r"^layers\.(\d+)\.after\.", r"layers.\1.cross.after.0."),
)


def config_of_format_2(task: str, model: Json) -> dict[str, Any]:
    """The `model` of a `config.json` of format 1 for `task`, as format 2 has it.

    Raises:
        KeyError, TypeError: a value is missing, or of another type.
    """
    if "mechanism" not in model:
        plain = {"vqa": _plain_vqa, "caption": _plain_caption}.get(task)
        return dict(model) if plain is None else plain(model)
    mechanism = {**model["mechanism"], "options": {**model["mechanism"]["options"], "output_bias": False}}
    added = {"vqa": _image_norm, "sentiment": _frames}.get(task)
    return {**model, "mechanism": mechanism, **({} if added is None else added(model))}


def _image_norm(model: Json) -> dict[str, Any]:
    return {"image_norm": True}


def _frames(model: Json) -> dict[str, Any]:
    frames = dict(model["frames"])
    return {"frames": {"image": frames.pop("picture"), **frames}}


def tensors_of_format_2(task: str, model: Json, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint of format 1, whose `config.json` has this `model`, by their names in format 2."""
    plain = "mechanism" not in model
    own = {
        "vqa": _PLAIN_VQA if plain else (),
        "caption": _PLAIN_CAPTION if plain else _CAPTION,
        "sentiment": _FRAMES,
    }
    return {_renamed(_renamed(name, own.get(task, ())), _ATTENTION): tensor for name, tensor in tensors.items()}


def _renamed(name: str, patterns: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in patterns:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    return name


def _plain_vqa(model: Json) -> dict[str, Any]:
    heads, is_lstm = model["heads"], model["text_encoder"] == "lstm"
    return {
        "image": _image(model),
        "text": {
            "name": model["text_encoder"],
            "vocabulary": model["vocabulary"],
            "max_tokens": model["max_tokens"],
            "layers": 0 if is_lstm else model["text_layers"],
            "heads": heads,
        },
        "mechanism": _text_to_image(heads),
        "image_norm": False,
        "fusion": None,
        "layers": model["cross_layers"],
        **{name: model[name] for name in ("width", "dropout", "answers")},
    }


def _plain_caption(model: Json) -> dict[str, Any]:
    same = ("width", "dropout", "vocabulary", "max_tokens", "pad_token_id", "start_token_id", "end_token_id")
    return {
        "image": _image(model),
        "mechanism": _text_to_image(model["heads"]),
        "fusion": None,
        "layers": model["decoder_layers"],
        **{name: model[name] for name in same},
    }


def _image(model: Json) -> dict[str, Any]:
    return {
        "name": "cnn",
        **{name: model[name] for name in ("image_size_px", "channels", "blocks")},
        "patch_px": None,
        "layers": model["image_layers"],
        "heads": model["heads"],
    }


def _text_to_image(heads: int) -> dict[str, Any]:
    options = {
        "heads": heads,
        "kv_heads": None,
        "similarity": "scaled_dot",
        "weighting": "soft",
        "top_k": 1,
        "temperature": 1.0,
        "dropout": 0.0,
        "output_bias": True,
    }
    return {
        "name": "text_to_image",
        "options": options,
        "hops": 3,
        "shared": False,
        "neighbours": 8,
        "window": 2,
        "words": 3,
    }
