"""SmolVLM and Idefics3 as Transformers computes them, from a picture file on: tiles, prompts, logits, what is said."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.export.families.conftest import noise_pictures
from tests.parity.parity import agreement_of
from tests.parity.smolvlm import (
    INSTRUCTION,
    compare_generated,
    inputs_of,
    logits_error,
    model_of,
    pixel_error,
    processor_of,
    save_idefics3,
)
from tests.support.slow import slow_after
from xattn_edge.commands.app import app
from xattn_export import export_checkpoint
from xattn_export.quantize import quantize_bundle
from xattn_runtime.bundle.folder import Bundle, open_bundle
from xattn_runtime.bundle.manifest import Golden
from xattn_runtime.generate.options import DecodingOptions
from xattn_runtime.loader import load
from xattn_runtime.preprocess.pipeline import Pipeline
from xattn_runtime.preprocess.prompts.video import Video
from xattn_runtime.preprocess.text import TextCodec
from xattn_runtime.verify.golden import measure, verify_bundle

TOLERANCE = 1e-4
QUESTIONS = ("What color is the circle?", "how many", "Yes or no: is it\nred, {or} <b>blue</b>? “¿qué?” 東京")
GRIDS = ((90, 30), (40, 41), (7, 60), (1, 1), (30, 28))
LAYERS = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
TEXT = {
    "hidden_size": 36,
    "intermediate_size": 50,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 400,
    "max_position_embeddings": 512,
}
STRETCHED = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# name → how it is made, task, form of attention. A tile of the second has 6 × 6 patches, for 8 × 8 positions.
MODELS: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "smolvlm": (
        {
            "video": {"video_sampling": {"fps": 1, "max_frames": 8, "video_size": {"longest_edge": 50}}},
            "scale_factor": 2,
            "longest_px": 96,
            "tile_px": 32,
            "vision": LAYERS | {"image_size": 32, "patch_size": 8},
            "text": TEXT,
        },
        "vqa",
        "standard",
    ),
    "idefics3": (
        {
            "smolvlm": False,
            "tied": True,
            "scale_factor": 3,
            "longest_px": 84,
            "tile_px": 42,
            "vision": LAYERS | {"num_attention_heads": 4, "image_size": 56, "patch_size": 7},
            "text": TEXT | {"num_key_value_heads": 1, "head_dim": 10, "rope_parameters": STRETCHED},
        },
        "caption",
        "decomposed",
    ),
    "uncut": (
        {
            "splits": False,
            "scale_factor": 1,
            "longest_px": 64,
            "tile_px": 24,
            "vision": LAYERS | {"image_size": 24, "patch_size": 8},
            "text": TEXT | {"num_hidden_layers": 2, "num_key_value_heads": 6, "attention_bias": True, "mlp_bias": True},
        },
        "vqa",
        "standard",
    ),
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Folder and bundle of one of the models, made once."""
    made: dict[str, tuple[Path, Path]] = {}
    place = tmp_path_factory.mktemp("idefics3")

    def get(name: str) -> tuple[Path, Path]:
        if name not in made:
            sizes, task, attention = MODELS[name]
            folder = save_idefics3(place / name, **sizes)
            export_checkpoint(folder, place / f"{name}.xattn", task=task, attention=attention, command="pytest")
            made[name] = folder, place / f"{name}.xattn"
        return made[name]

    return get


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twenty different pictures of different shapes as files."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, picture in enumerate(noise_pictures(20)):
        shape = GRIDS[number % 3] if number % 4 else picture.size
        picture.resize(shape).save(folder / f"{number:02}.png")
    return sorted(folder.iterdir())


def codec_of(bundle: Path) -> TextCodec:
    opened = open_bundle(bundle)
    return TextCodec(opened.file(opened.manifest.tokenizer.file), opened.manifest.tokenizer)


@pytest.mark.parametrize(("batch", "prefill"), [(1, 3), (3, 0)])
@pytest.mark.parametrize("name", slow_after(1, list(MODELS)))
def test_logits_at_every_step(models, name, batch, prefill):
    folder, bundle = models(name)
    pictures = [picture.resize((60, 25)) for picture in noise_pictures(batch)]
    assert logits_error(bundle, folder, pictures, QUESTIONS[0], steps=18, prefill=prefill) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "beams"), slow_after(2, [("smolvlm", 1), ("smolvlm", 4), ("idefics3", 1), ("idefics3", 4), ("uncut", 1)])
)
def test_what_is_generated(models, files, name, beams):
    folder, bundle = models(name)
    questions = QUESTIONS if MODELS[name][1] == "vqa" else (INSTRUCTION,)
    task, processor, model = load(bundle), processor_of(folder), model_of(folder)
    found = agreement_of(
        [
            compare_generated(task, processor, model, file, question, beams=beams)
            for file, question in zip(files if name == "smolvlm" else files[:10], cycle(questions), strict=False)
        ]
    )
    assert found.equal == found.compared
    # Enough of them for the equality to mean something.
    assert found.compared >= 0.75 * found.pictures
    assert found.different_texts >= 6


@pytest.mark.parametrize("name", slow_after(1, list(MODELS)))
def test_pixels_of_every_tile(models, name, files):
    folder, bundle = models(name)
    pictures = [Image.open(file) for file in files]
    assert pixel_error(bundle, processor_of(folder), pictures) == 0


@pytest.mark.parametrize("name", slow_after(1, list(MODELS)))
def test_prompts_are_the_processors(models, name):
    folder, bundle = models(name)
    processor, codec, task = processor_of(folder), codec_of(bundle), load(bundle)
    seen = set()
    for size in GRIDS:
        picture = noise_pictures(1)[0].resize(size)
        encoded = task.encode(picture)
        seen.add(encoded.images)
        for question in QUESTIONS:
            expected = inputs_of(processor, picture, question)
            found = codec.encode_question(question, special_tokens=False, images=encoded.images).ids
            assert list(found) == expected.input_ids[0].tolist()
            assert codec.encode_prompt(question, encoded.images) == found
        asked = inputs_of(processor, picture, INSTRUCTION)
        assert list(codec.encode_prompt(images=encoded.images)) == asked.input_ids[0].tolist()
        placeholders = (asked.input_ids == processor.image_token_id).sum()
        assert encoded.tensors["image_tokens"].shape == (1, placeholders, 36)
    assert len(seen) == {"smolvlm": 3, "idefics3": 3, "uncut": 1}[name]


def test_odd_pictures_are_captioned_as_their_processor_sees_them(models, tmp_path):
    folder, bundle = models("idefics3")
    processor, task = processor_of(folder), load(bundle, task="caption")
    pipeline = Pipeline(task.bundle.manifest.image_steps)
    noise = noise_pictures(1)[0].resize((50, 31))
    turned = Image.Exif()
    turned[0x0112] = 6
    odd = {
        "thin.png": (Image.new("RGB", (1, 400), (200, 30, 40)), {}),
        "grey.png": (noise.convert("L"), {}),
        "palette.png": (noise.quantize(8), {}),
        "alpha.png": (Image.merge("RGBA", (*noise.split(), Image.linear_gradient("L").resize(noise.size))), {}),
        "cmyk.jpg": (noise.convert("CMYK"), {"quality": 90}),
        "turned.jpg": (noise, {"quality": 90, "exif": turned}),
    }
    for name, (picture, settings) in odd.items():
        picture.save(tmp_path / name, **settings)
        given = Image.open(tmp_path / name)
        upright = given.transpose(Image.Transpose.ROTATE_270) if name == "turned.jpg" else given
        expected = processor.image_processor(upright, return_row_col_info=True, return_tensors="np")
        tiles = pipeline.tiles(tmp_path / name)
        assert (tiles.rows, tiles.columns) == (expected["rows"][0][0], expected["cols"][0][0]), name
        assert np.array_equal(tiles.pixels, expected["pixel_values"][0]), name
        assert task.caption(tmp_path / name, max_new_tokens=2).score < 0


def test_pictures_of_all_shapes_together_as_alone(models, files):
    task = load(models("smolvlm")[1], task="vqa")
    questions = [QUESTIONS[number % 3] for number in range(7)]
    together = task.ask_many(files[:7], questions)
    for file, question, found in zip(files, questions, together, strict=False):
        assert found.token_ids == task.ask(file, question).token_ids
    captioner = load(models("idefics3")[1], task="caption")
    alone = [captioner.caption(file, beams=2).token_ids for file in files[:5]]
    assert [caption.token_ids for caption in captioner.caption_each(files[:5], beams=2, errors="raise")] == alone
    assert captioner.caption(files[0], prompt=QUESTIONS[0]).token_ids != alone[0]


@pytest.mark.slow
def test_what_the_bundles_say(models):
    smolvlm, idefics3, uncut = (open_bundle(models(name)[1]).manifest for name in MODELS)
    assert smolvlm.tokenizer.question_template == ("<|im_start|>User:{image}{question}<end_of_utterance>\nAssistant:")
    assert idefics3.tokenizer.caption_template == (
        "<|im_start|>User:{image}Can you describe this image?<end_of_utterance>\nAssistant:"
    )
    layout = smolvlm.tokenizer.image_layout
    assert layout is not None
    assert layout.to_dict() == {
        "token": "<image>",
        "tokens": 4,
        "whole": "<fake_token_around_image><global-img>{tokens}<fake_token_around_image>",
        "tile": "<fake_token_around_image><row_{row}_col_{column}>{tokens}",
        "row_end": "\n",
        "before_whole": "\n",
        "most_images": 73,  # as many as the 512 positions hold: 4 tokens and 3 marks each
    }
    assert uncut.tokenizer.image_layout is not None
    found = uncut.tokenizer.image_layout.to_dict()
    assert found == {"token": "<image>", "tokens": 9, "whole": layout.whole, "most_images": 42}
    assert smolvlm.decoding is not None
    assert smolvlm.decoding.prompt_token_ids == ()
    assert (smolvlm.decoding.max_positions, smolvlm.decoding.max_new_tokens) == (512, 20)


def test_the_cache_holds_the_heads_of_keys_and_values_alone(models):
    decoder = onnx.load(models("smolvlm")[1] / "graphs" / "decoder.onnx", load_external_data=False)
    shapes = {
        tensor.name: [axis.dim_param or axis.dim_value for axis in tensor.type.tensor_type.shape.dim]
        for tensor in decoder.graph.input
    }
    assert shapes["frozen_key_0"] == ["rows", 2, 6, "frozen"]
    assert shapes["frozen_value_0"] == ["rows", 2, "frozen", 6]
    assert shapes["past_key_0"] == ["batch", 2, 6, "past"]
    assert shapes["past_value_0"] == ["batch", 2, "past", 6]
    assert shapes["image_tokens"] == ["batch", "context", 36]


@pytest.mark.parametrize("name", slow_after(1, ["smolvlm", "idefics3"]))
def test_golden_cases_hold_and_mean_something(models, name):
    """They hold as exported; and fail when the picture is another one."""
    _, bundle = models(name)
    report = verify_bundle(bundle)
    assert report.passed
    assert max(case.measure.relative_rms for case in report.cases) < 1e-5
    task = load(bundle)
    cases = task.bundle.manifest.golden.cases
    swapped = replace(cases[0], image=cases[-1].image)
    task.bundle = Bundle(bundle, replace(task.bundle.manifest, golden=Golden(1e-3, (swapped,))))
    assert measure(task)[0].relative_rms > 1e-2


def test_quantized_to_int8(models, files, tmp_path):
    small = tmp_path / "small.xattn"
    quantize_bundle(models("smolvlm")[1], small, mode="int8")
    manifest = open_bundle(small).manifest
    assert {graph.precision for graph in manifest.graphs.values()} == {"int8"}
    task, exact = load(small, task="vqa"), load(models("smolvlm")[1], task="vqa")
    encoded = task.encode(files[0]), exact.encode(files[0])
    logits = task.logits(encoded[0], "what is it?"), exact.logits(encoded[1], "what is it?")
    assert 0 < np.abs(logits[0] - logits[1]).max() < 0.3 * np.abs(logits[1]).max()


def test_the_command_line(models, files):
    def run(*arguments: object) -> Any:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    found = run("vqa", files[0], QUESTIONS[0], "--bundle", models("smolvlm")[1], "--beams", 2, "--json")
    assert found["answer"] == found["top"][0]["answer"]
    captions = run("caption", files[0], files[1], "--bundle", models("idefics3")[1], "--json")["results"]
    assert [caption["image"] for caption in captions] == [str(file) for file in files[:2]]


def several(count: int) -> list[Image.Image]:
    return [picture.resize(GRIDS[number % 3]) for number, picture in enumerate(noise_pictures(count))]


def asked(folder: Path, messages: list[dict[str, Any]], **settings: Any) -> tuple[list[int], tuple[int, ...]]:
    """The ids of a conversation's prompt, and what the model says then."""
    processor, model = processor_of(folder), model_of(folder)
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=16, **settings)[0, inputs.input_ids.shape[1] :]
    end = model.generation_config.eos_token_id
    return inputs.input_ids[0].tolist(), tuple(token for token in ids.tolist() if token != end)


def said_by_user(pictures: Sequence[Image.Image], text: str) -> dict[str, Any]:
    images = [{"type": "image", "image": picture} for picture in pictures]
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}


@pytest.mark.parametrize(("count", "beams"), slow_after(1, [(3, 1), (2, 4)]))
def test_questions_about_several_pictures(models, count, beams):
    folder, bundle = models("smolvlm")
    task, pictures = load(bundle, task="vqa"), several(count)
    encoded, options = task.encode(pictures), DecodingOptions(max_new_tokens=16, beams=beams)
    for question in QUESTIONS:
        prompt, expected = asked(folder, [said_by_user(pictures, question)], num_beams=beams)
        assert (
            list(codec_of(bundle).encode_question(question, special_tokens=False, images=encoded.images).ids) == prompt
        )
        assert task.ask(encoded, question, options=options).token_ids == expected
        assert task.ask(pictures, question, options=options).token_ids == expected


@pytest.mark.parametrize(("system", "beams"), slow_after(1, [("Be brief: {no} <b>.", 1), (None, 1), ("Brief!", 4)]))
def test_conversations(models, system, beams):
    folder, bundle = models("smolvlm")
    pictures, messages = several(2), []
    chat = load(bundle, task="vqa").chat(pictures, system)
    if system is not None:
        messages.append({"role": "system", "content": [{"type": "text", "text": system}]})
    for number, question in enumerate(QUESTIONS):
        messages.append(said_by_user(() if number else pictures, question))
        _, expected = asked(folder, messages, num_beams=beams)
        answer = chat.ask(question, options=DecodingOptions(max_new_tokens=16, beams=beams))
        assert answer.token_ids == expected
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer.answer}]})


def test_frames_of_a_video(models):
    folder, bundle = models("smolvlm")
    processor, pictures = processor_of(folder), several(3)
    images = processor.image_processor(
        [pictures], return_tensors="np", do_image_splitting=False, size={"longest_edge": 50}
    )
    pipeline = Pipeline(open_bundle(bundle).manifest.video_steps)
    assert np.array_equal(np.stack([pipeline(picture) for picture in pictures]), images["pixel_values"][0])
    task, frame = load(bundle, task="vqa"), "<fake_token_around_image><global-img>" + "<image>" * 4
    written = "".join(f"\nFrame from {time}:{frame}<fake_token_around_image>" for time in ("00:00", "00:02", "01:05"))
    text = (
        "<|im_start|>User: You are provided the following series of three frames from a 0:01:10 [H:MM:SS] video.\n"
        f"{written}\n\n{QUESTIONS[0]}<end_of_utterance>\nAssistant:"
    )
    prompt = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    pixels = torch.from_numpy(images["pixel_values"])
    ids = model_of(folder).generate(prompt, pixel_values=pixels, do_sample=False, max_new_tokens=16)[0]
    expected = tuple(token for token in ids[prompt.shape[1] :].tolist() if token != processor.tokenizer.eos_token_id)
    video = Video(pictures, [0, 2.9, 65], duration=70)
    assert task.ask(video, QUESTIONS[0], options=DecodingOptions(max_new_tokens=16)).token_ids == expected
    assert task.chat(video).ask(QUESTIONS[0], options=DecodingOptions(max_new_tokens=16)).token_ids == expected
