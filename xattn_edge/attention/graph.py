"""Attention along the edges of a graph whose nodes are regions of an image and words of a text."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn_edge.attention.checks import check_mask, check_sides, check_tokens
from xattn_edge.attention.cross_modal import CrossModalAttention
from xattn_edge.attention.joint import join, split
from xattn_edge.attention.options import PLAIN, AttentionOptions
from xattn_edge.attention.protocol import Attended, Exchange, Tokens
from xattn_edge.attention.weighting import best_positions

__all__ = ["GraphAttention", "GraphExchange", "nearest_neighbours"]


class GraphAttention(nn.Module):
    """Every node attends to itself and to the nodes it has an edge to (Veličković et al., 2018; Li et al., 2019).

    `output_i = Σ_j α_ij v_j`, with `α_i` the softmax of the scores of `q_i` and `k_j` over the edges `i→j`. With the
    similarity `additive` the scores are those of GATv2 (Brody et al., 2022) with tanh in place of the leaky ReLU.

    Args:
        dim_in: width of the nodes.
        dim_out: width of the output.
        options: of the attention.
    """

    def __init__(self, dim_in: int, dim_out: int, options: AttentionOptions = PLAIN) -> None:
        super().__init__()
        self.attention = CrossModalAttention(dim_in, dim_in, dim_out, options)

    def forward(
        self, nodes: Tensor, edges: Tensor, *, mask: Tensor | None = None, need_weights: bool = True
    ) -> Attended:
        """Attend along `edges`.

        Args:
            nodes: `[batch, nodes, dim_in]`.
            edges: bool `[batch, nodes, nodes]`, true where the node of the row sees that of the column.
            mask: bool `[batch, nodes]`, false for padding, which has no edges, not to itself either.

        Returns:
            Output `[batch, nodes, dim_out]` and weights `[batch, heads, nodes, nodes]`.

        Raises:
            ValueError: no node, or a shape that does not fit.
        """
        check_tokens("nodes", nodes, "batch", "nodes", width=self.attention.dim_q)
        batch, count, _ = nodes.shape
        check_mask("edges", edges, {"batch": batch, "nodes": count, "the same nodes": count})
        edges = edges | _itself(nodes)
        if mask is not None:
            check_mask("mask", mask, {"batch": batch, "nodes": count})
            edges = edges & mask[:, None, :] & mask[:, :, None]
        return cast(Attended, self.attention(nodes, nodes, nodes, mask=edges, need_weights=need_weights))


class GraphExchange(nn.Module):
    """Words and regions as the nodes of one graph, each with edges to its nearest neighbours in both modalities.

    Args:
        width: of both modalities.
        options: of the attention.
        neighbours: edges of a node to each modality.

    Raises:
        ValueError: no neighbour.
    """

    def __init__(self, width: int, options: AttentionOptions = PLAIN, *, neighbours: int = 8) -> None:
        super().__init__()
        if neighbours < 1:
            raise ValueError(f"neighbours: expected at least 1, found {neighbours}")
        self.neighbours = neighbours
        self.attention = GraphAttention(width, width, options)

    def forward(self, text: Tokens, image: Tokens, *, need_weights: bool = True) -> Exchange:
        """What each side reads of both; weights are `[batch, heads, text + image, text + image]`."""
        check_sides(text, image)
        both = join(text, image)
        edges = torch.cat([nearest_neighbours(both, each, self.neighbours) for each in (text, image)], 2)
        attended = self.attention(both.features, edges, mask=both.mask, need_weights=need_weights)
        return split(attended, text)


def nearest_neighbours(nodes: Tokens, others: Tokens, count: int) -> Tensor:
    """Bool `[batch, nodes, others]`: those `count` of `others` that are most alike in direction, or all there are.

    Alike is the cosine of their features; a node that is among `others` counts as its own nearest. Of equals the first
    wins. No gradient flows through the choice.
    """
    directions, other_directions = (F.normalize(each.features.detach(), dim=-1) for each in (nodes, others))
    return best_positions(directions @ other_directions.transpose(1, 2), others.mask[:, None, :], count)


def _itself(nodes: Tensor) -> Tensor:
    """Bool `[nodes, nodes]`, true on the diagonal."""
    numbers = torch.arange(nodes.shape[1], device=nodes.device)
    return numbers[:, None] == numbers[None, :]
