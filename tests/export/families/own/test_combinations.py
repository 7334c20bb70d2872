"""Mechanisms, fusions and encoders together, all the way: bundle, int8 bundle, and the same answers on the device."""

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from tests.export.conftest import ANSWERS, QUESTION_WORDS, preprocessing, randomize, tokenizer
from tests.support.slow import slow_after
from xattn_edge.attention import MECHANISMS, AttentionOptions, MechanismConfig
from xattn_edge.encoders import IMAGE_ENCODERS, TEXT_ENCODERS, ImageEncoderConfig, TextEncoderConfig
from xattn_edge.fusion import FusionConfig
from xattn_edge.models import Checkpoint, VqaConfig, build_model, save_checkpoint
from xattn_export import export_checkpoint, inspect_path, quantize_bundle
from xattn_export.decompose import decompose_attention
from xattn_export.families.table import family_of
from xattn_export.graph.conformance import examine
from xattn_export.parity import check_parity
from xattn_runtime import load
from xattn_runtime.verify.golden import verify_bundle

SIDE_PX, WIDTH = 16, 32
SOFT = AttentionOptions(heads=2, similarity="scaled_dot")
HARD = AttentionOptions(heads=2, weighting="hard")

# Every mechanism and encoder; test_fusions.py has the fusions that are missing here. Graphs are made of their parts.
COMBINATIONS = [
    ("text_to_image", "concatenation", "cnn", "lstm", HARD),
    ("image_to_text", "late_mean", "patches", "transformer", SOFT),
    ("two_way", "dynamic", "patches", "lstm", AttentionOptions(heads=4, kv_heads=2, similarity="cosine")),
    ("multi_hop", "bilinear", "patches", "lstm", AttentionOptions()),
    ("self", "hybrid", "patches", "lstm", AttentionOptions(similarity="additive")),
    ("hierarchical", "late_learned", "patches", "lstm", SOFT),
    ("graph", "adaptive", "patches", "lstm", SOFT),
]


def test_the_combinations_hold_every_mechanism_and_encoder():
    mechanisms, _, images, texts, _ = (set(column) for column in zip(*COMBINATIONS, strict=True))
    assert (mechanisms, images, texts) == (set(MECHANISMS), set(IMAGE_ENCODERS), set(TEXT_ENCODERS))


def write_checkpoint(path: Path, mechanism, fusion, image, text, options):
    made = tokenizer(QUESTION_WORDS)
    own = {"channels": (16, 32), "blocks": (1,)} if image == "cnn" else {"patch_px": 4}
    config = VqaConfig(
        image=ImageEncoderConfig(name=image, image_size_px=SIDE_PX, layers=int(text == "transformer"), heads=2, **own),
        text=TextEncoderConfig(
            name=text,
            vocabulary=made.get_vocab_size(),
            max_tokens=10,
            layers=int(text == "transformer"),
            heads=2,
        ),
        mechanism=MechanismConfig(name=mechanism, options=options, hops=2, neighbours=2),
        fusion=FusionConfig(name=fusion, weights=(2.0, 1.0) if fusion == "late_weighted" else None),
        layers=1,
        width=WIDTH,
        dropout=0.1,
        answers=ANSWERS,
    )
    model = build_model(config).eval()
    randomize(model)
    checkpoint = Checkpoint(path, "vqa", "tiny", "Apache-2.0", config, model, made.to_str(), preprocessing(SIDE_PX), {})
    save_checkpoint(checkpoint)
    return model, made


def check_decomposed(bundle, source):
    """The other form of the classifier, made of its graph as the exporter does, is standard and equals torch, too."""
    role = next(role for role in source.roles if role.name == "classifier")
    model = onnx.load(bundle / "graphs" / "classifier.onnx")
    facts = examine(model)
    assert (facts.operators.get("Attention", 0) > 0) == role.attends
    decomposed = decompose_attention(model, opset=18)
    assert examine(decomposed).standard
    assert "Attention" not in examine(decomposed).operators
    assert check_parity(decomposed, role).cases == 8


@pytest.mark.parametrize(("mechanism", "fusion", "image", "text", "options"), slow_after(1, COMBINATIONS))
def test_the_whole_way(tmp_path, mechanism, fusion, image, text, options):
    model, words = write_checkpoint(tmp_path / "checkpoint", mechanism, fusion, image, text, options)
    bundle, small = tmp_path / "tiny.xattn", tmp_path / "small.xattn"
    assert family_of(tmp_path / "checkpoint").name == "xattn-edge vqa"
    report = export_checkpoint(tmp_path / "checkpoint", bundle, command="pytest")
    assert report.to_dict()["standard"]
    check_decomposed(bundle, family_of(tmp_path / "checkpoint").open(tmp_path / "checkpoint"))
    quantize_bundle(bundle, small, command="pytest")
    for path, precision in ((bundle, "fp32"), (small, "int8")):
        assert verify_bundle(path).passed
        inspected = inspect_path(path).to_dict()
        assert inspected["standard"]
        assert inspected["graphs"]["classifier"]["precision"] == precision
    question = "what color is the shape ?"
    pixels = np.random.default_rng(5).integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    ids = torch.tensor([words.encode(question).ids])
    normal = (torch.from_numpy(pixels / np.float32(255)) - 0.5) / 0.25
    with torch.inference_mode():
        expected = model(normal.permute(2, 0, 1)[None], ids, torch.ones_like(ids)).softmax(-1)[0]
    answer = load(bundle).ask(stream.getvalue(), question)
    best = int(expected.argmax())
    assert answer.answer == ANSWERS[best]
    assert answer.confidence == pytest.approx(float(expected[best]), rel=1e-3)
    assert load(small).ask(stream.getvalue(), question).answer in ANSWERS
