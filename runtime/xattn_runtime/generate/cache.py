"""What a decoder keeps of the tokens that it has read, a row for every sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from xattn_runtime.execution.session import Tensor

__all__ = ["Cache"]

_FROZEN, _PAST = "frozen_", "past_"
# Axes of the tokens in a split cache: keys are transposed.
_KEY_AXIS, _VALUE_AXIS = 3, 2


@dataclass(frozen=True)
class Cache:
    """Tensors by the names of the decoder's inputs, rows along the first axis; what they hold, no caller knows.

    frozen: of a split cache, the tokens that no step copies: a row for each, or one for all of them.
    On a device with a memory of its own, tensors may be ONNX Runtime's OrtValues.
    """

    tensors: Mapping[str, Tensor]
    frozen: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, Tensor]:
        """All of it, as the decoder is fed."""
        return {**self.frozen, **self.tensors}

    @property
    def is_here(self) -> bool:
        """Whether the tensors are arrays, which rows can be taken of."""
        return all(isinstance(tensor, np.ndarray) for tensor in self.tensors.values())

    @property
    def size_bytes(self) -> int:
        """What the tensors take."""
        return sum(tensor.nbytes for tensor in self.inputs.values())

    @property
    def length(self) -> int:
        """How many tokens it holds; of one that `is_here`."""
        return self._tokens_of(self.tensors) + self._tokens_of(self.frozen)

    def here(self) -> Cache:
        """The same in the memory of this computer."""
        return Cache({name: _array(tensor) for name, tensor in self.tensors.items()}, self.frozen)

    def begun(self, length: int) -> Cache | None:
        """That of the first `length` tokens alone; None where it keeps states, which hold the last tokens only."""
        if length == self.length:
            return self
        if not all("_key_" in name or "_value_" in name for name in self.tensors):
            return None
        frozen = self._tokens_of(self.frozen)
        first = {name: self._first(name, tensor, max(0, length - frozen)) for name, tensor in self.tensors.items()}
        if length >= frozen:
            return Cache(first, self.frozen)
        return Cache(first, {name: self._first(name, tensor, length) for name, tensor in self.frozen.items()})

    def _tokens_of(self, tensors: Mapping[str, Tensor]) -> int:
        """How many tokens there are in one of the two parts."""
        return next((int(tensor.shape[self._axis(name)]) for name, tensor in tensors.items() if "_key_" in name), 0)

    def _first(self, name: str, tensor: Tensor, tokens: int) -> Tensor:
        axis = self._axis(name)
        return np.ascontiguousarray(tensor[(slice(None),) * axis + (slice(tokens),)])

    def _axis(self, name: str) -> int:
        """The axis of the tokens; keys are transposed where the cache is split."""
        return _axis(name) if self.frozen else _VALUE_AXIS

    def of_rows(self, rows: Sequence[int]) -> Cache:
        """That of some of the rows, in their order."""
        return Cache(_of_rows(self.tensors, rows), _of_rows(self.frozen, rows) if self._has_rows else self.frozen)

    def reordered(self, rows: Sequence[int]) -> Cache:
        """That of as many rows, each of which continues one with the same frozen part."""
        return replace(self, tensors=_of_rows(self.tensors, rows))

    def repeated(self, times: int) -> Cache:
        """Every row so many times, one after the other."""
        is_shared = all(len(tensor) == 1 for tensor in self.frozen.values())
        return Cache(_repeated(self.tensors, times), self.frozen if is_shared else _repeated(self.frozen, times))

    def settled(self, least: int = 1) -> Cache:
        """The same, all of it frozen, where at least so many tokens are not; as it is where it is not split."""
        if not self._has_rows or not self.is_here:
            return self
        key = next(tensor for name, tensor in self.tensors.items() if "_key_" in name)
        if key.shape[_KEY_AXIS] < least:
            return self
        frozen = {
            name: _joined(name, tensor, self.tensors[_PAST + name.removeprefix(_FROZEN)])
            for name, tensor in self.frozen.items()
        }
        return Cache({name: _no_tokens(name, tensor) for name, tensor in self.tensors.items()}, frozen)

    @property
    def _has_rows(self) -> bool:
        """Whether each row has a frozen part of its own."""
        return bool(self.frozen) and len(next(iter(self.frozen.values()))) == len(next(iter(self.tensors.values())))


def _array(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, np.ndarray) else tensor.numpy()


def _axis(name: str) -> int:
    return _KEY_AXIS if "_key_" in name else _VALUE_AXIS


def _joined(name: str, frozen: Tensor, past: Tensor) -> Tensor:
    return np.concatenate((frozen, past), axis=_axis(name)) if frozen.size else past


def _no_tokens(name: str, tensor: Tensor) -> Tensor:
    """Keys or values of none of the tokens; a state of fixed size as it is."""
    if "_key_" in name:
        return tensor[..., :0]
    return tensor[..., :0, :] if "_value_" in name else tensor


def _of_rows(tensors: Mapping[str, Tensor], rows: Sequence[int]) -> dict[str, Tensor]:
    return {name: tensor[rows] for name, tensor in tensors.items()}


def _repeated(tensors: Mapping[str, Tensor], times: int) -> dict[str, Tensor]:
    return {name: np.repeat(tensor, times, axis=0) for name, tensor in tensors.items()}
