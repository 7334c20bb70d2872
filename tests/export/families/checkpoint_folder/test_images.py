"""Pixels of the runtime against those of Transformers' own image processors (the Pillow-backed ones), bit for bit.

The processor gets the picture as its users would hand it over: turned upright, and where it does not convert to RGB
itself, through `load_image`, which does.
"""

from __future__ import annotations

import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from xattn_export.families.checkpoint_folder.images import image_steps_of
from xattn_runtime.errors import CheckpointError
from xattn_runtime.preprocess.pipeline import Pipeline
from xattn_runtime.preprocess.steps import (
    CenterCrop,
    Flatten,
    Normalize,
    PadZeros,
    Rescale,
    Resize,
    ResizeShortestEdge,
    ResizeToMultiple,
)

pytest.importorskip("transformers")

MODULES = {
    "Beit": "beit",
    "Bit": "bit",
    "Blip": "blip",
    "CLIP": "clip",
    "ChineseCLIP": "chinese_clip",
    "DeiT": "deit",
    "Idefics3": "idefics3",
    "Siglip": "siglip",
    "SmolVLM": "smolvlm",
    "ViT": "vit",
    "Vilt": "vilt",
}
TILED = ("Idefics3", "SmolVLM")
HALF = (0.5, 0.5, 0.5)
CROPPED = {"do_center_crop": True}
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("Beit", {"do_center_crop": True, "size": 250}),
    ("Bit", {"size": {"shortest_edge": 33}, "crop_size": 32}),
    ("Blip", {"size": {"height": 33, "width": 57}, "resample": 0, "do_normalize": False}),
    ("Blip", {"size": 48, "do_rescale": False, "image_mean": 90.5, "image_std": [51.0, 52.5, 53.0]}),
    ("Blip", {"size": 48, "do_rescale": False, "do_normalize": False, "do_convert_rgb": True}),
    ("Blip", {"size": 48, "do_convert_rgb": False, "rescale_factor": 1 / 127.5}),
    ("Blip", {"size": 40, "do_pad": True, "pad_size": {"height": 64, "width": 41}}),
    ("Blip", {"size": 40, "do_pad": True, **CROPPED, "crop_size": {"height": 39, "width": 51}}),
    ("CLIP", {"size": {"shortest_edge": 37}, "crop_size": {"height": 31, "width": 45}}),
    ("CLIP", {"size": {"shortest_edge": 24}, "crop_size": {"height": 51, "width": 20}, "resample": 1}),
    ("CLIP", {"size": {"shortest_edge": 30, "longest_edge": 44}, "crop_size": 40}),
    ("CLIP", {"do_resize": False, "crop_size": 65}),
    ("CLIP", {"size": {"height": 76, "width": 77}, "do_center_crop": False, "resample": 2}),
    ("DeiT", {"size": 45, "crop_size": 38}),
    ("Siglip", {"size": {"height": 50, "width": 70}, "resample": 2}),
    ("ViT", {"size": 41, "resample": 3, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}),
    ("ViT", {"size": 30, "do_convert_rgb": True}),
    ("Vilt", {"size": {"shortest_edge": 96}, "size_divisor": 16, "resample": 2}),
    ("Vilt", {"size": 50, "do_pad": True, "do_normalize": False}),
    ("Idefics3", {"size": {"longest_edge": 200}, "max_image_size": {"longest_edge": 64}}),
    ("Idefics3", {"size": {"longest_edge": 201}, "max_image_size": {"longest_edge": 64}, "resample": 3}),
    ("Idefics3", {"do_image_splitting": False, "max_image_size": {"longest_edge": 50}, "do_normalize": False}),
    ("Idefics3", {"size": {"height": 90, "width": 150}, "max_image_size": {"longest_edge": 50}}),
    ("Idefics3", {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 64}}),
    ("SmolVLM", {"do_resize": False, "max_image_size": {"longest_edge": 300}}),
]
# Of these, some processors make pictures with a side of 0 pixels, and fail.
THIN = ("1 × 4000.png", "4 × 900.png")


def _noise(width: int, height: int) -> Image.Image:
    """Noise over a slope: every pixel matters, and so does where it is."""
    random = np.random.default_rng(width * 10_000 + height)
    y, x = np.mgrid[0:height, 0:width]
    slopes = np.stack([x / width, y / height, (x + y) / (width + height)], axis=2) * 200
    return Image.fromarray((slopes + random.integers(0, 56, (height, width, 3))).astype(np.uint8))


def _alpha(width: int, height: int) -> Image.Image:
    return _noise(width, height).getchannel("G").point(lambda value: 255 if value > 160 else value)


def _with_alpha(mode: str, width: int, height: int) -> Image.Image:
    picture = _noise(width, height).convert(mode)
    picture.putalpha(_alpha(width, height))
    return picture


def _palette(width: int, height: int) -> Image.Image:
    return _noise(width, height).quantize(40)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    turned = Image.Exif()
    turned[0x0112] = 6
    made: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "1 × 1.png": (_noise(1, 1), {}),
        "1 × 4000.png": (_noise(1, 4000), {}),
        "4 × 900.png": (_noise(4, 900), {}),
        "7 × 5.png": (_noise(7, 5), {}),
        "portrait.png": (_noise(301, 401), {}),
        "3000 × 2000.bmp": (_noise(3000, 2000), {}),
        "grey.png": (_noise(90, 61).convert("L"), {}),
        "black and white.png": (_noise(90, 61).convert("1"), {}),
        "grey with alpha.png": (_with_alpha("L", 61, 90), {}),
        "colour with alpha.png": (_with_alpha("RGB", 90, 61), {}),
        "palette.png": (_palette(90, 61), {}),
        "palette with one clear colour.png": (_palette(90, 61), {"transparency": 3}),
        "palette with alpha.png": (_palette(90, 61), {"transparency": bytes(range(0, 240, 6))}),
        "colour with one clear colour.png": (_noise(8, 6), {"transparency": _noise(8, 6).getpixel((3, 3))}),
        "CMYK.jpg": (_noise(90, 61).convert("CMYK"), {"quality": 90}),
        "turned.jpg": (_noise(90, 61), {"quality": 90, "exif": turned}),
    }
    for name, (picture, options) in made.items():
        picture.save(folder / name, **options)
    return {name: folder / name for name in made}


def _processor(name: str, **settings: Any) -> Any:
    module = importlib.import_module(f"transformers.models.{MODULES[name]}.image_processing_pil_{MODULES[name]}")
    return getattr(module, f"{name}ImageProcessorPil")(**settings)


def _as_handed_over(processor: Any, path: Path) -> Image.Image:
    from transformers.image_utils import load_image

    if processor.do_convert_rgb:
        return ImageOps.exif_transpose(Image.open(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, that the alpha of a palette gets lost, which is what is asked for
        return load_image(str(path))


def _pixels(processor: Any, picture: Image.Image) -> np.ndarray:
    """What the processor gives for one picture; ViLT's as in a batch with the widest and the tallest it can give."""
    beside = [Image.new("RGB", size) for size in ((300, 180), (180, 300))] if _is_vilt(processor) else []
    return np.asarray(processor(images=[picture, *beside], return_tensors="np")["pixel_values"][0])


def _is_vilt(processor: Any) -> bool:
    return type(processor).__name__ == "ViltImageProcessorPil"


def _pipeline(processor: Any, folder: Path) -> Pipeline:
    processor.save_pretrained(folder)
    return Pipeline(image_steps_of(folder))


@pytest.mark.parametrize("name", MODULES)
def test_defaults_give_the_processors_own_pixels(name: str, pictures: dict[str, Path], tmp_path: Path) -> None:
    _compare(_processor(name), pictures, tmp_path)


@pytest.mark.parametrize(("name", "settings"), SETTINGS, ids=[f"{name} {settings}" for name, settings in SETTINGS])
def test_settings_give_the_processors_own_pixels(
    name: str, settings: dict[str, Any], pictures: dict[str, Path], tmp_path: Path
) -> None:
    _compare(_processor(name, **settings), pictures, tmp_path)


def _compare(processor: Any, pictures: dict[str, Path], folder: Path) -> None:
    pipeline = _pipeline(processor, folder)
    for name, path in pictures.items():
        if name == THIN[0] and processor.size.shortest_edge == 224:
            continue  # 600 MB and seconds of time
        found = pipeline(path)
        try:
            expected = _pixels(processor, _as_handed_over(processor, path))
        except ValueError as error:
            assert name in THIN
            assert "height and width must be > 0" in str(error) or "height=0" in str(error) or "width=0" in str(error)
            continue
        if expected.ndim == 4 and not pipeline.tiled:
            expected = expected[0]
        assert found.shape == expected.shape, name
        assert found.dtype == np.float32
        assert np.array_equal(found, expected), f"{name}: {np.abs(found - expected).max()}"


@pytest.mark.parametrize("name", ["Blip", "ViT"])
def test_sixteen_bits_are_scaled_where_pillow_would_clip_them(name: str, tmp_path: Path) -> None:
    values = np.random.default_rng(5).integers(256, 65536, (40, 60)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    processor = _processor(name, size=40)
    found = _pipeline(processor, tmp_path)(tmp_path / "deep.png")
    scaled = Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")
    assert np.array_equal(found, _pixels(processor, scaled))
    clipped = _pixels(processor, _as_handed_over(processor, tmp_path / "deep.png"))
    assert (clipped == clipped[:, :1, :1]).all()


@pytest.mark.parametrize("name", TILED)
@pytest.mark.parametrize("size", [(640, 480), (480, 640), (50, 4000), (4000, 51), (300, 300)])
def test_tiles_come_in_the_processors_rows_and_columns(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    processor = _processor(name, size={"longest_edge": 256}, max_image_size={"longest_edge": 64})
    given = processor(images=_noise(*size), return_tensors="np", return_row_col_info=True)
    tiles = _pipeline(processor, tmp_path).tiles(_noise(*size))
    assert (tiles.rows, tiles.columns) == (given["rows"][0][0], given["cols"][0][0])
    assert len(tiles.pixels) == tiles.rows * tiles.columns + 1


def test_a_picture_of_one_tile_is_not_cut(tmp_path: Path) -> None:
    processor = _processor("SmolVLM", size={"longest_edge": 64}, max_image_size={"longest_edge": 64})
    given = processor(images=_noise(90, 61), return_tensors="np", return_row_col_info=True)
    tiles = _pipeline(processor, tmp_path).tiles(_noise(90, 61))
    assert (tiles.rows, tiles.columns, given["rows"], given["cols"]) == (0, 0, [[0]], [[0]])
    assert tiles.pixels.shape == (1, 3, 64, 64)


@pytest.mark.parametrize("size", [(90, 61), (61, 90), (400, 100), (64, 64)])
def test_what_vilt_masks_is_what_is_zero(size: tuple[int, int], tmp_path: Path) -> None:
    """No 8-bit value is 0 once normalized around 0.5, so a graph can tell padding from picture."""
    processor = _processor("Vilt")
    pictures = [_noise(*size), Image.new("RGB", (300, 180)), Image.new("RGB", (180, 300))]
    mask = processor(images=pictures, return_tensors="np")["pixel_mask"][0]
    found = _pipeline(processor, tmp_path)(pictures[0])
    assert found.shape == (3, *mask.shape)
    assert np.array_equal((found != 0).all(axis=0), mask == 1)


@pytest.mark.parametrize("name", MODULES)
def test_what_a_configuration_leaves_out_is_the_processors_default(name: str, tmp_path: Path) -> None:
    _processor(name).save_pretrained(tmp_path)
    written = image_steps_of(tmp_path)
    _write(tmp_path / "preprocessor_config.json", {"image_processor_type": f"{name}ImageProcessor", "size": None})
    assert image_steps_of(tmp_path) == written


@pytest.mark.parametrize("side", [224, 300])
@pytest.mark.parametrize("name", sorted(set(MODULES) - {"Vilt", *TILED}))
def test_an_integer_is_a_square_or_an_edge_as_the_processor_takes_it(name: str, side: int, tmp_path: Path) -> None:
    settings = {"size": side, "do_center_crop": True, "crop_size": 200}
    _processor(name, **settings).save_pretrained(tmp_path)
    written = image_steps_of(tmp_path)
    _write(tmp_path / "preprocessor_config.json", {"image_processor_type": f"{name}ImageProcessor", **settings})
    assert image_steps_of(tmp_path) == written


OLDER: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
    (
        {"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "resample": 2, "image_mean": [0.5, 0.5, 0.5]},
        (Flatten(None), Resize(224, 224, "bilinear"), Rescale(1 / 255), Normalize(HALF, HALF)),
    ),
    (
        {
            "feature_extractor_type": "DeiTFeatureExtractor",
            "size": [256, 250],
            "crop_size": 224,
            "do_center_crop": True,
        },
        (Flatten(None), Resize(256, 250, "bicubic"), CenterCrop(224, 224), Rescale(1 / 255), Normalize(HALF, HALF)),
    ),
    (
        {
            "image_processor_type": "CLIPImageProcessorFast",
            "size": 224,
            "crop_size": 200,
            "image_mean": 0,
            "image_std": 1,
        },
        (
            Flatten((255, 255, 255)),
            ResizeShortestEdge(224, "bicubic"),
            CenterCrop(200, 200),
            Rescale(1 / 255),
            Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        ),
    ),
    (
        {"feature_extractor_type": "ViltFeatureExtractor", "size": 384, "size_divisor": 32, "resample": 3},
        (
            Flatten(None),
            ResizeToMultiple(384, 639, 32, "bicubic"),
            Rescale(1 / 255),
            Normalize(HALF, HALF),
            PadZeros(608, 608),
        ),
    ),
    (
        {
            "image_processor_type": "CLIPImageProcessor",
            "auto_map": {"AutoProcessor": "processing_florence2.Florence2Processor"},
            "_valid_processor_keys": ["images"],
            "processor_class": "Florence2Processor",
            "image_seq_length": 577,
            "do_center_crop": False,
            "do_convert_rgb": None,
            "do_normalize": False,
            "size": {"height": 768, "width": 768},
            "crop_size": {"height": 768, "width": 768},
            "rescale_factor": 0.00392156862745098,
        },
        (Flatten(None), Resize(768, 768, "bicubic"), Rescale(1 / 255)),
    ),
    (
        {"image_processor_type": "BlipImageProcessor", "do_normalize": False, "do_pad": True, "size_divisor": 32},
        (Flatten((255, 255, 255)), Resize(384, 384, "bicubic"), Rescale(1 / 255)),
    ),
]


@pytest.mark.parametrize(("config", "steps"), OLDER, ids=[next(iter(config.values())) for config, _ in OLDER])
def test_older_and_remote_configurations_are_read(
    config: dict[str, Any], steps: tuple[Any, ...], tmp_path: Path
) -> None:
    _write(tmp_path / "preprocessor_config.json", config)
    assert image_steps_of(tmp_path) == steps


def test_settings_inside_processor_config_come_first(tmp_path: Path) -> None:
    _write(tmp_path / "preprocessor_config.json", {"image_processor_type": "ViTImageProcessor", "size": 10})
    _write(tmp_path / "processor_config.json", {"processor_class": "TrOCRProcessor"})
    assert Resize(10, 10, "bilinear") in image_steps_of(tmp_path)
    nested = {"image_processor_type": "ViTImageProcessor", "size": 20}
    _write(tmp_path / "processor_config.json", {"processor_class": "TrOCRProcessor", "image_processor": nested})
    assert Resize(20, 20, "bilinear") in image_steps_of(tmp_path)


def test_a_configuration_without_a_processors_name_takes_the_models(tmp_path: Path) -> None:
    _write(tmp_path / "config.json", {"model_type": "blip-2"})
    _write(tmp_path / "preprocessor_config.json", {"size": 30})
    assert Flatten((255, 255, 255)) in image_steps_of(tmp_path)


WRONG: list[tuple[dict[str, Any] | str, str]] = [
    ("{", "preprocessor_config.json: expected readable JSON, found: "),
    ("[1]", "preprocessor_config.json: expected a JSON object, found [1]"),
    ({}, "image_processor_type: expected the name of an image processor, found None"),
    (
        {"image_processor_type": "PixtralImageProcessor"},
        "image_processor_type: expected a processor whose images can be prepared",
    ),
    (
        {"image_processor_type": "Blip2FeatureExtractor"},
        "(the nearest that is: BlipImageProcessor), found 'Blip2ImageProcessor'; docs/families.md",
    ),
    ({"image_processor_type": ["x"]}, "image_processor_type: expected the name of an image processor, found ['x']"),
    ({"use_square_size": True}, "use_square_size: expected only settings that are understood, found True"),
    ({"do_flip_channel_order": True}, "do_flip_channel_order: expected only settings that are understood, found True"),
    ({"do_resize": 1}, "do_resize: expected true or false, found 1"),
    ({"do_resize": "no"}, "do_resize: expected true or false, found 'no'"),
    (
        {"do_resize": False},
        'do_resize: expected true, since a graph takes images of one size, found False; write "do_resize": true and',
    ),
    ({"size": 224.5}, "size: expected sides from 1 to 8192, found 224.5"),
    ({"size": {"height": 0, "width": 4}}, "size: expected sides from 1 to 8192, found {'height': 0, 'width': 4}"),
    ({"size": {"longest_edge": 4}}, "size: expected height and width, or shortest_edge"),
    (
        {"size": {"shortest_edge": 4}},
        "size: expected height and width, since a graph takes images of one size,",
    ),
    ({"resample": 6}, "3 (bicubic), 4 (box), 5 (hamming), found 6"),
    ({"resample": "bicubic"}, "resample: expected 0 (nearest)"),
    ({"resample": "lanczos"}, "found 'lanczos'; write the number: Transformers takes every name for bilinear"),
    ({"rescale_factor": 0}, "rescale_factor: expected a number above 0, found 0"),
    ({"image_mean": [1, 2]}, "image_mean: expected 3 numbers, found [1, 2]"),
    ({"image_mean": [1, 2, float("nan")]}, "image_mean: expected 3 numbers, found [1, 2, nan]"),
    ({"image_std": [1, 2, 0]}, "image_std: expected 3 numbers above 0, found [1, 2, 0]"),
    ({"do_center_crop": True}, "crop_size: expected height and width, as do_center_crop is true, found None"),
    ({"do_center_crop": True, "crop_size": {"shortest_edge": 4}}, "crop_size: expected height and width, found {"),
    ({"do_pad": True, "pad_size": 100}, "pad_size: expected at least 384 × 384, the size of the images, found 100;"),
    ({"image_mean": [0.9], "num_channels": 1}, "num_channels: expected 3, found 1; models of greyscale images cannot"),
    ({"image_processor_type": "ViltImageProcessor", "size": {"height": 4, "width": 4}}, "size: expected shortest_edge"),
    ({"image_processor_type": "ViltImageProcessor", "size": 20}, "size: expected a shortest_edge from 32 to 4916"),
    ({"image_processor_type": "ViltImageProcessor", "do_resize": False}, "do_resize: expected true"),
    ({"image_processor_type": "ViltImageProcessor", "do_center_crop": True}, "do_center_crop: expected only settings"),
    (
        {"image_processor_type": "SmolVLMImageProcessor", "size": {"longest_edge": 5000}},
        "size: expected longest_edge of",
    ),
    ({"image_processor_type": "SmolVLMImageProcessor", "max_image_size": {"height": 4}}, "max_image_size: expected"),
]


@pytest.mark.parametrize(("config", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_not_understood_is_named(config: dict[str, Any] | str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    if isinstance(config, str):
        path.write_text(config, encoding="utf-8")
    else:
        _write(path, config and {"image_processor_type": "BlipImageProcessor", **config})
    with pytest.raises(CheckpointError) as caught:
        image_steps_of(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_processor_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected preprocessor_config\.json, or processor_config\.json"):
        image_steps_of(tmp_path)


def _write(path: Path, config: object) -> None:
    path.write_text(json.dumps(config), encoding="utf-8")
