"""Rotary positions: cosines and sines of every scheme that Transformers knows by frequencies.

Schemes whose frequencies follow the length ('dynamic', 'longrope') are computed in the graph from the last position.
Positions may be an input, of one axis or of three (time, row and column of an image's part). Sources: RoPE
https://arxiv.org/abs/2104.09864, YaRN https://arxiv.org/abs/2309.00071, LongRoPE https://arxiv.org/abs/2402.13753,
M-RoPE https://arxiv.org/abs/2409.12191, interleaved M-RoPE https://arxiv.org/abs/2511.21631; names are those of
modeling_rope_utils.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["ROPE_TYPES", "PositionAxes", "RotaryPositions", "Rotation", "positions_of"]

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")

PositionAxes = Literal["one", "three", "three, interleaved"]
"""How many numbers a position has, and which frequencies go with which of the three."""


class Rotation(NamedTuple):
    """Cosines and sines, `[length, 1, head_width]`, or `[batch, length, 1, head_width]` of positions that are an input.

    The sines of the first half of what rotates are negative: `x × cosine + swapped(x) × sine` then rotates it. What
    of a head does not rotate has a cosine of 1 and a sine of 0. `width`: of what rotates.
    """

    cosine: Tensor
    sine: Tensor
    width: int

    def rotate(self, heads: Tensor) -> Tensor:
        """`heads` `[batch, length, heads, head_width]`, rotated."""
        if self.width == heads.shape[-1]:
            first, second = heads.chunk(2, -1)
            swapped = torch.cat((second, first), -1)
        else:
            sizes = [self.width // 2, self.width // 2, heads.shape[-1] - self.width]
            first, second, rest = torch.split(heads, sizes, -1)
            swapped = torch.cat((second, first, rest), -1)
        return heads * self.cosine + swapped * self.sine


class RotaryPositions(nn.Module):
    """Of positions their `Rotation`. This class has the frequencies that are the same at every length."""

    axes: Tensor | None

    def __init__(self, frequencies: Tensor, scale: float, head_width: int, axes: Tensor | None = None) -> None:
        """How heads are rotated.

        Args:
            frequencies: `[rotated / 2]`, in radians a position.
            scale: of cosines and sines alike.
            axes: int64 `[rotated / 2]`, of positions of three axes the one that each frequency goes with: 0, 1 or 2.
        """
        super().__init__()
        self.frequencies = nn.Buffer(frequencies.detach().clone(), persistent=False)
        self.scale = scale
        self.width = 2 * frequencies.shape[0]
        self.unrotated = head_width - self.width
        self.axes = None if axes is None else nn.Buffer(axes, persistent=False)

    def forward(self, past: int, length: int, position_ids: Tensor | None = None) -> Rotation:
        """Of `length` positions after `past` others, or of those of an input.

        Args:
            position_ids: int64 `[batch, length]`, or `[3, batch, length]` where positions have three axes.
        """
        if position_ids is None:
            position_ids = torch.arange(past, past + length, device=self.frequencies.device)
        angles = self._angles(position_ids.to(torch.float32))[..., None, :]
        cosine, sine = angles.cos() * self.scale, angles.sin() * self.scale
        cosines, sines = [cosine, cosine], [-sine, sine]
        if self.unrotated:
            rest = torch.zeros_like(cosine[..., :1]).expand(*cosine.shape[:-1], self.unrotated)
            cosines.append(rest + 1.0)
            sines.append(rest)
        return Rotation(torch.cat(cosines, -1), torch.cat(sines, -1), self.width)

    def _angles(self, places: Tensor) -> Tensor:
        frequencies = self.frequencies_of(places)
        if self.axes is None:
            return places[..., None] * frequencies
        return places[self.axes].permute(1, 2, 0) * frequencies

    def frequencies_of(self, places: Tensor) -> Tensor:
        """`[rotated / 2]`, for a text whose last position is the largest of these."""
        return self.frequencies


class DynamicPositions(RotaryPositions):
    """'dynamic' (NTK): beyond `trained` positions the base of the frequencies grows with the length."""

    def __init__(self, fixed: RotaryPositions, head_width: int, *, base: float, factor: float, trained: int) -> None:
        super().__init__(fixed.frequencies, fixed.scale, head_width, fixed.axes)
        self.base = base
        self.factor = factor
        self.trained = trained
        self.growth = self.width / (self.width - 2)
        self.exponents = nn.Buffer(torch.arange(0, self.width, 2).to(torch.float32) / self.width, persistent=False)

    def frequencies_of(self, places: Tensor) -> Tensor:
        length = (places.max() + 1.0).clamp(min=float(self.trained))
        base = self.base * (self.factor * length / self.trained - (self.factor - 1.0)) ** self.growth
        return 1.0 / base**self.exponents


class LongPositions(RotaryPositions):
    """'longrope': other frequencies for a text longer than `trained` positions.

    Keys that are in the cache by then keep their rotation, as they do in the forward of Transformers.
    """

    def __init__(self, short: RotaryPositions, head_width: int, *, long: Tensor, trained: int) -> None:
        super().__init__(short.frequencies, short.scale, head_width, short.axes)
        self.long = nn.Buffer(long.detach().clone(), persistent=False)
        self.trained = trained

    def frequencies_of(self, places: Tensor) -> Tensor:
        return torch.where(places.max() + 1.0 > self.trained, self.long, self.frequencies)


def positions_of(
    rotary: Any, config: Any, head_width: int, axes: PositionAxes = "one", layer_type: str | None = None
) -> RotaryPositions:
    """The positions of `rotary`, a module of Transformers, whose scheme is one of `ROPE_TYPES`.

    Args:
        config: of the text model.
        layer_type: of the layers, where each type has a scheme of its own.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    prefix = "" if layer_type is None else f"{layer_type}_"
    scheme = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
    frequencies = getattr(rotary, f"{prefix}original_inv_freq")
    axis_of = None if axes == "one" else _axes(rotary.mrope_section, frequencies.shape[0], axes)
    fixed = RotaryPositions(frequencies, float(getattr(rotary, f"{prefix}attention_scaling")), head_width, axis_of)
    if scheme["rope_type"] == "dynamic":
        return DynamicPositions(
            fixed,
            head_width,
            base=float(scheme["rope_theta"]),
            factor=float(scheme["factor"]),
            trained=int(config.max_position_embeddings),
        )
    if scheme["rope_type"] == "longrope":
        trained = int(scheme["original_max_position_embeddings"])
        of_type = {} if layer_type is None else {"layer_type": layer_type}
        long, _ = ROPE_INIT_FUNCTIONS["longrope"](config, seq_len=trained + 1, **of_type)
        return LongPositions(fixed, head_width, long=long, trained=trained)
    return fixed


def _axes(sections: Sequence[int], count: int, axes: PositionAxes) -> Tensor:
    """Int64 `[count]`: the axis that each frequency goes with. `sections`: how many an axis has.

    One after the other in blocks; interleaved, every third frequency from 1 on is the row's and from 2 on the column's,
    as many as there are, and time's are the others.
    """
    if axes == "three":
        return torch.cat([torch.full((size,), number % 3) for number, size in enumerate(sections)])
    axis_of = torch.zeros(count, dtype=torch.int64)
    for axis in (1, 2):
        axis_of[axis : 3 * sections[axis] : 3] = axis
    return axis_of
