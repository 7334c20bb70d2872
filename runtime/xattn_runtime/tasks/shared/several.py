"""Several images, texts or labels in one call: each as it is when it is given; one alone is refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from xattn_runtime import arguments
from xattn_runtime.errors import ImageError, UserError
from xattn_runtime.json_reader import show
from xattn_runtime.tasks.shared.image_encoder import EncodedImage, ImageReader, PreparedImage
from xattn_runtime.tasks.shared.prefetch import ImageWork

if TYPE_CHECKING:
    from xattn_runtime.preprocess.image import ImageInput
    from xattn_runtime.tasks.shared.image_encoder import Taken

__all__ = ["ReadyImage", "image_work", "several_images", "several_texts"]

ReadyImage = PreparedImage | EncodedImage | ImageError
"""An image that the model can work on, or why it cannot."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_AXES_OF_AN_IMAGE = 3


def image_work(
    reader: ImageReader, images: object, compute: Callable[[Sequence[ReadyImage]], Sequence[_Result]]
) -> ImageWork[Any, Any, ReadyImage, _Result]:
    """The work on each of `images`: taken as it is, prepared by `reader`, computed; encoded ones as they are."""
    is_listed = isinstance(images, list | tuple)

    def take(image: ImageInput | EncodedImage) -> Taken | ReadyImage:
        if isinstance(image, EncodedImage):
            return image
        try:
            return reader.take(image, is_listed=is_listed)
        except ImageError as error:
            return error

    def prepare(taken: Taken | ReadyImage) -> ReadyImage:
        if isinstance(taken, ImageError):
            return taken
        try:
            if isinstance(taken, EncodedImage):
                reader.check_own(taken)
                return taken
            return reader.prepare(taken)
        except ImageError as error:
            return error

    return ImageWork(take, prepare, compute)


def several_images(images: Iterable[_Item], name: str = "images") -> Iterable[_Item]:
    """`images`; UserError, which begins with `name`, where they are one image, or nothing that can be gone through."""
    if (one := _one_image(images)) is not None:
        raise UserError(f"{name}: expected several in a list, found {one}; put it into a list")
    try:
        iter(images)
    except TypeError as error:
        raise UserError(f"{name}: expected several in a list, found {show(type(images).__name__)}") from error
    return images


def several_texts(texts: Iterable[str], name: str) -> list[str]:
    """`texts` as a list; UserError, which begins with `name`, where they are one text, or anything else."""
    if isinstance(texts, str | bytes):
        raise UserError(f"{name}: expected several in a list, found the text {show(texts)}; put it into a list")
    is_number = isinstance(texts, np.ndarray) and texts.ndim == 0
    if isinstance(texts, Mapping) or not isinstance(texts, Iterable) or is_number:
        raise UserError(f"{name}: expected several in a list, found {show(type(texts).__name__)}")
    listed = list(texts)
    for place, text in enumerate(listed, 1):
        if not isinstance(text, str):
            raise UserError(f"{name}: expected texts, found {show(text)} as number {place}")
        arguments.text(name, text)
    return listed


def _one_image(images: object) -> str | None:
    """What one image it is that stands where several are expected, or None."""
    from PIL import Image

    if isinstance(images, str | os.PathLike):
        return f"the path {show(os.fspath(images))}"
    if isinstance(images, bytes | bytearray | memoryview):
        return f"{len(images)} bytes"
    if isinstance(images, Image.Image):
        return f"one image of {images.width} × {images.height}"
    if isinstance(images, np.ndarray) and images.dtype.kind not in "OU" and images.ndim <= _AXES_OF_AN_IMAGE:
        return f"one array {list(images.shape)}"
    if isinstance(images, Mapping):
        return f"a mapping with {', '.join(map(show, list(images)[:2])) or 'nothing in it'}"
    if isinstance(images, EncodedImage):
        return "one encoded image"
    return "an open file" if hasattr(images, "read") else None
