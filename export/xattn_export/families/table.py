"""The architectures that can be exported: one file each, one line each in the table below."""

from __future__ import annotations

from pathlib import Path

from xattn_export.families.base import Family
from xattn_export.families.checkpoint_folder.json_files import read_present_json, refuse_placeholders
from xattn_export.families.checkpoint_folder.weights.adapter import is_adapter, refusal_without_base
from xattn_export.families.own.caption import XATTN_CAPTION
from xattn_export.families.own.retrieval import XATTN_RETRIEVAL
from xattn_export.families.own.sentiment import XATTN_SENTIMENT
from xattn_export.families.own.vqa import XATTN_VQA
from xattn_export.families.refusals import no_checkpoint, unknown_architecture
from xattn_export.families.transformers.blip import BLIP
from xattn_export.families.transformers.blip2.model import BLIP2
from xattn_export.families.transformers.dual_encoders.clip import CLIP
from xattn_export.families.transformers.dual_encoders.siglip import SIGLIP
from xattn_export.families.transformers.florence2 import FLORENCE2
from xattn_export.families.transformers.git import GIT
from xattn_export.families.transformers.qwen_vl.model import QWEN_VL
from xattn_export.families.transformers.regions.lxmert import LXMERT
from xattn_export.families.transformers.regions.visual_bert import VISUAL_BERT
from xattn_export.families.transformers.vilt import VILT
from xattn_export.families.transformers.vision_encoder_decoder import VISION_ENCODER_DECODER
from xattn_export.families.transformers.vision_language.rows import VISION_LANGUAGE

__all__ = ["FAMILIES", "family_of"]

FAMILIES: tuple[Family, ...] = (
    XATTN_CAPTION,
    XATTN_VQA,
    XATTN_RETRIEVAL,
    XATTN_SENTIMENT,
    *BLIP,
    *BLIP2,
    *GIT,
    *VISION_LANGUAGE,
    *QWEN_VL,
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
    path = folder / "config.json"
    refuse_placeholders(folder)
    if is_adapter(folder):
        raise refusal_without_base(folder)
    try:
        config = read_present_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise no_checkpoint(folder) from None
    for family in FAMILIES:
        if family.recognises(config):
            return family
    raise unknown_architecture(path, config, FAMILIES)
