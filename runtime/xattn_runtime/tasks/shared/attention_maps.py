"""What the text attended to: the attention weights of the graph `attention` of a bundle, a word at a time.

It runs the graph once along a whole text; `heatmap.py` draws what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.arguments import whole_number
from xattn_runtime.bundle.contract import attention_names
from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.bundle.manifest import ATTENTION_ROLE
from xattn_runtime.errors import UserError
from xattn_runtime.execution.session import GraphSession, HeldGraph, SessionSettings, Tensor, hold_graph
from xattn_runtime.generate.decoder import FirstStep
from xattn_runtime.preprocess.pipeline import Pipeline
from xattn_runtime.tasks.shared.image_encoder import padded

if TYPE_CHECKING:
    from xattn_runtime.preprocess.image import HeldImage, ImageInput

__all__ = ["Attender", "AttentionMap", "grid_of", "hold_attention", "words_of"]

# Tokens of the image encoder's own that stand before those of the image: a class token, or two.
_MOST_OF_ITS_OWN = 2


@dataclass(frozen=True)
class AttentionMap:
    """How much each word attended to each part of the image.

    text: the caption, or the answer. words: of the caption, or of the question.
    weights: float32 `[words, layers, heads, rows, columns]`, the model's own, the mean of a word's tokens; of one word,
        layer and head they sum to 1 at most, as the image encoder may have tokens that are no part of the image.
    image: uint8 `[height, width, 3]`, as the model sees it.
    """

    text: str
    words: tuple[str, ...]
    weights: NDArray[np.float32]
    image: NDArray[np.uint8]

    def mean(self, layer: int | None = None, head: int | None = None) -> NDArray[np.float32]:
        """float32 `[words, rows, columns]`: the mean over all layers and heads, or of those named, counted from 0.

        UserError for one that there is not.
        """
        layers, heads = self.weights.shape[1:3]
        for name, value, count in (("layer", layer, layers), ("head", head, heads)):
            if value is not None:
                whole_number(name, value, 0, count - 1)
        chosen = self.weights if layer is None else self.weights[:, layer : layer + 1]
        chosen = chosen if head is None else chosen[:, :, head : head + 1]
        means: NDArray[np.float32] = chosen.mean(axis=(1, 2))
        return means


def hold_attention(bundle: Bundle, settings: SessionSettings) -> HeldGraph | None:
    """The graph `attention` of a bundle, which is loaded when it is asked for; None where there is none."""
    return hold_graph(bundle, ATTENTION_ROLE, settings) if ATTENTION_ROLE in bundle.manifest.graphs else None


class Attender:
    """The graph `attention` of a bundle."""

    def __init__(self, bundle: Bundle, held: HeldGraph | None) -> None:
        """Load what `hold_attention` gave; UserError where the bundle has none."""
        if held is None:
            raise UserError(
                f"{bundle.path}: expected a bundle with a graph that gives attention weights, found none; export it "
                "again with --with-attention"
            )
        self._session: GraphSession = held.open()
        self._pipeline = Pipeline(bundle.manifest.image_steps)
        self._names = attention_names(self._session.output_shapes)

    def seen(self, image: ImageInput | HeldImage) -> NDArray[np.uint8]:
        """The image as the model sees it, uint8 `[height, width, 3]`; ImageError where it cannot be used."""
        return self._pipeline.seen(image)

    def of_caption(
        self, image: Mapping[str, Tensor], prompt_ids: Sequence[int], token_ids: Sequence[int]
    ) -> NDArray[np.float32]:
        """What was attended to when each of `token_ids` was chosen, `[tokens, layers, heads, rows, columns]`."""
        first = FirstStep(self._session)
        inputs = {"input_ids": first.prompt(image, (*prompt_ids, *token_ids))}
        weights = self._run({**inputs, **first.first_past(image).inputs, **first.cross(image)})
        # A token is chosen at the place of the one before it.
        start = len(prompt_ids) - 1
        return weights[start : start + len(token_ids)]

    def of_question(self, image: Mapping[str, Tensor], question_ids: Sequence[int]) -> NDArray[np.float32]:
        """What each token of a question attended to, `[tokens, layers, heads, rows, columns]`."""
        seen = {name: image[name] for name in self._session.input_shapes if name in image}
        return self._run({**padded([question_ids]), **seen})

    def _run(self, inputs: Mapping[str, Tensor]) -> NDArray[np.float32]:
        layers = np.stack([layer[0] for layer in self._session.run(self._names, inputs)])
        rows, columns = grid_of(layers.shape[3], self._pipeline.size_px)
        own = layers.shape[3] - rows * columns
        return layers[..., own:].transpose(2, 0, 1, 3).reshape(layers.shape[2], *layers.shape[:2], rows, columns)


def grid_of(tokens: int, size_px: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of `tokens` image tokens of an image of `size_px`, height and width.

    Tokens that are no part of the image may stand before them. UserError where they make no grid of that shape.
    """
    height, width = size_px
    for own in range(_MOST_OF_ITS_OWN + 1):
        rows = round(((tokens - own) * height / width) ** 0.5)
        if rows > 0 and (tokens - own) % rows == 0 and abs((tokens - own) // rows - rows * width / height) < 1:
            return rows, (tokens - own) // rows
    raise UserError(f"expected image tokens in a grid of {height} to {width}, found {tokens}; this model has none")


def words_of(
    token_ids: Sequence[int], decode: Callable[[Sequence[int]], str], weights: NDArray[np.float32]
) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Words of `token_ids`, and the mean of `weights` `[tokens, …]` over the tokens of each.

    A token begins a word where a blank stands before it; one that has no text, as special ones have none, is left out.
    """
    words: list[str] = []
    groups: list[list[int]] = []
    previous = ""
    for place in range(len(token_ids)):
        text = decode(token_ids[: place + 1])
        new = text[len(previous) :] if text.startswith(previous) else text
        if new.strip() and (new[0].isspace() or not words):
            words.append(new.strip())
            groups.append([place])
        elif new.strip():
            words[-1] += new.strip()
            groups[-1].append(place)
        previous = text
    maps = [weights[group].mean(axis=0) for group in groups]
    return tuple(words), np.stack(maps) if maps else weights[:0]
