"""Trainable models, their configurations and their checkpoints."""

from xattn_edge.models.caption import CaptionConfig, CaptionModel
from xattn_edge.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from xattn_edge.models.retrieval import RetrievalConfig, RetrievalModel
from xattn_edge.models.sentiment import SentimentConfig, SentimentModel
from xattn_edge.models.table import MODELS, Model, ModelConfig, build_model, config_from_dict
from xattn_edge.models.vqa import VqaConfig, VqaModel

__all__ = [
    "MODELS",
    "CaptionConfig",
    "CaptionModel",
    "Checkpoint",
    "Model",
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
