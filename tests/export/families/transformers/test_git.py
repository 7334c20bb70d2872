"""GIT as Transformers computes it: logits, captions, prompts and answers, from the picture on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertTokenizer, CLIPImageProcessor, GitConfig, GitForCausalLM, GitProcessor

from tests.export.families.conftest import bert_vocabulary, noise_pictures, processor_of, randomize, save_folder
from xattn_export import export_checkpoint
from xattn_export.families.base import Generates
from xattn_export.families.checkpoint_folder.reference import generated
from xattn_export.families.table import family_of
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.errors import CheckpointError, UserError
from xattn_runtime.execution.session import open_session
from xattn_runtime.execution.settings import session_settings
from xattn_runtime.generate.decoder import DecoderStep
from xattn_runtime.loader import load
from xattn_runtime.tasks import CaptionTask, VqaTask

TOLERANCE = 1e-4
STEPS = 17
PROMPTS = ("a red", "the picture of", "no")
QUESTIONS = ("what color is the circle ?", "is there a red square?", "zebra, 42?")


def _folder(folder: Path, side_px: int, **settings: Any) -> Path:
    vocabulary = bert_vocabulary()
    config = GitConfig(
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "image_size": side_px,
            "patch_size": 8,
        },
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=48,
        bos_token_id=vocabulary.index("[CLS]"),
        eos_token_id=vocabulary.index("[SEP]"),
        pad_token_id=0,
        **settings,
    )
    model = GitForCausalLM(config).eval()
    randomize(model)
    pictures = CLIPImageProcessor(size={"shortest_edge": side_px}, crop_size={"height": side_px, "width": side_px})
    tokenizer = BertTokenizer({word: number for number, word in enumerate(vocabulary)})
    return save_folder(folder, model, GitProcessor(pictures, tokenizer))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("git")


@pytest.fixture(scope="module")
def folder(place: Path) -> Path:
    return _folder(place / "git-tiny", 32)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return GitForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return processor_of(folder)


@pytest.fixture(scope="module")
def captioner(folder: Path, place: Path) -> CaptionTask:
    export_checkpoint(folder, place / "caption.xattn")
    return load(place / "caption.xattn", threads=1, task="caption")


@pytest.fixture(scope="module")
def answerer(folder: Path, place: Path) -> VqaTask:
    export_checkpoint(folder, place / "vqa.xattn", task="vqa")
    return load(place / "vqa.xattn", threads=1, task="vqa")


def _teacher_forced(bundle: Path, pixel_values: torch.Tensor, ids: np.ndarray) -> np.ndarray:
    """Logits `[batch, length, vocabulary]` along `ids`, two tokens first, then one at a time with the cache."""
    opened, settings = open_bundle(bundle), session_settings("cpu", 1)
    encoder, decoder = open_session(opened, "image_encoder", settings), open_session(opened, "decoder", settings)
    names = tuple(encoder.output_shapes)
    image = dict(zip(names, encoder.run(names, {"pixel_values": pixel_values.numpy()}), strict=True))
    step = DecoderStep(decoder)
    past, rows = step.first_past(image), []
    for begin, end in ((0, 2), *((i, i + 1) for i in range(2, ids.shape[1]))):
        logits, past = step.logits(ids[:, begin:end], past, {})
        rows.append(logits)
    return np.stack(rows, 1)


def _check_teacher_forcing(bundle: Path, folder: Path, batch: int) -> None:
    model, processor = GitForCausalLM.from_pretrained(folder).eval(), processor_of(folder)
    pixel_values = processor(images=noise_pictures(batch), return_tensors="pt").pixel_values
    ids = torch.randint(5, model.config.vocab_size, (batch, STEPS + 1), generator=torch.Generator().manual_seed(1))
    image_tokens = model.git.image_encoder.vision_model.embeddings.num_positions
    with torch.no_grad():
        expected = model(ids, pixel_values=pixel_values, use_cache=False).logits[:, image_tokens + 1 :].numpy()
    found = _teacher_forced(bundle, pixel_values, ids.numpy())
    assert found.shape == expected.shape
    assert expected.std() > 0.1
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("batch", [1, 3])
def test_every_step_gives_the_logits_of_transformers(captioner: CaptionTask, folder: Path, batch: int) -> None:
    _check_teacher_forcing(captioner.bundle.path, folder, batch)


@pytest.mark.slow
def test_the_decomposed_form_at_another_size(place: Path) -> None:
    folder, bundle = _folder(place / "git-odd", 40), place / "odd.xattn"
    report = export_checkpoint(folder, bundle, attention="decomposed")
    assert report.opset == 18
    assert all("Attention" not in facts.operators for facts in report.graphs.values())
    _check_teacher_forcing(bundle, folder, 3)


def _generate(model: Any, processor: Any, picture: Image.Image, text: str, beams: int) -> Any:
    """What `generate()` makes of a picture and a text after [CLS], and whether noise leaves it as it is."""
    pixel_values = processor(images=picture, return_tensors="pt").pixel_values
    words = processor(text=text, add_special_tokens=False).input_ids if text else []
    input_ids = torch.tensor([[processor.tokenizer.cls_token_id, *words]])

    def forced_logits(ids: Sequence[int]) -> torch.Tensor:
        return torch.zeros(1, len(ids))

    def generate(**settings: Any) -> torch.Tensor:
        return model.generate(input_ids=input_ids, pixel_values=pixel_values, num_beams=beams, **settings)

    return generated(
        generate, forced_logits, prompt_length=input_ids.shape[1], end_token_ids=(model.config.eos_token_id,)
    )


@pytest.mark.parametrize("beams", [1, 4])
def test_captions_are_those_of_generate(captioner: CaptionTask, model: Any, processor: Any, beams: int) -> None:
    compared, texts = 0, set()
    for number, picture in enumerate(noise_pictures(20)):
        prompt = PROMPTS[number % 4] if number % 4 < 3 else None
        expected = _generate(model, processor, picture, prompt or "", beams)
        if expected.steady:
            caption = captioner.caption(picture, prompt=prompt, beams=beams)
            assert caption.token_ids == expected.token_ids
            assert caption.text == processor.decode(expected.token_ids, skip_special_tokens=True).strip()
            compared += 1
            texts.add(caption.text)
    assert compared >= 15
    assert len(texts) >= 5


def test_answers_are_what_generate_says_after_the_question(answerer: VqaTask, model: Any, processor: Any) -> None:
    compared, texts = 0, set()
    for number, picture in enumerate(noise_pictures(20)):
        question = QUESTIONS[number % 3]
        expected = _generate(model, processor, picture, question, 1)
        if expected.steady:
            answer = answerer.ask(picture, question)
            assert answer.token_ids == expected.token_ids
            compared += 1
            texts.add(answer.answer)
    assert compared >= 15
    assert len(texts) >= 5


def test_a_batch_of_pictures_and_questions(answerer: VqaTask, captioner: CaptionTask) -> None:
    pictures = noise_pictures(4)
    questions = [QUESTIONS[number % 3] for number in range(4)]
    alone = [answerer.ask(*pair).token_ids for pair in zip(pictures, questions, strict=True)]
    assert [answer.token_ids for answer in answerer.ask_many(pictures, questions)] == alone
    one_by_one = [captioner.caption(picture, beams=2).token_ids for picture in pictures]
    assert [caption.token_ids for caption in captioner.caption_each(pictures, beams=2, errors="raise")] == one_by_one


def test_from_a_file_on_the_disk(captioner: CaptionTask, model: Any, processor: Any, tmp_path: Path) -> None:
    picture = noise_pictures(2, seed=9)[1]
    picture.save(tmp_path / "picture.png")
    expected = _generate(model, processor, picture, "", 1)
    assert captioner.caption(tmp_path / "picture.png").token_ids == expected.token_ids


def test_what_it_cannot_do(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task: expected caption, vqa, as .* is a model of GIT, found 'retrieval'"):
        export_checkpoint(folder, tmp_path / "out.xattn", task="retrieval")
    video = _folder(tmp_path / "video", 32, num_image_with_embedding=6)
    with pytest.raises(CheckpointError, match="num_image_with_embedding: expected none, or 1, found 6"):
        export_checkpoint(video, tmp_path / "out.xattn")
    assert not (tmp_path / "out.xattn").exists()


def test_a_text_begins_as_generate_begins_it(place: Path) -> None:
    """With `bos_token_id`, whatever a folder says of the start of a decoder behind an encoder."""
    folder = _folder(place / "git-start", 32)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"decoder_start_token_id": 7}))
    pixel_values = processor_of(folder)(images=noise_pictures(1), return_tensors="pt").pixel_values
    ids = GitForCausalLM.from_pretrained(folder).eval().generate(pixel_values=pixel_values, max_new_tokens=3)
    reference = family_of(folder).open(folder).reference
    assert isinstance(reference, Generates)
    assert reference.decoding.prompt_token_ids == (int(ids[0, 0]),)
