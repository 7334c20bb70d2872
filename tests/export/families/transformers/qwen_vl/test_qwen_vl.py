"""Qwen2-VL and its kind as Transformers computes them, from an image file on, whatever its shape."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.parity.parity import agreement_of
from tests.parity.qwen_vl import (
    SMALL,
    compare_generated,
    inputs_of,
    logits_error,
    model_of,
    processor_of,
    save_qwen_vl,
)
from xattn_export import export_checkpoint
from xattn_export.families.table import family_of
from xattn_export.to_onnx import example_tensor
from xattn_runtime.errors import CheckpointError
from xattn_runtime.loader import load
from xattn_runtime.preprocess.pipeline import Pipeline
from xattn_runtime.preprocess.text import TextCodec
from xattn_runtime.preprocess.tokenizer import PromptImages

TOLERANCE = 1e-4
INSTRUCTION = "Can you describe this image?"
QUESTIONS = ("What color is the circle?", "how many", "Yes or no: is it\nred, {or} <b>blue</b>? “¿qué?” 東京")
# Width and height, from a point to a strip.
SHAPES = ((64, 64), (100, 37), (7, 200), (1, 1), (37, 100))
# Model type → how it is exported.
EXPORTS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"task": "caption"},
    "qwen3_vl": {"task": "vqa", "cache": "single"},
    "qwen2_5_vl": {"task": "vqa", "attention": "decomposed"},
}


def images(seed: int = 0) -> list[Image.Image]:
    generator = np.random.default_rng(seed)
    sizes = [(height, width, 3) for width, height in SHAPES]
    return [Image.fromarray(generator.integers(0, 256, size, dtype=np.uint8)) for size in sizes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen_vl(tmp_path_factory.mktemp("qwen") / "small", "qwen2_vl")


@pytest.mark.parametrize("model_type", SMALL)
def test_prompts_and_pixels_are_the_processors(model_type: str, tmp_path: Path) -> None:
    folder = save_qwen_vl(tmp_path / "small", model_type)
    source, processor = family_of(folder).open(folder), processor_of(folder)
    path = tmp_path / "tokenizer.json"
    path.write_text(source.tokenizer.json, encoding="utf-8")
    codec = TextCodec(path, source.tokenizer.spec)
    pipeline = Pipeline(source.reference.in_manifest["image_steps"])
    for number, image in enumerate(images()):
        question = QUESTIONS[number % len(QUESTIONS)]
        inputs = inputs_of(processor, image, question)
        patches = pipeline.patches(image)
        np.testing.assert_array_equal(patches.values, inputs.pixel_values.numpy())
        seen = PromptImages(((patches.rows // 2, patches.columns // 2),))
        assert inputs.image_grid_thw.tolist() == [[1, patches.rows, patches.columns]]
        expected = inputs.input_ids[0].tolist()
        assert list(codec.encode_question(question, special_tokens=False, images=seen).ids) == expected
        assert list(codec.encode_prompt(question, seen)) == expected
        assert list(codec.encode_prompt(None, seen)) == inputs_of(processor, image, INSTRUCTION).input_ids[0].tolist()


def test_a_prompt_of_several_images_is_the_processors(folder: Path, tmp_path: Path) -> None:
    source, processor = family_of(folder).open(folder), processor_of(folder)
    path = tmp_path / "tokenizer.json"
    path.write_text(source.tokenizer.json, encoding="utf-8")
    inputs = inputs_of(processor, images()[:3], QUESTIONS[0])
    seen = PromptImages(tuple((rows // 2, columns // 2) for _, rows, columns in inputs.image_grid_thw.tolist()))
    found = TextCodec(path, source.tokenizer.spec).encode_question(QUESTIONS[0], special_tokens=False, images=seen)
    assert list(found.ids) == inputs.input_ids[0].tolist()


@pytest.mark.parametrize("model_type", SMALL)
def test_the_graphs_are_the_models_before_they_are_exported(model_type: str, tmp_path: Path) -> None:
    folder = save_qwen_vl(tmp_path / "small", model_type)
    encoder, decoder = family_of(folder).open(folder).roles
    generator = torch.Generator().manual_seed(2)
    sizes = {"batch": 3, "patches": 60, "context": 6, "images": 2}
    # Torch itself takes a causal mask for one without a cache: steps after it are compared once they are exported.
    for role, length, past in ((encoder, 0, 0), (decoder, 11, 0), (decoder, 1, 0)):
        shapes = {**sizes, "length": length, "past": past}
        inputs = [example_tensor(spec, shapes, generator) for spec in role.inputs]
        with torch.inference_mode():
            outputs = zip(role.outputs, role.module(*inputs), role.reference(*inputs), strict=True)
        for name, found, expected in outputs:
            torch.testing.assert_close(
                found, expected, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )


def changed(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / name).read_text())
    change(values)
    (folder / name).write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("file", "change", "error"),
    [
        ("preprocessor_config.json", {"patch_size": 8}, "patch_size: expected 4, as config.json says of the model"),
        ("preprocessor_config.json", {"merge_size": 1}, "merge_size: expected 2, as config.json says"),
        ("preprocessor_config.json", {"temporal_patch_size": 1}, "temporal_patch_size: expected 2"),
        ("preprocessor_config.json", {"max_pixels": 63}, "size: expected a longest_edge, in pixels of area, from 256"),
        ("preprocessor_config.json", {"max_pixels": "many"}, "max_pixels: expected a number of pixels from 1 to"),
        ("preprocessor_config.json", {"do_resize": False}, "do_resize: expected true, since images are cut into whole"),
        ("preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor"}, "patch_size: expected 4"),
        (
            "chat_template.json",
            {"chat_template": "{{ messages[0]['role'] }}"},
            "expected one that writes <|image_pad|>",
        ),
        ("config.json", {"image_token_id": 7}, "with 7 for an image token, as config.json says"),
        ("config.json", {"hidden_act": "tanh"}, "hidden_act: expected one of silu"),
    ],
)
def test_a_folder_that_does_not_fit_together(folder: Path, file: str, change: dict[str, Any], error: str) -> None:
    path, before = folder / file, (folder / file).read_text()
    try:
        changed(folder, file, lambda values: values.update(change))
        with pytest.raises(CheckpointError) as caught:
            family_of(folder).open(folder)
    finally:
        path.write_text(before)
    assert error in str(caught.value)


@pytest.fixture(scope="module", params=EXPORTS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of a model and its bundle."""
    place = tmp_path_factory.mktemp(request.param)
    folder = save_qwen_vl(place / "small", request.param)
    export_checkpoint(folder, place / "small.xattn", **EXPORTS[request.param])
    return folder, place / "small.xattn"


@pytest.mark.slow
def test_an_exported_model_is_the_original(exported: tuple[Path, Path], tmp_path: Path) -> None:
    folder, bundle = exported
    for number, image in enumerate(images(1)[1:4]):
        assert logits_error(bundle, folder, image, QUESTIONS[number % 3], prefill=5 * (number % 2)) <= TOLERANCE
    processor, model = processor_of(folder), model_of(folder)
    files = [tmp_path / f"{number}.png" for number in range(len(SHAPES) + 1)]
    for file, image in zip(files, [*images(2), images(3)[1]], strict=True):
        image.save(file)
    task: Any
    with load(bundle, threads=1) as task:
        captions = task.bundle.manifest.task == "caption"
        question = INSTRUCTION if captions else QUESTIONS[0]
        for beams in (1, 4):
            compared = [compare_generated(task, processor, model, file, question, beams=beams) for file in files]
            agreement = agreement_of(compared)
            assert agreement.equal == agreement.compared >= len(files) - 1
            assert agreement.different_texts > 2
        if not captions:
            with Image.open(files[0]) as first, Image.open(files[1]) as second:
                inputs = inputs_of(processor, [first, second], question)
            ids = model.generate(**inputs, max_new_tokens=20)[0, inputs.input_ids.shape[1] :].tolist()
            found = task.ask([files[0], files[1]], question).token_ids
            assert found == tuple(ids[: len(found)])
            assert len(found) == len(ids) or ids[len(found)] in model.generation_config.eos_token_id
        alone = [task.caption(file) if captions else task.ask(file, question) for file in files]
        together = (
            list(task.caption_each(files, errors="raise"))
            if captions
            else task.ask_many(files, [question] * len(files))
        )
        assert [one.token_ids for one in together] == [one.token_ids for one in alone]
        if captions:
            for file, one in zip(files[:2], alone, strict=False):
                streamed = [token.token_id for token in task.stream(file)]
                assert tuple(streamed[: len(one.token_ids)]) == one.token_ids
