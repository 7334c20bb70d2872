"""A decoder whose cache begins with the image: real graphs of one layer, beside the same in numpy without a cache."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest

from xattn_runtime.bundle.decoding import Decoding
from xattn_runtime.bundle.folder import Bundle, open_bundle
from xattn_runtime.bundle.manifest import Manifest
from xattn_runtime.errors import BundleError
from xattn_runtime.execution.providers import resolve_provider
from xattn_runtime.execution.session import SessionSettings, open_session
from xattn_runtime.generate.decoder import DecoderStep
from xattn_runtime.generate.search import generate
from xattn_runtime.tasks.shared.image_encoder import ImageReader, check_key_values

WIDTH, VOCABULARY, TOKENS, END = 8, 15, 4, 3
SETTINGS = SessionSettings(resolve_provider("cpu"), 1)
DECODING = Decoding((2,), (END,), 0, 8)
RNG = np.random.default_rng(3)
EMBED, OUT = (RNG.normal(size=shape).astype(np.float32) for shape in ((VOCABULARY, WIDTH), (WIDTH, VOCABULARY)))
PATCH = RNG.normal(size=(WIDTH, 3, 8, 8), scale=0.2).astype(np.float32)

ENCODER = """<ir_version: 8, opset_import: ["" : 18]> encoder (float[batch,3,16,16] pixel_values)
    => (float[batch,2,4,4] prefix_key_0, float[batch,2,4,4] prefix_value_0) {
    conv = Conv<strides=[8,8]>(pixel_values, patch)
    parts = Reshape(conv, image_split)
    prefix_key_0 = Transpose<perm=[0,1,3,2]>(parts)
    prefix_value_0 = Tanh(prefix_key_0)
}"""
DECODER = """<ir_version: 8, opset_import: ["" : 18]> decoder
    (int64[batch,length] input_ids, float[batch,2,past,4] past_key_0, float[batch,2,past,4] past_value_0)
    => (float[batch,15] logits, int64[batch] next_token, float[batch] next_log_prob,
        float[batch,2,total,4] present_key_0, float[batch,2,total,4] present_value_0) {
    x = Gather<axis=0>(embed, input_ids)
    cut = Reshape(x, split)
    heads = Transpose<perm=[0,2,1,3]>(cut)
    present_key_0 = Concat<axis=2>(past_key_0, heads)
    present_value_0 = Concat<axis=2>(past_value_0, heads)
    kt = Transpose<perm=[0,1,3,2]>(present_key_0)
    scores = MatMul(heads, kt)
    weights = Softmax<axis=-1>(scores)
    attended = MatMul(weights, present_value_0)
    back = Transpose<perm=[0,2,1,3]>(attended)
    merged = Reshape(back, merge)
    last = Gather<axis=1>(merged, final)
    logits = MatMul(last, out)
    next_token = ArgMax<axis=1, keepdims=0>(logits)
    log_probs = LogSoftmax<axis=-1>(logits)
    next_log_prob = ReduceMax<keepdims=0>(log_probs, minus_one)
}"""
CONSTANTS = {
    "patch": PATCH, "embed": EMBED, "out": OUT, "image_split": np.array([0, 2, 4, 4]), "split": np.array([0, 0, 2, 4]),
    "merge": np.array([0, 0, WIDTH]), "final": np.array(-1), "minus_one": np.array([-1]),
}  # fmt: skip


def graph(text: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in CONSTANTS.items() if name in used
    )
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture
def bundle(caption_bundle: Path, tmp_path: Path, rewrite: Callable[[Path, Manifest], Manifest]) -> Bundle:
    folder = Path(shutil.copytree(caption_bundle, tmp_path / "prefix.xattn"))
    manifest = open_bundle(folder).manifest
    onnx.save(graph(ENCODER), folder / "graphs" / "image_encoder.onnx")
    onnx.save(graph(DECODER), folder / "graphs" / "decoder.onnx")
    rewrite(folder, manifest)
    return open_bundle(folder)


def logits_after(prefix: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """The last token's logits, without a cache."""
    heads = EMBED[tokens].reshape(len(tokens), 2, 4).transpose(1, 0, 2)
    keys = np.concatenate([prefix["prefix_key_0"][0], heads], axis=1)
    values = np.concatenate([prefix["prefix_value_0"][0], heads], axis=1)
    scores = heads[:, -1:] @ keys.transpose(0, 2, 1)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    attended = (weights / weights.sum(axis=-1, keepdims=True)) @ values
    return attended.reshape(WIDTH) @ OUT


def test_the_first_step_sees_the_image_and_every_later_one_too(bundle: Bundle, noise: Callable[[int], Path]) -> None:
    encoder = ImageReader(bundle, SETTINGS)
    decoder = DecoderStep(open_session(bundle, "decoder", SETTINGS))
    found = set()
    for seed in range(6):
        prefix = dict(encoder.encode(noise(seed)).tensors)
        assert list(prefix) == ["prefix_key_0", "prefix_value_0"]
        expected: list[int] = []
        while len(expected) < 8 and (best := int(logits_after(prefix, [2, *expected]).argmax())) != END:
            expected.append(best)
        assert generate(decoder, prefix, DECODING)[0].token_ids == tuple(expected)
        found.add(tuple(expected))
    assert len(found) > 2


def test_beams_and_batches(bundle: Bundle, noise: Callable[[int], Path]) -> None:
    encoder = ImageReader(bundle, SETTINGS)
    decoder = DecoderStep(open_session(bundle, "decoder", SETTINGS))
    prefixes = [dict(encoder.encode(noise(seed)).tensors) for seed in range(4)]
    batch = {name: np.concatenate([prefix[name] for prefix in prefixes]) for name in prefixes[0]}
    decoding = replace(DECODING, beams=VOCABULARY, max_new_tokens=2)
    for prefix, sequence in zip(prefixes, generate(decoder, batch, decoding), strict=True):
        ids = [*sequence.token_ids, *[END] * (len(sequence.log_probs) - len(sequence.token_ids))]
        for i, (token_id, log_prob) in enumerate(zip(ids, sequence.log_probs, strict=True)):
            row = logits_after(prefix, [2, *ids[:i]]).astype(np.float64)
            assert log_prob == pytest.approx(row[token_id] - np.log(np.exp(row).sum()), abs=1e-5)
        assert sequence == generate(decoder, prefix, decoding)[0]


def test_graphs_that_do_not_fit_each_other(bundle: Bundle, caption_bundle: Path) -> None:
    crossing = open_bundle(caption_bundle)
    encoder, decoder = (open_session(bundle, role, SETTINGS) for role in ("image_encoder", "decoder"))
    other_encoder, other_decoder = (open_session(crossing, role, SETTINGS) for role in ("image_encoder", "decoder"))
    check_key_values(encoder, decoder)
    check_key_values(other_encoder, other_decoder)
    with pytest.raises(BundleError, match=r"expected 0 layers of cross_key, as .* gives of cross_key, found 2"):
        check_key_values(encoder, other_decoder)
    with pytest.raises(BundleError, match=r"expected 2 layers of cross_key, as .* gives of cross_key, found 0"):
        check_key_values(other_encoder, decoder)
