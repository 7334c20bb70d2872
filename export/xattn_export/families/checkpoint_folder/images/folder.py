"""From the files of a Transformers folder to image steps: which processor it names, and whether it fits the model."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from xattn_export.families.checkpoint_folder.images.processors import OF_MODEL_TYPE, PROCESSORS, steps_of
from xattn_export.families.checkpoint_folder.images.settings import Settings
from xattn_export.families.checkpoint_folder.json_files import read_json
from xattn_runtime.errors import BundleError, CheckpointError
from xattn_runtime.json_reader import show
from xattn_runtime.preprocess.geometry import Size
from xattn_runtime.preprocess.steps import PadZeros, ResizeStep, Step, output_size_px

__all__ = ["image_steps", "image_steps_of"]

_NAMES = ("image_processor_type", "feature_extractor_type")


def image_steps_of(folder: Path) -> tuple[Step, ...]:
    """What the checkpoint's image processor does to one image.

    Read from `image_processor` in processor_config.json, else from preprocessor_config.json, as Transformers does; what
    is missing takes the processor's own default, and so does a value that is null; a switch that is null is off. A
    processor that converts to RGB itself lays transparency over white; before one that does not, Transformers'
    `load_image` drops it.

    ViLT's processor gives every image a size of its own, and pads with zeros those that share a batch. A graph has
    one size: the largest that it can give, so each image is padded as it would be beside the widest and the tallest.

    Raises CheckpointError for a missing or damaged file, a processor that is not known, a value that the processor does
    not take, an operation that is not understood, and a size that depends on the image.
    """
    return _read_steps(folder, *_configuration(folder), None)


def image_steps(folder: Path, height_px: int, width_px: int) -> tuple[Step, ...]:
    """The folder's image preprocessing, which must make images of the size that the model takes.

    Two sides in a list are height and width, as Transformers reads them, unless only width and height fit the model:
    feature extractors before 4.25 wrote them so.
    """
    model_px, (path, values) = (height_px, width_px), _configuration(folder)
    steps = _read_steps(folder, path, values, model_px)
    size_px = output_size_px(steps)
    if size_px == model_px:
        return steps
    if isinstance(values.get("size"), list):
        swapped = _read_steps(folder, path, values, model_px, width_first=True)
        if output_size_px(swapped) == model_px:
            logging.getLogger("xattn_export").info(
                f"{path}: size: {show(values['size'])} is read as width and height, since the model's images are "
                f"{height_px} pixels high and {width_px} wide"
            )
            return swapped
    raise CheckpointError(
        f"{folder}: expected image preprocessing to {height_px} × {width_px} pixels, as config.json says of the "
        f"model, found {size_px[0]} × {size_px[1]}; the two must agree"
    )


def _read_steps(
    folder: Path, path: Path, values: Mapping[str, Any], model_px: Size | None, *, width_first: bool = False
) -> tuple[Step, ...]:
    name = _processor_name(folder, path, values)
    if name not in PROCESSORS:
        nearest = difflib.get_close_matches(name, PROCESSORS, n=1, cutoff=0.6)
        near = f" (the nearest that is: {nearest[0]})" if nearest else ""
        raise CheckpointError(
            f"{path}: image_processor_type: expected a processor whose images can be prepared{near}, found "
            f"{show(name)}; docs/families.md has the list"
        )
    settings = Settings(path, values, width_first=width_first)
    steps = steps_of(name, settings)
    settings.finish()
    if _output_size(steps) is None:
        _refuse_sizes(steps, settings, model_px)
    return steps


def _refuse_sizes(steps: tuple[Step, ...], settings: Settings, model_px: Size | None) -> NoReturn:
    """CheckpointError that names the setting for which not every image gets the same size."""
    unpadded = _output_size(tuple(step for step in steps if not isinstance(step, PadZeros)))
    if unpadded is not None:
        height, width = unpadded
        settings.fail("pad_size", f"at least {height} × {width}, the size of the images", "write a larger one")
    sides = '"size": {{"height": {}, "width": {}}}'.format(*(model_px or ("HEIGHT", "WIDTH")))
    why, condition = "since a graph takes images of one size", "if the model was trained so"
    if any(isinstance(step, ResizeStep) for step in steps):
        settings.fail("size", f"height and width, {why}", f"write {sides}, {condition}")
    settings.fail("do_resize", f"true, {why}", f'write "do_resize": true and {sides}, {condition}')


def _output_size(steps: tuple[Step, ...]) -> Size | None:
    try:
        return output_size_px(steps)
    except BundleError:
        return None


def _configuration(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The image processor's settings and the file they are from."""
    combined, path = folder / "processor_config.json", folder / "preprocessor_config.json"
    processor = read_json(combined)
    if isinstance(nested := processor.get("image_processor"), dict):
        return combined, nested
    if path.is_file():
        return path, read_json(path)
    if any(isinstance(processor.get(key), str) for key in _NAMES):
        return combined, processor
    raise CheckpointError(
        f"{folder}: expected preprocessor_config.json, or processor_config.json with an image_processor, found "
        "neither; save the processor into the folder with save_pretrained, or copy the file from the model that this "
        "one was trained from"
    )


def _processor_name(folder: Path, path: Path, values: Mapping[str, Any]) -> str:
    """The class that Transformers chooses or chose, without the suffix of its backend.

    Versions from 4.26 on wrote the name of a feature extractor as that of an image processor where its owner had called
    it so; before 4.9 none was written.
    """
    name = next((value for key in _NAMES if (value := values.get(key)) is not None), None)
    if name is None:
        name = _of_model(read_json(folder / "config.json"))
    if not isinstance(name, str):
        raise CheckpointError(
            f"{path}: image_processor_type: expected the name of an image processor, found {show(name)}; "
            "save the processor into the folder with save_pretrained"
        )
    return re.sub("(FeatureExtractor|ImageProcessor)(Fast|Pil)?$", "ImageProcessor", name)


def _of_model(config: Mapping[str, Any]) -> str | None:
    """The processor of a model of this kind, or of its image encoder."""
    parts = (config, *(part for key in ("encoder", "vision_config") if isinstance(part := config.get(key), dict)))
    return next((name for part in parts if (name := OF_MODEL_TYPE.get(str(part.get("model_type"))))), None)
