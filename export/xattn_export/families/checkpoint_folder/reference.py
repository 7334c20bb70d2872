"""What a Transformers model itself generates, for golden cases, and whether noise on its scores would change it.

Rounding differs from device to device. Where a little noise on the scores changes what is generated, no device can be
held to the words; the logits are compared all the same. Where one best score leads by far more than the noise at every
step, nothing need be generated again to know. It knows `generate()`, and no architecture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from xattn_export.families.base import Generated
from xattn_export.families.checkpoint_folder.quiet import quiet_transformers
from xattn_runtime.errors import CheckpointError, XattnError
from xattn_runtime.json_reader import one_line

__all__ = ["generated"]

NOISE = 1e-3
"""Of the scores' own size; as large as what an fp32 bundle may differ by."""

_SEED = 11
# Times the noise's standard deviation: two normal numbers differ by as much once in 10^17 pairs.
_BEYOND_NOISE = 12


def generated(
    generate: Callable[..., Any],
    forced_logits: Callable[[tuple[int, ...]], Tensor],
    *,
    prompt_length: int,
    end_token_ids: Collection[int],
) -> Generated:
    """What a model generates for one image, and whether it would on any device.

    Args:
        generate: the model's `generate`, bound to image and prompt; takes `logits_processor` and gives int64
            `[sequences, length]`, the best first, each beginning with the prompt, or an output that holds them.
        forced_logits: ids without prompt → raw logits `[len(ids) + 1, vocabulary]`, teacher-forced along them.

    Raises:
        CheckpointError: `generate` fails: what it goes by is what the folder states.
    """

    def token_ids(*processors: Any) -> tuple[int, ...]:
        with quiet_transformers(), torch.no_grad():
            output = _called(generate, list(processors))
        ids = output[0, prompt_length:].tolist()
        end = next((i for i, token_id in enumerate(ids) if token_id in end_token_ids), len(ids))
        return tuple(ids[:end])

    leads = _Leads()
    ids = token_ids(leads)
    steady = leads.least > _BEYOND_NOISE * NOISE or token_ids(_noise()) == ids
    with quiet_transformers(), torch.no_grad():
        logits = forced_logits(ids)
    return Generated(ids, logits.numpy(), steady)


def _called(generate: Callable[..., Any], processors: list[Any]) -> Tensor:
    try:
        output = generate(logits_processor=processors)
    except (MemoryError, XattnError):
        raise
    except Exception as error:  # each setting and each model has checks of its own
        raise CheckpointError(
            "the original model: expected generate() to work with the settings of its folder, found: "
            f"{type(error).__name__}: {one_line(error)[:300]}; change generation_config.json, or config.json where it "
            "has them, until Transformers itself generates with it"
        ) from error
    sequences: Tensor = output if isinstance(output, Tensor) else output.sequences
    return sequences


class _Leads:
    """A logits processor that changes nothing, and notes by how much the best score leads where it leads least.

    least: in standard deviations of the scores that are not ruled out; 0 where several rows compete, as in beam search.
    """

    def __init__(self) -> None:
        self.least = math.inf

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        allowed = scores[torch.isfinite(scores)]
        if len(scores) > 1:
            self.least = 0.0
        elif allowed.numel() > 1:
            best, second = allowed.topk(2).values.tolist()
            self.least = min(self.least, (best - second) / (float(allowed.std()) or 1.0))
        return scores


def _noise() -> Callable[[Tensor, Tensor], Tensor]:
    """A logits processor that adds noise to every score that is not ruled out."""
    generator = torch.Generator().manual_seed(_SEED)

    def processor(input_ids: Tensor, scores: Tensor) -> Tensor:
        allowed = scores[torch.isfinite(scores)]
        size = NOISE * float(allowed.std()) if allowed.numel() > 1 else 0.0
        return scores + size * torch.randn(scores.shape, generator=generator)

    return processor
