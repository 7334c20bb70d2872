"""Decoding as the settings ask for it: greedy or beam search. The one entrance for tasks."""

from __future__ import annotations

from collections.abc import Mapping

from xattn_runtime.generate.beam import beam_search
from xattn_runtime.generate.decoder import DecoderStep
from xattn_runtime.generate.greedy import greedy
from xattn_runtime.generate.sequence import Sequence
from xattn_runtime.generate.settings import Decoding
from xattn_runtime.session import Tensor

__all__ = ["generate"]

# Of all rows of a run together: where a picture in tiles stands in the prompt, it is a thousand tokens long, and the
# cache of a batch of them would not fit.
_MOST_PROMPT_TOKENS = 8192


def generate(decoder: DecoderStep, image: Mapping[str, Tensor], decoding: Decoding) -> list[Sequence]:
    """What is generated for every image of the batch, with `decoding`, the settings of one call (`Decoding.asked`).

    `image` holds what the image encoder gave (or the text encoder, where a question stands between the two): cross keys
    and values, or a prefix, float32 `[batch, heads, tokens, head_width]`; or image tokens `[batch, tokens, width]`.
    Rows with a long prompt run a few at a time.
    """
    search = greedy if decoding.beams == 1 else beam_search
    tokens = len(decoding.prompt_token_ids) * decoding.beams
    rows, most = len(next(iter(image.values()))), max(1, _MOST_PROMPT_TOKENS // tokens)
    parts = ({name: tensor[start : start + most] for name, tensor in image.items()} for start in range(0, rows, most))
    return [sequence for part in parts for sequence in search(decoder, part, decoding)]
