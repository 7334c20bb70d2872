"""The table of language models, by the `model_type` of their text configuration in Transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from xattn_export.families.layers.language.decoder import DecoderKind, LanguageDecoder
from xattn_export.families.layers.language.layer import LayerKind
from xattn_export.families.layers.language.positions import ROPE_TYPES
from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import show

__all__ = ["LANGUAGE_MODELS", "check_language_model", "language_decoder"]

_ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu")
_LAYER_TYPES = ("full_attention", "sliding_attention")

LANGUAGE_MODELS: Mapping[str, DecoderKind] = MappingProxyType(
    {
        "llama": DecoderKind(),
        "qwen2": DecoderKind(windows="by type"),
        "qwen3": DecoderKind(LayerKind(norms_queries=True), windows="by type"),
        "gemma": DecoderKind(LayerKind(norm_offset=1.0)),
        "gemma2": DecoderKind(LayerKind(norm_offset=1.0, norms_after=True, softcaps=True), windows="by type"),
        "gemma3_text": DecoderKind(
            LayerKind(norm_offset=1.0, norms_after=True, norms_queries=True), windows="by type", positions_by_type=True
        ),
        "granite": DecoderKind(),
        "lfm2": DecoderKind(LayerKind(norms_queries=True), convolves=True),
        "mistral": DecoderKind(windows="all"),
        "phi3": DecoderKind(LayerKind(fused=True), windows="all", partly_rotated=True),
        "smollm3": DecoderKind(windows="by type"),
        "qwen2_vl_text": DecoderKind(windows="by type", axes="three"),
        "qwen2_5_vl_text": DecoderKind(windows="by type", axes="three"),
        "qwen3_vl_text": DecoderKind(LayerKind(norms_queries=True), axes="three, interleaved"),
    }
)


def language_decoder(model: Any) -> LanguageDecoder:
    """The decoder of `model`, a text model of Transformers that `check_language_model` lets pass."""
    return LanguageDecoder(model, LANGUAGE_MODELS[model.config.model_type])


def check_language_model(
    path: Path,
    config: Any,
    *,
    key: str = "text_config",
    only: Sequence[str] = tuple(LANGUAGE_MODELS),
    blocks: bool = False,
) -> None:
    """CheckpointError unless `config`, of a text model, is one that `language_decoder` computes as Transformers does.

    Args:
        path: of the file that describes it, and `key`, where in it, for messages.
        only: the types of text models that the architecture around it was proved with.
        blocks: whether the architecture around it says which tokens see what comes after them.
    """

    def refuse(name: str, expected: str, value: object) -> NoReturn:
        where = ".".join(part for part in (key, name) if part)
        raise CheckpointError(f"{path}: {where}: expected {expected}, found {show(value)}; it cannot be exported yet")

    if config.model_type not in only:
        refuse("model_type", " or ".join(only), config.model_type)
    kind = LANGUAGE_MODELS[config.model_type]
    types = set(config.layer_types) if kind.windows == "by type" or kind.positions_by_type else set()
    if others := types - set(_LAYER_TYPES):
        refuse("layer_types", " and ".join(_LAYER_TYPES), sorted(others))
    if kind.convolves and "full_attention" not in config.layer_types:
        refuse("layer_types", "full_attention for some layer", sorted(set(config.layer_types)))
    if kind.convolves and config.conv_L_cache < 2:
        refuse("conv_L_cache", "a kernel of 2 tokens or more", config.conv_L_cache)
    for layer_type in sorted(types) if kind.positions_by_type else ("",):
        scheme = config.rope_parameters[layer_type] if layer_type else config.rope_parameters
        name = f"rope_parameters.{layer_type}" if layer_type else "rope_parameters"
        if scheme["rope_type"] not in ROPE_TYPES:
            refuse(f"{name}.rope_type", f"one of {', '.join(ROPE_TYPES)}", scheme["rope_type"])
        if not kind.partly_rotated and scheme.get("partial_rotary_factor", 1.0) != 1.0:
            refuse(f"{name}.partial_rotary_factor", "1, or none", scheme["partial_rotary_factor"])
    activation = "hidden_activation" if hasattr(config, "hidden_activation") else "hidden_act"
    if not kind.convolves and getattr(config, activation) not in _ACTIVATIONS:
        refuse(activation, f"one of {', '.join(_ACTIVATIONS)}", getattr(config, activation))
    if getattr(config, "use_bidirectional_attention", False) and not blocks:
        refuse("use_bidirectional_attention", "false", config.use_bidirectional_attention)
