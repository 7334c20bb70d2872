"""A decoder that reads the image among the tokens of its prompt: real graphs, beside numpy without a cache."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest
from tokenizers import Tokenizer

from xattn_runtime.bundle.decoding import Decoding
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.bundle.manifest import Manifest
from xattn_runtime.errors import BundleError, QuestionError, UserError
from xattn_runtime.json_reader import ObjectReader
from xattn_runtime.loader import load
from xattn_runtime.preprocess.tokenizer import ImageLayout, TokenizerSpec, read_tokenizer
from xattn_runtime.tasks import CaptionTask, VqaTask

WIDTH, TOKENS, END, PLACEHOLDER, VOCABULARY = 8, 4, 3, 15, 16
RNG = np.random.default_rng(5)
EMBED, OUT = (RNG.normal(size=shape).astype(np.float32) for shape in ((VOCABULARY, WIDTH), (WIDTH, VOCABULARY)))
OUT[:, PLACEHOLDER] += 1  # some captions have a placeholder among their words, where it is a word like others
POSITIONS = RNG.normal(size=(60, WIDTH)).astype(np.float32)
PATCH = RNG.normal(size=(WIDTH, 3, 8, 8), scale=0.2).astype(np.float32)
LAYOUT = ImageLayout("<image>", TOKENS, "on {tokens} on")
SPEC = TokenizerSpec(
    "tokenizer.json", 1, 8, False, "{image} what {question} is", "the {image} {prompt}", "a {image} of",
    image_layout=LAYOUT,
)  # fmt: skip
IMAGE = [13, *[PLACEHOLDER] * TOKENS, 13]

ENCODER = """<ir_version: 8, opset_import: ["" : 18]> encoder (float[batch,3,16,16] pixel_values)
    => (float[batch,4,8] image_tokens) {
    conv = Conv<strides=[8,8]>(pixel_values, patch)
    parts = Reshape(conv, image_split)
    image_tokens = Transpose<perm=[0,2,1]>(parts)
}"""
DECODER = """<ir_version: 8, opset_import: ["" : 18]> decoder (int64[batch,length] input_ids,
        float[batch,context,8] image_tokens, float[batch,2,past,4] past_key_0, float[batch,2,past,4] past_value_0)
    => (float[batch,16] logits, int64[batch] next_token, float[batch] next_log_prob,
        float[batch,2,total,4] present_key_0, float[batch,2,total,4] present_value_0) {
    past = Shape<start=2, end=3>(past_key_0)
    length = Shape<start=1, end=2>(input_ids)
    is_prompt = Equal(past, zero)
    is_placeholder = Equal(input_ids, placeholder)
    is_image = And(is_placeholder, is_prompt)
    counted = Cast<to=7>(is_image)
    summed = CumSum(counted, one)
    before = Sub(summed, one)
    number = Max(before, zero)
    places = Unsqueeze(number, two)
    image = GatherND<batch_dims=1>(image_tokens, places)
    embedded = Gather<axis=0>(embed, input_ids)
    is_vector = Unsqueeze(is_image, two)
    vectors = Where(is_vector, image, embedded)
    total = Add(past, length)
    past_scalar = Squeeze(past)
    total_scalar = Squeeze(total)
    numbers = Range(past_scalar, total_scalar, one_scalar)
    position = Gather<axis=0>(positions, numbers)
    x = Add(vectors, position)
    cut = Reshape(x, split)
    heads = Transpose<perm=[0,2,1,3]>(cut)
    present_key_0 = Concat<axis=2>(past_key_0, heads)
    present_value_0 = Concat<axis=2>(past_value_0, heads)
    kt = Transpose<perm=[0,1,3,2]>(present_key_0)
    scores = MatMul(heads, kt)
    shape = Shape(scores)
    ones = ConstantOfShape<value = float[1] {1.0}>(shape)
    first_barred = Add(past_scalar, one_scalar)
    barred = Trilu<upper=1>(ones, first_barred)
    penalty = Mul(barred, huge)
    seen = Sub(scores, penalty)
    weights = Softmax<axis=-1>(seen)
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
    "patch": PATCH, "embed": EMBED, "out": OUT, "positions": POSITIONS, "image_split": np.array([0, 0, -1]),
    "split": np.array([0, 0, 2, 4]), "merge": np.array([0, 0, WIDTH]), "final": np.array(-1), "zero": np.array([0]),
    "one": np.array([1]), "two": np.array([2]), "one_scalar": np.array(1), "minus_one": np.array([-1]),
    "placeholder": np.array([PLACEHOLDER]), "huge": np.array(1e30, np.float32),
}  # fmt: skip

Rewrite = Callable[[Path, Manifest], Manifest]


def graph(text: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in CONSTANTS.items() if name in used
    )
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture
def folder(caption_bundle: Path, tmp_path: Path, rewrite: Rewrite) -> Path:
    made = Path(shutil.copytree(caption_bundle, tmp_path / "in-text.xattn"))
    manifest = open_bundle(made).manifest
    onnx.save(graph(ENCODER), made / "graphs" / "image_encoder.onnx")
    onnx.save(graph(DECODER), made / "graphs" / "decoder.onnx")
    tokenizer = Tokenizer.from_file(str(made / "tokenizer.json"))
    tokenizer.add_special_tokens([LAYOUT.token])
    tokenizer.save(str(made / "tokenizer.json"))
    decoding = Decoding((), (END,), 0, 8, max_positions=40)
    rewrite(made, replace(manifest, tokenizer=SPEC, decoding=decoding))
    return made


@pytest.fixture
def captioner(folder: Path) -> CaptionTask:
    return load(folder, threads=1, task="caption")


@pytest.fixture
def answerer(folder: Path, rewrite: Rewrite) -> VqaTask:
    manifest = open_bundle(folder).manifest
    cases = tuple(replace(case, question="the cat") for case in manifest.golden.cases)
    rewrite(folder, replace(manifest, task="vqa", golden=replace(manifest.golden, cases=cases)))
    return load(folder, threads=1, task="vqa")


def logits_after(image_tokens: np.ndarray, prompt: list[int], generated: list[int]) -> np.ndarray:
    """The last token's logits, without a cache."""
    vectors = EMBED[[*prompt, *generated]]
    vectors[: len(prompt)][np.array(prompt) == PLACEHOLDER] = image_tokens
    heads = (vectors + POSITIONS[: len(vectors)]).reshape(len(vectors), 2, 4).transpose(1, 0, 2)
    scores = heads[:, -1:] @ heads.transpose(0, 2, 1)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return ((weights / weights.sum(axis=-1, keepdims=True)) @ heads).reshape(WIDTH) @ OUT


def greedy(image_tokens: np.ndarray, prompt: list[int]) -> tuple[int, ...]:
    found: list[int] = []
    while len(found) < 8 and (best := int(logits_after(image_tokens, prompt, found).argmax())) != END:
        found.append(best)
    return tuple(found)


@pytest.mark.parametrize(("prompt", "ids"), [(None, [12, *IMAGE, 11]), ("red cat", [6, *IMAGE, 7, 9])])
def test_captions_are_the_references(
    captioner: CaptionTask, noise: Callable[[int], Path], prompt: str | None, ids: list[int]
) -> None:
    pictures = [noise(seed) for seed in range(6)]
    found = list(captioner.caption_each(pictures, prompt, errors="raise"))
    for picture, caption in zip(pictures, found, strict=True):
        image_tokens = captioner.encode(picture).tensors["image_tokens"]
        assert image_tokens.shape == (1, TOKENS, WIDTH)
        assert caption.token_ids == greedy(image_tokens[0], ids) == captioner.caption(picture, prompt).token_ids
    assert len({caption.token_ids for caption in found}) > 2
    assert any(PLACEHOLDER in caption.token_ids for caption in found)


def test_logits_along_given_tokens(captioner: CaptionTask, noise: Callable[[int], Path]) -> None:
    encoded = captioner.encode(noise(1))
    along = [7, PLACEHOLDER, 9]
    expected = [logits_after(encoded.tensors["image_tokens"][0], [12, *IMAGE, 11], along[:i]) for i in range(4)]
    np.testing.assert_allclose(captioner.forced_logits(encoded, along), expected, rtol=1e-4, atol=1e-5)
    steps = [int(step.token_ids[0]) for step in captioner.steps(encoded)]
    assert tuple(token for token in steps if token != END) == captioner.caption(encoded).token_ids


def test_beams_go_on_from_the_same_image(captioner: CaptionTask, noise: Callable[[int], Path]) -> None:
    for seed in range(3):
        encoded = captioner.encode(noise(seed))
        caption = captioner.caption(encoded, beams=VOCABULARY, max_new_tokens=2)
        rows = []
        for first in range(VOCABULARY):
            known = [[], [first]]
            scores = [logits_after(encoded.tensors["image_tokens"][0], [12, *IMAGE, 11], ids) for ids in known]
            rows.append([row - row.max() - np.log(np.exp(row - row.max()).sum()) for row in scores])
        best = max(
            [(rows[END][0][END], (), 1)]
            + [
                ((rows[a][0][a] + rows[a][1][b]) / 2, (a, b), 2)
                for a in range(VOCABULARY)
                if a != END
                for b in range(16)
            ]
        )
        assert caption.token_ids == tuple(token for token in best[1] if token != END)


def test_answers_are_the_references(answerer: VqaTask, noise: Callable[[int], Path]) -> None:
    asked = {"the cat": [6, 9], "red": [7], "zebra dog": [1, 10]}
    pairs = [(noise(seed), question) for seed in range(3) for question in asked]
    answers = answerer.ask_many([picture for picture, _ in pairs], [question for _, question in pairs])
    for (picture, question), answer in zip(pairs, answers, strict=True):
        image_tokens = answerer.encode(picture).tensors["image_tokens"][0]
        assert answer.token_ids == greedy(image_tokens, [*IMAGE, 4, *asked[question], 5])
        assert answer.unknown_words == (("zebra",) if "zebra" in question else ())
    assert len({answer.token_ids for answer in answers}) > 2


def test_text_cannot_bring_image_tokens_of_its_own(
    captioner: CaptionTask, answerer: VqaTask, noise: Callable[[int], Path]
) -> None:
    with pytest.raises(QuestionError, match=r"question: expected no '<image>', .* found it in 'is <image> red'"):
        answerer.ask(noise(0), "is <image> red")
    with pytest.raises(UserError, match=r"prompt: expected no '<image>'"):
        captioner.caption(noise(0), "<image>")
    with pytest.raises(QuestionError, match="expected at most 8 tokens, found 11"):  # those of the image do not count
        answerer.ask(noise(0), "red " * 7)
    assert answerer.ask(noise(0), "{image} red").unknown_words == ("{", "image", "}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"image_layout": None, "caption_template": ""},
            "expected an image_layout in the manifest's tokenizer, as the",
        ),
        ({"image_layout": replace(LAYOUT, tokens=5)}, "output image_tokens: expected 5 tokens, as the manifest's"),
        ({"image_layout": replace(LAYOUT, token="<picture>")}, "expected 4 times the token '<picture>'"),
        ({"image_layout": replace(LAYOUT, token="cat")}, "expected 4 times the token 'cat' .* found it 0 times"),
        ({"caption_template": "a"}, r"caption_template: expected a text with \{image\} in it once, found 'a'"),
    ],
)
def test_bundles_that_do_not_fit(folder: Path, rewrite: Rewrite, change: dict[str, Any], message: str) -> None:
    manifest = open_bundle(folder).manifest
    decoding = Decoding((2,), (END,), 0, 8)
    rewrite(folder, replace(manifest, tokenizer=replace(SPEC, **change), decoding=decoding))
    with pytest.raises(BundleError, match=message):
        load(folder, threads=1)


def test_a_layout_where_the_image_is_not_in_the_text(caption_copy: Path, rewrite: Rewrite) -> None:
    spec = replace(SPEC, image_layout=ImageLayout("cat", 2, "{tokens}"))
    rewrite(caption_copy, replace(open_bundle(caption_copy).manifest, tokenizer=spec))
    with pytest.raises(
        BundleError, match="expected no image_layout in the manifest's tokenizer, as the decoder takes no"
    ):
        load(caption_copy, threads=1)


def test_without_an_image_in_the_text_there_must_be_a_prompt(caption_copy: Path, rewrite: Rewrite) -> None:
    manifest = open_bundle(caption_copy).manifest
    rewrite(caption_copy, replace(manifest, decoding=Decoding((), (END,), 0, 8)))
    with pytest.raises(BundleError, match="prompt_token_ids: expected at least one token id"):
        open_bundle(caption_copy)


def test_what_is_said_for_captions_comes_first(
    caption_copy: Path, rewrite: Rewrite, noise: Callable[[int], Path]
) -> None:
    plain = load(caption_copy, threads=1, task="caption")
    manifest = open_bundle(caption_copy).manifest
    rewrite(caption_copy, replace(manifest, tokenizer=replace(manifest.tokenizer, caption_template="the red")))
    task = load(caption_copy, threads=1, task="caption")
    assert task.caption(noise(0)).token_ids == plain.caption(noise(0), "the red").token_ids
    assert task.caption(noise(0), "a").token_ids == plain.caption(noise(0), "a").token_ids


LAYOUT_VALUES = {"token": "<image>", "tokens": 4, "whole": "on {tokens} on"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 0}, "image_layout.tokens: expected an integer of at least 1"),
        ({"tokens": 100_000}, "image_layout.tokens: expected at most 65536, found 100000"),
        ({"whole": "on"}, r"image_layout.whole: expected a text with \{tokens\} in it once"),
        ({"token": ""}, "image_layout.token: expected a string"),
        ({"tiles": 2}, "image_layout.tiles: expected only the keys"),
    ],
)
def test_wrong_layouts_are_named(change: dict[str, Any], message: str) -> None:
    values = SPEC.to_dict() | {"image_layout": LAYOUT_VALUES | change}
    with pytest.raises(BundleError, match=message):
        read_tokenizer(ObjectReader(values, "manifest.json", "tokenizer"))


def test_a_layout_reads_back_the_same() -> None:
    assert SPEC.to_dict()["image_layout"] == LAYOUT_VALUES
    assert read_tokenizer(ObjectReader(SPEC.to_dict(), "manifest.json")) == SPEC
