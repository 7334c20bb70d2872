"""Fusion: how several modalities become one decision."""

from xattn_edge.fusion.adaptive import AdaptiveFusion
from xattn_edge.fusion.bilinear import BilinearFusion
from xattn_edge.fusion.dynamic import DynamicFusion
from xattn_edge.fusion.early import Concatenation, Sum
from xattn_edge.fusion.fusions import FUSIONS, FusionConfig, FusionKind
from xattn_edge.fusion.heads import EarlyHead, HybridHead, LateHead
from xattn_edge.fusion.late import LearnedDecision, WeightedDecision
from xattn_edge.fusion.protocol import Fused, Fusion

__all__ = [
    "FUSIONS",
    "AdaptiveFusion",
    "BilinearFusion",
    "Concatenation",
    "DynamicFusion",
    "EarlyHead",
    "Fused",
    "Fusion",
    "FusionConfig",
    "FusionKind",
    "HybridHead",
    "LateHead",
    "LearnedDecision",
    "Sum",
    "WeightedDecision",
]
