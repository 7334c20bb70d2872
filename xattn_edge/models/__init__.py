"""Trainable models, their configurations and their checkpoints."""

from xattn_edge.models.caption import Captioner, CaptionModel
from xattn_edge.models.checkpoint import Checkpoint, build_model, load_checkpoint, save_checkpoint
from xattn_edge.models.config import CaptionConfig, ModelConfig, VqaConfig, config_from_dict
from xattn_edge.models.cross_modal import CrossModalVqaModel
from xattn_edge.models.cross_modal_caption import CrossModalCaptionModel
from xattn_edge.models.cross_modal_config import CrossModalCaptionConfig, CrossModalVqaConfig
from xattn_edge.models.retrieval import RetrievalConfig, RetrievalModel
from xattn_edge.models.sentiment import SentimentConfig, SentimentModel
from xattn_edge.models.vqa import VqaModel

__all__ = [
    "CaptionConfig",
    "CaptionModel",
    "Captioner",
    "Checkpoint",
    "CrossModalCaptionConfig",
    "CrossModalCaptionModel",
    "CrossModalVqaConfig",
    "CrossModalVqaModel",
    "ModelConfig",
    "RetrievalConfig",
    "RetrievalModel",
    "SentimentConfig",
    "SentimentModel",
    "VqaConfig",
    "VqaModel",
    "build_model",
    "config_from_dict",
    "load_checkpoint",
    "save_checkpoint",
]
