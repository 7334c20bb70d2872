"""What the original model does, one class for each kind of model, with all that the golden cases of that kind need.

Preprocessing, decoding and similarity are those of the manifest. Tensors are float32; the token ids of a text are those
that the tokenizer and its templates make.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from xattn_runtime.bundle.manifest import Decoding, Similarity
from xattn_runtime.preprocess.regions import RegionSpec
from xattn_runtime.preprocess.speech import MelSpec
from xattn_runtime.preprocess.steps import Step
from xattn_runtime.verify.golden import least_lead

__all__ = [
    "SAFE_LEAD",
    "Chooses",
    "ChoosesOverRegions",
    "Embeds",
    "Generated",
    "Generates",
    "Labels",
    "Reference",
    "generated_greedily",
]

SAFE_LEAD = 1e-3
"""A lead of the best logit over the next, as a share of their root-mean-square, that rounding on no device changes."""


@dataclass(frozen=True)
class Generated:
    """What the original model generates, decoded with the settings of the bundle.

    token_ids: without prompt and end token.
    logits: float32 `[len(token_ids) + 1, vocabulary]`, raw, teacher-forced along them.
    steady: whether the ids are the same when the logits are off by as much as a device may be.
    """

    token_ids: tuple[int, ...]
    logits: NDArray[np.float32]
    steady: bool


def generated_greedily(token_ids: tuple[int, ...], logits: NDArray[np.float32]) -> Generated:
    """What greedy decoding generates: steady where the best logit leads by enough at every step."""
    return Generated(token_ids, logits, steady=least_lead(logits) >= SAFE_LEAD)


@dataclass(frozen=True)
class Generates:
    """A model that writes a caption or an answer, token by token.

    generate: pixels `[1, 3, height, width]`, or in tiles `[1, tiles, 3, height, width]`, or in patches `[1, rows,
        columns, merge², values]`, those of a square together; and ids of the question, or of the caption's template if
        it has one → what is generated.
    video_steps: preprocessing of a frame of a video, of a model that takes videos.
    """

    image_steps: tuple[Step, ...]
    decoding: Decoding
    generate: Callable[[Tensor, tuple[int, ...]], Generated]
    video_steps: tuple[Step, ...] | None = None

    @property
    def in_manifest(self) -> Mapping[str, Any]:
        """The fields of `Manifest` that it states."""
        return {"image_steps": self.image_steps, "decoding": self.decoding, "video_steps": self.video_steps}


@dataclass(frozen=True)
class Chooses:
    """A model that chooses among answers to a question about an image.

    answer_logits: pixels `[1, 3, height, width]` and ids of the question → logits `[answers]`, as many as `labels`.
    """

    image_steps: tuple[Step, ...]
    labels: tuple[str, ...]
    answer_logits: Callable[[Tensor, tuple[int, ...]], Tensor]

    @property
    def in_manifest(self) -> Mapping[str, Any]:
        """The fields of `Manifest` that it states."""
        return {"image_steps": self.image_steps, "labels": self.labels}


@dataclass(frozen=True)
class ChoosesOverRegions:
    """The same for a model that takes regions in place of pixels.

    answer_logits: inputs of the image encoder by name, with a batch of 1, and ids of the question → logits `[answers]`.
    """

    regions: RegionSpec
    labels: tuple[str, ...]
    answer_logits: Callable[[Mapping[str, Tensor], tuple[int, ...]], Tensor]

    @property
    def in_manifest(self) -> Mapping[str, Any]:
        """The fields of `Manifest` that it states."""
        return {"regions": self.regions, "labels": self.labels}


@dataclass(frozen=True)
class Embeds:
    """A model that embeds images and texts in one space.

    embed_image, embed_text: pixels `[1, 3, height, width]`, or ids of a text → embedding `[width]`, of length 1.
    match: of a model with a reranker: pixels and ids of a text → logit `[]` that they belong together.
    """

    image_steps: tuple[Step, ...]
    similarity: Similarity
    embed_image: Callable[[Tensor], Tensor]
    embed_text: Callable[[tuple[int, ...]], Tensor]
    match: Callable[[Tensor, tuple[int, ...]], Tensor] | None = None

    @property
    def in_manifest(self) -> Mapping[str, Any]:
        """The fields of `Manifest` that it states."""
        return {"image_steps": self.image_steps, "similarity": self.similarity}


@dataclass(frozen=True)
class Labels:
    """A model that labels speech, sound and video together.

    frame_steps: preprocessing of a frame. longest_frames: the most frames that it takes.
    label_logits: inputs of the classifier by name, with a batch of 1 → logits `[labels]`.
    """

    speech: MelSpec
    frame_steps: tuple[Step, ...]
    longest_frames: int
    labels: tuple[str, ...]
    label_logits: Callable[[Mapping[str, Tensor]], Tensor]

    @property
    def in_manifest(self) -> Mapping[str, Any]:
        """The fields of `Manifest` that it states."""
        parts = {"speech": self.speech, "longest_frames": self.longest_frames, "labels": self.labels}
        return {"image_steps": self.frame_steps, **parts}


Reference = Generates | Chooses | ChoosesOverRegions | Embeds | Labels
