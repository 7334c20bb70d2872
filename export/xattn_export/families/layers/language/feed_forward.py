"""The second half of every decoder layer: a gated feed-forward network (https://arxiv.org/abs/2002.05202)."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from xattn_export.families.layers.common import RmsNorm, fuse_linears

__all__ = ["GatedFeedForward"]


class GatedFeedForward(nn.Module):
    """What a layer does after it has mixed its tokens; the layers are subclasses."""

    after_feed_forward: RmsNorm | None

    def __init__(self, layer: Any, *, fused: bool = False, norms_after: bool = False, norm_offset: float = 0.0) -> None:
        """`layer`: of Transformers. The rest is of `LayerKind`."""
        super().__init__()
        network = layer.mlp
        if fused:
            self.gate_and_up, self.activation = network.gate_up_proj, network.activation_fn
        else:
            self.gate_and_up, self.activation = fuse_linears(network.gate_proj, network.up_proj), network.act_fn
        self.output = network.down_proj
        before = layer.pre_feedforward_layernorm if norms_after else layer.post_attention_layernorm
        self.feed_forward_norm = RmsNorm(before, norm_offset)
        self.after_feed_forward = RmsNorm(layer.post_feedforward_layernorm, norm_offset) if norms_after else None
        self.residual = float(getattr(layer, "residual_multiplier", 1.0))

    def fed_forward(self, tokens: Tensor) -> Tensor:
        """Tokens, and what the network makes of them."""
        gate, up = self.gate_and_up(self.feed_forward_norm(tokens)).chunk(2, -1)
        return self.added(tokens, self.output(self.activation(gate) * up), self.after_feed_forward)

    def added(self, tokens: Tensor, found: Tensor, norm: RmsNorm | None) -> Tensor:
        """`tokens` and `found`, normalised if `norm` is there, and multiplied as the model does."""
        found = found if norm is None else cast(Tensor, norm(found))
        return tokens + (found if self.residual == 1.0 else found * self.residual)
