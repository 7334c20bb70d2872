from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.bundle.manifest import Decoding
from xattn_runtime.execution.providers import resolve_provider
from xattn_runtime.execution.session import SessionSettings, open_session
from xattn_runtime.generate.decoder import DecoderStep
from xattn_runtime.generate.greedy import greedy, greedy_steps

Cross = Callable[[Path], dict[str, np.ndarray]]
DECODING = Decoding(prompt_token_ids=(2,), end_token_ids=(3,), pad_token_id=0, max_new_tokens=12)


@pytest.fixture
def decoder(caption_bundle: Path) -> DecoderStep:
    return DecoderStep(
        open_session(open_bundle(caption_bundle), "decoder", SessionSettings(resolve_provider("cpu"), 1))
    )


@pytest.fixture
def crosses(noise: Callable[[int], Path], reference_cross: Cross) -> list[dict[str, np.ndarray]]:
    return [reference_cross(noise(seed)) for seed in range(12)]


def test_every_sequence_is_the_cacheless_reference(
    decoder: DecoderStep, crosses: list[dict[str, np.ndarray]], model: Any
) -> None:
    lengths = set()
    for cross in crosses:
        ids, log_probs = model.greedy(cross)
        found = greedy(decoder, cross, DECODING)[0]
        assert list(found.token_ids) == ids
        assert np.allclose(found.log_probs, log_probs, atol=1e-5)
        lengths.add(len(ids))
    # Short, long and cut off at the limit must all have been among them for this to prove anything.
    assert len(lengths) >= 3
    assert 12 in lengths


def test_a_batch_gives_what_each_row_gives_alone(decoder: DecoderStep, crosses: list[dict[str, np.ndarray]]) -> None:
    batch = {name: np.concatenate([cross[name] for cross in crosses]) for name in crosses[0]}
    together = greedy(decoder, batch, DECODING)
    for row, cross in zip(together, crosses, strict=True):
        alone = greedy(decoder, cross, DECODING)[0]
        assert row.token_ids == alone.token_ids
        assert np.allclose(row.log_probs, alone.log_probs, atol=1e-5)


def test_rows_that_ended_are_padded_and_count_nothing(
    decoder: DecoderStep, crosses: list[dict[str, np.ndarray]]
) -> None:
    batch = {name: np.concatenate([cross[name] for cross in crosses]) for name in crosses[0]}
    steps = list(greedy_steps(decoder, batch, DECODING))
    for before, after in pairwise(steps):
        assert (after.token_ids[before.ended] == 0).all()
        assert (after.log_probs[before.ended] == 0).all()
        assert all(np.array(after.ended)[before.ended])
    assert any(any(step.ended) and not all(step.ended) for step in steps)


def test_steps_come_one_by_one_and_stop_at_the_limit(
    decoder: DecoderStep, crosses: list[dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    run = decoder.next_token
    monkeypatch.setattr(decoder, "next_token", lambda *a, **k: runs.append(1) or run(*a, **k))
    never = Decoding((2,), (999,), 0, 3)
    steps = greedy_steps(decoder, crosses[0], never)
    next(steps)
    assert len(runs) == 1
    assert len(list(steps)) == 2
    found = greedy(decoder, crosses[0], never)[0]
    assert len(found.token_ids) == len(found.log_probs) == 3


def test_several_end_tokens(decoder: DecoderStep, crosses: list[dict[str, np.ndarray]], model: Any) -> None:
    cross = next(cross for cross in crosses if len(model.greedy(cross)[0]) > 3)
    ids, _ = model.greedy(cross)
    found = greedy(decoder, cross, Decoding((2,), (3, ids[2]), 0, 12))[0]
    assert list(found.token_ids) == ids[: ids.index(ids[2])]
    assert len(found.log_probs) == len(found.token_ids) + 1
