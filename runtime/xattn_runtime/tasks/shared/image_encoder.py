"""What every task begins with: a bundle's preprocessing and image encoder, once an image.

It knows images and the outputs of the image encoder for them; it does not know what is asked of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.bundle.contract import key_value_names, layers_of
from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.errors import BundleError, ImageError
from xattn_runtime.execution.session import GraphSession, SessionSettings, Tensor, open_session
from xattn_runtime.preprocess.image import HeldImage, hold_image, image_name
from xattn_runtime.preprocess.pipeline import PatchValues, Pipeline, Tiles
from xattn_runtime.preprocess.regions import RegionReader
from xattn_runtime.preprocess.steps import Patches
from xattn_runtime.preprocess.tokenizer import ONE_IMAGE, PromptImages
from xattn_runtime.tasks.shared.kept import KeptPrompts

if TYPE_CHECKING:
    from xattn_runtime.preprocess.image import ImageInput

    Taken: TypeAlias = "ImageInput | HeldImage | PreparedImage"
    _Image = ImageInput | HeldImage
    _Prepare = Callable[[_Image], Mapping[str, NDArray[np.float32]] | Tiles | PatchValues]

__all__ = [
    "EncodedImage",
    "ImageReader",
    "PreparedImage",
    "check_key_values",
    "concatenate",
    "milliseconds_since",
    "padded",
]

_ENCODER_BATCH = 16
# An image that takes more is prepared at once rather than held, so that many of them take little.
_HELD_BYTES = 8 * 2**20
# Tiles are many and large: of all of an image's at once, attention alone would take gigabytes.
_TILES_OF_A_RUN = 4
# Padding is masked out, so any id will do that every vocabulary has.
_PAD_TOKEN_ID = 0
# A series of keys and values that one graph outputs → the input that it is of the next graph.
_INPUT_OF = {"cross": "cross", "image": "image", "prefix": "past"}
_IMAGE_TOKENS = ("image_tokens", "image_mask")
_GRIDS = "image_grids"


@dataclass(frozen=True)
class EncodedImage:
    """The output of the image encoder for an image, several of them or a video, and what it cost.

    tensors: name → float32: keys and values `[1, heads, image_tokens, head_width]`, or embeddings `[1, width]`; or
        image tokens `[1, image_tokens, width]`, with their int64 mask or without one; of tiles one after the other; of
        patches with `image_grids`, int64 `[1, images, 2]`.
    images: how it is written in a prompt: how each image was cut into tiles, or of patches rows and columns of its
        image tokens; and the times of a video.
    prompts: what is kept of prompts about it, so that the next question costs its own words alone; None where nothing
        is.
    """

    tensors: Mapping[str, Tensor]
    preprocess_ms: float
    encode_ms: float
    images: PromptImages = ONE_IMAGE
    prompts: KeptPrompts | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class PreparedImage:
    """An image before the image encoder: its inputs, `[…]` without an axis for the batch, or its tiles or patches."""

    inputs: Any
    preprocess_ms: float


class ImageReader:
    """Images to `EncodedImage`s: preprocessing and the image encoder of one bundle."""

    def __init__(self, bundle: Bundle, settings: SessionSettings) -> None:
        """Load preprocessing and the image encoder; BundleError where the two do not fit."""
        regions = bundle.manifest.regions
        self._prepare: _Prepare
        self._batch = _ENCODER_BATCH if regions is None else 1  # images have regions of any number
        self._is_tiled = False
        self._merge: int | None = None
        self._takes_regions = regions is not None
        shapes: dict[str, tuple[int | str, ...]]
        if regions is None:
            pipeline = Pipeline(bundle.manifest.image_steps)
            self._is_tiled = pipeline.tiled
            self._merge = _merge_of(bundle, pipeline.patch)
            if pipeline.patch is not None:
                self._prepare = partial(_few_patches, bundle, pipeline, self._merge or 1)
                shapes = {"patches": ("batch", "patches", pipeline.patch.width), "grid": (2,)}
            else:
                self._prepare = pipeline.tiles if pipeline.tiled else lambda image: {"pixel_values": pipeline(image)}
                shapes = {"pixel_values": ("batch", 3, *pipeline.size_px)}
        else:
            self._prepare = RegionReader(regions)
            shapes = {name: ("batch", "regions", width) for name, (_, width) in regions.arrays.items()}
        self.session = open_session(bundle, "image_encoder", settings)
        self._outputs = tuple(self.session.output_shapes)
        if self._is_tiled or self._merge is not None:
            self._batch = 1  # of several images in tiles the pixels alone would take gigabytes; patches vary in number
        if any(shape[0] == 1 for shape in self.session.input_shapes.values()):
            self._batch = 1  # made for devices on which every axis has a size
        self._check_inputs(shapes)
        self._check_tiles(bundle)

    def encode(self, image: Taken | EncodedImage) -> EncodedImage:
        """One image; ImageError where it cannot be used."""
        return next(self.encode_many([image]))

    def encoded(self, image: ImageInput | EncodedImage) -> EncodedImage:
        """One image, or what it was encoded to before; ImageError where it cannot be used, or another model did so."""
        if not isinstance(image, EncodedImage):
            return self.encode(image)
        self.check_own(image)
        return image

    def encode_many(self, images: Iterable[Taken | EncodedImage]) -> Iterator[EncodedImage]:
        """The images in order, several a run; the times are each image's share of its run; encoded ones as they are.

        Each is read when `images` gives it, so that a buffer may be filled again for the next.
        ImageError where one cannot be used, before any of its run is encoded; it says which of several that is.
        """
        numbered = enumerate(images, 1)
        count = len(images) if isinstance(images, Sized) else None
        while part := [self._prepare_of_several(*one, count) for one in islice(numbered, self._batch)]:
            new = self.encode_prepared([image for image in part if isinstance(image, PreparedImage)])
            yield from (image if isinstance(image, EncodedImage) else next(new) for image in part)

    def _prepare_of_several(
        self, number: int, image: Taken | EncodedImage, count: int | None
    ) -> PreparedImage | EncodedImage:
        try:
            if isinstance(image, EncodedImage):
                self.check_own(image)
                return image
            return self.prepare(image)
        except ImageError as error:
            if count == 1 or isinstance(image, str | os.PathLike):
                raise  # a different error
            of_all = "" if count is None else f" of {count}"
            raise ImageError(f"image {number}{of_all}: {error}") from error

    def hold(self, image: ImageInput) -> ImageInput | HeldImage:
        """The image as it is now, to be read more than once; ImageError where it cannot be read."""
        return image if self._takes_regions else hold_image(image, _HELD_BYTES) or image

    def take(self, image: ImageInput, *, is_listed: bool = False) -> Taken:
        """The image as it is now, whatever becomes of its file, its buffer or its object, for `prepare` in a thread.

        is_listed: it is one of a list, in which nothing becomes of it meanwhile: what takes long is left to the thread.
        ImageError where it cannot be used.
        """
        if is_listed and isinstance(image, str | os.PathLike):
            return image
        if self._takes_regions:
            return self.prepare(image)
        if (held := hold_image(image, _HELD_BYTES, decodes=not is_listed)) is None:
            return image if is_listed else self.prepare(image)
        if isinstance(held.content, bytes) and len(held.content) > _HELD_BYTES:
            return self.prepare(held)
        return held

    def prepare(self, image: Taken) -> PreparedImage:
        """The image as the graph takes it; safe beside other calls, and of use in a thread of its own.

        ImageError where it cannot be used.
        """
        if isinstance(image, PreparedImage):
            return image
        began = time.perf_counter()
        inputs = self._prepare(image)
        return PreparedImage(inputs, milliseconds_since(began))

    def encode_prepared(self, images: Sequence[PreparedImage]) -> Iterator[EncodedImage]:
        """What `prepare` gave, encoded as `encode_many` does."""
        if self._is_tiled or self._merge is not None:
            encode = self.encode_tiles if self._is_tiled else self._encode_patches
            yield from (encode(image.inputs, image.preprocess_ms) for image in images)
            return
        for start in range(0, len(images), self._batch):
            yield from self._encode_batch(images[start : start + self._batch])

    def _encode_batch(self, images: Sequence[PreparedImage]) -> list[EncodedImage]:
        began = time.perf_counter()
        inputs = {name: np.stack([image.inputs[name] for image in images]) for name in images[0].inputs}
        tensors = self.session.run(self._outputs, inputs)
        encode_ms = milliseconds_since(began)
        return [
            EncodedImage(
                {name: tensor[row : row + 1] for name, tensor in zip(self._outputs, tensors, strict=True)},
                image.preprocess_ms,
                encode_ms / len(images),
            )
            for row, image in enumerate(images)
        ]

    def encode_tiles(self, tiles: Tiles, preprocess_ms: float) -> EncodedImage:
        """One image in tiles, a few a run, whose image tokens stand one after the other."""
        began = time.perf_counter()
        starts = range(0, len(tiles.pixels), _TILES_OF_A_RUN)
        runs = [
            self.session.run(self._outputs, {"pixel_values": tiles.pixels[start : start + _TILES_OF_A_RUN]})[0]
            for start in starts
        ]
        tokens = np.concatenate(runs)
        joined = tokens.reshape(1, -1, tokens.shape[2])
        images = PromptImages(((tiles.rows, tiles.columns),))
        return EncodedImage({self._outputs[0]: joined}, preprocess_ms, milliseconds_since(began), images)

    def _encode_patches(self, patches: PatchValues, preprocess_ms: float) -> EncodedImage:
        """One image in patches, and rows and columns of its image tokens."""
        began = time.perf_counter()
        inputs: dict[str, Tensor] = {
            "patches": patches.values[None],
            "grid": np.array([patches.rows, patches.columns], np.int64),
        }
        tensors = dict(zip(self._outputs, self.session.run(self._outputs, inputs), strict=True))
        merge = self._merge or 1
        grid = (patches.rows // merge, patches.columns // merge)
        tensors[_GRIDS] = np.array([[grid]], np.int64)
        return EncodedImage(tensors, preprocess_ms, milliseconds_since(began), PromptImages((grid,)))

    def check_own(self, image: EncodedImage) -> None:
        """ImageError unless it has the outputs of this graph."""
        # In a prompt, of one image or several, there are image tokens of any number.
        is_of_any_length = self._is_tiled or self._merge is not None or len(image.images.grids) > 1
        first = 2 if is_of_any_length else 1
        expected = {name: shape[first:] for name, shape in self.session.output_shapes.items()}
        if self._merge is not None:
            expected[_GRIDS] = (2,)
        found = {name: tensor.shape[first:] for name, tensor in image.tensors.items()}
        if expected.keys() != found.keys() or not all(_fits(found[name], expected[name]) for name in expected):
            raise ImageError(
                f"image: expected one that this model encoded, to {_listed(expected)}, found one that another model "
                f"encoded, to {_listed(found)}; encode it again"
            )

    def _check_tiles(self, bundle: Bundle) -> None:
        """BundleError unless images that are cut become image tokens, written as such in the text, and no others."""
        layout = bundle.manifest.tokenizer.image_layout
        is_written = layout is not None and layout.tile is not None
        if self._is_tiled != is_written or (is_written and self._outputs != _IMAGE_TOKENS[:1]):
            raise BundleError(
                f"{bundle.path}: expected preprocessing that ends in tiles together with an image_layout that has a "
                f"tile and an image encoder that gives image_tokens alone, found {'' if self._is_tiled else 'no '}"
                f"tiles, {'a' if is_written else 'no'} layout of tiles, and {', '.join(self._outputs)}; export it again"
            )

    def _check_inputs(self, shapes: Mapping[str, tuple[int | str, ...]]) -> None:
        """BundleError unless the graph takes the output of the preprocessing."""
        if self.session.input_shapes.keys() != shapes.keys():
            raise BundleError(
                f"{self.session.path}: expected the inputs {', '.join(shapes)}, as the preprocessing gives, found "
                f"{', '.join(self.session.input_shapes)}; export it again"
            )
        for name, expected in shapes.items():
            shape = self.session.input_shapes[name]
            for size, expected_size in zip(shape[1:], expected[1:], strict=True):
                if isinstance(size, int) and size != expected_size:
                    raise BundleError(
                        f"{self.session.path}: input {name}: expected {list(expected)}, as the preprocessing gives, "
                        f"found {list(shape)}; export it again"
                    )


def _few_patches(bundle: Bundle, pipeline: Pipeline, merge: int, image: _Image) -> PatchValues:
    """The image in patches; ImageError where the decoder has no positions for its image tokens."""
    patches = pipeline.patches(image)
    tokens = patches.rows * patches.columns // merge**2
    decoding = bundle.manifest.decoding
    if decoding is not None and decoding.max_positions is not None and tokens >= decoding.max_positions:
        raise ImageError(
            f"{image_name(image)}: expected an image of fewer than {decoding.max_positions} image tokens, the "
            f"positions that this model has, found {tokens}; scale it down"
        )
    return patches


def _merge_of(bundle: Bundle, patch: Patches | None) -> int | None:
    """The side of the square of patches that becomes one image token; None where there are no patches.

    BundleError unless patches and a layout for them come together, and every image is whole squares.
    """
    layout = bundle.manifest.tokenizer.image_layout
    merge = None if layout is None else layout.merge
    if (merge is None) != (patch is None) or (merge and patch and patch.merge % merge):
        raise BundleError(
            f"{bundle.path}: expected preprocessing that ends in patches together with an image_layout whose merge "
            f"divides that of the patches, found merge {'none' if patch is None else patch.merge} of the patches and "
            f"{'none' if merge is None else merge} of the layout; export it again"
        )
    return merge


def _fits(shape: Sequence[int], expected: Sequence[int | str | None]) -> bool:
    return len(shape) == len(expected) and all(
        not isinstance(axis, int) or axis == size for size, axis in zip(shape, expected, strict=True)
    )


def _listed(shapes: Mapping[str, Sequence[int | str | None]]) -> str:
    name, shape = next(iter(shapes.items()))
    return f"{name} {list(shape)}" + (f" and {len(shapes) - 1} more" if len(shapes) > 1 else "")


def check_key_values(producer: GraphSession, consumer: GraphSession) -> None:
    """BundleError unless `consumer` takes just the keys and values, or image tokens, that `producer` outputs."""
    for name in _IMAGE_TOKENS:
        is_produced = name in producer.output_shapes
        if is_produced != (name in consumer.input_shapes):
            expected, produced, consumed = ("the", "it", "none") if is_produced else ("no", "none", "one")
            raise BundleError(
                f"{consumer.path}: expected {expected} input {name}, as {producer.path} gives {produced}, "
                f"found {consumed}; export again"
            )
        if is_produced:
            _check_axes(producer, name, consumer, name)
    for output, input_ in _INPUT_OF.items():
        produced_layers = layers_of(output, producer.output_shapes)
        consumed_layers = layers_of(input_, consumer.input_shapes)
        if produced_layers != consumed_layers and (produced_layers or input_ != "past"):
            raise BundleError(
                f"{consumer.path}: expected {produced_layers} layers of {input_}_key, as {producer.path} gives of "
                f"{output}_key, found {consumed_layers}; export again"
            )
        outputs, inputs = key_value_names(output, produced_layers), key_value_names(input_, produced_layers)
        for output_name, input_name in zip(outputs, inputs, strict=True):
            _check_axes(producer, output_name, consumer, input_name)


def _check_axes(producer: GraphSession, output: str, consumer: GraphSession, input_: str) -> None:
    dtype, consumed_dtype = producer.dtypes[output], consumer.dtypes[input_]
    if dtype != consumed_dtype:
        raise BundleError(
            f"{consumer.path}: input {input_}: expected {dtype}, as {producer.path} gives, found {consumed_dtype}; "
            "export again"
        )
    produced, consumed = producer.output_shapes[output], consumer.input_shapes[input_]
    for one, other in zip(produced[1:], consumed[1:], strict=True):
        if isinstance(one, int) and isinstance(other, int) and one != other:
            raise BundleError(
                f"{consumer.path}: input {input_}: expected {list(produced)}, as {producer.path} gives, "
                f"found {list(consumed)}; export again"
            )


def concatenate(encoded: Sequence[EncodedImage]) -> dict[str, Tensor]:
    """What the image encoder gave for several images, as one batch."""
    if len(encoded) == 1:
        return dict(encoded[0].tensors)
    return {name: _joined([one.tensors[name] for one in encoded]) for name in encoded[0].tensors}


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """One batch; image tokens of different number, and their masks, are padded with zeros on the right."""
    longest = max(tensor.shape[1] for tensor in tensors)
    if any(tensor.shape[1] != longest for tensor in tensors):
        pads = [[(0, 0), (0, longest - tensor.shape[1]), *[(0, 0)] * (tensor.ndim - 2)] for tensor in tensors]
        tensors = [np.pad(tensor, pad) for tensor, pad in zip(tensors, pads, strict=True)]
    return np.concatenate(tensors)


def padded(texts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Token ids as `input_ids` and `attention_mask`, int64 `[batch, longest]`, padded on the right."""
    longest = max(len(ids) for ids in texts)
    input_ids = np.full((len(texts), longest), _PAD_TOKEN_ID, dtype=np.int64)
    attention_mask = np.zeros((len(texts), longest), dtype=np.int64)
    for row, ids in enumerate(texts):
        input_ids[row, : len(ids)] = ids
        attention_mask[row, : len(ids)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def milliseconds_since(began: float) -> float:
    """Milliseconds from `began`, a `time.perf_counter()`, to now."""
    return (time.perf_counter() - began) * 1000.0
