from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xattn_runtime.bundle.decoding import Decoding
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.errors import BundleError
from xattn_runtime.execution.providers import resolve_provider
from xattn_runtime.execution.session import SessionSettings, open_session
from xattn_runtime.generate.beam import beam_search
from xattn_runtime.generate.decoder import DecoderStep
from xattn_runtime.generate.greedy import greedy
from xattn_runtime.generate.search import generate

END, VOCABULARY = 3, 15
DECODING = Decoding((2,), (END,), 0, 12)


@pytest.fixture
def decoder(caption_bundle: Path) -> DecoderStep:
    return DecoderStep(
        open_session(open_bundle(caption_bundle), "decoder", SessionSettings(resolve_provider("cpu"), 1))
    )


@pytest.fixture
def crosses(noise: Callable[[int], Path], reference_cross: Any) -> list[dict[str, np.ndarray]]:
    return [reference_cross(noise(seed)) for seed in range(8)]


def log_probs(model: Any, cross: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """Natural log-probabilities `[len(ids) + 1, vocabulary]` by the cacheless reference."""
    logits = model.forced_logits(cross, ids).astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 3.0])
def test_as_many_beams_as_tokens_find_the_best_of_all_pairs(
    decoder: DecoderStep, crosses: list[dict[str, np.ndarray]], model: Any, length_penalty: float
) -> None:
    decoding = replace(DECODING, beams=VOCABULARY, max_new_tokens=2, length_penalty=length_penalty)
    found = set()
    for cross in crosses:
        first = log_probs(model, cross, [])[0]
        scores: dict[tuple[int, ...], Any] = {(END,): first[END]}
        for one, two in product(range(VOCABULARY), repeat=2):
            if one != END:
                scores[one, two] = (first[one] + log_probs(model, cross, [one])[1, two]) / 2**length_penalty
        best = max(scores, key=lambda ids: scores[ids])
        sequence = beam_search(decoder, cross, decoding)[0]
        assert sequence.token_ids == tuple(token_id for token_id in best if token_id != END)
        assert sequence.score == pytest.approx(scores[best], abs=1e-5)
        found.add(best)
    assert len(found) > 1


def test_log_probs_are_those_of_the_reference_along_the_sequence(
    decoder: DecoderStep, crosses: list[dict[str, np.ndarray]], model: Any
) -> None:
    decoding = replace(DECODING, beams=4, no_repeat_ngram_size=2, repetition_penalty=1.3)
    ended = set()
    for cross in crosses:
        sequence = beam_search(decoder, cross, decoding)[0]
        ids = list(sequence.token_ids)
        whole = ids + [END] * (len(sequence.log_probs) - len(ids))
        expected = [row[token_id] for row, token_id in zip(log_probs(model, cross, ids), whole, strict=False)]
        assert np.allclose(sequence.log_probs, expected, atol=1e-5)
        ended.add(len(whole) - len(ids))
    assert ended == {0, 1}


def test_a_batch_gives_what_each_row_gives_alone(decoder: DecoderStep, crosses: list[dict[str, np.ndarray]]) -> None:
    batch = {name: np.concatenate([cross[name] for cross in crosses]) for name in crosses[0]}
    for stopping in (False, True, "never"):
        decoding = replace(DECODING, beams=3, early_stopping=stopping)
        together = beam_search(decoder, batch, decoding)
        alone = [beam_search(decoder, cross, decoding)[0] for cross in crosses]
        assert [row.token_ids for row in together] == [row.token_ids for row in alone]
        assert np.allclose([row.score for row in together], [row.score for row in alone], atol=1e-5)


def test_more_beams_are_never_worse_by_their_own_score(
    decoder: DecoderStep, crosses: list[dict[str, np.ndarray]]
) -> None:
    better = 0
    for cross in crosses:
        scores = [beam_search(decoder, cross, replace(DECODING, beams=beams))[0].score for beams in (1, VOCABULARY)]
        assert scores[1] >= scores[0] - 1e-5
        better += scores[1] > scores[0] + 1e-5
    assert better


def test_one_beam_is_greedy(decoder: DecoderStep, crosses: list[dict[str, np.ndarray]]) -> None:
    for cross in crosses:
        found = generate(decoder, cross, DECODING)
        assert found == greedy(decoder, cross, DECODING)
        assert found[0].score == pytest.approx(np.mean(found[0].log_probs))
        assert beam_search(decoder, cross, DECODING)[0].token_ids == found[0].token_ids


def test_a_limit_of_one_token_runs_the_prompt_alone(
    decoder: DecoderStep, crosses: list[dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = []
    run = decoder.logits

    def counted(input_ids: np.ndarray, *rest: Any) -> Any:
        batches.append(input_ids.shape)
        return run(input_ids, *rest)

    monkeypatch.setattr(decoder, "logits", counted)
    sequence = beam_search(decoder, crosses[0], replace(DECODING, beams=4, max_new_tokens=1))[0]
    assert len(sequence.log_probs) == 1
    beam_search(decoder, crosses[0], replace(DECODING, beams=4, max_new_tokens=2, prompt_token_ids=(2, 6)))
    assert batches == [(1, 1), (1, 2), (4, 1)]


def test_several_ends_never_starve_the_beams(decoder: DecoderStep, crosses: list[dict[str, np.ndarray]]) -> None:
    decoding = replace(DECODING, beams=4, end_token_ids=(3, 4, 5, 6, 7, 8), min_length=6)
    for cross in crosses:
        sequence = beam_search(decoder, cross, decoding)[0]
        assert len(sequence.token_ids) >= 5
        assert not set(sequence.token_ids) & set(decoding.end_token_ids)


def test_tokens_that_the_decoder_does_not_have(decoder: DecoderStep) -> None:
    decoder.check_ids(range(VOCABULARY))
    with pytest.raises(BundleError, match=r"expected a logit for every token .* found 15 and the token 15"):
        decoder.check_ids((3, 15, 20))
