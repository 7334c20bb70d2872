"""BLIP-2 with T5 as Transformers computes it: logits, captions, prompts and answers, from the picture on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Blip2ForConditionalGeneration

from tests.export.families.conftest import noise_pictures, processor_of
from tests.parity.blip2 import answerer as answers_of
from tests.parity.blip2 import captioner as captions_of
from tests.parity.blip2 import save_blip2
from tests.parity.parity import generated_agreement, logits_error
from xattn_export import export_checkpoint
from xattn_export.families.layers.text.t5 import T5RelativeBias
from xattn_export.families.table import family_of
from xattn_runtime.errors import CheckpointError
from xattn_runtime.loader import load
from xattn_runtime.tasks import CaptionTask, VqaTask

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
QUESTIONS = ("what color is the circle?", "is there a red square", "zebra, 42?")
SMALL: dict[str, Any] = {
    "vision": {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "patch_size": 8,
    },
    "queries": {"hidden_size": 20, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 36},
    "text": {
        "d_model": 32,
        "d_ff": 48,
        "d_kv": 10,
        "num_heads": 3,
        "num_layers": 3,
        "vocab_size": 112,
        "relative_attention_num_buckets": 12,
        "relative_attention_max_distance": 20,
    },
    "query_tokens": 5,
}


def _folder(folder: Path, side_px: int, **text: Any) -> Path:
    return save_blip2(folder, side_px, "t5", **(SMALL | {"text": SMALL["text"] | text}))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("blip2-t5")


@pytest.fixture(scope="module")
def folder(place: Path) -> Path:
    return _folder(place / "blip2-t5-tiny", 32)


@pytest.fixture(scope="module")
def answerer(folder: Path, place: Path) -> VqaTask:
    export_checkpoint(folder, place / "vqa.xattn", task="vqa")
    return load(place / "vqa.xattn", threads=1, task="vqa")


@pytest.fixture(scope="module")
def captioner(place: Path) -> CaptionTask:
    """At another size, decomposed, and of the older kind: no gate, and vectors made smaller before the head."""
    other = _folder(place / "odd", 40, feed_forward_proj="relu", tie_word_embeddings=True)
    report = export_checkpoint(other, place / "caption.xattn", attention="decomposed")
    assert report.opset == 18
    assert all("Attention" not in facts.operators for facts in report.graphs.values())
    return load(place / "caption.xattn", threads=1, task="caption")


@pytest.fixture(scope="module")
def files(place: Path) -> list[Path]:
    paths = [place / f"{number}.png" for number in range(20)]
    for path, picture in zip(paths, noise_pictures(20), strict=True):
        picture.save(path)
    return paths


@pytest.mark.parametrize("batch", [1, 3])
def test_every_step_gives_the_logits_of_transformers(
    answerer: VqaTask, captioner: CaptionTask, folder: Path, place: Path, batch: int
) -> None:
    pictures = noise_pictures(batch)
    captions, answers = captions_of(place / "odd"), answers_of(folder)
    assert logits_error(captioner.bundle.path, captions, pictures, steps=30, question="") <= TOLERANCE
    assert logits_error(answerer.bundle.path, answers, pictures, steps=30, question=QUESTIONS[0]) <= TOLERANCE


def test_answers_and_captions_are_those_of_generate(
    answerer: VqaTask, captioner: CaptionTask, folder: Path, place: Path, files: list[Path]
) -> None:
    answers = generated_agreement(answerer.bundle.path, answers_of(folder), files, beams=4, questions=QUESTIONS)
    captions = generated_agreement(captioner.bundle.path, captions_of(place / "odd"), files, beams=1)
    for found in (answers, captions):
        assert found.equal == found.compared >= 15
        assert found.different_texts >= 5


def test_captions_go_on_from_a_prompt(captioner: CaptionTask, place: Path) -> None:
    model = Blip2ForConditionalGeneration.from_pretrained(place / "odd").eval()
    processor = processor_of(place / "odd")
    for prompt in ("a red", "the picture of a"):
        for picture in noise_pictures(3):
            expected = model.generate(**processor(picture, prompt, return_tensors="pt"), max_new_tokens=20)[
                0, 1:
            ].tolist()
            if 1 in expected:
                expected = expected[: expected.index(1)]
            assert list(captioner.caption(picture, prompt).token_ids) == expected


@pytest.mark.parametrize("decodes", [False, True])
def test_distances_are_looked_up_beyond_the_largest_too(folder: Path, decodes: bool) -> None:
    language: Any = Blip2ForConditionalGeneration.from_pretrained(folder).language_model
    attention = (language.decoder if decodes else language.encoder).block[0].layer[0].SelfAttention
    found = T5RelativeBias(attention)(torch.arange(7, 60), torch.arange(60))
    torch.testing.assert_close(found, attention.compute_bias(53, 60, past_seen_tokens=7), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"bos_token_id": None}, "text_config.bos_token_id: expected a token, one of 112, found None"),
        ({"num_decoder_layers": 9}, "text_config.num_decoder_layers: expected num_layers, which is .*, found 9"),
        ({"decoder_start_token_id": "a"}, "decoder_start_token_id: expected an integer"),
    ],
)
def test_what_it_cannot_do(folder: Path, tmp_path: Path, text: dict[str, Any], message: str) -> None:
    changed = Path(shutil.copytree(folder, tmp_path / "changed"))
    config = json.loads((changed / "config.json").read_text())
    config["text_config"] |= text
    (changed / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        family_of(changed).open(changed)
