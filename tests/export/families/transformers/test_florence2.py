"""Florence-2 as Transformers computes it, from a picture file on: what each prompt gives, at every step."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer, Florence2ForConditionalGeneration
from typer.testing import CliRunner

from tests.export.families.conftest import noise_pictures, processor_of
from tests.parity.florence2 import DECODING, PROMPTS, florence2, save_florence2
from tests.parity.parity import generated_agreement, logits_error, pixel_error
from tests.support.slow import slow_after
from xattn_edge.commands.app import app
from xattn_export import export_checkpoint
from xattn_export.families.table import family_of
from xattn_export.families.transformers import florence2_text
from xattn_export.quantize import quantize_bundle
from xattn_runtime.bundle.folder import Bundle, open_bundle
from xattn_runtime.bundle.manifest import Golden
from xattn_runtime.errors import CheckpointError, UserError
from xattn_runtime.loader import load
from xattn_runtime.verify.golden import measure, verify_bundle

TOLERANCE = 1e-4
REGION = "<REGION_TO_DESCRIPTION><loc_1><loc_2><loc_17><loc_9>"
HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 2}
TEXT = {"d_model": 48, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 40, "decoder_ffn_dim": 44, **HEADS}
# Maps of 24, 12, 6 and 3 places a side: of windows of 4 the first two are whole, and the last is larger than its map.
SMALL = {
    "text": {**TEXT, "max_position_embeddings": 160},
    "vision": {
        "embed_dim": (8, 16, 24, 32),
        "num_heads": (2, 2, 3, 4),
        "num_groups": (2, 4, 3, 4),
        "depths": (1, 1, 1, 1),
        "projection_dim": 48,
        "window_size": 4,
        "max_position_embeddings": 9,
    },
}
# Maps of 25 and 13 places: both are padded to whole windows.
OTHER = {
    "text": {**TEXT, "max_position_embeddings": 240, "scale_embedding": True, "activation_function": "relu"},
    "vision": {
        "embed_dim": (12, 20),
        "num_heads": (3, 2),
        "num_groups": (2, 5),
        "depths": (1, 2),
        "projection_dim": 48,
        "window_size": 3,
        "qkv_bias": False,
        "patch_prenorm": (True, False),
        "patch_size": (7, 3),
        "patch_stride": (4, 2),
        "patch_padding": (3, 1),
    },
}
# name → side of pictures, sizes of layers, form of attention, task
MODELS: dict[str, tuple[int, Any, Any, Any]] = {
    "captions": (96, SMALL, "standard", None),
    "answers": (100, OTHER, "decomposed", "vqa"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path, Any]]:
    """Folder, bundle and reference of one of the models, made once."""
    known: dict[str, tuple[Path, Path, Any]] = {}
    place = tmp_path_factory.mktemp("florence2")

    def get(name: str) -> tuple[Path, Path, Any]:
        if name not in known:
            side, sizes, attention, task = MODELS[name]
            folder = save_florence2(place / name, side, words=300, places=20, **sizes)
            export_checkpoint(folder, place / f"{name}.xattn", task=task, attention=attention, command="pytest")
            known[name] = folder, place / f"{name}.xattn", florence2(folder)
        return known[name]

    return get


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", slow_after(1, list(MODELS)))
def test_logits_at_every_step(made, name, batch):
    _, bundle, reference = made(name)
    for prompt in ("<CAPTION>", REGION, "what color is the circle?"):
        assert logits_error(bundle, reference, noise_pictures(batch), steps=18, question=prompt) < TOLERANCE


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("name", slow_after(1, list(MODELS)))
def test_what_is_generated(made, files, name, beams):
    _, bundle, reference = made(name)
    found = generated_agreement(bundle, reference, files, beams=beams, questions=PROMPTS)
    assert found.equal == found.compared
    # Enough of them for the equality to mean something.
    assert found.compared >= 12
    assert found.different_texts >= 6


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
@pytest.mark.parametrize("prompt", ["<CAPTION>", "<MORE_DETAILED_CAPTION>", "<OCR>", REGION, None])
def test_text_from_a_file_as_its_documentation_makes_it(made, files, prompt):
    folder, bundle, _ = made("captions")
    processor, model = processor_of(folder), Florence2ForConditionalGeneration.from_pretrained(folder)
    task = load(bundle, task="caption")
    texts = set()
    for file in files[:6]:
        with Image.open(file) as picture:
            inputs = processor(images=picture, text=prompt or "<CAPTION>", return_tensors="pt")
        ids = model.generate(**inputs)
        written = processor.batch_decode(ids, skip_special_tokens=False)[0]
        expected = processor.post_process_generation(written, task="<CAPTION>")["<CAPTION>"]
        found = task.caption(file, prompt=prompt)
        # The decoder's own first token is taken off, and so is the end.
        assert [*found.token_ids, DECODING["eos_token_id"]] == ids[0, 1:].tolist()
        assert found.text == expected
        texts.add(found.text)
    assert len(texts) > 2


def test_places_in_the_picture_are_part_of_an_answer(made):
    folder, bundle, _ = made("captions")
    task, tokenizer = load(bundle, task="caption"), processor_of(folder).tokenizer
    ids = tokenizer("a car<loc_3><loc_19>", add_special_tokens=False).input_ids
    assert task._codec.decode([0, *ids, 2, 1]) == "a car<loc_3><loc_19>"


def test_prompts_are_those_of_the_processor(made):
    folder, bundle, _ = made("answers")
    processor = processor_of(folder)
    theirs = processor.task_prompts_without_inputs | processor.task_prompts_with_input
    assert theirs == florence2_text.PROMPTS
    tokenizer = open_bundle(bundle).manifest.tokenizer
    assert tokenizer.prompts == theirs
    assert tokenizer.caption_template == f"<s>{theirs['<CAPTION>']}</s>"


def test_a_prompt_that_is_not_complete(made, files):
    task = load(made("captions")[1], task="caption")
    with pytest.raises(UserError, match="prompt: expected nothing but '<OCR>', found 'the <OCR>'"):
        task.caption(files[0], prompt="the <OCR>")
    with pytest.raises(UserError, match="prompt: expected a text after '<REGION_TO_OCR>', found"):
        task.caption(files[0], prompt="<REGION_TO_OCR>")


def test_answers_to_questions(made, files):
    _, bundle, _ = made("answers")
    task = load(bundle, task="vqa")
    questions = [(*PROMPTS, REGION)[number % 5] for number in range(7)]
    together = task.ask_many(files[:7], questions)
    for file, question, found in zip(files, questions, together, strict=False):
        assert found.token_ids == task.ask(task.encode(file), question).token_ids
    assert len({found.token_ids for found in together}) > 2


def test_captions_of_a_batch(made, files):
    task = load(made("captions")[1], task="caption")
    for prompt in (None, "<OCR>"):
        alone = [task.caption(file, prompt=prompt).token_ids for file in files[:4]]
        assert [found.token_ids for found in task.caption_each(files[:4], prompt=prompt, errors="raise")] == alone
    steps = [int(step.token_ids[0]) for step in task.steps(task.encode(files[0]))]
    greedy = task.caption(files[0], beams=1).token_ids
    assert tuple(steps[: len(greedy)]) == greedy


@pytest.mark.parametrize("name", slow_after(1, list(MODELS)))
def test_pixels(made, name):
    odd = [
        Image.new("RGB", (1, 1), (9, 200, 30)),
        noise_pictures(1)[0].resize((1, 900)),
        noise_pictures(2)[1].resize((700, 3)),
        *(noise_pictures(1)[0].convert(mode) for mode in ("L", "P", "1", "CMYK", "RGBA", "LA")),
    ]
    _, bundle, reference = made(name)
    assert pixel_error(bundle, reference, [*noise_pictures(8), *odd]) == 0


def test_golden_cases_hold_and_mean_something(made):
    """They hold as exported; and fail when the picture is another one."""
    for name in MODELS:
        _, bundle, _ = made(name)
        report = verify_bundle(bundle)
        assert report.passed
        assert max(case.measure.relative_rms for case in report.cases) < 1e-5
        task = load(bundle)
        cases = task.bundle.manifest.golden.cases
        swapped = replace(cases[0], image=cases[-1].image)
        task.bundle = Bundle(bundle, replace(task.bundle.manifest, golden=Golden(1e-3, (swapped,))))
        assert measure(task)[0].relative_rms > 1e-2


def test_what_the_bundle_says(made):
    captions, answers = (open_bundle(made(name)[1]).manifest for name in ("captions", "answers"))
    assert (captions.task, answers.task) == ("caption", "vqa")
    assert list(captions.graphs) == list(answers.graphs) == ["image_encoder", "text_encoder", "decoder"]
    assert captions.decoding is not None
    assert answers.decoding == replace(captions.decoding, max_positions=240)
    assert captions.decoding.to_dict() == {
        "prompt_token_ids": [2],
        "end_token_ids": [2],
        "pad_token_id": 1,
        "max_new_tokens": 20,
        "max_positions": 160,
        "beams": 3,
        "early_stopping": True,
        "no_repeat_ngram_size": 3,
        "forced_first_token_id": 0,
        "forced_last_token_id": 2,
    }
    assert captions.tokenizer.max_tokens == 160 - (3 * 3 + 1)


def test_int8(made, files, tmp_path):
    _, bundle, reference = made("captions")
    report = quantize_bundle(bundle, tmp_path / "int8.xattn")
    assert all(graph.layers["int8_products"] > 0 for graph in report.graphs.values())
    error = logits_error(tmp_path / "int8.xattn", reference, noise_pictures(3), question="<OCR>")
    assert 1e-4 < error < 0.3
    task = load(tmp_path / "int8.xattn", task="caption")
    assert np.isfinite(task.caption(files[0], prompt="<OCR>").score)


def test_the_command_line(made, files):
    def run(*arguments: object) -> Any:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    _, bundle, _ = made("captions")
    plain = run("caption", files[0], "--bundle", bundle, "--json")["results"][0]
    found = run("caption", files[0], "--bundle", bundle, "--prompt", "<OCR>", "--json")["results"][0]
    assert plain["token_ids"] != found["token_ids"]
    answer = run("vqa", files[0], "<OCR>", "--bundle", made("answers")[1], "--json")["answer"]
    task = load(made("answers")[1], task="vqa")
    assert answer == task.ask(files[0], "<OCR>").answer


CONFIGURATIONS: list[tuple[Callable[[Any], object], str]] = [
    (
        lambda config: config["text_config"].update(model_type="florence2_language"),
        r"text_config.model_type: expected 'bart', found 'florence2_language'; .* florence-community/Florence-2-base",
    ),
    (lambda config: config["vision_config"].update(max_position_embeddings=2), "expected the shape"),
    (lambda config: config.update(image_token_id=9999), "text_config.vocab_size: expected at least 10000, found 384"),
]


@pytest.mark.parametrize(("change", "message"), CONFIGURATIONS)
def test_configurations_that_cannot_be_exported(made, change, message, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(made("captions")[0], folder)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        export_checkpoint(folder, tmp_path / "out.xattn")
    assert not (tmp_path / "out.xattn").exists()


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (
            "captions",
            {"height": 320, "width": 96},
            "vision_config.max_position_embeddings: expected at least 10, found 9",
        ),
        ("answers", {"height": 160, "width": 160}, "text_config.max_position_embeddings: expected at least 402, found"),
    ],
)
def test_pictures_with_more_places_than_there_are_positions(made, name, size, message, tmp_path):
    folder = tmp_path / "large"
    shutil.copytree(made(name)[0], folder)
    config = json.loads((folder / "processor_config.json").read_text())
    config["image_processor"]["size"] = size
    (folder / "processor_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        export_checkpoint(folder, tmp_path / "out.xattn")


@pytest.mark.parametrize(("key", "expected", "found"), [("in_channels", 3, 4), ("projection_dim", 48, 40)])
def test_models_that_do_not_fit_together(key, expected, found, tmp_path):
    sizes = {"text": OTHER["text"], "vision": {**OTHER["vision"], key: found}}
    folder = save_florence2(tmp_path / "model", 64, words=300, places=20, **sizes)
    with pytest.raises(CheckpointError, match=f"vision_config.{key}: expected {expected}, found {found}"):
        export_checkpoint(folder, tmp_path / "out.xattn")


def test_a_tokenizer_without_the_tokens_around_a_text(made, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(made("captions")[0], folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "<end>"}))
    # Transformers makes it a token of its own, and writes around a text what tokenizer.json says all the same.
    tokenizer = family_of(folder).open(folder).tokenizer
    original = AutoTokenizer.from_pretrained(folder)
    around = original.convert_ids_to_tokens(original("").input_ids)
    assert tokenizer.spec.question_template == "{question}".join(around) == "<s>{question}</s>"
    with pytest.raises(
        CheckpointError, match="expected a tokenizer that writes a token before a text and one after it"
    ):
        florence2_text.tokenizer_with_prompts(folder, tokenizer)  # it writes nothing around a text any more
