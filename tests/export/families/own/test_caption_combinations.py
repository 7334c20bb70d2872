"""Captioning by any similarity, weighting, fusion and image encoder, all the way to the device."""

import io

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from tests.export.conftest import CAPTION_WORDS, preprocessing, randomize, tokenizer
from tests.support.slow import slow_after
from xattn_edge.attention import MECHANISMS, AttentionOptions, MechanismConfig
from xattn_edge.encoders import ImageEncoderConfig
from xattn_edge.fusion import FUSIONS, FusionConfig
from xattn_edge.models import CaptionConfig, Checkpoint, build_model, save_checkpoint
from xattn_export import export_checkpoint, inspect_path, quantize_bundle
from xattn_export.decompose import decompose_attention
from xattn_export.families.table import family_of
from xattn_export.parity import check_parity
from xattn_runtime import load
from xattn_runtime.verify.golden import verify_bundle

SIDE_PX, WIDTH, MOST = 16, 32, 9
CNN = ImageEncoderConfig(name="cnn", image_size_px=SIDE_PX, channels=(16, 32), blocks=(1,), layers=1, heads=2)
PATCHES = ImageEncoderConfig(name="patches", image_size_px=SIDE_PX, patch_px=4)
SOFT = AttentionOptions(heads=2, similarity="scaled_dot")
COMBINATIONS = [
    (CNN, "concatenation", AttentionOptions(heads=4, kv_heads=2, similarity="cosine")),
    (PATCHES, "dynamic", AttentionOptions(heads=2, weighting="hard")),
    (PATCHES, "late_mean", AttentionOptions(heads=2, similarity="additive")),
]


def config(image=PATCHES, fusion="concatenation", options=SOFT, mechanism="text_to_image", **others):
    return CaptionConfig(
        image=image,
        mechanism=MechanismConfig(name=mechanism, options=options),
        fusion=FusionConfig(name=fusion, weights=(2.0, 1.0) if fusion == "late_weighted" else None),
        vocabulary=CAPTION_WORDS + 4,
        **{"layers": 2, "width": WIDTH, "dropout": 0.1, "max_tokens": MOST + 1} | others,
        pad_token_id=0,
        start_token_id=2,
        end_token_id=3,
    )


def calm(model):
    """Let what is read weigh less: where hard attention looks must not turn on the rounding of int8."""
    with torch.no_grad():
        model.image_norm.weight.mul_(0.1)
        for name, tensor in model.layers.named_parameters():
            if name.endswith(("out_linear.weight", "after.0.1.3.weight")):
                tensor.mul_(0.2)


def write_checkpoint(path, chosen):
    model = build_model(chosen).eval()
    randomize(model)
    calm(model)
    words = tokenizer(tuple(f"word{number}" for number in range(CAPTION_WORDS))).to_str()
    save_checkpoint(Checkpoint(path, "caption", "tiny", "Apache-2.0", chosen, model, words, preprocessing(SIDE_PX), {}))
    return model


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_step_at_a_time_is_a_caption_at_once(fusion):
    """Fusion and grouped queries beside a KV cache."""
    model = build_model(config(fusion=fusion, options=AttentionOptions(heads=4, kv_heads=2))).eval()
    randomize(model)
    pixels, ids = torch.randn(2, 3, SIDE_PX, SIDE_PX), torch.randint(4, 300, (2, 5))
    with torch.inference_mode():
        at_once = model(pixels, ids)
        past, cross = model.empty_cache(2), model.encode_image(pixels)
        for step in range(5):
            logits, past = model.decode(ids[:, step : step + 1], past, cross)
            assert torch.allclose(logits[:, 0], at_once[:, step], atol=1e-5)
        assert not torch.allclose(model(pixels.flip(0), ids), at_once, atol=1e-3)


def test_a_word_does_not_depend_on_those_to_come():
    model = build_model(config()).eval()
    randomize(model)
    pixels, ids = torch.randn(1, 3, SIDE_PX, SIDE_PX), torch.randint(4, 300, (1, 5))
    other = ids.clone()
    other[:, 3] = 5
    with torch.inference_mode():
        logits, changed = model(pixels, ids), model(pixels, other)
    assert torch.allclose(logits[:, :3], changed[:, :3], atol=1e-6)
    assert not torch.allclose(logits[:, 3:], changed[:, 3:], atol=1e-3)


@pytest.mark.parametrize(("image", "fusion", "options"), slow_after(1, COMBINATIONS))
def test_the_whole_way(tmp_path, image, fusion, options):
    model = write_checkpoint(tmp_path / "checkpoint", config(image, fusion, options))
    bundle, small = tmp_path / "tiny.xattn", tmp_path / "small.xattn"
    source = family_of(tmp_path / "checkpoint").open(tmp_path / "checkpoint")
    export_checkpoint(tmp_path / "checkpoint", bundle, command="pytest")
    quantize_bundle(bundle, small, command="pytest")
    decomposed = decompose_attention(onnx.load(bundle / "graphs" / "decoder.onnx"), opset=18)
    assert "Attention" not in {node.op_type for node in decomposed.graph.node}
    assert check_parity(decomposed, source.roles[1]).cases > 1
    for path in (bundle, small):
        assert inspect_path(path).to_dict()["standard"]
        assert verify_bundle(path).passed
    pixels = np.random.default_rng(5).integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    normal = (torch.from_numpy(pixels / np.float32(255)) - 0.5) / 0.25
    expected = model.generate(normal.permute(2, 0, 1)[None])[0][:MOST]
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    assert list(load(bundle).caption(stream.getvalue()).token_ids) == expected
    assert len(set(expected)) > 1
    whole = onnxruntime.InferenceSession(bundle / "graphs" / "whole.onnx")
    assert whole.run(["token_ids"], {"images": pixels[None]})[0][0, : len(expected)].tolist() == expected
    assert load(small).caption(stream.getvalue()).token_ids


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        *(
            ({"mechanism": name}, f"mechanism: expected text_to_image, .*found {name}, .*yet to come")
            for name in MECHANISMS
            if name != "text_to_image"
        ),
        ({"layers": 0}, "layers: expected at least 1, found 0"),
        ({"width": 33}, "mechanism: heads: expected a divisor of the width 33, found 2"),
        ({"image": CNN, "options": AttentionOptions(), "width": 33}, "image encoder: heads: .* 33, found 2"),
    ],
)
def test_what_does_not_go_together(changed, said):
    with pytest.raises(ValueError, match=said):
        config(**changed)
