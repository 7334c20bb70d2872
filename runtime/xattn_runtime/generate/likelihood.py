"""How probable texts are to a decoder: closed lists of answers, ranked rather than generated.

The prompt runs once; then all candidates continue side by side, a token at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.bundle.decoding import Decoding
from xattn_runtime.execution.session import Tensor
from xattn_runtime.generate.cache import Cache
from xattn_runtime.generate.decoder import DecoderStep
from xattn_runtime.generate.processors import log_softmax

__all__ = ["log_likelihoods"]

_ROWS_OF_A_RUN = 32


def log_likelihoods(
    decoder: DecoderStep, image: Mapping[str, Tensor], decoding: Decoding, texts: Sequence[Sequence[int]]
) -> NDArray[np.float64]:
    """Natural log-probability of each of `texts`, token ids that stand after the prompt, float64 `[texts]`.

    That the text ends there is a part of it: the first of `decoding.end_token_ids` is counted as its last token,
    where there is one.
    `image` holds what the encoder gave for one image, `[1, …]` each. The scores are the model's own, unprocessed.
    """
    cross = decoder.cross(image)
    prompt = decoder.prompt(image, decoding.prompt_token_ids)
    first, past = decoder.logits(decoder.unread(image, prompt), decoder.first_past(image), cross)
    ends = decoding.end_token_ids[:1]
    totals = np.zeros(len(texts))
    for start in range(0, len(texts), _ROWS_OF_A_RUN):
        part = [(*ids, *ends) for ids in texts[start : start + _ROWS_OF_A_RUN]]
        totals[start : start + len(part)] = _of_part(
            decoder, part, first, past.settled().repeated(len(part)), _repeated(cross, part)
        )
    return totals


def _of_part(
    decoder: DecoderStep,
    texts: Sequence[Sequence[int]],
    logits: NDArray[np.float32],
    past: Cache,
    cross: Mapping[str, Tensor],
) -> NDArray[np.float64]:
    longest = max(len(ids) for ids in texts)
    # What stands after the end of a text is counted for nothing, so that any id will do.
    ids = np.array([[*row, *[row[-1]] * (longest - len(row))] for row in texts], dtype=np.int64)
    counted = np.arange(longest) < np.array([len(row) for row in texts])[:, None]
    logits = np.repeat(logits, len(texts), axis=0)
    total = np.zeros(len(texts))
    for place in range(longest):
        log_probs = np.take_along_axis(log_softmax(logits), ids[:, place, None], axis=1)[:, 0]
        total += np.where(counted[:, place], log_probs, 0)
        if place < longest - 1:
            logits, past = decoder.logits(ids[:, place, None], past, cross)
    return total


def _repeated(tensors: Mapping[str, Tensor], rows: Sequence[object]) -> dict[str, Tensor]:
    return {name: np.repeat(tensor, len(rows), axis=0) for name, tensor in tensors.items()}
