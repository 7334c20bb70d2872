"""What a Transformers model itself generates, for golden cases: by its own `generate()`, and once more with noise.

Rounding differs from device to device. Where a little noise on the scores changes what is generated, no device can be
held to the words; the logits are compared all the same. It knows `generate()`, and no architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from xattn_export.families.base import Generated
from xattn_export.families.hf import quiet_transformers

__all__ = ["generated"]

NOISE = 1e-3
"""Of the scores' own size; as large as what an fp32 bundle may differ by."""

_SEED = 11


def generated(
    generate: Callable[..., Tensor],
    forced_logits: Callable[[tuple[int, ...]], Tensor],
    *,
    prompt_length: int,
    end_token_ids: Collection[int],
) -> Generated:
    """What a model generates for one picture, and whether it would on any device.

    Args:
        generate: the model's `generate`, bound to picture and prompt; takes `logits_processor` and gives int64
            `[1, length]` that begins with the prompt.
        forced_logits: ids without prompt → raw logits `[len(ids) + 1, vocabulary]`, teacher-forced along them.
    """

    def token_ids(*processors: Any) -> tuple[int, ...]:
        with quiet_transformers(), torch.no_grad():
            ids = generate(logits_processor=list(processors))[0, prompt_length:].tolist()
        end = next((i for i, token_id in enumerate(ids) if token_id in end_token_ids), len(ids))
        return tuple(ids[:end])

    found = token_ids()
    steady = token_ids(_noise()) == found
    with quiet_transformers(), torch.no_grad():
        logits = forced_logits(found)
    return Generated(found, logits.numpy(), steady)


def _noise() -> Callable[[Tensor, Tensor], Tensor]:
    """A logits processor that adds noise to every score that is not ruled out."""
    generator = torch.Generator().manual_seed(_SEED)

    def processor(input_ids: Tensor, scores: Tensor) -> Tensor:
        allowed = scores[torch.isfinite(scores)]
        size = NOISE * float(allowed.std()) if allowed.numel() > 1 else 0.0
        return scores + size * torch.randn(scores.shape, generator=generator)

    return processor
