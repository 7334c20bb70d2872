"""preprocessor_config.json as versions of Transformers since 2021 wrote it, against the processor's own class of today.

Its Auto class reads some of these files no longer; the class that they name does.
"""

from __future__ import annotations

import importlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xattn_export.families.checkpoint_folder.images import image_steps, image_steps_of
from xattn_runtime.errors import CheckpointError
from xattn_runtime.preprocess.pipeline import Pipeline
from xattn_runtime.preprocess.steps import Resize

pytest.importorskip("transformers")

HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
OF_OLD = {"do_normalize": True, "do_resize": True, "resample": 2, **HALF}
# What the file holds, and the class that reads it.
FILES: list[tuple[str, dict[str, Any]]] = [
    ("ViT", {**OF_OLD, "size": 40}),  # of 2020, with no name at all
    ("ViT", {**OF_OLD, "size": 40, "feature_extractor_type": "ViTFeatureExtractor"}),
    ("ViT", {**OF_OLD, "size": 40, "image_processor_type": "ViTFeatureExtractor"}),
    ("ViT", {**OF_OLD, "size": [32, 80], "image_processor_type": "ViTFeatureExtractorFast"}),
    ("ViT", {"size": {"height": 31, "width": 47}, "image_processor_type": "ViTImageProcessorPil", "resample": 3}),
    ("ViT", {"size": 40, "feature_extractor_type": None, "image_processor_type": "ViTImageProcessor", "resample": 4}),
    ("ViT", {"size": 40, "image_processor_type": "ViTImageProcessor", "resample": 5, "do_rescale": None}),
    ("ViT", {"size": 40, "image_processor_type": "ViTImageProcessor", "resample": "bilinear", "num_channels": 3}),
    ("ViT", {"size": 40, "image_processor_type": "ViTImageProcessor", "do_resize": "org/the-model-of-another"}),
    ("ViT", {"image_processor_type": "ViTImageProcessor", "size": 40, "do_normalize": False, "image_mean": [0.1]}),
    ("DeiT", {"feature_extractor_type": "DeiTFeatureExtractor", "size": 50, "crop_size": 40, "do_center_crop": True}),
    ("DeiT", {"image_processor_type": "DeiTFeatureExtractor", "model_type": "deit", "size": [50, 60]}),
    ("DeiT", {"image_processor_type": "DeiTImageProcessor", "do_center_crop": False, "crop_size": [1, 2], "size": 40}),
    ("Beit", {**OF_OLD, "feature_extractor_type": "BeitFeatureExtractor", "reduce_labels": True, "size": 40}),
    ("Beit", {"image_processor_type": "BeitFeatureExtractor", "do_reduce_labels": True, "size": 40, "crop_size": 30}),
    ("CLIP", {"image_processor_type": "CLIPFeatureExtractor", "size": 40, "crop_size": 32, "resample": 3}),
    ("CLIP", {"feature_extractor_type": "CLIPFeatureExtractor", "size": [40, 50], "crop_size": [32, 36]}),
    ("CLIP", {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 40}, "do_resize": False}),
    ("ChineseCLIP", {"image_processor_type": "ChineseCLIPFeatureExtractor", "do_center_crop": False, "size": [40, 40]}),
    ("Blip", {"image_processor_type": "BlipImageProcessor", "size": 50, "size_divisor": 32, "do_pad": True}),
    ("Blip", {"image_processor_type": "BlipImageProcessorFast", "size": 50, "crop_pct": 0.9, "interpolation": "box"}),
    ("Siglip", {"image_processor_type": "SiglipImageProcessor", "size": {"height": 48, "width": 40}, "crop_size": 8}),
    ("Siglip", {"image_processor_type": "SiglipImageProcessor", "size": [48, 40], "image_grid_pinpoints": [[9, 9]]}),
    ("Siglip", {"image_processor_type": "SiglipImageProcessor", "size": [40, 9], "do_normalize": None}),
    ("CLIP", {"feature_extractor_type": "CLIPFeatureExtractor", "size": 40, "crop_size": 32, "do_convert_rgb": None}),
    ("Bit", {"image_processor_type": "BitImageProcessor", "size": 40, "crop_size": 32, "video_sampling": {"fps": 1}}),
    ("Vilt", {"feature_extractor_type": "ViltFeatureExtractor", "size": 64, "size_divisor": 32, "resample": 3}),
    ("Vilt", {"image_processor_type": "ViltFeatureExtractor", "size": {"shortest_edge": 64, "longest_edge": 70}}),
]
IDS = [f"{number} {name}" for number, (name, _) in enumerate(FILES)]


def _noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def _put(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def _by_its_class(folder: Path, name: str, image: Image.Image) -> np.ndarray:
    snake = "chinese_clip" if name == "ChineseCLIP" else name.lower()
    module = importlib.import_module(f"transformers.models.{snake}.image_processing_pil_{snake}")
    processor = getattr(module, f"{name}ImageProcessorPil").from_pretrained(folder)
    return np.asarray(processor(images=image, return_tensors="np")["pixel_values"][0])


@pytest.mark.parametrize(("name", "content"), FILES, ids=IDS)
def test_a_published_file_gives_the_pixels_of_its_class(name: str, content: dict[str, Any], tmp_path: Path) -> None:
    _put(tmp_path, "config.json", {"model_type": "vision-encoder-decoder", "encoder": {"model_type": "vit"}})
    _put(tmp_path, "preprocessor_config.json", content)
    pipeline = Pipeline(image_steps_of(tmp_path))
    for image in (_noise(90, 61), _noise(41, 67)):
        expected = _by_its_class(tmp_path, name, image)
        actual = pipeline(image)[:, : expected.shape[1], : expected.shape[2]]  # ViLT's is padded
        assert np.array_equal(actual, expected)


def test_a_switch_that_is_null_is_off(tmp_path: Path) -> None:
    """So transparency is dropped, as `load_image` drops it before a processor that does not convert."""
    _put(tmp_path, "preprocessor_config.json", {"image_processor_type": "BlipImageProcessor", "do_convert_rgb": None})
    image = Image.merge("RGBA", (*_noise(30, 20).split(), _noise(30, 20).getchannel("G")))
    expected = _by_its_class(tmp_path, "Blip", image.convert("RGB"))
    assert np.array_equal(Pipeline(image_steps_of(tmp_path))(image), expected)


def test_settings_that_stand_in_processor_config_themselves_are_read(tmp_path: Path) -> None:
    _put(tmp_path, "processor_config.json", {"image_processor_type": "ViTFeatureExtractor", "size": 20, "resample": 3})
    assert Resize(20, 20, "bicubic") in image_steps_of(tmp_path)


def test_two_sides_are_width_and_height_where_only_that_fits_the_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _put(
        tmp_path,
        "preprocessor_config.json",
        {**OF_OLD, "feature_extractor_type": "ViTFeatureExtractor", "size": [96, 16]},
    )
    with caplog.at_level(logging.INFO, "xattn_export"):
        assert Resize(96, 16, "bilinear") in image_steps(tmp_path, 96, 16)
        assert not caplog.records
        assert Resize(16, 96, "bilinear") in image_steps(tmp_path, 16, 96)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'preprocessor_config.json'}: size: [96, 16] is read as width and height, since the model's "
        "images are 16 pixels high and 96 wide"
    ]
    with pytest.raises(CheckpointError, match="expected image preprocessing to 32 × 96 pixels"):
        image_steps(tmp_path, 32, 96)


def test_what_leaves_resizing_to_others_is_refused_with_the_size_to_write(tmp_path: Path) -> None:
    _put(tmp_path, "preprocessor_config.json", {"image_processor_type": "ViTImageProcessor", "do_resize": False})
    with pytest.raises(CheckpointError) as caught:
        image_steps(tmp_path, 16, 96)
    assert str(caught.value) == (
        f"{tmp_path / 'preprocessor_config.json'}: do_resize: expected true, since a graph takes images of one size, "
        'found False; write "do_resize": true and "size": {"height": 16, "width": 96}, if the model was trained so'
    )
