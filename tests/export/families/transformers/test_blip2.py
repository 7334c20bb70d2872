"""BLIP-2 as Transformers computes it: logits, captions, prompts and answers, from the picture on."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, processors
from transformers import Blip2ForConditionalGeneration

from tests.export.families.conftest import noise_pictures, processor_of
from tests.parity.blip2 import answerer as answers_of
from tests.parity.blip2 import captioner as captions_of
from tests.parity.blip2 import save_blip2
from tests.parity.parity import Reference, logits_error, pixel_error
from xattn_export import export_checkpoint, exporter
from xattn_export.families.base import Generated, Generates, Source
from xattn_export.families.checkpoint_folder.reference import generated
from xattn_export.families.table import family_of
from xattn_export.to_onnx import example_tensor
from xattn_runtime.bundle.manifest import Decoding
from xattn_runtime.errors import CheckpointError, QuestionError, UserError
from xattn_runtime.loader import load
from xattn_runtime.preprocess.tokenizer import ImageLayout
from xattn_runtime.tasks import CaptionTask, VqaTask

TOLERANCE = 1e-4
PROMPTS = ("a red", "the picture of a", "Photo:")
QUESTIONS = ("what color is the circle?", "is there a red square", "zebra, 42?")
END = "Ċ"


def _source(folder: Path) -> Source:
    return family_of(folder).open(folder)


def _folder(folder: Path, side_px: int, **text: Any) -> Path:
    return save_blip2(
        folder,
        side_px,
        vision={
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "patch_size": 8,
        },
        queries={"hidden_size": 20, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 36},
        text={
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "ffn_dim": 48,
            "num_attention_heads": 4,
            "max_position_embeddings": 96,
            "vocab_size": 272,
            **text,
        },
        query_tokens=5,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("blip2")


@pytest.fixture(scope="module")
def folder(place: Path) -> Path:
    return _folder(place / "blip2-tiny", 32)


@pytest.fixture(scope="module")
def captioner(folder: Path, place: Path) -> CaptionTask:
    export_checkpoint(folder, place / "caption.xattn")
    return load(place / "caption.xattn", threads=1, task="caption")


@pytest.fixture(scope="module")
def answerer(folder: Path, captioner: CaptionTask, place: Path) -> VqaTask:
    """Its graphs are the captioner's, and are not exported again."""
    graphs = captioner.bundle.path / "graphs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "export_role", lambda role, *form: onnx.load(graphs / f"{role.name}.onnx"))
        export_checkpoint(folder, place / "vqa.xattn", task="vqa")
    return load(place / "vqa.xattn", threads=1, task="vqa")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return Blip2ForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return processor_of(folder)


@pytest.fixture(scope="module")
def captions(folder: Path) -> Reference:
    return captions_of(folder)


@pytest.mark.parametrize("batch", [1, 3])
def test_every_step_gives_the_logits_of_transformers(captioner: CaptionTask, captions: Reference, batch: int) -> None:
    assert logits_error(captioner.bundle.path, captions, noise_pictures(batch), steps=17) <= TOLERANCE


@pytest.mark.slow
def test_the_decomposed_form_at_another_size(place: Path) -> None:
    """Norms come after in OPT-350m."""
    settings = {"do_layer_norm_before": False, "enable_bias": False, "tie_word_embeddings": False}
    folder, bundle = _folder(place / "odd", 40, **settings), place / "odd.xattn"
    report = export_checkpoint(folder, bundle, attention="decomposed")
    assert report.opset == 18
    assert all("Attention" not in facts.operators for facts in report.graphs.values())
    assert logits_error(bundle, captions_of(folder), noise_pictures(3)) <= TOLERANCE


@pytest.mark.parametrize(
    "settings",
    [
        {"_remove_final_layer_norm": True},
        {"layer_norm_elementwise_affine": False, "activation_function": "gelu_new"},
    ],
)
def test_every_setting_of_the_text_model_is_obeyed(tmp_path: Path, settings: dict[str, Any]) -> None:
    source = _source(_folder(tmp_path / "other", 32, **settings))
    role, generator = source.roles[1], torch.Generator().manual_seed(1)
    sizes = {"batch": 2, "length": 9, "past": 0, "context": 5}
    inputs = [example_tensor(spec, sizes, generator) for spec in role.inputs]
    with torch.inference_mode():
        for found, expected in zip(role.module(*inputs), role.reference(*inputs), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_pixels_are_the_processors(captioner: CaptionTask, captions: Reference) -> None:
    assert pixel_error(captioner.bundle.path, captions, noise_pictures(5)) == 0


def _expected(model: Any, processor: Any, picture: Image.Image, text: str | None, beams: int) -> Generated:
    """What `generate()` makes of what the processor makes, and whether noise leaves it as it is."""
    inputs = processor(picture, text, return_tensors="pt") if text else processor(picture, return_tensors="pt")
    length = inputs.input_ids.shape[1] if text else model.config.num_query_tokens + 1
    end = processor.tokenizer.convert_tokens_to_ids(END)

    def forced_logits(ids: Sequence[int]) -> torch.Tensor:
        return torch.zeros(1, len(ids))

    def generate(**settings: Any) -> torch.Tensor:
        return model.generate(**inputs, num_beams=beams, **settings)

    return generated(generate, forced_logits, prompt_length=length, end_token_ids=(end,))


@pytest.mark.parametrize("beams", [1, 4])
def test_captions_are_those_of_generate(captioner: CaptionTask, model: Any, processor: Any, beams: int) -> None:
    compared, texts = 0, set()
    for number, picture in enumerate(noise_pictures(20)):
        prompt = PROMPTS[number % 4] if number % 4 < 3 else None
        expected = _expected(model, processor, picture, prompt, beams)
        if expected.steady:
            caption = captioner.caption(picture, prompt=prompt, beams=beams)
            assert caption.token_ids == expected.token_ids
            assert caption.text == processor.decode(expected.token_ids, skip_special_tokens=True).strip()
            compared += 1
            texts.add(caption.token_ids)
    assert compared >= 15
    assert len(texts) >= 5


def test_answers_are_what_generate_says_after_the_question(answerer: VqaTask, model: Any, processor: Any) -> None:
    compared, texts = 0, set()
    for number, picture in enumerate(noise_pictures(20)):
        question = QUESTIONS[number % 3]
        expected = _expected(model, processor, picture, f"Question: {question} Answer:", 1)
        if expected.steady:
            answer = answerer.ask(picture, question)
            assert answer.token_ids == expected.token_ids
            compared += 1
            texts.add(answer.token_ids)
    assert compared >= 15
    assert len(texts) >= 5


def test_a_batch_of_pictures_and_questions(answerer: VqaTask, captioner: CaptionTask) -> None:
    pictures = noise_pictures(4)
    questions = [QUESTIONS[number % 3] for number in range(4)]
    alone = [answerer.ask(*pair).token_ids for pair in zip(pictures, questions, strict=True)]
    assert [answer.token_ids for answer in answerer.ask_many(pictures, questions)] == alone
    one_by_one = [captioner.caption(picture, beams=2).token_ids for picture in pictures]
    assert [caption.token_ids for caption in captioner.caption_each(pictures, beams=2, errors="raise")] == one_by_one
    assert len({*one_by_one, *alone}) > 4


def test_from_a_file_on_the_disk(captioner: CaptionTask, model: Any, processor: Any, tmp_path: Path) -> None:
    picture = noise_pictures(2, seed=9)[1]
    picture.save(tmp_path / "picture.png")
    expected = _expected(model, processor, picture, None, 1)
    assert captioner.caption(tmp_path / "picture.png").token_ids == expected.token_ids


def test_the_questions_of_the_reference_are_the_bundles(answerer: VqaTask, folder: Path) -> None:
    reference = answers_of(folder)
    assert reference.question_ids is not None
    for question in QUESTIONS:
        expected = (*[reference.vocabulary] * 5, *reference.question_ids(question)[0].tolist())
        assert answerer._encode(question).ids == expected
    with pytest.raises(QuestionError, match="question: expected no '<image>'"):
        answerer.ask(noise_pictures(1)[0], "what is <image>?")


def test_decoding_is_what_generate_does_whatever_the_outer_settings_say(folder: Path, tmp_path: Path) -> None:
    """BLIP-2's `generate()` hands over to the language model, which has settings of its own."""
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    (other / "generation_config.json").write_text(json.dumps({"num_beams": 3, "eos_token_id": 7, "max_length": 9}))
    reference = _source(other).reference
    assert isinstance(reference, Generates)
    assert reference.decoding == Decoding((), (202,), 1, 20, max_positions=96)
    found = Blip2ForConditionalGeneration.from_pretrained(other).eval()
    assert found.generation_config.num_beams == 3
    assert found.language_model.generation_config.num_beams is None


def test_a_tokenizer_from_before_there_was_an_image_token(folder: Path, captioner: CaptionTask, tmp_path: Path) -> None:
    older = Path(shutil.copytree(folder, tmp_path / "older"))
    content = json.loads((older / "tokenizer.json").read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<image>"]
    (older / "tokenizer.json").write_text(json.dumps(content))
    source = _source(older)
    layouts = source.tokenizer.spec.image_layout, captioner.bundle.manifest.tokenizer.image_layout
    assert layouts == (ImageLayout("<image>", 5, "{tokens}"),) * 2
    assert Tokenizer.from_str(source.tokenizer.json).token_to_id("<image>") == captions_of(folder).vocabulary


def _changed(folder: Path, target: Path, **values: Any) -> Path:
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    text = values.pop("text", {})
    config["text_config"] |= text
    config |= values
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text": {"model_type": "llama"}}, r"text_config.model_type: expected opt or t5, found 'llama'"),
        ({"text": {"model_type": ["opt"]}}, r"text_config.model_type: expected opt or t5, found \['opt'\]"),
        ({"text_config": [1]}, r"config.json: text_config: expected dict, found \[1\]; copy the file again"),
        ({"text": {"word_embed_proj_dim": 16}}, r"word_embed_proj_dim: expected hidden_size, which is 32, found 16"),
        (
            {"image_token_index": None},
            r"config.json: image_token_index: expected .* found none; write \"image_token_index\": 266, the id",
        ),
        ({"image_token_index": 272}, r"image_token_index: expected a token, one of 272, found 272"),
        ({"image_token_index": 271}, r"expected a tokenizer with the token 271, .* '<image>' would be 266"),
        ({"image_token_index": 30}, r"expected a special token with the id 30, as config.json says, found ';'"),
        ({"text": {"bos_token_id": 0}}, r"expected a special token with the id 0, as config.json says, found '<s>'"),
        ({"num_query_tokens": 6}, r"the tensor query_tokens: expected the shape \[1, 6, 20\]"),
    ],
)
def test_what_it_cannot_do(folder: Path, tmp_path: Path, values: dict[str, Any], message: str) -> None:
    changed = _changed(folder, tmp_path / "changed", **values)
    with pytest.raises(CheckpointError, match=message):
        _source(changed)


def test_a_tokenizer_that_ends_every_text_is_refused(folder: Path, tmp_path: Path) -> None:
    ends = Path(shutil.copytree(folder, tmp_path / "ends"))
    tokenizer = Tokenizer.from_file(str(ends / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    tokenizer.save(str(ends / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="special tokens before a text alone, found '</s>' after it"):
        _source(ends)


def test_a_task_that_it_does_not_do(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task: expected caption, vqa, as .* is a model of BLIP-2, found 'retrieval'"):
        export_checkpoint(folder, tmp_path / "out.xattn", task="retrieval")


def test_the_image_changes_what_is_said(captioner: CaptionTask) -> None:
    one, other = (captioner.encode(picture) for picture in noise_pictures(2))
    first, second = (captioner.forced_logits(encoded, (9, 40, 77)) for encoded in (one, other))
    assert np.abs(first - second).max() > 0.1
