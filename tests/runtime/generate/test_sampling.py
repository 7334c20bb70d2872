"""Drawn tokens have the distribution that they should, and candidates the likelihood that the model gives them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xattn_runtime.bundle.decoding import Decoding
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.errors import UserError
from xattn_runtime.execution.providers import resolve_provider
from xattn_runtime.execution.session import SessionSettings, open_session
from xattn_runtime.generate.decoder import DecoderStep
from xattn_runtime.generate.greedy import greedy_steps
from xattn_runtime.generate.likelihood import log_likelihoods
from xattn_runtime.generate.options import DecodingOptions, Sampling
from xattn_runtime.generate.sampling import Sampler, probabilities
from xattn_runtime.generate.search import generate_best

DECODING = Decoding((2,), (3,), 0, 12)
SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.5),
    Sampling(temperature=2.5),
    Sampling(top_k=4),
    Sampling(top_k=400),
    Sampling(top_p=0.7),
    Sampling(min_p=0.2),
    Sampling(temperature=1.7, top_k=9, top_p=0.85, min_p=0.05),
]
_CHI_SQUARED_OF_A_MILLIONTH = {14: 56.3, 8: 43.4, 3: 31.0}


@pytest.fixture
def decoder(caption_bundle: Path) -> DecoderStep:
    return DecoderStep(
        open_session(open_bundle(caption_bundle), "decoder", SessionSettings(resolve_provider("cpu"), 1))
    )


@pytest.fixture
def crosses(noise: Callable[[int], Path], reference_cross: Any) -> list[dict[str, np.ndarray]]:
    return [reference_cross(noise(seed)) for seed in range(4, 10)]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_probabilities_are_those_of_transformers(sampling: Sampling) -> None:
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    logits = np.random.default_rng(0).normal(size=(50, 30), scale=3).astype(np.float32)
    logits[:, 7] = -np.inf
    scores = torch.from_numpy(logits).double() / sampling.temperature
    if sampling.top_k:
        scores = process.TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = process.TopPLogitsWarper(sampling.top_p)(None, scores)
    if sampling.min_p:
        scores = process.MinPLogitsWarper(sampling.min_p)(None, scores)
    expected = scores.softmax(-1).numpy()
    found = probabilities(logits, sampling)
    assert ((found > 0) == (expected > 0)).all()
    assert np.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(
    "sampling", [Sampling(seed=0), Sampling(temperature=2, top_k=9, seed=1), Sampling(top_k=4, seed=2)]
)
def test_draws_have_the_distribution(sampling: Sampling) -> None:
    """Pearson's test: a right sampler fails it once in a million seeds, and this seed is not one of them."""
    scores = np.random.default_rng(5).normal(size=(1, 15)).astype(np.float32)
    draws = 40_000
    sampler = Sampler(sampling, draws, draws)
    found = sampler.draw(np.repeat(scores, draws, axis=0), np.arange(draws))
    expected = draws * probabilities(scores, sampling)[0]
    counts = np.bincount(found, minlength=15)
    possible = expected > 0
    assert not counts[~possible].any()
    statistic = float(((counts - expected)[possible] ** 2 / expected[possible]).sum())
    assert statistic < _CHI_SQUARED_OF_A_MILLIONTH[int(possible.sum()) - 1]
    wrong = probabilities(scores * 1.1, sampling)[0] * draws
    assert ((counts - wrong)[possible] ** 2 / wrong[possible]).sum() > statistic


def test_sequences_are_drawn_from_the_models_own_distribution(
    decoder: DecoderStep, crosses: list[dict[str, np.ndarray]], model: Any
) -> None:
    """Of the first two tokens, by the reference that has no cache."""
    sampling, decoding = Sampling(temperature=6.0, seed=3), replace(DECODING, max_new_tokens=2)

    def shares(logits: np.ndarray) -> np.ndarray:
        return probabilities(logits[None].astype(np.float32), sampling)[0]

    cross, draws = crosses[0], 3000
    found = [one.token_ids for one in generate_best(decoder, cross, decoding, sampling, n_best=draws)[0]]
    first = shares(model.forced_logits(cross, [])[-1])
    likely = int(np.argsort(-first * (np.arange(15) != 3))[0])
    second = shares(model.forced_logits(cross, [likely])[-1])
    for token_id in range(15):
        wanted = (likely,) if token_id == 3 else (likely, token_id)
        expected = first[likely] * second[token_id]
        allowed = 5 * np.sqrt(expected * (1 - expected) / draws) + 1e-3
        assert abs(found.count(wanted) / draws - expected) < allowed


def test_a_draw_does_not_depend_on_the_batch(decoder: DecoderStep, crosses: list[dict[str, np.ndarray]]) -> None:
    batch = {name: np.concatenate([cross[name] for cross in crosses]) for name in crosses[0]}
    sampling = Sampling(temperature=5.0, seed=8)
    together = generate_best(decoder, batch, DECODING, sampling, n_best=3)
    for row, cross in zip(together, crosses, strict=True):
        alone = generate_best(decoder, cross, DECODING, sampling, n_best=3)[0]
        assert [one.token_ids for one in row] == [one.token_ids for one in alone]
        assert [one.token_ids for one in generate_best(decoder, cross, DECODING, sampling)[0]] == [row[0].token_ids]
    assert len({one.token_ids for row in together for one in row}) > len(crosses)
    unseeded = Sampling(temperature=9.0)
    assert generate_best(decoder, batch, DECODING, unseeded) != generate_best(decoder, batch, DECODING, unseeded)


def test_rows_leave_the_batch_when_they_have_ended(
    decoder: DecoderStep, noise: Callable[[int], Path], reference_cross: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    crosses = [reference_cross(noise(seed)) for seed in range(12)]
    batch = {name: np.concatenate([cross[name] for cross in crosses]) for name in crosses[0]}
    fed: list[int] = []
    run = decoder.next_token
    monkeypatch.setattr(decoder, "next_token", lambda ids, *a, **k: (fed.append(len(ids)), run(ids, *a, **k))[1])
    steps = list(greedy_steps(decoder, batch, DECODING))
    assert fed[0] == 12
    assert fed == sorted(fed, reverse=True)
    for before, rows in zip(steps, fed[1:], strict=False):
        running = before.ended.count(False)
        assert running <= rows < 2 * max(1, running)


def test_candidates_have_the_likelihood_of_the_reference(
    decoder: DecoderStep, crosses: list[dict[str, np.ndarray]], model: Any
) -> None:
    texts = [(5,), (6, 7, 8), (), (9, 9), *[(token_id, 5) for token_id in range(4, 15)] * 4]
    for cross in crosses[:2]:
        expected = []
        for ids in texts:
            logits = model.forced_logits(cross, list(ids)).astype(np.float64)
            log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
            expected.append(sum(log_probs[place, token_id] for place, token_id in enumerate((*ids, 3))))
        assert np.allclose(log_likelihoods(decoder, cross, DECODING, texts), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (DecodingOptions(temperature=float("nan")), "temperature: expected a number above 0"),
        (DecodingOptions(n_best=0), "n_best: expected 1 to 64, found 0"),
        (DecodingOptions(n_best=65, seed=1), "n_best: expected 1 to 64, found 65"),
        (DecodingOptions(top_k=-1), "top_k: expected 0, all tokens, or more, found -1"),
        (DecodingOptions(stop=("",)), "stop: expected texts that are not empty"),
        (DecodingOptions(min_new_tokens=13), "min_new_tokens: expected at most 12"),
        (DecodingOptions(early_stopping=True), "early_stopping: expected 2 beams or more"),
        (DecodingOptions(max_new_tokens=2.5), "max_new_tokens: expected a whole number, found 2.5"),  # type: ignore[arg-type]
        (DecodingOptions(beams="4"), "beams: expected a whole number, found '4'"),  # type: ignore[arg-type]
        (DecodingOptions(temperature="hot"), "temperature: expected a number, found 'hot'"),  # type: ignore[arg-type]
    ],
)
def test_options_that_cannot_be_had(options: DecodingOptions, message: str) -> None:
    with pytest.raises(UserError, match=message):
        options.apply_to(DECODING, ())


def test_one_number_from_two_sides() -> None:
    assert DecodingOptions(beams=3).with_shortcuts(3, 5) == DecodingOptions(beams=3, max_new_tokens=5)
    with pytest.raises(UserError, match="beams: expected one number, found 2 and, in the options, 3"):
        DecodingOptions(beams=3).with_shortcuts(2, None)
