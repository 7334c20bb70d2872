"""The table of connectors, by the `model_type` of the vision-language model in Transformers.

Names are those of Transformers' modeling_idefics3.py, modeling_llava.py, modeling_internvl.py and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from xattn_export.families.layers.connectors.qformer import QFormer
from xattn_export.families.layers.connectors.squares import PixelShuffle, PooledProjection
from xattn_export.families.layers.towers.table import WITH_CLASS_TOKEN
from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import show

__all__ = ["CONNECTORS", "Connector"]


@dataclass(frozen=True)
class Connector:
    """How a tower's tokens become image tokens.

    build: the model that has the connector, and how many patches lie along a side of an image → a module, tokens
        `[batch, tokens, width]` to image tokens `[batch, image_tokens, text_width]`.
    count: its configuration, and the patches along a side → how many image tokens; ValueError of key, what is expected
        there and what is found, where there can be none.
    """

    build: Callable[[Any, int], nn.Module]
    count: Callable[[Any, int], int]

    def tokens(self, path: Path, config: Any, patches: int) -> int:
        """How many image tokens an image has; CheckpointError that names what of the file at `path` is wrong."""
        try:
            return self.count(config, patches)
        except _MisfitError as misfit:
            key, expected, found = misfit.args
            raise CheckpointError(f"{path}: {key}: expected {expected}, found {show(found)}") from None


class _MisfitError(Exception):
    """Key, what is expected and what is found."""


def _squares(key: str, patches: int, factor: int, stated: object) -> int:
    """How many squares of `factor` × `factor` patches there are."""
    if patches < 1 or factor < 1 or patches % factor:
        raise _MisfitError(key, f"a divisor of the {patches} patches across an image", stated)
    return (patches // factor) ** 2


def _shuffled(model: Any, patches: int) -> nn.Module:
    factor = int(model.connector.scale_factor)
    return nn.Sequential(PixelShuffle(patches, factor), model.connector.modality_projection.proj)


def _shuffled_mlp(model: Any, patches: int) -> nn.Module:
    projector = model.multi_modal_projector
    shuffle = PixelShuffle(patches, _internvl_factor(model.config))
    return nn.Sequential(shuffle, projector.layer_norm, projector.linear_1, projector.act, projector.linear_2)


def _mlp(model: Any, patches: int) -> nn.Module:
    projector = model.multi_modal_projector
    return nn.Sequential(projector.linear_1, projector.act, projector.linear_2)


def _linear(model: Any, patches: int) -> nn.Module:
    return nn.Sequential(model.multi_modal_projector.linear)


def _pooled(model: Any, patches: int) -> nn.Module:
    return PooledProjection(model.multi_modal_projector, patches, int(model.multi_modal_projector.kernel_size))


def _queries(model: Any, patches: int) -> nn.Module:
    return nn.Sequential(QFormer(model.qformer, model.query_tokens), model.language_projection)


def _internvl_factor(config: Any) -> int:
    return round(1 / float(config.downsample_ratio))


def _internvl_count(config: Any, patches: int) -> int:
    return _squares("downsample_ratio", patches, _internvl_factor(config), config.downsample_ratio)


def _llava_count(config: Any, patches: int) -> int:
    has_class_token = config.vision_config.model_type in WITH_CLASS_TOKEN
    return int(patches**2 + has_class_token - (config.vision_feature_select_strategy == "default"))


def _gemma3_count(config: Any, patches: int) -> int:
    """As many as the configuration says, where they are whole squares of patches."""
    tokens = int(config.mm_tokens_per_image)
    across = round(tokens**0.5)
    if across < 1 or across**2 != tokens or patches % across:
        raise _MisfitError("mm_tokens_per_image", f"the square of a divisor of {patches} patches across", tokens)
    return tokens


_PIXEL_SHUFFLE = Connector(
    _shuffled,
    lambda config, patches: _squares("scale_factor", patches, int(config.scale_factor), config.scale_factor),
)
CONNECTORS: Mapping[str, Connector] = MappingProxyType(
    {
        "blip-2": Connector(_queries, lambda config, patches: int(config.num_query_tokens)),
        "gemma3": Connector(_pooled, _gemma3_count),
        "idefics3": _PIXEL_SHUFFLE,
        "internvl": Connector(_shuffled_mlp, _internvl_count),
        "llava": Connector(_mlp, _llava_count),
        "paligemma": Connector(_linear, lambda config, patches: patches**2),
        "smolvlm": _PIXEL_SHUFFLE,
    }
)
