"""What the image processors of Transformers do, and what they assume where a configuration is silent.

They are the Pillow-backed ones of Transformers 5.23; none of them is imported. It knows no folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from xattn_export.families.checkpoint_folder.images.settings import Settings, Triple
from xattn_runtime.preprocess.steps import (
    LARGEST_SIDE_PX,
    CenterCrop,
    Color,
    Filter,
    Flatten,
    Normalize,
    PadToSquare,
    PadZeros,
    Patches,
    Rescale,
    Resize,
    ResizeLongestEdge,
    ResizeShortestEdge,
    ResizeToArea,
    ResizeToMultiple,
    Step,
    Tile,
)

__all__ = ["OF_MODEL_TYPE", "PROCESSORS", "steps_of"]

_WHITE: Color = (255, 255, 255)
_CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
_HALF: Triple = (0.5, 0.5, 0.5)
_TILED_LONGEST_PX = 4096


def steps_of(name: str, settings: Settings) -> tuple[Step, ...]:
    """What the processor `name`, one of `PROCESSORS`, does with these settings."""
    processor = PROCESSORS[name]
    return processor.steps(settings, processor)


def _plain(settings: Settings, processor: Processor) -> tuple[Step, ...]:
    """Resize, centre crop, rescale, normalize, pad: `PilBackend._preprocess` in image_processing_backends.py."""
    steps: list[Step] = [_flatten(settings, processor)]
    if settings.flag("do_resize", True):
        size, name = _size(settings, processor), settings.filter(processor.filter)
        if set(size) == {"height", "width"}:
            steps.append(Resize(size["height"], size["width"], name))
        elif set(size) in ({"shortest_edge"}, {"shortest_edge", "longest_edge"}):
            steps.append(ResizeShortestEdge(size["shortest_edge"], name, size.get("longest_edge")))
        else:
            settings.fail("size", "height and width, or shortest_edge, with or without longest_edge")
    if settings.flag("do_center_crop", processor.do_center_crop):
        if settings.get("crop_size") is None and processor.crop_size is None:
            settings.fail("crop_size", "height and width, as do_center_crop is true")
        steps.append(CenterCrop(*settings.fixed_size("crop_size", processor.crop_size or {})))
    numbers = _numbers(settings, processor)
    if settings.flag("do_pad", False) and settings.get("pad_size") is not None:
        numbers.append(PadZeros(*settings.fixed_size("pad_size", {})))
    return (*steps, *numbers)


def _on_square(settings: Settings, processor: Processor) -> tuple[Step, ...]:
    """`LlavaImageProcessorPil`: where it pads, an image is first laid on a square of the mean color."""
    pads = settings.flag("do_pad", False)
    if pads and settings.get("pad_size") is not None:
        settings.fail("pad_size", "none, since images are padded to squares")
    flatten, *others = _plain(settings, processor)
    red, green, blue = (int(value * 255) for value in settings.triple("image_mean", processor.mean))
    return (flatten, PadToSquare((red, green, blue)), *others) if pads else (flatten, *others)


def _in_color(settings: Settings, processor: Processor) -> tuple[Step, ...]:
    """`Gemma3ImageProcessorPil`, which Gemma 3's processor always tells to convert to RGB."""
    settings.get("do_convert_rgb")
    return (Flatten(_WHITE), *_plain(settings, processor)[1:])


def _to_multiples(settings: Settings, processor: Processor) -> tuple[Step, ...]:
    """`ViltImageProcessorPil`: sides that are multiples of `size_divisor`, padded with zeros to the largest size."""
    settings.get("do_pad")
    size = _size(settings, processor)
    if set(size) not in ({"shortest_edge"}, {"shortest_edge", "longest_edge"}):  # the second is not looked at
        settings.fail("size", "shortest_edge")
    if not settings.flag("do_resize", True):
        settings.fail("do_resize", "true, since a graph takes images of one size", 'write "do_resize": true')
    shortest = size["shortest_edge"]
    longest = int(1333 / 800 * shortest)
    multiple = settings.integer("size_divisor", 32)
    if multiple > shortest or longest > LARGEST_SIDE_PX:
        settings.fail("size", f"a shortest_edge from {multiple} to {LARGEST_SIDE_PX * 800 // 1333}")
    side = longest // multiple * multiple
    resize = ResizeToMultiple(shortest, longest, multiple, settings.filter(processor.filter))
    return _flatten(settings, processor), resize, *_numbers(settings, processor), PadZeros(side, side)


def _tiled(settings: Settings, processor: Processor) -> tuple[Step, ...]:
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


def _patched(settings: Settings, processor: Processor) -> tuple[Step, ...]:
    """`Qwen2VLImageProcessorPil`: as many pixels as the image has, within limits, cut into patches."""
    if not settings.flag("do_resize", True):
        settings.fail("do_resize", "true, since images are cut into whole patches", 'write "do_resize": true')
    side, merge = settings.integer("patch_size", 14), settings.integer("merge_size", 2)
    fewest, most = settings.area(processor.size)
    multiple = side * merge
    if not max(multiple**2, fewest) <= most:
        settings.fail("size", f"a longest_edge, in pixels of area, from {max(multiple**2, fewest)}")
    resize = ResizeToArea(fewest, most, multiple, settings.filter(processor.filter))
    patches = Patches(side, merge, settings.integer("temporal_patch_size", 2))
    return _flatten(settings, processor), resize, *_numbers(settings, processor), patches


def _flatten(settings: Settings, processor: Processor) -> Flatten:
    return Flatten(_WHITE if settings.flag("do_convert_rgb", processor.do_convert_rgb) else None)


def _size(settings: Settings, processor: Processor) -> dict[str, int]:
    square = settings.flag("default_to_square", processor.default_to_square)
    return settings.size("size", processor.size, square=square)


def _numbers(settings: Settings, processor: Processor) -> list[Step]:
    rescales = settings.flag("do_rescale", True)
    steps: list[Step] = [Rescale(settings.number("rescale_factor", 1 / 255) if rescales else 1.0)]
    if settings.flag("do_normalize", True):
        mean = settings.triple("image_mean", processor.mean)
        steps.append(Normalize(mean, settings.triple("image_std", processor.std, positive=True)))
    return steps


@dataclass(frozen=True)
class Processor:
    """What an image processor does where its configuration is silent: its class attributes, and how it resizes."""

    size: Mapping[str, int]
    mean: Triple = _HALF
    std: Triple = _HALF
    filter: Filter = "bicubic"
    default_to_square: bool = True
    crop_size: Mapping[str, int] | None = None
    do_center_crop: bool = False
    do_convert_rgb: bool = False
    steps: Callable[[Settings, Processor], tuple[Step, ...]] = _plain


_CLIP = Processor(
    size={"shortest_edge": 224},
    mean=_CLIP_MEAN,
    std=_CLIP_STD,
    default_to_square=False,
    crop_size={"height": 224, "width": 224},
    do_center_crop=True,
    do_convert_rgb=True,
)
_TILED = Processor(size={"longest_edge": 4 * 364}, filter="lanczos", do_convert_rgb=True, steps=_tiled)
# The class attributes of the processors in models/*/image_processing_pil_*.py of Transformers 5.23.
PROCESSORS: Mapping[str, Processor] = MappingProxyType(
    {
        "BeitImageProcessor": Processor({"height": 224, "width": 224}, crop_size={"height": 224, "width": 224}),
        "BitImageProcessor": _CLIP,
        "BlipImageProcessor": Processor({"height": 384, "width": 384}, _CLIP_MEAN, _CLIP_STD, do_convert_rgb=True),
        "CLIPImageProcessor": _CLIP,
        "ChineseCLIPImageProcessor": _CLIP,
        "DeiTImageProcessor": Processor(
            {"height": 256, "width": 256}, crop_size={"height": 224, "width": 224}, do_center_crop=True
        ),
        "Gemma3ImageProcessor": Processor({"height": 224, "width": 224}, filter="bilinear", steps=_in_color),
        "Idefics3ImageProcessor": _TILED,
        "LlavaImageProcessor": replace(_CLIP, steps=_on_square),
        "Qwen2VLImageProcessor": Processor(
            {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280},
            _CLIP_MEAN,
            _CLIP_STD,
            do_convert_rgb=True,
            steps=_patched,
        ),
        "SiglipImageProcessor": Processor({"height": 224, "width": 224}, default_to_square=False, do_convert_rgb=True),
        "SmolVLMImageProcessor": _TILED,
        "ViTImageProcessor": Processor({"height": 224, "width": 224}, filter="bilinear"),
        "ViltImageProcessor": Processor({"shortest_edge": 384}, default_to_square=False, steps=_to_multiples),
    }
)
OF_MODEL_TYPE: Mapping[str, str] = MappingProxyType(
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
        "qwen2_5_vl": "Qwen2VLImageProcessor",
        "qwen2_vl": "Qwen2VLImageProcessor",
        "qwen3_vl": "Qwen2VLImageProcessor",
        "siglip": "SiglipImageProcessor",
        "smolvlm": "SmolVLMImageProcessor",
        "swin": "ViTImageProcessor",
        "swinv2": "ViTImageProcessor",
        "vilt": "ViltImageProcessor",
        "vit": "ViTImageProcessor",
    }
)
