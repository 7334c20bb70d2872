"""A text encoder that reads a caption's prompt beside the image tokens: real graphs, beside numpy without a cache."""

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
from tokenizers import Tokenizer, processors

from tests.support.tiny_bundle import LAYERS, WIDTH, TinyModel, reference_pixels
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.bundle.manifest import Graph, Manifest, parse
from xattn_runtime.errors import BundleError, UserError
from xattn_runtime.loader import load
from xattn_runtime.preprocess.tokenizer import TokenizerSpec
from xattn_runtime.tasks import CaptionTask

START, END = 2, 3
PROMPTS = {"<is>": "what is the cat", "<on>": "the {input} on"}
SPEC = TokenizerSpec(
    "tokenizer.json", 1, 8, prompt_template="a {prompt}", caption_template="a red dog", prompts=PROMPTS
)
# Prompt → what the text encoder is given.
GIVEN = {None: [12, 7, 10], "house": [12, 14], "<is>": [12, 4, 5, 6, 9], "green <on> dog": [12, 6, 8, 10, 13]}

ENCODER = """image_encoder (float[batch,3,16,16] pixel_values) => (float[batch,4,8] image_tokens) {
    conv = Conv<strides=[8,8]>(pixel_values, patch)
    parts = Reshape(conv, image_split)
    warm = Tanh(parts)
    image_tokens = Transpose<perm=[0,2,1]>(warm)
}"""
READER = """text_encoder (int64[batch,length] input_ids, int64[batch,length] attention_mask,
        float[batch,4,8] image_tokens) => (OUTPUTS) {
    mask = Cast<to=1>(attention_mask)
    column = Unsqueeze(mask, two)
    words = Gather<axis=0>(embed, input_ids)
    warm = Tanh(words)
    kept = Mul(warm, column)
    tokens = Concat<axis=1>(image_tokens, kept)
    cut = Reshape(tokens, split)
    heads = Transpose<perm=[0,2,1,3]>(cut)
    LAYERS
}"""

# One whose captions differ from picture to picture, and from prompt to prompt.
MODEL = TinyModel(47)

Rewrite = Callable[[Path, Manifest], Manifest]


def _graph(text: str, weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    made = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {text}')
    constants = {"image_split": np.array([0, 0, -1]), "split": np.array([0, 0, 2, 4]), "two": np.array([2])} | weights
    used = {name for node in made.graph.node for name in node.input}
    made.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in constants.items() if name in used
    )
    onnx.checker.check_model(made, full_check=True)
    return made


def _with_any_context(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A decoder that attends to any number of tokens."""
    for tensor in graph.graph.input:
        if tensor.name.startswith("cross_"):
            tensor.type.tensor_type.shape.dim[2].ClearField("dim_value")
            tensor.type.tensor_type.shape.dim[2].dim_param = "context"
    return graph


@pytest.fixture
def folder(caption_bundle: Path, tmp_path: Path, rewrite: Rewrite) -> Path:
    made = Path(shutil.copytree(caption_bundle, tmp_path / "reading.xattn"))
    names = [f"cross_{kind}_{layer}" for layer in range(LAYERS) for kind in ("key", "value")]
    products = [f"{name} = MatMul(heads, c{name[6]}_{name[-1]})" for name in names]
    outputs = ", ".join(f"float[batch,2,context,4] {name}" for name in names)
    reader = READER.replace("OUTPUTS", outputs).replace("LAYERS", " ".join(products))
    onnx.save(_graph(ENCODER, MODEL.weights), made / "graphs" / "image_encoder.onnx")
    onnx.save(_graph(reader, MODEL.weights), made / "graphs" / "text_encoder.onnx")
    onnx.save(_with_any_context(MODEL.graph("decoder")), made / "graphs" / "decoder.onnx")
    # What a tokenizer puts around a text of its own accord is no part of a prompt.
    tokenizer = Tokenizer.from_file(str(made / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="[START] $A", special_tokens=[("[START]", START)])
    tokenizer.save(str(made / "tokenizer.json"))
    manifest = open_bundle(caption_bundle).manifest
    graphs = {**manifest.graphs, "text_encoder": Graph("graphs/text_encoder.onnx", "fp32")}
    rewrite(made, replace(manifest, tokenizer=SPEC, graphs=graphs))
    return made


@pytest.fixture
def task(folder: Path) -> CaptionTask:
    return load(folder, threads=1, task="caption")


def _cross(path: Path, ids: list[int]) -> dict[str, np.ndarray]:
    """Cross keys and values of a picture and a text, by numpy."""
    patches = reference_pixels(path).reshape(1, 3, 2, 8, 2, 8).transpose(0, 2, 4, 1, 3, 5).reshape(4, -1)
    image = np.tanh(patches @ MODEL.weights["patch"].reshape(WIDTH, -1).T)
    tokens = np.concatenate([image, np.tanh(MODEL.weights["embed"][ids])])
    heads = tokens.reshape(-1, 2, 4).transpose(1, 0, 2)[None]
    return {
        f"cross_{kind}_{layer}": heads @ MODEL.weights[f"c{kind[0]}_{layer}"]
        for layer in range(LAYERS)
        for kind in ("key", "value")
    }


def test_captions_are_the_reference_models(task: CaptionTask, noise: Callable[[int], Path]) -> None:
    captions = set()
    for prompt, ids in GIVEN.items():
        for seed in range(4):
            expected, log_probs = MODEL.greedy(_cross(noise(seed), ids))
            found = task.caption(noise(seed), prompt=prompt)
            assert list(found.token_ids) == expected
            assert found.score == pytest.approx(np.mean(log_probs), abs=1e-5)
            captions.add(found.token_ids)
    assert len(captions) == 4 * len(GIVEN)


def test_a_batch_and_steps_and_logits(task: CaptionTask, noise: Callable[[int], Path]) -> None:
    paths = [noise(seed) for seed in range(5)]
    for prompt in (None, "<is>"):
        alone = [task.caption(path, prompt=prompt).token_ids for path in paths]
        assert [found.token_ids for found in task.caption_each(paths, prompt=prompt, errors="raise")] == alone
    encoded = task.encode(paths[0])
    caption = task.caption(encoded)
    steps = [int(step.token_ids[0]) for step in task.steps(encoded)]
    assert [token for token in steps if token != END] == list(caption.token_ids)
    expected = MODEL.forced_logits(_cross(paths[0], GIVEN[None]), [6, 9])
    assert np.allclose(task.forced_logits(encoded, [6, 9]), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("the <is>", "prompt: expected nothing but '<is>', found 'the <is>'"),
        ("<on>", "prompt: expected a text after '<on>', found '<on>'"),
        ("<on> zebra", "prompt: expected words that this model knows, found 'zebra'"),
        ("cat " * 8, "prompt: expected at most 8 tokens, found 9"),
    ],
)
def test_prompts_that_cannot_be_used(
    task: CaptionTask, noise: Callable[[int], Path], prompt: str, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        task.caption(noise(0), prompt=prompt)
    assert message in str(caught.value)


def test_graphs_that_do_not_fit(folder: Path, rewrite: Rewrite) -> None:
    manifest = open_bundle(folder).manifest
    onnx.save(MODEL.graph("image_encoder"), folder / "graphs" / "image_encoder.onnx")
    rewrite(folder, manifest)
    with pytest.raises(BundleError, match=r"text_encoder\.onnx: expected no input image_tokens, as .* found one"):
        load(folder)


@pytest.mark.parametrize("prompts", [{"": "what"}, {"<on>": ""}, {"<on>": "{input} on {input}"}, {"<on>": 3}, ["<on>"]])
def test_manifests_whose_prompts_are_none(folder: Path, prompts: Any) -> None:
    data = open_bundle(folder).manifest.to_dict()
    assert data["tokenizer"]["prompts"] == PROMPTS
    data["tokenizer"]["prompts"] = prompts
    with pytest.raises(BundleError, match=r"tokenizer\.prompts: expected"):
        parse(data)
