"""Attention over one or two modalities: similarities, weightings, and the mechanisms made of them."""

from xattn_edge.attention.cross_modal import CrossModalAttention, KeyValue, causal_mask, split_heads
from xattn_edge.attention.graph import GraphAttention, GraphExchange, nearest_neighbours
from xattn_edge.attention.hierarchical import Groups, HierarchicalAttention, HierarchicalExchange, phrases, regions
from xattn_edge.attention.joint import JointSelfAttention
from xattn_edge.attention.mechanisms import MECHANISMS, MechanismConfig, MechanismKind
from xattn_edge.attention.multi_hop import MultiHopAttention
from xattn_edge.attention.one_way import ImageToText, TextToImage
from xattn_edge.attention.options import PLAIN, AttentionOptions, transformer_options
from xattn_edge.attention.protocol import Attended, Attention, Exchange, Mechanism, Tokens, every_token
from xattn_edge.attention.similarity import SIMILARITIES, AttentionSimilarity, ProductSimilarity
from xattn_edge.attention.two_way import CoAttention
from xattn_edge.attention.weighting import WEIGHTINGS, HardWeighting, SoftWeighting, WeightingKind

__all__ = [
    "MECHANISMS",
    "PLAIN",
    "SIMILARITIES",
    "WEIGHTINGS",
    "Attended",
    "Attention",
    "AttentionOptions",
    "AttentionSimilarity",
    "CoAttention",
    "CrossModalAttention",
    "Exchange",
    "GraphAttention",
    "GraphExchange",
    "Groups",
    "HardWeighting",
    "HierarchicalAttention",
    "HierarchicalExchange",
    "ImageToText",
    "JointSelfAttention",
    "KeyValue",
    "Mechanism",
    "MechanismConfig",
    "MechanismKind",
    "MultiHopAttention",
    "ProductSimilarity",
    "SoftWeighting",
    "TextToImage",
    "Tokens",
    "WeightingKind",
    "causal_mask",
    "every_token",
    "nearest_neighbours",
    "phrases",
    "regions",
    "split_heads",
    "transformer_options",
]
