"""What an architecture must say about itself to be exported: the vocabulary that every family file is written in.

A family recognises a source folder by its `config.json` and opens it as a `Source`: graphs by role as torch modules
over flat tensors, and everything that the manifest needs. How graphs are exported and written is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from xattn_runtime.bundle.contract import key_value_names
from xattn_runtime.bundle.manifest import Decoding, Similarity, TaskName
from xattn_runtime.preprocess.regions import RegionSpec
from xattn_runtime.preprocess.speech import MelSpec
from xattn_runtime.preprocess.steps import Step
from xattn_runtime.preprocess.tokenizer import ImageLayout

__all__ = [
    "Family",
    "Generated",
    "GoldenPicture",
    "Role",
    "Source",
    "TensorSpec",
    "cross_specs",
    "key_value_specs",
]

Symbol = Literal["batch", "length", "past", "context", "regions", "frames", "pictures"]


@dataclass(frozen=True)
class TensorSpec:
    """An input of a role.

    name: as in the bundle format.
    shape: an int for a static axis, else its symbol: `length` new tokens after `past` ones, and `context` tokens of
        another text, or of a picture, or `regions` of a picture, that they attend to; `frames` of speech, `pictures` of
        a video.
    values: what sane values are: `normal` (float32), `token_ids` (int64 below `limit`), `mask` (int64, 1 for a token
        and 0 for the padding on its right), or `picture` (float32, zeros below and to the right of a picture).
    pictures: heights and widths that pictures have, in pixels.
    fewest: tokens of the shortest row of a mask.
    ends_with: of token ids, the last one of every row, where the model looks for it.
    placeholder: of token ids, the one that stands for an image token; a row has it `context` times where it is long
        enough, and else not at all.
    """

    name: str
    shape: tuple[int | Symbol, ...]
    values: Literal["normal", "token_ids", "mask", "picture"]
    limit: int = 0
    pictures: tuple[tuple[int, int], ...] = ()
    ends_with: int | None = None
    placeholder: int | None = None
    fewest: int = 1


@dataclass(frozen=True)
class Role:
    """One graph of a bundle.

    name: `image_encoder`, `text_encoder`, `decoder` or `classifier`.
    module: what is exported; takes the inputs in order, gives the outputs in order. It may hold symbolic ONNX
        operators, which torch cannot compute.
    reference: the original model behind the same inputs and outputs; what the graph must compute.
    longest: the most positions (`past` and `length` together), for a role that has them.
    attends: whether the module computes attention, which `standard` then demands as the operator `Attention`.
    prefix: how much `past` holds at the least: the image tokens that a cache begins with.
    """

    name: str
    module: nn.Module
    reference: Callable[..., tuple[Tensor, ...]]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    longest: int | None = None
    attends: bool = True
    prefix: int = 0


@dataclass(frozen=True)
class GoldenPicture:
    """A picture, as the bytes of a PNG file, and the questions asked of it, or the texts sought beside it.

    Of a model that takes regions in place of pictures, the bytes are those of an .npz.
    """

    png: bytes
    questions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Generated:
    """What the trained model itself generates, decoded as the bundle says.

    token_ids: without prompt and end token.
    logits: float32 `[len(token_ids) + 1, vocabulary]`, raw, teacher-forced along them.
    steady: whether the ids are the same when the logits are off by as much as a device may be.
    """

    token_ids: tuple[int, ...]
    logits: NDArray[np.float32]
    steady: bool


@dataclass(frozen=True)
class Source:
    """An opened model: its roles, and what the manifest says of it.

    weights: the files whose SHA-256 stands for the model.
    unknown_token_id: None where the tokenizer can spell every word. max_tokens: the longest text that the model takes.
    clean_up_spaces, question_template, prompt_template, caption_template, prompts, pad_to, pad_token_id, image_layout:
        as in the manifest's `tokenizer`.
    pictures: golden pictures that need no data set.
    decoding: with a decoder. labels: with a classifier. similarity: for retrieval.
    speech, longest_frames: of a model of sentiment; its `pictures` are .npz files, and `image_steps` those of a frame.
    regions: of a model that takes them in place of pictures; its `pictures` are .npz files, and `image_steps` empty.

    What golden cases are made of, by task and kind:
    generate: picture `[1, 3, height, width]`, or in tiles `[1, tiles, 3, height, width]`, and ids of the question, or
        of the caption's template if it has one → what is generated.
    caption: picture → token ids of the greedy caption, without start and end token.
    forced_logits: picture and ids → logits `[len(ids) + 1, vocabulary]`, teacher-forced along them.
    answer_logits: picture and question ids → logits `[answers]`.
    answer_regions: the same for inputs of the image encoder, with a batch of 1, in place of a picture.
    label_logits: inputs of the classifier, with a batch of 1, → logits `[labels]`.
    embed_image, embed_text: picture, or token ids → embedding `[width]`, of length 1.
    match: picture and token ids of a text, of a model with a reranker → logit `[]` that they belong together.
    """

    name: str
    task: TaskName
    license: str
    weights: Path | tuple[Path, ...]
    roles: tuple[Role, ...]
    image_steps: tuple[Step, ...]
    tokenizer_json: str
    unknown_token_id: int | None
    max_tokens: int
    pictures: Callable[[], tuple[GoldenPicture, ...]]
    decoding: Decoding | None = None
    labels: tuple[str, ...] | None = None
    similarity: Similarity | None = None
    regions: RegionSpec | None = None
    clean_up_spaces: bool = False
    question_template: str = "{question}"
    prompt_template: str = "{prompt}"
    caption_template: str = ""
    prompts: Mapping[str, str] | None = None
    pad_to: int | None = None
    pad_token_id: int = 0
    image_layout: ImageLayout | None = None
    generate: Callable[[Tensor, tuple[int, ...]], Generated] | None = None
    caption: Callable[[Tensor], tuple[int, ...]] | None = None
    forced_logits: Callable[[Tensor, tuple[int, ...]], Tensor] | None = None
    answer_logits: Callable[[Tensor, tuple[int, ...]], Tensor] | None = None
    answer_regions: Callable[[Mapping[str, Tensor], tuple[int, ...]], Tensor] | None = None
    embed_image: Callable[[Tensor], Tensor] | None = None
    embed_text: Callable[[tuple[int, ...]], Tensor] | None = None
    match: Callable[[Tensor, tuple[int, ...]], Tensor] | None = None
    speech: MelSpec | None = None
    longest_frames: int | None = None
    label_logits: Callable[[Mapping[str, Tensor]], Tensor] | None = None


@dataclass(frozen=True)
class Family:
    """An architecture.

    name: what its author calls it.
    recognises: whether a source with this `config.json` is of the family.
    open: the source in a folder that is recognised; CheckpointError where it is damaged.
    also: the same for other tasks, for models whose files do not say which they were trained for.
    """

    name: str
    recognises: Callable[[Mapping[str, Any]], bool]
    open: Callable[[Path], Source]
    also: Mapping[TaskName, Callable[[Path], Source]] = field(default_factory=dict)


def key_value_specs(
    series: str, layers: int, heads: int, tokens: int | Symbol, head_width: int
) -> tuple[TensorSpec, ...]:
    """The keys and values of `series` that a role takes: `SERIES_key_0`, `SERIES_value_0`, …, of `tokens` each."""
    return tuple(
        TensorSpec(name, ("batch", heads, tokens, head_width), "normal") for name in key_value_names(series, layers)
    )


def cross_specs(layers: int, heads: int, image_tokens: int, head_width: int) -> tuple[TensorSpec, ...]:
    """The cross keys and values that a decoder or classifier takes, `cross_key_0`, `cross_value_0`, …"""
    return key_value_specs("cross", layers, heads, image_tokens, head_width)
