"""The decoder graph as a pure step: tokens and cache in, next token and longer cache out.

It owns the names of the tensors and the cache before the first step; which token comes next is the caller's affair.
Tensors stay numpy arrays: handing OrtValues from step to step was 10 % slower, since each has to be wrapped again in
Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xattn_runtime._reading import show
from xattn_runtime.contract import cross_names, past_names, prefix_names, present_names
from xattn_runtime.errors import BundleError
from xattn_runtime.session import GraphSession, Tensor

__all__ = ["DecoderStep", "StepResult"]


@dataclass(frozen=True)
class StepResult:
    """What one step gives.

    next_token: int64 `[batch]`, the argmax. next_log_prob: float32 `[batch]`, its natural log-probability.
    past: the cache for the next step, name → float32 `[batch, heads, past + length, head_width]`.
    logits: float32 `[batch, vocabulary]` where they were asked for.
    """

    next_token: NDArray[np.int64]
    next_log_prob: NDArray[np.float32]
    past: Mapping[str, Tensor]
    logits: NDArray[np.float32] | None


class DecoderStep:
    """A decoder session, one step at a time. It keeps no state: the cache goes in and comes out.

    A decoder attends to an image in one of two ways: by cross-attention, to keys and values that are fed at every
    step, or as a prefix, whose keys and values its cache begins with.
    """

    def __init__(self, session: GraphSession) -> None:
        """BundleError where an axis of the cache that must be static is not."""
        self._session = session
        layers = session.layers("past")
        self._cross_names = cross_names(session.layers("cross"))
        self._past_names = past_names(layers)
        self._prefix_names = prefix_names(layers)
        self._outputs = ["next_token", "next_log_prob", *present_names(layers)]
        self._cache_axes = {name: self._static_axes(name) for name in self._past_names}

    @property
    def vocabulary(self) -> int | None:
        """The number of logits, where the graph says it."""
        size = self._session.output_shapes["logits"][1]
        return size if isinstance(size, int) else None

    def first_past(self, image: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The cache before the first step, float32 `[batch, heads, past, head_width]` each.

        `image` is what the image encoder gave: the cache begins with its prefix, or with nothing where it has none.
        """
        if self._prefix_names[0] in image:
            return {past: image[prefix] for past, prefix in zip(self._past_names, self._prefix_names, strict=True)}
        batch = next(iter(image.values())).shape[0]
        return {
            name: np.zeros((batch, heads, 0, width), dtype=np.float32)
            for name, (heads, width) in self._cache_axes.items()
        }

    def cross(self, image: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of `image` that every step is fed: the cross keys and values, if the decoder takes any."""
        return {name: image[name] for name in self._cross_names}

    def run(
        self,
        input_ids: NDArray[np.int64],
        past: Mapping[str, Tensor],
        cross: Mapping[str, Tensor],
        *,
        with_logits: bool = False,
    ) -> StepResult:
        """One step over `input_ids`, int64 `[batch, length]`.

        Logits are computed for the argmax anyhow, and copied out only when asked for.
        """
        outputs = [*self._outputs, "logits"] if with_logits else self._outputs
        next_token, next_log_prob, *rest = self._session.run(outputs, {"input_ids": input_ids, **past, **cross})
        return StepResult(
            next_token=next_token,
            next_log_prob=next_log_prob,
            past=dict(zip(self._past_names, rest, strict=False)),
            logits=rest[-1] if with_logits else None,
        )

    def _static_axes(self, name: str) -> tuple[int, int]:
        shape = self._session.input_shapes[name]
        heads, width = shape[1], shape[3]
        if not isinstance(heads, int) or not isinstance(width, int):
            raise BundleError(
                f"{self._session.path}: input {name}: expected static heads and head width, found {show(list(shape))}; "
                "export it again"
            )
        return heads, width
