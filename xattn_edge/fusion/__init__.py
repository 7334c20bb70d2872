"""Fusion: how one modality takes in the other."""

from xattn_edge.fusion.cross_attention import CrossAttentionLayer

__all__ = ["CrossAttentionLayer"]
