"""The image preprocessing of a Transformers checkpoint, read from its JSON and written as the runtime's steps.

It knows what the Pillow-backed image processors of Transformers 5 do and what they assume where a configuration is
silent; it imports none of them, and knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from xattn_export.families.checkpoint_folder.json_files import read_json
from xattn_runtime.errors import BundleError, CheckpointError
from xattn_runtime.json_reader import one_line, show
from xattn_runtime.preprocess.steps import (
    LARGEST_SIDE_PX,
    CenterCrop,
    Color,
    Filter,
    Flatten,
    Normalize,
    PadZeros,
    Rescale,
    Resize,
    ResizeLongestEdge,
    ResizeShortestEdge,
    ResizeToMultiple,
    Step,
    Tile,
    output_size_px,
)

__all__ = ["image_steps_of"]

_Triple = tuple[float, float, float]

_WHITE: Color = (255, 255, 255)
_CLIP_MEAN: _Triple = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD: _Triple = (0.26862954, 0.26130258, 0.27577711)
_HALF: _Triple = (0.5, 0.5, 0.5)
_FILTERS: Mapping[int, Filter] = MappingProxyType({0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"})
_TILED_LONGEST_PX = 4096
# Written into configurations, and without effect on the pixels of one image.
_WITHOUT_EFFECT = frozenset(
    {
        "_processor_class",
        "_valid_processor_keys",
        "auto_map",
        "data_format",
        "device",
        "disable_grouping",
        "do_reduce_labels",
        "feature_extractor_type",
        "image_processor_type",
        "image_seq_length",
        "input_data_format",
        "model_input_names",
        "processor_class",
        "return_row_col_info",
        "return_tensors",
        "use_fast",
        "video_sampling",
    }
)


def image_steps_of(folder: Path) -> tuple[Step, ...]:
    """What the checkpoint's image processor does to one image.

    Read from `image_processor` in processor_config.json, else from preprocessor_config.json, as Transformers does; keys
    that are missing or null take the processor's own defaults. A processor that converts to RGB itself lays
    transparency over white; before one that does not, Transformers' `load_image` drops it.

    ViLT's processor gives every image a size of its own, and pads with zeros those that share a batch. A graph has
    one size: the largest that it can give, so each image is padded as it would be beside the widest and the tallest.

    Raises CheckpointError for a missing or damaged file, a processor that is not known, a value that the processor does
    not take, a key that is not understood, and a size that depends on the image.
    """
    path, values = _configuration(folder)
    name = _processor_name(folder, path, values)
    processor = _PROCESSORS.get(name)
    if processor is None:
        raise CheckpointError(
            f"{path}: image_processor_type: expected one of {', '.join(_PROCESSORS)}, found {show(name)}; "
            "images for this one cannot be prepared yet"
        )
    settings = _Settings(path, values)
    steps = processor.steps(settings, processor)
    size_divisor = settings.integer("size_divisor", 1)
    settings.finish()
    try:
        size = output_size_px(steps, str(path))
    except BundleError as error:
        raise CheckpointError(
            f"{path}: expected settings that give every image the same size, found: {one_line(error)}"
        ) from error
    if any(side % size_divisor for side in size):
        settings.fail("size_divisor", f"a divisor of the size {size[0]} × {size[1]}")
    return steps


def _configuration(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The image processor's settings and the file they are from."""
    path = folder / "processor_config.json"
    if path.is_file() and isinstance(nested := read_json(path).get("image_processor"), dict):
        return path, nested
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: expected preprocessor_config.json, or processor_config.json with an image_processor, found "
            "neither; save the processor into the folder with save_pretrained"
        )
    return path, read_json(path)


def _processor_name(folder: Path, path: Path, values: Mapping[str, Any]) -> str:
    """The class that Transformers would choose, without the suffix of its backend."""
    name = values.get("image_processor_type")
    if name is None and isinstance(older := values.get("feature_extractor_type"), str):
        name = older.replace("FeatureExtractor", "ImageProcessor")
    model = folder / "config.json"
    if name is None and model.is_file():
        name = _OF_MODEL_TYPE.get(str(read_json(model).get("model_type")))
    if not isinstance(name, str):
        raise CheckpointError(
            f"{path}: image_processor_type: expected the name of an image processor, found {show(name)}; "
            "save the processor into the folder with save_pretrained"
        )
    return name.removesuffix("Fast").removesuffix("Pil")


class _Settings:
    """A configuration: every read names its key and its default, and `finish` refuses what nobody read."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self._path = path
        self._values = values
        self._read: set[str] = set()

    def fail(self, key: str, expected: str) -> NoReturn:
        value = show(self._values.get(key))
        raise CheckpointError(f"{self._path}: {key}: expected {expected}, found {value}; it would change the pixels")

    def get(self, key: str) -> Any:
        """The value, None where it is missing or null."""
        self._read.add(key)
        return self._values.get(key)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            self.fail(key, "true or false")
        return default if value is None else value

    def integer(self, key: str, default: int) -> int:
        value = default if (stated := self.get(key)) is None else stated
        if not _is_side(value):
            self.fail(key, f"an integer from 1 to {LARGEST_SIDE_PX}")
        return int(value)

    def number(self, key: str, default: float) -> float:
        value = default if (stated := self.get(key)) is None else stated
        if not _is_number(value) or value <= 0:
            self.fail(key, "a number above 0")
        return float(value)

    def triple(self, key: str, default: _Triple, *, positive: bool = False) -> _Triple:
        """One value per channel; a single number applies to all three."""
        value = default if (stated := self.get(key)) is None else stated
        values = list(value) if isinstance(value, list | tuple) else [value] * 3
        if len(values) != 3 or not all(map(_is_number, values)) or (positive and min(values) <= 0):
            self.fail(key, "3 numbers" + (" above 0" if positive else ""))
        return float(values[0]), float(values[1]), float(values[2])

    def filter(self, default: Filter) -> Filter:
        value = self.get("resample")
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value not in _FILTERS:
            self.fail("resample", ", ".join(f"{number} ({name})" for number, name in _FILTERS.items()))
        return _FILTERS[value]

    def size(self, key: str, default: Mapping[str, int], *, square: bool) -> dict[str, int]:
        """As `get_size_dict` in image_processing_utils.py: an integer is a square, or else the shortest edge."""
        value = dict(default) if (stated := self.get(key)) is None else stated
        if isinstance(value, list) and len(value) == 2:
            value = {"height": value[0], "width": value[1]}
        elif not isinstance(value, dict):
            value = {"height": value, "width": value} if square else {"shortest_edge": value}
        size = {edge: side for edge, side in value.items() if side is not None}
        if not all(map(_is_side, size.values())):
            self.fail(key, f"sides from 1 to {LARGEST_SIDE_PX}")
        return size

    def fixed_size(self, key: str, default: Mapping[str, int]) -> tuple[int, int]:
        size = self.size(key, default, square=True)
        if set(size) != {"height", "width"}:
            self.fail(key, "height and width")
        return size["height"], size["width"]

    def finish(self) -> None:
        """CheckpointError for a key that was not read and might change the pixels."""
        for key, value in self._values.items():
            switched_off = value is None or (value is False and key.startswith("do_"))
            if key not in self._read | _WITHOUT_EFFECT and not switched_off:
                raise CheckpointError(
                    f"{self._path}: {key}: expected only settings that are understood, found {show(value)}; "
                    "it may change the pixels: remove it if it does not"
                )


def _plain(settings: _Settings, processor: _Processor) -> tuple[Step, ...]:
    """Resize, centre crop, rescale, normalize, pad: `PilBackend._preprocess` in image_processing_backends.py."""
    steps: list[Step] = [_flatten(settings, processor)]
    size, name = _size(settings, processor), settings.filter(processor.filter)
    if settings.flag("do_resize", True):
        if set(size) == {"height", "width"}:
            steps.append(Resize(size["height"], size["width"], name))
        elif set(size) in ({"shortest_edge"}, {"shortest_edge", "longest_edge"}):
            steps.append(ResizeShortestEdge(size["shortest_edge"], name, size.get("longest_edge")))
        else:
            settings.fail("size", "height and width, or shortest_edge, with or without longest_edge")
    crop_size, pad_size = settings.get("crop_size"), settings.get("pad_size")
    if settings.flag("do_center_crop", processor.do_center_crop):
        if crop_size is None and processor.crop_size is None:
            settings.fail("crop_size", "height and width, as do_center_crop is true")
        steps.append(CenterCrop(*settings.fixed_size("crop_size", processor.crop_size or {})))
    numbers = _numbers(settings, processor)
    if settings.flag("do_pad", False) and pad_size is not None:
        numbers.append(PadZeros(*settings.fixed_size("pad_size", {})))
    return (*steps, *numbers)


def _to_multiples(settings: _Settings, processor: _Processor) -> tuple[Step, ...]:
    """`ViltImageProcessorPil`: sides that are multiples of `size_divisor`, padded with zeros to the largest size."""
    settings.get("do_pad")
    size = _size(settings, processor)
    if set(size) != {"shortest_edge"}:
        settings.fail("size", "shortest_edge alone")
    if not settings.flag("do_resize", True):
        settings.fail("do_resize", "true, as a graph takes images of one size")
    shortest = size["shortest_edge"]
    longest = int(1333 / 800 * shortest)
    multiple = settings.integer("size_divisor", 32)
    if multiple > shortest or longest > LARGEST_SIDE_PX:
        settings.fail("size", f"a shortest_edge from {multiple} to {LARGEST_SIDE_PX * 800 // 1333}")
    side = longest // multiple * multiple
    resize = ResizeToMultiple(shortest, longest, multiple, settings.filter(processor.filter))
    return _flatten(settings, processor), resize, *_numbers(settings, processor), PadZeros(side, side)


def _tiled(settings: _Settings, processor: _Processor) -> tuple[Step, ...]:
    """`Idefics3ImageProcessorPil`: the longest edge to a size, then tiles of `max_image_size` and the whole image."""
    settings.get("do_pad")
    size, name = _size(settings, processor), settings.filter(processor.filter)
    tile = settings.size("max_image_size", {"longest_edge": 364}, square=False)
    if set(tile) != {"longest_edge"}:
        settings.fail("max_image_size", "longest_edge alone")
    side = tile["longest_edge"]
    steps: list[Step] = [_flatten(settings, processor)]
    if settings.flag("do_resize", True):
        if set(size) == {"height", "width"}:
            steps.append(Resize(size["height"], size["width"], name))
        elif set(size) == {"longest_edge"} and size["longest_edge"] <= _TILED_LONGEST_PX:
            steps.append(ResizeLongestEdge(size["longest_edge"], name, multiple_px=2))
        else:
            settings.fail("size", f"longest_edge of at most {_TILED_LONGEST_PX}, or height and width")
    split = settings.flag("do_image_splitting", True)
    steps.append(Tile(side, name) if split else Resize(side, side, name))
    return (*steps, *_numbers(settings, processor))


def _flatten(settings: _Settings, processor: _Processor) -> Flatten:
    return Flatten(_WHITE if settings.flag("do_convert_rgb", processor.do_convert_rgb) else None)


def _size(settings: _Settings, processor: _Processor) -> dict[str, int]:
    square = settings.flag("default_to_square", processor.default_to_square)
    return settings.size("size", processor.size, square=square)


def _numbers(settings: _Settings, processor: _Processor) -> list[Step]:
    factor = settings.number("rescale_factor", 1 / 255)
    mean = settings.triple("image_mean", processor.mean)
    std = settings.triple("image_std", processor.std, positive=True)
    steps: list[Step] = [Rescale(factor if settings.flag("do_rescale", True) else 1.0)]
    if settings.flag("do_normalize", True):
        steps.append(Normalize(mean, std))
    return steps


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_SIDE_PX


@dataclass(frozen=True)
class _Processor:
    """What an image processor does where its configuration is silent: its class attributes, and how it resizes."""

    size: Mapping[str, int]
    mean: _Triple = _HALF
    std: _Triple = _HALF
    filter: Filter = "bicubic"
    default_to_square: bool = True
    crop_size: Mapping[str, int] | None = None
    do_center_crop: bool = False
    do_convert_rgb: bool = False
    steps: Callable[[_Settings, _Processor], tuple[Step, ...]] = _plain


_CLIP = _Processor(
    size={"shortest_edge": 224},
    mean=_CLIP_MEAN,
    std=_CLIP_STD,
    default_to_square=False,
    crop_size={"height": 224, "width": 224},
    do_center_crop=True,
    do_convert_rgb=True,
)
_TILED = _Processor(size={"longest_edge": 4 * 364}, filter="lanczos", do_convert_rgb=True, steps=_tiled)
# The class attributes of the processors in models/*/image_processing_pil_*.py of Transformers 5.23.
_PROCESSORS: Mapping[str, _Processor] = MappingProxyType(
    {
        "BeitImageProcessor": _Processor({"height": 224, "width": 224}, crop_size={"height": 224, "width": 224}),
        "BitImageProcessor": _CLIP,
        "BlipImageProcessor": _Processor({"height": 384, "width": 384}, _CLIP_MEAN, _CLIP_STD, do_convert_rgb=True),
        "CLIPImageProcessor": _CLIP,
        "ChineseCLIPImageProcessor": _CLIP,
        "DeiTImageProcessor": _Processor(
            {"height": 256, "width": 256}, crop_size={"height": 224, "width": 224}, do_center_crop=True
        ),
        "Idefics3ImageProcessor": _TILED,
        "SiglipImageProcessor": _Processor({"height": 224, "width": 224}, default_to_square=False, do_convert_rgb=True),
        "SmolVLMImageProcessor": _TILED,
        "ViTImageProcessor": _Processor({"height": 224, "width": 224}, filter="bilinear"),
        "ViltImageProcessor": _Processor({"shortest_edge": 384}, default_to_square=False, steps=_to_multiples),
    }
)
_OF_MODEL_TYPE: Mapping[str, str] = MappingProxyType(
    {
        "beit": "BeitImageProcessor",
        "blip": "BlipImageProcessor",
        "blip-2": "BlipImageProcessor",
        "chinese_clip": "ChineseCLIPImageProcessor",
        "clip": "CLIPImageProcessor",
        "deit": "DeiTImageProcessor",
        "dinov2": "BitImageProcessor",
        "florence2": "CLIPImageProcessor",
        "git": "CLIPImageProcessor",
        "idefics3": "Idefics3ImageProcessor",
        "instructblip": "BlipImageProcessor",
        "metaclip_2": "CLIPImageProcessor",
        "siglip": "SiglipImageProcessor",
        "smolvlm": "SmolVLMImageProcessor",
        "swin": "ViTImageProcessor",
        "swinv2": "ViTImageProcessor",
        "vilt": "ViltImageProcessor",
        "vit": "ViTImageProcessor",
    }
)


def image_steps(folder: Path, height_px: int, width_px: int) -> tuple[Step, ...]:
    """The folder's image preprocessing, which must make images of the size that the model takes."""
    steps = image_steps_of(folder)
    size_px = output_size_px(steps)
    if size_px != (height_px, width_px):
        raise CheckpointError(
            f"{folder}: expected image preprocessing to {height_px} × {width_px} pixels, as config.json says of the "
            f"model, found {size_px[0]} × {size_px[1]}; the two must agree"
        )
    return steps
