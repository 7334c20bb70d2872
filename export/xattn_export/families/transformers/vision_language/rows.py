"""The table of vision-language models: each a combination of parts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from xattn_export.families.base import Family, SourceTokenizer
from xattn_export.families.layers.language.head import LanguageHead
from xattn_export.families.layers.towers.tower import Features
from xattn_export.families.transformers.idefics3_prompt import tokenizer_with_images
from xattn_export.families.transformers.vision_language.architecture import Architecture, Opened, Written
from xattn_export.families.transformers.vision_language.opening import family_of_architecture
from xattn_export.families.transformers.vision_language.written import written_as_chat, written_as_prefix

__all__ = ["ARCHITECTURES", "VISION_LANGUAGE"]


def _idefics3_written(opened: Opened, tokenizer: SourceTokenizer) -> Written:
    return Written(*tokenizer_with_images(opened.folder, tokenizer, opened.tokens, opened.steps, opened.model.config))


def _idefics3_features(model: Any, pixels: Tensor) -> Iterable[Tensor]:
    features: Iterable[Tensor] = model.get_image_features(pixels[:, None]).pooler_output
    return features


def _llava_features(config: Any) -> Features:
    layers = config.vision_feature_layer
    chosen = (layers,) if isinstance(layers, int) else tuple(layers)
    return Features(chosen, first=config.vision_feature_select_strategy != "default")


def _capped_head(model: Any) -> nn.Module:
    return LanguageHead(model.lm_head, softcap=getattr(model.config.text_config, "final_logit_softcapping", None))


ARCHITECTURES: tuple[Architecture, ...] = (
    # https://arxiv.org/abs/2408.12637, https://arxiv.org/abs/2504.05299
    Architecture(
        name="Idefics3, SmolVLM",
        classes={"Idefics3ForConditionalGeneration": "idefics3", "SmolVLMForConditionalGeneration": "smolvlm"},
        language_models=("llama",),
        written=_idefics3_written,
        image_features=_idefics3_features,
        lists_features=True,
    ),
    # https://arxiv.org/abs/2310.03744
    Architecture(
        name="LLaVA",
        classes={"LlavaForConditionalGeneration": "llava"},
        language_models=("llama", "qwen2"),
        written=written_as_chat,
        features=_llava_features,
        draws=True,
        lists_features=True,
    ),
    # https://arxiv.org/abs/2407.07726, https://arxiv.org/abs/2412.03555
    Architecture(
        name="PaliGemma",
        classes={"PaliGemmaForConditionalGeneration": "paligemma"},
        language_models=("gemma", "gemma2"),
        written=written_as_prefix("answer en {question}", "caption en"),
        mask="prompt",
        first_position=1,
        head=_capped_head,
    ),
    # https://arxiv.org/abs/2503.19786
    Architecture(
        name="Gemma 3",
        classes={"Gemma3ForConditionalGeneration": "gemma3"},
        language_models=("gemma3_text",),
        written=written_as_chat,
        mask="images",
        draws=True,
    ),
)

VISION_LANGUAGE: tuple[Family, ...] = tuple(family_of_architecture(architecture) for architecture in ARCHITECTURES)
