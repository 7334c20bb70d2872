"""Decoding as the settings ask for it: greedy, by beam search, or by drawing tokens. The one entrance for tasks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from xattn_runtime.bundle.decoding import Decoding
from xattn_runtime.execution.session import Tensor
from xattn_runtime.generate.beam import beam_search_best
from xattn_runtime.generate.decoder import DecoderStep
from xattn_runtime.generate.greedy import greedy
from xattn_runtime.generate.options import Sampling, Stop
from xattn_runtime.generate.sampling import Sampler
from xattn_runtime.generate.sequence import Sequence

__all__ = ["generate", "generate_best"]

# Of all rows of a run together: where an image in tiles stands in the prompt, it is a thousand tokens long, and the
# cache of a batch of them would not fit.
_MOST_PROMPT_TOKENS = 8192


def generate(decoder: DecoderStep, image: Mapping[str, Tensor], decoding: Decoding) -> list[Sequence]:
    """The best of what is generated for every image; see `generate_best`."""
    return [best[0] for best in generate_best(decoder, image, decoding)]


def generate_best(
    decoder: DecoderStep,
    image: Mapping[str, Tensor],
    decoding: Decoding,
    sampling: Sampling | None = None,
    stop: Stop | None = None,
    n_best: int = 1,
) -> list[tuple[Sequence, ...]]:
    """What is generated for every image of the batch, with `decoding`, the settings of one call (`Decoding.for_call`).

    `image` holds what the image encoder gave (or the text encoder, where a question stands between the two): cross keys
    and values, or a prefix, float32 `[batch, heads, tokens, head_width]`; or image tokens `[batch, tokens, width]`.
    Rows with a long prompt run a few at a time.

    sampling: tokens are drawn so. stop: ends a sequence. n_best: sequences told of an image: of a beam search the best
    first, else so many draws in their order.
    """
    draws = n_best if sampling is not None else 1
    tokens = max(1, len(decoding.prompt_token_ids) * decoding.beams * draws)
    rows, most = len(next(iter(image.values()))), max(1, _MOST_PROMPT_TOKENS // tokens)
    sequences_of_rows: list[tuple[Sequence, ...]] = []
    for start in range(0, rows, most):
        part = {name: tensor[start : start + most] for name, tensor in image.items()}
        if decoding.beams > 1:
            sequences_of_rows += beam_search_best(decoder, part, decoding, n_best, stop)
            continue
        if draws > 1:
            part = {name: np.repeat(tensor, draws, axis=0) for name, tensor in part.items()}
        count = len(next(iter(part.values())))
        sampler = None if sampling is None else Sampler(sampling, count, draws)
        sequences = greedy(decoder, part, decoding, sampler, stop)
        sequences_of_rows += [tuple(sequences[row : row + draws]) for row in range(0, count, draws)]
    return sequences_of_rows
