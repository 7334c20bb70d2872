"""What an architecture must say about itself to be exported: the vocabulary that every family file is written in.

A family recognises a source folder by its `config.json` and opens it as a `Source`: graphs by role as torch modules
over flat tensors, and everything that the manifest needs. How graphs are exported and written is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from xattn_runtime.manifest import Decoding, Task
from xattn_runtime.preprocess.steps import Step

__all__ = ["Family", "GoldenPicture", "Role", "Source", "TensorSpec", "cross_specs"]

Symbol = Literal["batch", "length", "past"]


@dataclass(frozen=True)
class TensorSpec:
    """An input of a role.

    name: as in the bundle format.
    shape: an int for a static axis, else its symbol.
    values: what sane values are: `normal` (float32), `token_ids` (int64 below `limit`), or `mask` (int64, 1 for a
        token and 0 for the padding on its right).
    """

    name: str
    shape: tuple[int | Symbol, ...]
    values: Literal["normal", "token_ids", "mask"]
    limit: int = 0


@dataclass(frozen=True)
class Role:
    """One graph of a bundle.

    name: `image_encoder`, `decoder` or `classifier`.
    module: what is exported; takes the inputs in order, gives the outputs in order. It may hold symbolic ONNX
        operators, which torch cannot compute.
    reference: the original model behind the same inputs and outputs; what the graph must compute.
    longest: the most positions (`past` and `length` together), for a role that has them.
    attends: whether the module computes attention, which `standard` then demands as the operator `Attention`.
    """

    name: str
    module: nn.Module
    reference: Callable[..., tuple[Tensor, ...]]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    longest: int | None = None
    attends: bool = True


@dataclass(frozen=True)
class GoldenPicture:
    """A picture, as the bytes of a PNG file, and the questions asked of it (none for captioning)."""

    png: bytes
    questions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """An opened model: its roles, and what the manifest says of it.

    weights: the file whose SHA-256 stands for the model.
    unknown_token_id, max_tokens: of the tokenizer; `max_tokens` is the longest text that the model takes.
    caption: picture `[1, 3, height, width]` → token ids of the greedy caption, without start and end token.
    forced_logits: picture and ids → logits `[len(ids) + 1, vocabulary]`, teacher-forced along them.
    answer_logits: picture and question ids → logits `[answers]`.
    pictures: golden pictures that need no data set.
    """

    name: str
    task: Task
    license: str
    weights: Path
    roles: tuple[Role, ...]
    image_steps: tuple[Step, ...]
    tokenizer_json: str
    unknown_token_id: int
    max_tokens: int
    pictures: Callable[[], tuple[GoldenPicture, ...]]
    decoding: Decoding | None = None
    labels: tuple[str, ...] | None = None
    caption: Callable[[Tensor], tuple[int, ...]] | None = None
    forced_logits: Callable[[Tensor, tuple[int, ...]], Tensor] | None = None
    answer_logits: Callable[[Tensor, tuple[int, ...]], Tensor] | None = None


@dataclass(frozen=True)
class Family:
    """An architecture.

    name: what its author calls it.
    recognises: whether a source with this `config.json` is of the family.
    open: the source in a folder that is recognised; CheckpointError where it is damaged.
    """

    name: str
    recognises: Callable[[Mapping[str, Any]], bool]
    open: Callable[[Path], Source]


def cross_specs(layers: int, heads: int, image_tokens: int, head_width: int) -> tuple[TensorSpec, ...]:
    """The cross keys and values that a decoder or classifier takes, `cross_key_0`, `cross_value_0`, …"""
    return tuple(
        TensorSpec(f"cross_{kind}_{layer}", ("batch", heads, image_tokens, head_width), "normal")
        for layer in range(layers)
        for kind in ("key", "value")
    )
