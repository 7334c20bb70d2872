"""The loop around a decoder, beside the same decoder a step at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from xattn_export import inspect_path, quantize_bundle
from xattn_export.graph.conformance import all_initializers, require_standard
from xattn_export.graph.generator import generator_graph
from xattn_runtime.bundle.decoding import Decoding
from xattn_runtime.bundle.folder import Bundle, open_bundle
from xattn_runtime.bundle.manifest import Graph, Manifest, Precision
from xattn_runtime.errors import BundleError
from xattn_runtime.execution.providers import resolve_provider
from xattn_runtime.execution.session import HeldGraph, SessionSettings, open_session
from xattn_runtime.generate.decoder import DecoderStep
from xattn_runtime.generate.greedy import greedy
from xattn_runtime.generate.loop import GreedyLoop
from xattn_runtime.loader import load

SETTINGS = SessionSettings(resolve_provider("cpu"), 1)
DECODING = Decoding(prompt_token_ids=(2,), end_token_ids=(3,), pad_token_id=0, max_new_tokens=12)
GRAPH = "graphs/generator.onnx"


@pytest.fixture
def bundle(caption_copy: Path, rewrite: Callable[[Path, Manifest], Manifest]) -> Bundle:
    """The tiny captioner, with a generator."""
    manifest = open_bundle(caption_copy).manifest
    graph = generator_graph(onnx.load(caption_copy / "graphs/decoder.onnx"))
    require_standard(graph, "generator")
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, caption_copy / GRAPH)
    rewrite(caption_copy, replace(manifest, graphs={**manifest.graphs, "generator": Graph(GRAPH, "fp32")}))
    return open_bundle(caption_copy)


@pytest.fixture
def pair(bundle: Bundle) -> tuple[GreedyLoop, DecoderStep]:
    return GreedyLoop(open_session(bundle, "generator", SETTINGS)), DecoderStep(
        open_session(bundle, "decoder", SETTINGS)
    )


@pytest.mark.parametrize(
    "decoding",
    [
        DECODING,
        replace(DECODING, prompt_token_ids=(2, 6, 5), max_new_tokens=10),
        replace(DECODING, max_new_tokens=1),
        replace(DECODING, end_token_ids=(3, 7, 9), pad_token_id=4),
        replace(DECODING, end_token_ids=(14,), max_new_tokens=6),
        replace(DECODING, end_token_ids=(), max_new_tokens=6),
    ],
)
def test_one_run_gives_what_the_steps_give(
    pair: tuple[GreedyLoop, DecoderStep], noise: Any, reference_cross: Any, decoding: Decoding
) -> None:
    """For each picture by itself, and for all of them in a batch, whose rows end at different steps."""
    loop, decoder = pair
    crosses = [reference_cross(noise(seed)) for seed in range(12)]
    lengths = set()
    for cross in crosses:
        found, expected = loop.generate(cross, decoding), greedy(decoder, cross, decoding)
        assert found == expected
        lengths.add(len(found[0].token_ids))
    assert len(lengths) > 2 or decoding.max_new_tokens < 10
    batch = {name: np.concatenate([cross[name] for cross in crosses]) for name in crosses[0]}
    for row, expected_row in zip(loop.generate(batch, decoding), greedy(decoder, batch, decoding), strict=True):
        assert row.token_ids == expected_row.token_ids
        np.testing.assert_allclose(row.log_probs, expected_row.log_probs, atol=1e-5)


def test_the_decoder_is_loaded_when_it_is_needed(bundle: Bundle, noise: Callable[[int], Path]) -> None:
    """Plain greedy decoding never needs it; beams, penalties and steps do."""
    task, decoders = load(bundle, task="caption"), lambda: task._generator._decoder
    plain = task.caption(noise(1))
    list(task.caption_each([noise(1), noise(2)], max_new_tokens=3, errors="raise"))
    assert isinstance(decoders(), HeldGraph)
    steps = [int(step.token_ids[0]) for step in task.steps(task.encode(noise(1)))]
    assert not isinstance(decoders(), HeldGraph)
    assert tuple(steps[: len(plain.token_ids)]) == plain.token_ids


def test_scores_that_are_changed_are_decoded_step_by_step(
    bundle: Bundle, rewrite: Callable[[Path, Manifest], Manifest], noise: Callable[[int], Path]
) -> None:
    """The loop knows nothing of penalties."""
    task = load(bundle, task="caption")
    assert bundle.manifest.decoding is not None
    picture, barred = next((noise(seed), ids[0]) for seed in range(12) if (ids := task.caption(noise(seed)).token_ids))
    decoding = replace(bundle.manifest.decoding, suppressed_token_ids=(barred,))
    assert not decoding.is_plain
    rewrite(bundle.path, replace(bundle.manifest, decoding=decoding))
    assert barred not in load(bundle.path, task="caption").caption(picture).token_ids


@pytest.mark.parametrize(
    "change",
    [
        {"beams": 2},
        {"repetition_penalty": 1.1},
        {"no_repeat_ngram_size": 2},
        {"min_length": 3},
        {"min_new_tokens": 3},
        {"forced_first_token_id": 3},
        {"forced_last_token_id": 0},
        {"bad_token_ids": (1,)},
        {"begin_suppressed_token_ids": (1,)},
    ],
)
def test_what_is_not_plain(change: dict[str, Any]) -> None:
    """Every setting that changes a score or the search; the others do not."""
    assert DECODING.is_plain
    assert not replace(DECODING, **change).is_plain
    assert replace(DECODING, length_penalty=2.0, max_length=20, early_stopping=True).is_plain


def test_a_generator_that_does_not_fit_the_encoder(
    bundle: Bundle, rewrite: Callable[[Path, Manifest], Manifest]
) -> None:
    graph = onnx.load(bundle.path / GRAPH)
    graph.graph.input[0].name = "ids"
    onnx.save(graph, bundle.path / GRAPH)
    rewrite(bundle.path, bundle.manifest)
    with pytest.raises(BundleError, match=r"generator\.onnx: "):
        load(bundle.path)


def test_exported_and_quantized_bundles_have_one_whose_weights_are_the_decoders(
    exported: dict[str, Path], tmp_path: Path, noise: Callable[[int], Path]
) -> None:
    """Their own, quantized ones too: no large weight lies in the graph of the loop itself."""
    small = tmp_path / "small.xattn"
    quantize_bundle(exported["caption"], small)
    for path, precision in ((exported["caption"], "fp32"), (small, "int8")):
        bundle = open_bundle(path)
        assert bundle.manifest.graphs["generator"] == Graph(GRAPH, cast(Precision, precision))
        assert inspect_path(path).graphs["generator"].precision == precision
        assert inspect_path(path).standard
        graph = onnx.load(path / GRAPH, load_external_data=False)
        decoder = onnx.load(path / "graphs/decoder.onnx", load_external_data=False)
        outside, shared = (
            [
                str(tensor.external_data)
                for tensor in all_initializers(one.graph)
                if tensor.data_location == TensorProto.EXTERNAL
            ]
            for one in (decoder, graph)
        )
        assert outside
        assert outside == shared
        assert max(len(tensor.raw_data) for tensor in all_initializers(graph.graph)) < 16384
        task = load(path, task="caption")
        for seed in range(4):
            encoded = task.encode(noise(seed))
            steps = [int(step.token_ids[0]) for step in task.steps(encoded)]
            assert task.caption(encoded).token_ids == tuple(steps[: len(task.caption(encoded).token_ids)])
