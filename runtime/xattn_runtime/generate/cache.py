"""What a decoder keeps of the tokens that it has read, a row for every sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xattn_runtime.execution.session import Tensor

__all__ = ["Cache"]

_AXES_OF_KEYS = 4
"""`[rows, heads, tokens, width]`; states of fixed size have fewer."""


@dataclass(frozen=True)
class Cache:
    """Tensors by the names of the decoder's inputs, rows along the first axis; what they hold, no caller knows.

    On a device with a memory of its own they may be ONNX Runtime's OrtValues.
    """

    tensors: Mapping[str, Tensor]

    @property
    def is_here(self) -> bool:
        """Whether the tensors are arrays, which rows can be taken of."""
        return all(isinstance(tensor, np.ndarray) for tensor in self.tensors.values())

    @property
    def size_bytes(self) -> int:
        """What the tensors take."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def length(self) -> int:
        """How many tokens it holds; of one that `is_here`."""
        return next(int(tensor.shape[2]) for tensor in self.tensors.values() if tensor.ndim == _AXES_OF_KEYS)

    def here(self) -> Cache:
        """The same in the memory of this computer."""
        values = {name: _array(tensor) for name, tensor in self.tensors.items()}
        return self if self.is_here else Cache(values)

    def begun(self, length: int) -> Cache | None:
        """That of the first `length` tokens alone; None where it keeps states, which hold the last tokens only."""
        if length == self.length:
            return self
        if any(tensor.ndim != _AXES_OF_KEYS for tensor in self.tensors.values()):
            return None
        return Cache({name: np.ascontiguousarray(tensor[:, :, :length]) for name, tensor in self.tensors.items()})

    def of_rows(self, rows: Sequence[int]) -> Cache:
        """That of some of the rows, in their order."""
        return Cache({name: tensor[rows] for name, tensor in self.tensors.items()})

    def repeated(self, times: int) -> Cache:
        """Every row so many times, one after the other."""
        return Cache({name: np.repeat(tensor, times, axis=0) for name, tensor in self.tensors.items()})


def _array(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, np.ndarray) else tensor.numpy()
