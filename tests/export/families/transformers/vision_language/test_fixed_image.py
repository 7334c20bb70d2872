"""LLaVA, PaliGemma 2 and Gemma 3 as Transformers computes them, from an image file on: each a row of the table."""

from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.export.families.conftest import noise_pictures
from tests.export.families.transformers.vision_language.fixed_image import (
    SAVED,
    forced_error,
    generation_inputs,
    inputs_of,
    model_of,
    processor_of,
)
from tests.parity.parity import agreement_of, compare_ids
from tests.support.slow import slow_after
from xattn_export import export_checkpoint
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.loader import load
from xattn_runtime.preprocess.pipeline import Pipeline
from xattn_runtime.preprocess.text import TextCodec
from xattn_runtime.verify.golden import verify_bundle

TOLERANCE = 1e-4
QUESTIONS = ("What color is the circle?", "how many", "Yes or no: is it\nred, {or} <b>blue</b>? “¿qué?” 東京")
FORMS: dict[str, Any] = {
    "gemma3": "standard",
    "paligemma2": "decomposed",
    "llava": "standard",
    "llava-interleave": "decomposed",
}
# The first in the default run: it has the most that others lack.
NAMES = slow_after(1, list(FORMS))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Folder and bundle of one of the models, made once."""
    made: dict[str, tuple[Path, Path]] = {}
    place = tmp_path_factory.mktemp("vision-language")

    def get(name: str) -> tuple[Path, Path]:
        if name not in made:
            folder = SAVED[name](place / name)
            export_checkpoint(folder, place / f"{name}.xattn", attention=FORMS[name], command="pytest")
            made[name] = folder, place / f"{name}.xattn"
        return made[name]

    return get


@pytest.mark.parametrize("name", NAMES)
def test_logits_at_every_step(models, name):
    folder, bundle = models(name)
    assert forced_error(bundle, folder, noise_pictures(2), QUESTIONS[0], steps=18) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_what_is_generated(models, name, tmp_path):
    folder, bundle = models(name)
    task, processor, model = load(bundle, task="vqa"), processor_of(folder), model_of(folder)
    ends = open_bundle(bundle).manifest.decoding.end_token_ids
    compared = []
    for number, (picture, question) in enumerate(zip(noise_pictures(8), cycle(QUESTIONS), strict=False)):
        picture.resize((40 + number, 31)).save(path := tmp_path / f"{number}.png")
        with Image.open(path) as opened:
            inputs = generation_inputs(inputs_of(processor, opened, question))
        beams = 4 if number % 4 == 3 else 1
        generate = partial(model.generate, **inputs, num_beams=beams, do_sample=False)
        found, length = task.ask(path, question, beams=beams).token_ids, inputs["input_ids"].shape[1]
        compared.append(compare_ids(generate, found, prompt_length=length, ends=ends))
    agreement = agreement_of(compared)
    assert agreement.equal == agreement.compared
    assert agreement.compared >= 5
    assert agreement.different_texts >= 3


@pytest.mark.parametrize("name", NAMES)
def test_pixels_and_prompts_are_the_processors(models, name):
    folder, bundle = models(name)
    manifest, processor = open_bundle(bundle).manifest, processor_of(folder)
    pipeline = Pipeline(manifest.image_steps)
    codec = TextCodec(bundle / manifest.tokenizer.file, manifest.tokenizer)
    for size, question in zip(((90, 30), (7, 60), (1, 1), (32, 32)), cycle(QUESTIONS), strict=False):
        picture = noise_pictures(1)[0].resize(size)
        expected = inputs_of(processor, picture, question)
        assert np.array_equal(pipeline(picture), expected["pixel_values"][0].numpy())
        found = codec.encode_question(question, special_tokens=False).ids
        assert list(found) == expected["input_ids"][0].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_golden_cases_hold(models, name):
    report = verify_bundle(models(name)[1])
    assert report.passed
    assert max(case.measure.relative_rms for case in report.cases) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_a_second_question_about_an_image_is_answered_as_the_first(models, name):
    """Also where what is kept of a prompt would lack what its tokens see after them."""
    task, picture = load(models(name)[1], task="vqa"), noise_pictures(1)[0]
    encoded = task.encode(picture)
    task.ask(encoded, QUESTIONS[0])
    kept, alone = task.ask(encoded, QUESTIONS[1]), task.ask(picture, QUESTIONS[1])
    assert kept.token_ids == alone.token_ids
    assert kept.confidence == pytest.approx(alone.confidence, rel=1e-3)
