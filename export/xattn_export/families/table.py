"""The architectures that can be exported: one file each, one line each in the table below."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xattn_export.families.base import Family
from xattn_export.families.checkpoint_folder.json_files import read_present_json
from xattn_export.families.own.caption import XATTN_CAPTION
from xattn_export.families.own.retrieval import XATTN_RETRIEVAL
from xattn_export.families.own.sentiment import XATTN_SENTIMENT
from xattn_export.families.own.vqa import XATTN_VQA
from xattn_export.families.transformers.blip import BLIP
from xattn_export.families.transformers.blip2.model import BLIP2
from xattn_export.families.transformers.dual_encoders.clip import CLIP
from xattn_export.families.transformers.dual_encoders.siglip import SIGLIP
from xattn_export.families.transformers.florence2 import FLORENCE2
from xattn_export.families.transformers.git import GIT
from xattn_export.families.transformers.idefics3 import IDEFICS3
from xattn_export.families.transformers.regions.lxmert import LXMERT
from xattn_export.families.transformers.regions.visual_bert import VISUAL_BERT
from xattn_export.families.transformers.vilt import VILT
from xattn_export.families.transformers.vision_encoder_decoder import VISION_ENCODER_DECODER
from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import show

__all__ = ["FAMILIES", "family_of"]

FAMILIES: tuple[Family, ...] = (
    XATTN_CAPTION,
    XATTN_VQA,
    XATTN_RETRIEVAL,
    XATTN_SENTIMENT,
    *BLIP,
    *BLIP2,
    *GIT,
    *IDEFICS3,
    *VILT,
    VISION_ENCODER_DECODER,
    FLORENCE2,
    CLIP,
    SIGLIP,
    LXMERT,
    VISUAL_BERT,
)


def family_of(folder: Path) -> Family:
    """The family that recognises the source in `folder`.

    Raises:
        CheckpointError: there is no source, or none that a family recognises.
    """
    config = _read_config(folder)
    for family in FAMILIES:
        if family.recognises(config):
            return family
    raise CheckpointError(
        f"{folder}: expected a model of {', '.join(family.name for family in FAMILIES)}, found {_describe(config)} "
        "that none of them recognises; docs/adding-a-family.md says how to add one"
    )


def _describe(config: Mapping[str, Any]) -> str:
    keys = [f"{key} {show(config[key])}" for key in ("model_type", "architectures", "task") if key in config]
    return f"a config.json of {', '.join(keys)}" if keys else "a config.json"


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return read_present_json(folder / "config.json")
    except (FileNotFoundError, NotADirectoryError):
        kind = "a file" if folder.is_file() else "a folder without config.json" if folder.is_dir() else "nothing"
        raise CheckpointError(
            f"{folder}: expected the folder of a checkpoint, found {kind}; name one that `xattn-edge train` or "
            "Transformers' save_pretrained wrote, or a hub id like organisation/name"
        ) from None
