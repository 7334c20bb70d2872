"""An opened model as data, and the architecture that opens it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xattn_export.families.base.reference import Reference
from xattn_export.families.base.roles import Role
from xattn_runtime.bundle.manifest import TaskName
from xattn_runtime.preprocess.tokenizer import TokenizerSpec

__all__ = ["TOKENIZER_FILE", "Family", "GoldenInput", "Source", "SourceTokenizer"]

TOKENIZER_FILE = "tokenizer.json"
"""Where the tokenizer lies in a bundle."""


@dataclass(frozen=True)
class SourceTokenizer:
    """A tokenizer as a bundle holds it, and what is known of the one that it was made of.

    json: the content of tokenizer.json. spec: how it is used, as in the manifest.
    special: the special token of every place, such as `pad_token`, that has one.
    decode: token ids → the text that the original's own library makes of them, special tokens left out; None where
        there is no original but this file.
    """

    json: str
    spec: TokenizerSpec
    special: Mapping[str, str] = field(default_factory=dict)
    decode: Callable[[Sequence[int]], str] | None = None

    def refusing_from(self, token_id: int) -> SourceTokenizer:
        """The same, but no text may spell out an added token of this id or a higher one, which the model lacks."""
        words = [token["content"] for token in json.loads(self.json).get("added_tokens", ()) if token["id"] >= token_id]
        refused = tuple(dict.fromkeys((*self.spec.refused_words, *words)))
        return replace(self, spec=replace(self.spec, refused_words=refused))


@dataclass(frozen=True)
class GoldenInput:
    """The inputs of a golden case.

    content: the bytes of a PNG file, or of an .npz of regions or of a recording.
    texts: the questions about it, or the texts compared with it; none where it is captioned.
    """

    content: bytes
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """An opened model.

    license: SPDX expression. weights: the files whose SHA-256 identifies the model.
    reference: what the original model does, with the preprocessing of its inputs.
    golden_inputs: the inputs of golden cases, without any data set.
    """

    name: str
    task: TaskName
    license: str
    weights: tuple[Path, ...]
    roles: tuple[Role, ...]
    tokenizer: SourceTokenizer
    reference: Reference
    golden_inputs: tuple[GoldenInput, ...]


@dataclass(frozen=True)
class Family:
    """An architecture.

    name: what its author calls it.
    recognises: whether a source with this `config.json` is of the family.
    open: the source in a folder that is recognised; CheckpointError where it is damaged.
    also: the same for other tasks, for models whose files do not say which they were trained for.
    classes: of Transformers that it reads → the `model_type` of their `config.json`.
    """

    name: str
    recognises: Callable[[Mapping[str, Any]], bool]
    open: Callable[[Path], Source]
    also: Mapping[TaskName, Callable[[Path], Source]] = field(default_factory=dict)
    classes: Mapping[str, str] = field(default_factory=dict)
