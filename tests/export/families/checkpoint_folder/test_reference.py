"""What counts as steady: the ids that noise does not change, found with no more generating than that takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from xattn_export.families.checkpoint_folder.reference import NOISE, generated
from xattn_runtime.errors import CheckpointError

_PROMPT = 1
_END = 3


class _Model:
    """Says 0, then 1, then the end, `lead` ahead of the next best of 1,000 scores with a deviation of about 1."""

    def __init__(self, lead: float, rows: int = 1) -> None:
        self.lead, self.rows, self.calls = lead, rows, 0

    def generate(self, logits_processor: list[Any]) -> Tensor:
        self.calls += 1
        ids = torch.zeros((1, _PROMPT), dtype=torch.int64)
        for token_id in (0, 1, _END):
            scores = torch.randn((self.rows, 1000), generator=torch.Generator().manual_seed(token_id))
            scores[:, token_id] = -torch.inf
            scores[:, token_id] = scores.max() + self.lead
            for processor in logits_processor:
                scores = processor(ids, scores)
            ids = torch.cat((ids, scores[:1].argmax(-1, keepdim=True)), 1)
        return ids


def _generated(model: _Model) -> Any:
    def forced_logits(token_ids: tuple[int, ...]) -> Tensor:
        return torch.zeros((len(token_ids) + 1, 1000))

    return generated(model.generate, forced_logits, prompt_length=_PROMPT, end_token_ids=(_END,))


@pytest.mark.parametrize(
    ("lead", "rows", "calls"),
    [
        pytest.param(0.5, 1, 1, id="far ahead: once is enough"),
        pytest.param(5 * NOISE, 1, 2, id="ahead by little: generated again with noise"),
        pytest.param(0.5, 2, 2, id="beams compete: generated again with noise"),
    ],
)
def test_what_is_generated_again(lead: float, rows: int, calls: int) -> None:
    model = _Model(lead, rows)
    found = _generated(model)
    assert found.token_ids == (0, 1)
    assert model.calls == calls
    assert found.steady or lead < 10 * NOISE


def test_a_tie_is_not_steady() -> None:
    """Of two scores that differ by a thousandth of the noise, noise prefers the other at some step."""
    unsteady = [not _generated(_Model(NOISE / 1000, rows)).steady for rows in (1, 2)]
    assert any(unsteady)


def test_an_output_that_holds_several_sequences_is_read_for_the_best() -> None:
    model = _Model(0.5)

    class Output:
        def __init__(self, sequences: Tensor) -> None:
            self.sequences = sequences

    found = generated(
        lambda **options: Output(torch.cat((model.generate(**options), torch.zeros((1, 4), dtype=torch.int64)))),
        lambda token_ids: torch.zeros((len(token_ids) + 1, 1000)),
        prompt_length=_PROMPT,
        end_token_ids=(_END,),
    )
    assert found.token_ids == (0, 1)


def test_settings_that_transformers_itself_cannot_generate_with() -> None:
    def generate(**options: Any) -> Tensor:
        raise ValueError("no such cache\nhere")

    with pytest.raises(
        CheckpointError, match=r"expected generate\(\) to work .*, found: ValueError: no such cache"
    ) as caught:
        generated(generate, lambda ids: torch.zeros(1, 1), prompt_length=1, end_token_ids=(_END,))
    assert "\n" not in str(caught.value)
