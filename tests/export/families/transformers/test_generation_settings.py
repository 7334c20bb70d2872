"""Settings of `generate()` in a folder: golden cases hold what `from_pretrained(folder).generate()` gives."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.parity import blip, blip2, florence2, git, smolvlm, vision_encoder_decoder
from tests.parity.small_families import SMALL_FAMILIES
from xattn_export import export_checkpoint
from xattn_export.families.base import Generates
from xattn_export.families.table import family_of
from xattn_export.golden import make_golden
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.bundle.manifest import GoldenCase
from xattn_runtime.preprocess.text import TextCodec

pytestmark = pytest.mark.filterwarnings("ignore:Using the model-agnostic default")

# Of an image and a question, if there is one: the ids of prompt and text, and how many of them are the prompt's.
Generate = Callable[[Image.Image, str | None], tuple[list[int], int]]

BEAMS: dict[str, Any] = {
    "num_beams": 3,
    "no_repeat_ngram_size": 2,
    "length_penalty": 1.5,
    "early_stopping": True,
    "max_new_tokens": 9,
}


def _plain(reference_of: Callable[[Path], Any], prompt: str | None = None) -> Callable[[Path], Generate]:
    """As the family's documentation calls it, with `prompt` where nothing is asked."""

    def generate_of(folder: Path) -> Generate:
        reference = reference_of(folder)

        def generate(image: Image.Image, question: str | None) -> tuple[list[int], int]:
            text = question or prompt
            question_ids = None if text is None else reference.question_ids(text)
            return reference.generate(reference.pixels([image]), question_ids)[0].tolist(), len(reference.start)

        return generate

    return generate_of


def _smolvlm(folder: Path) -> Generate:
    model, processor = smolvlm.model_of(folder), smolvlm.processor_of(folder)

    def generate(image: Image.Image, question: str | None) -> tuple[list[int], int]:
        inputs = smolvlm.inputs_of(processor, image, str(question))
        return model.generate(**inputs)[0].tolist(), inputs.input_ids.shape[1]

    return generate


# Family → what its users call, and where in config.json its settings stand where there is no generation_config.json.
FAMILIES: dict[str, tuple[Callable[[Path], Generate], str | None]] = {
    "ViT-GPT2": (_plain(vision_encoder_decoder.captioner), "decoder"),
    "BLIP": (_plain(blip.captioner), "text_config"),
    "BLIP VQA": (_plain(blip.answerer), "text_config"),
    "GIT": (_plain(git.captioner), None),
    "BLIP-2, OPT": (_plain(blip2.captioner), "text_config"),
    "BLIP-2, T5": (_plain(blip2.captioner), "text_config"),
    "Florence-2": (_plain(florence2.florence2, "<CAPTION>"), "text_config"),
    "SmolVLM": (_smolvlm, "text_config"),
}
# Whose `generate()` goes by the settings of an inner model, which Transformers itself takes no beams from.
UNHEARD = ("BLIP", "BLIP VQA", "BLIP-2, OPT", "BLIP-2, T5")


def _write(path: Path, part: str | None = None, **changed: Any) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    (content if part is None else content[part]).update(changed)
    path.write_text(json.dumps(content))


def _save(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    return SMALL_FAMILIES[name].save(folder)


def _age(folder: Path, part: str | None, settings: dict[str, Any]) -> None:
    """Keep all settings of generate() in config.json, as versions before 4.26 did."""
    stated = folder / "generation_config.json"
    if stated.is_file():
        _write(folder / "config.json", **{k: v for k, v in json.loads(stated.read_text()).items() if k[:1] != "_"})
        stated.unlink()
    _write(folder / "config.json", part, **settings)


def _compare(cases: Sequence[GoldenCase], images: dict[str, bytes], generate: Generate, ends: Sequence[int]) -> None:
    compared = [case for case in cases if case.text is not None]
    assert len(compared) >= 2
    for case in compared:
        ids, prompt = generate(Image.open(io.BytesIO(images[case.image])), case.question)
        new = ids[prompt:]
        end = next((place for place, token_id in enumerate(new) if token_id in ends), len(new))
        assert case.token_ids == tuple(new[:end])
    assert len({case.token_ids for case in compared}) >= 2


@pytest.mark.parametrize("name", list(FAMILIES))
def test_beams_in_a_config_of_old(name: str, tmp_path: Path) -> None:
    folder = _save(name, tmp_path / "model")
    generate_of, part = FAMILIES[name]
    # Transformers takes those at the top before those of a part.
    _age(folder, part, BEAMS)
    family = family_of(folder)
    source = family.also.get(SMALL_FAMILIES[name].task, family.open)(folder)  # type: ignore[arg-type]
    assert isinstance(source.reference, Generates)
    decoding = source.reference.decoding
    assert decoding.beams == (1 if name in UNHEARD else 3)
    (tmp_path / "tokenizer.json").write_text(source.tokenizer.json)
    golden = make_golden(source, TextCodec(tmp_path / "tokenizer.json", source.tokenizer.spec))
    _compare(golden.cases, dict(golden.files), generate_of(folder), decoding.end_token_ids)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GIT", "SmolVLM", "ViT-GPT2"])
def test_beams_in_generation_config_as_far_as_the_device(name: str, tmp_path: Path) -> None:
    folder = _save(name, tmp_path / "model")
    _write(folder / "generation_config.json", **BEAMS)
    report = export_checkpoint(folder, tmp_path / "out.xattn", task=SMALL_FAMILIES[name].task, whole=False)
    assert report.golden.passed
    manifest = open_bundle(report.bundle).manifest
    assert manifest.decoding is not None
    assert manifest.decoding.beams == 3
    images = {case.image: (report.bundle / case.image).read_bytes() for case in manifest.golden.cases}
    _compare(manifest.golden.cases, images, FAMILIES[name][0](folder), manifest.decoding.end_token_ids)
