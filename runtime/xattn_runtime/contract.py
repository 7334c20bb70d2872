"""Names, dtypes and ranks of the tensors of every role: the contract between exporter and runtime.

Only the contract: how a graph is run is in `session.py`, what for in `generate/` and `tasks/`.
docs/bundle-format.md describes the same for people.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RoleContract", "TensorContract", "cross_names", "past_names", "present_names", "role_contract"]

_FLOAT = "tensor(float)"
_INT64 = "tensor(int64)"


@dataclass(frozen=True)
class TensorContract:
    """A tensor: ONNX Runtime's word for its dtype, and its rank."""

    dtype: str
    rank: int


@dataclass(frozen=True)
class RoleContract:
    """All inputs and outputs of a graph, by name."""

    inputs: dict[str, TensorContract]
    outputs: dict[str, TensorContract]


def cross_names(layers: int) -> list[str]:
    """`cross_key_0`, `cross_value_0`, `cross_key_1`, …"""
    return _pairs("cross", layers)


def past_names(layers: int) -> list[str]:
    """`past_key_0`, `past_value_0`, `past_key_1`, …"""
    return _pairs("past", layers)


def present_names(layers: int) -> list[str]:
    """`present_key_0`, `present_value_0`, `present_key_1`, …, in the order of `past_names`."""
    return _pairs("present", layers)


def role_contract(role: str, layers: int) -> RoleContract:
    """What a graph of `role` with `layers` layers takes and gives."""
    cross = _tensors(cross_names(layers))
    if role == "image_encoder":
        return RoleContract({"pixel_values": TensorContract(_FLOAT, 4)}, cross)
    if role == "classifier":
        ids = {"input_ids": TensorContract(_INT64, 2), "attention_mask": TensorContract(_INT64, 2)}
        scores = {"logits": TensorContract(_FLOAT, 2), "probabilities": TensorContract(_FLOAT, 2)}
        return RoleContract(ids | cross, scores)
    head = {
        "logits": TensorContract(_FLOAT, 2),
        "next_token": TensorContract(_INT64, 1),
        "next_log_prob": TensorContract(_FLOAT, 1),
    }
    inputs = {"input_ids": TensorContract(_INT64, 2)} | _tensors(past_names(layers)) | cross
    return RoleContract(inputs, head | _tensors(present_names(layers)))


def _pairs(prefix: str, layers: int) -> list[str]:
    return [f"{prefix}_{kind}_{layer}" for layer in range(layers) for kind in ("key", "value")]


def _tensors(names: list[str]) -> dict[str, TensorContract]:
    return {name: TensorContract(_FLOAT, 4) for name in names}
