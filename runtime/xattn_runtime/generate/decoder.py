"""The decoder graph as a pure step: tokens and cache in, next token and longer cache out.

It owns the names of the tensors and the cache before the first step; which token comes next is the caller's affair.
On the CPU tensors stay numpy arrays: handing OrtValues from step to step was 10 % slower, since each has to be wrapped
again in Python. On a device with a memory of its own, greedy decoding leaves the cache there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.bundle.contract import (
    cross_names,
    frozen_names,
    past_names,
    prefix_names,
    state_names,
    states_of,
)
from xattn_runtime.errors import BundleError
from xattn_runtime.execution.session import GraphSession, Tensor
from xattn_runtime.generate.cache import Cache
from xattn_runtime.json_reader import show

__all__ = ["DecoderStep", "FirstStep"]


_NUMPY_DTYPES: Mapping[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
}


class FirstStep:
    """What a decoder, or the loop around it, is fed before it has made a step.

    A decoder attends to an image in one of three ways: by cross-attention, to keys and values that are fed at every
    step; as a prefix, whose keys and values its cache begins with; or in the text, where tokens of the prompt stand for
    the image tokens, which are fed at every step, and where positions follow the image's rows and columns its grid.
    """

    def __init__(self, session: GraphSession) -> None:
        """BundleError where an axis of the cache that must be static is not."""
        layers = session.layers("past")
        image_tokens = [name for name in ("image_tokens", "image_grids") if name in session.input_shapes]
        self._fed_names = [*cross_names(session.layers("cross")), *image_tokens]
        names, states = past_names(layers), state_names("past", states_of("past", session.input_shapes))
        self._past_names = [*names, *states]
        self._prefix_of = dict(zip(names, prefix_names(layers), strict=True))
        self._frozen_of = dict(zip(names, frozen_names(session.layers("frozen")), strict=False))
        self._first_shapes = {
            **{name: _first_keys(session, name, is_transposed=self._is_transposed(name)) for name in names},
            **{name: _first_state(session, name) for name in states},
        }
        self._cache_dtypes = {name: _NUMPY_DTYPES[session.dtypes[name]] for name in self._past_names}

    def first_past(self, image: Mapping[str, Tensor]) -> Cache:
        """The cache before the first step, in the decoder's dtype.

        That is keys and values `[batch, heads, past, head_width]`, and `[batch, width, tokens]` of layers that keep a
        state of fixed size. `image` is what the image encoder gave: the cache begins with its prefix, or with nothing
        where it has none; states begin with zeros. Or it is what `with_past` gave.
        """
        if self._past_names[0] in image:
            frozen = {name: image[name] for name in self._frozen_of.values()}
            return Cache({name: image[name] for name in self._past_names}, frozen)
        batch = _batch(image)
        first = {
            name: np.zeros((batch, *shape), dtype=self._cache_dtypes[name])
            for name, shape in self._first_shapes.items()
        }
        prefix = {past: image[prefix] for past, prefix in self._prefix_of.items() if prefix in image}
        return Cache(first | prefix, {frozen: first[past] for past, frozen in self._frozen_of.items()})

    def _is_transposed(self, name: str) -> bool:
        """Whether it is the keys of a split cache."""
        return "_key_" in name and name in self._frozen_of

    def cross(self, image: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of `image` that every step is fed: cross keys and values or image tokens, if the decoder takes any."""
        return {name: image[name] for name in self._fed_names}

    def prompt(self, image: Mapping[str, Tensor], token_ids: Sequence[int]) -> NDArray[np.int64]:
        """`token_ids` for every image, int64 `[batch, length]`."""
        return np.array([token_ids] * _batch(image), dtype=np.int64)

    def with_past(self, image: Mapping[str, Tensor], past: Cache) -> dict[str, Tensor]:
        """`image` with the cache of an earlier run, which decoding continues.

        The prompt must begin with the tokens of that cache, the image's included.
        """
        return {**image, **past.inputs}

    def unread(self, image: Mapping[str, Tensor], prompt: NDArray[np.int64]) -> NDArray[np.int64]:
        """What of `prompt` `[batch, length]` the first step is fed: that which is not in the cache already."""
        return prompt[:, self.first_past(image).length :] if self._past_names[0] in image else prompt


class DecoderStep(FirstStep):
    """A decoder session, one step at a time. It keeps no state: the cache goes in and comes out."""

    def __init__(self, session: GraphSession) -> None:
        """BundleError where an axis of the cache that must be static is not."""
        super().__init__(session)
        self._session = session
        self._present_names = [name.replace("past_", "present_", 1) for name in self._past_names]
        self._greedy_names = ("next_token", "next_log_prob", *self._present_names)
        self._logits_names = ("logits", *self._present_names)

    def check_ids(self, token_ids: Iterable[int]) -> None:
        """BundleError where the decoder can never give one of `token_ids`."""
        vocabulary = self._session.output_shapes["logits"][1]
        unknown = [token_id for token_id in token_ids if isinstance(vocabulary, int) and token_id >= vocabulary]
        if unknown:
            raise BundleError(
                f"{self._session.path}: output logits: expected a logit for every token that the manifest's decoding "
                f"names, found {vocabulary} and the token {min(unknown)}; export it again"
            )

    def held(self, cross: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`cross` in the memory of the device, if it has one of its own, for all steps to come."""
        return self._session.on_device(cross)

    def next_token(
        self,
        input_ids: NDArray[np.int64],
        past: Cache,
        cross: Mapping[str, Tensor],
        *,
        hold: bool = False,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], Cache]:
        """One step over `input_ids`, int64 `[batch, length]`: what the graph itself chooses for every row.

        That is the argmax, int64 `[batch]`, its natural log-probability, float32 `[batch]`, and the cache for the next
        step. hold: whether the cache stays in the memory of the device, if it has one of its own.
        """
        results = self._run(self._greedy_names, input_ids, past, cross, hold)
        return results[0], results[1], self._after(past, results[2:])

    def logits(
        self,
        input_ids: NDArray[np.int64],
        past: Cache,
        cross: Mapping[str, Tensor],
        *,
        hold: bool = False,
    ) -> tuple[NDArray[np.float32], Cache]:
        """One step as above: logits, float32 `[batch, vocabulary]`, of the last position, and the cache."""
        results = self._run(self._logits_names, input_ids, past, cross, hold)
        return results[0], self._after(past, results[1:])

    def _after(self, past: Cache, present: Sequence[Tensor]) -> Cache:
        """The cache after a step."""
        return replace(past, tensors=dict(zip(self._past_names, present, strict=True)))

    def _run(
        self,
        outputs: Sequence[str],
        input_ids: NDArray[np.int64],
        past: Cache,
        cross: Mapping[str, Tensor],
        hold: bool,
    ) -> list[Tensor]:
        inputs = {"input_ids": input_ids, **past.inputs, **cross}
        return self._session.run(outputs, inputs, self._present_names if hold else ())


def _first_keys(session: GraphSession, name: str, *, is_transposed: bool) -> tuple[int, int, int]:
    """Heads, no token and head width; these two the other way round where it is transposed."""
    shape = session.input_shapes[name]
    heads, width = shape[1], shape[2 if is_transposed else 3]
    if not isinstance(heads, int) or not isinstance(width, int):
        raise BundleError(
            f"{session.path}: input {name}: expected static heads and head width, found {show(list(shape))}; "
            "export it again"
        )
    return (heads, width, 0) if is_transposed else (heads, 0, width)


def _first_state(session: GraphSession, name: str) -> tuple[int, int]:
    """Width and tokens."""
    shape = session.input_shapes[name]
    width, tokens = shape[1], shape[2]
    if not isinstance(width, int) or not isinstance(tokens, int):
        raise BundleError(
            f"{session.path}: input {name}: expected a static width and number of tokens, found {show(list(shape))}; "
            "export it again"
        )
    return width, tokens


def _batch(image: Mapping[str, Tensor]) -> int:
    return int(next(iter(image.values())).shape[0])
