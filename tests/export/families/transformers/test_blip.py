"""BLIP as Transformers computes it, from a picture file on: captions, answers, embeddings, at every step."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
)
from typer.testing import CliRunner

from tests.export.families.conftest import bert_vocabulary, noise_pictures, processor_of
from tests.parity.blip import answerer, captioner, embedder, matcher, save_blip
from tests.parity.parity import embedding_error, generated_agreement, logits_error, pixel_error
from tests.support.slow import slow_after
from xattn_edge.commands.app import app
from xattn_export import export_checkpoint
from xattn_export.bundle.attention_role import attention_graph
from xattn_export.graph.reading import read_graph
from xattn_runtime.bundle.folder import Bundle, open_bundle
from xattn_runtime.bundle.manifest import Golden
from xattn_runtime.errors import CheckpointError
from xattn_runtime.loader import load
from xattn_runtime.preprocess.pipeline import Pipeline
from xattn_runtime.verify.golden import measure, verify_bundle

TOLERANCE = 1e-4
WORDS = bert_vocabulary(("[DEC]",))
QUESTIONS = ("what color is the circle?", "is there a red square, on the triangle?", "yes")
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 56, "hidden_size": 48}
SMALL = {
    "text": {**LAYERS, "encoder_hidden_size": 48, "max_position_embeddings": 31},
    "vision": {**LAYERS, "patch_size": 7},
}
OTHER = {
    "text": {**LAYERS, "encoder_hidden_size": 40, "max_position_embeddings": 44, "hidden_act": "relu"},
    "vision": {**LAYERS, "hidden_size": 40, "num_attention_heads": 5, "num_hidden_layers": 3, "patch_size": 9},
}
# name → class, size of pictures, sizes of layers, form of attention, reference
MODELS: dict[str, tuple[Any, int, Any, Any, Callable[[Path], Any]]] = {
    "captions": (BlipForConditionalGeneration, 35, SMALL, "standard", captioner),
    "other-captions": (BlipForConditionalGeneration, 63, OTHER, "decomposed", captioner),
    "answers": (BlipForQuestionAnswering, 49, SMALL, "decomposed", answerer),
    "embeddings": (BlipForImageTextRetrieval, 63, OTHER, "standard", embedder),
}


@pytest.fixture(scope="session")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path, Any]]:
    """Folder, bundle and reference of one of the models, made once."""
    made: dict[str, tuple[Path, Path, Any]] = {}
    place = tmp_path_factory.mktemp("blip")

    def get(name: str) -> tuple[Path, Path, Any]:
        if name not in made:
            model_class, image_size, sizes, attention, reference = MODELS[name]
            folder = save_blip(place / name, model_class, WORDS, image_size, **sizes)
            export_checkpoint(folder, place / f"{name}.xattn", attention=attention, command="pytest")
            made[name] = folder, place / f"{name}.xattn", reference(folder)
        return made[name]

    return get


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", slow_after(1, ["captions", "answers", "other-captions"]))
def test_logits_at_every_step(blip, name, batch):
    _, bundle, reference = blip(name)
    question = QUESTIONS[1] if name == "answers" else None
    assert logits_error(bundle, reference, noise_pictures(batch), steps=18, question=question) < TOLERANCE


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("name", slow_after(2, ["captions", "answers", "other-captions"]))
def test_what_is_generated(blip, files, name, beams):
    _, bundle, reference = blip(name)
    questions = QUESTIONS if name == "answers" else ()
    found = generated_agreement(bundle, reference, files, beams=beams, questions=questions)
    assert found.equal == found.compared
    # Enough of them for the equality to mean something.
    assert found.compared >= 12
    assert found.different_texts >= 6


@pytest.mark.parametrize("name", slow_after(2, ["captions", "answers", "other-captions"]))
def test_pixels(blip, name):
    _, bundle, reference = blip(name)
    assert pixel_error(bundle, reference, noise_pictures(20)) < 1e-6


@pytest.mark.slow
def test_embeddings(blip, files):
    _, bundle, embed = blip("embeddings")
    texts = [QUESTIONS[number % 3] for number in range(len(files))]
    assert embedding_error(bundle, files, texts, embed) < 1e-5


def test_texts_and_pictures_that_belong_together(blip, files):
    """Logits of the matching head, of texts of several lengths, against the model's own; and added to the cosines."""
    folder, bundle, _ = blip("embeddings")
    task, match = load(bundle, task="retrieval"), matcher(folder)
    assert task.reranks
    cosines = np.linspace(-1, 1, len(files))
    for question in QUESTIONS:
        expected = np.array([match(file, question) for file in files])
        assert np.ptp(expected) > 100 * TOLERANCE
        found = task.rerank(question, files, cosines) - cosines
        assert np.abs(found - expected).max() <= TOLERANCE * max(1, np.abs(expected).max())


def test_what_is_nearest_is_looked_at_again(blip, files):
    folder, bundle, _ = blip("embeddings")
    arguments = ["retrieve", QUESTIONS[0], "--in", str(files[0].parent), "--bundle", str(bundle), "--json"]
    result = CliRunner().invoke(app, [*arguments, "--rerank", "20", "--top-k", "20"])
    assert result.exit_code == 0, result.output
    found, match = json.loads(result.stdout)["results"], matcher(folder)
    scores = [each["cosine"] + match(Path(each["image"]), QUESTIONS[0]) for each in found]
    assert len(found) == 20
    assert scores == sorted(scores, reverse=True)
    cosines = [each["cosine"] for each in found]
    assert cosines != sorted(cosines, reverse=True)


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
def test_a_prompt_is_gone_on_from(blip, files):
    folder, bundle, _ = blip("captions")
    processor, model = processor_of(folder), BlipForConditionalGeneration.from_pretrained(folder)
    task = load(bundle, task="caption")
    texts = set()
    for file in files[:8]:
        with Image.open(file) as picture:
            inputs = processor(images=picture, text="a red circle", return_tensors="pt")
        # The last of the prompt's tokens is `[SEP]`, which generate() takes off.
        new = model.generate(**inputs)[0, inputs.input_ids.shape[1] - 1 :]
        found = task.caption(file, prompt="a red circle")
        assert found.text == processor.decode(new, skip_special_tokens=True).strip()
        texts.add(found.text)
    assert len(texts) > 2


def test_questions_are_answered_together_as_alone(blip, files):
    _, bundle, _ = blip("answers")
    task = load(bundle, task="vqa")
    questions = [QUESTIONS[number % 3] for number in range(7)]
    together = task.ask_many(files[:7], questions)
    for file, question, found in zip(files, questions, together, strict=False):
        alone = task.ask(file, question)
        assert (found.answer, found.token_ids) == (alone.answer, alone.token_ids)
        assert found.confidence == pytest.approx(alone.confidence, rel=1e-3)
        assert found.top == ((found.answer, found.confidence),)


def test_encode_once_ask_many(blip, files):
    _, bundle, _ = blip("answers")
    task = load(bundle, task="vqa")
    encoded = task.encode(files[0])
    assert [task.ask(encoded, question).token_ids for question in QUESTIONS] == [
        task.ask(files[0], question).token_ids for question in QUESTIONS
    ]


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
def test_a_caption_is_what_transformers_writes(blip, files):
    """Of all that `generate()` returns: this tokenizer has the token that it begins with for a word."""
    folder, bundle, reference = blip("captions")
    tokenizer, task = AutoTokenizer.from_pretrained(folder), load(bundle, task="caption")
    for file in files[:3]:
        ids = reference.generate(reference.pixels([Image.open(file)]), None)[0]
        expected = tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert expected.startswith("[DEC]")
        assert task.caption(file).text == expected


def test_what_the_bundles_say(blip):
    captions, answers, embeddings = (
        open_bundle(blip(name)[1]).manifest for name in ("captions", "answers", "embeddings")
    )
    assert [manifest.task for manifest in (captions, answers, embeddings)] == ["caption", "vqa", "retrieval"]
    assert list(answers.graphs) == ["image_encoder", "text_encoder", "decoder", "generator", "whole"]
    assert (captions.name, captions.license, captions.provenance.source) == ("captions", "NOASSERTION", "captions")
    assert captions.decoding == answers.decoding
    assert captions.decoding is not None
    assert (captions.decoding.prompt_token_ids, captions.decoding.end_token_ids) == ((len(WORDS) - 1,), (3,))
    assert (captions.decoding.max_new_tokens, captions.decoding.max_positions) == (20, 31)
    assert embeddings.decoding is None
    assert list(embeddings.graphs) == ["image_encoder", "text_encoder", "reranker"]
    assert embeddings.similarity is not None
    assert embeddings.similarity.kind == "cosine"


@pytest.mark.parametrize("name", slow_after(1, list(MODELS)))
def test_golden_cases_hold_and_mean_something(blip, name, tmp_path):
    """They hold as exported; and fail when the picture is another one."""
    _, bundle, _ = blip(name)
    report = verify_bundle(bundle)
    assert report.passed
    assert max(case.measure.relative_rms for case in report.cases) < 1e-5
    task = load(bundle)
    cases = task.bundle.manifest.golden.cases
    swapped = replace(cases[0], image=cases[-1].image)
    manifest = replace(task.bundle.manifest, golden=Golden(1e-3, (swapped,)))
    task.bundle = Bundle(bundle, manifest)
    assert measure(task)[0].relative_rms > 1e-2


def test_the_command_line(blip, files):
    def run(*arguments: object) -> Any:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    _, bundle, _ = blip("captions")
    found = run("caption", files[0], "--bundle", bundle, "--beams", 2, "--prompt", "a red", "--json")["results"][0]
    assert found["token_ids"]
    found = run("vqa", files[0], QUESTIONS[0], "--bundle", blip("answers")[1], "--beams", 2, "--json")
    assert found["answer"] == found["top"][0]["answer"]
    assert 0 < found["confidence"] < 1
    retrieve = ("retrieve", "--in", files[0].parent, "--bundle", blip("embeddings")[1], "--top-k", 3, "--json")
    found = run(*retrieve, "a red circle")["results"]
    assert [result["cosine"] for result in found] == sorted((result["cosine"] for result in found), reverse=True)
    found = run(*retrieve, files[4])["results"]
    assert (len(found), found[0]["image"]) == (3, str(files[4]))
    assert found[0]["cosine"] == pytest.approx(1, abs=1e-5)


def test_other_sizes_than_the_processor_gives(blip, tmp_path):
    folder = tmp_path / "large"
    shutil.copytree(blip("captions")[0], folder)
    config = json.loads((folder / "processor_config.json").read_text())
    config["image_processor"]["size"] = {"height": 42, "width": 42}
    (folder / "processor_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"expected image preprocessing to 35 × 35 pixels, .*, found 42 × 42"):
        export_checkpoint(folder, tmp_path / "large.xattn")
    assert not (tmp_path / "large.xattn").exists()


@pytest.mark.parametrize("name", slow_after(2, ["captions", "answers", "other-captions"]))
def test_attention_weights(blip, name, tmp_path):
    """Of the text to the picture, in the graph that tells them: those that the model itself gives."""
    folder, bundle, _ = blip(name)
    copy = Path(shutil.copytree(bundle, tmp_path / "copy.xattn"))
    role, series = ("text_encoder", "image") if name == "answers" else ("decoder", "cross")
    graph = attention_graph(read_graph(copy / "graphs" / f"{role}.onnx"), series, keeps_logits=name != "answers")
    (copy / "graphs" / "attention.onnx").write_bytes(graph.SerializeToString())
    session = onnxruntime.InferenceSession(copy / "graphs" / "attention.onnx", providers=["CPUExecutionProvider"])
    model = MODELS[name][0].from_pretrained(folder, attn_implementation="eager").eval()
    pipeline = Pipeline(open_bundle(bundle).manifest.image_steps)
    pixels = torch.from_numpy(pipeline(noise_pictures(1)[0]))[None]
    encoder = onnxruntime.InferenceSession(copy / "graphs" / "image_encoder.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in encoder.get_outputs()]
    seen = dict(zip(names, encoder.run(names, {"pixel_values": pixels.numpy()}), strict=True))
    ids = np.array([[5, 9, 7, 12, 6]])
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for value in session.get_inputs():
        if value.name.startswith("past"):
            inputs[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    inputs |= {name: tensor for name, tensor in seen.items() if name.startswith(series)}
    taken = {value.name for value in session.get_inputs()}
    found = session.run(None, {name: tensor for name, tensor in inputs.items() if name in taken})
    weights = [each for output, each in zip(session.get_outputs(), found, strict=True) if "attention" in output.name]
    text = model.text_encoder if name == "answers" else model.text_decoder
    with torch.inference_mode():
        states = model.vision_model(pixels).last_hidden_state
        given = text(torch.from_numpy(ids), encoder_hidden_states=states, output_attentions=True)
    assert len(weights) == len(given.cross_attentions) == 2
    for one, other in zip(weights, given.cross_attentions, strict=True):
        assert np.allclose(one, other.numpy(), atol=1e-5)
        assert one.std() > 1e-4
