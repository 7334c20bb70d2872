"""Untrusted region features: the output of an object detector for an image, from an .npz to model inputs.

An .npz with `features` `[regions, width]` and, where the model wants them, `boxes` `[regions, 4]`, in floating point.
It decides what is usable; it knows no model beyond the widths it takes.
"""

from __future__ import annotations

import io
import math
import os
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.brought_files import placeholder_of
from xattn_runtime.errors import ImageError, problem
from xattn_runtime.json_reader import ObjectReader, one_line, show
from xattn_runtime.preprocess.formats import HEAD_BYTES
from xattn_runtime.preprocess.image import read_open_file

__all__ = ["MOST_REGIONS", "RegionReader", "RegionSpec", "read_region_spec"]

MOST_REGIONS = 1000
"""Of one image. Detectors give 10 to 100; attention grows with the square."""

_FILE_LIMIT_BYTES = 64 * 2**20
_HEADER_LIMIT_BYTES = 10_000
_LARGEST_ITEM_BYTES = 8
_BOX_SLACK = 1e-3


@dataclass(frozen=True)
class RegionSpec:
    """What a model takes for an image.

    feature_width: of a region's features. box_width: numbers of its box, each from 0 to 1 as shares of the image's
        width and height; 0 where the model takes no boxes.
    """

    feature_width: int
    box_width: int

    @property
    def arrays(self) -> dict[str, tuple[str, int]]:
        """Input of the graph → name in the .npz, and width."""
        boxes = {"visual_boxes": ("boxes", self.box_width)} if self.box_width else {}
        return {"visual_features": ("features", self.feature_width), **boxes}


def read_region_spec(reader: ObjectReader) -> RegionSpec:
    """The manifest's `preprocessing.regions`; BundleError for a key that is missing, unknown or of a wrong value."""
    spec = RegionSpec(reader.integer("feature_width", minimum=1), reader.integer("box_width"))
    reader.finish()
    return spec


class RegionReader:
    """Region features of one image to the inputs of an image encoder."""

    def __init__(self, spec: RegionSpec) -> None:
        self._spec = spec

    def __call__(self, regions: object) -> dict[str, NDArray[np.float32]]:
        """Float32 `visual_features` `[regions, width]`, and `visual_boxes` `[regions, box_width]` where there are any.

        `regions` is the path of an .npz, its bytes, or a mapping from `features` and `boxes` to arrays.
        Raises ImageError, one line, for anything missing, damaged, too large, of another shape or dtype, not finite, or
        boxes that are not within 0 to 1.
        """
        name, arrays = self._arrays(regions)
        tensors: dict[str, NDArray[np.float32]] = {}
        for target, (key, width) in self._spec.arrays.items():
            if key not in arrays:
                raise ImageError(f"{name}: expected an array {key!r} [regions, {width}], found none; save it beside")
            tensors[target] = _checked(f"{name}: {key}", arrays[key], width)
        features, boxes = tensors["visual_features"], tensors.get("visual_boxes")
        if boxes is not None:
            if len(boxes) != len(features):
                raise ImageError(f"{name}: boxes: expected {len(features)}, one a region, found {len(boxes)}")
            if boxes.min() < -_BOX_SLACK or boxes.max() > 1 + _BOX_SLACK:
                raise ImageError(
                    f"{name}: boxes: expected values from 0 to 1, found {boxes.min():g} to {boxes.max():g}; divide by "
                    "the image's width and height"
                )
        return tensors

    def _arrays(self, regions: object) -> tuple[str, Mapping[str, object]]:
        if isinstance(regions, Mapping):
            return "regions given as arrays", regions
        if isinstance(regions, bytes | bytearray | memoryview):
            name = "regions given as bytes"
            return name, self._unpack(name, bytes(regions))
        if isinstance(regions, str | os.PathLike):
            path = os.fsdecode(regions)
            name = path if path.isprintable() else show(path)
            return name, self._unpack(name, _read(name, Path(path)))
        if hasattr(regions, "read"):
            name = "regions given as an open file"
            return name, self._unpack(name, read_open_file(cast(BinaryIO, regions), name))
        raise ImageError(
            "regions: expected the path of an .npz, its bytes, or a mapping of arrays, as this model takes no image, "
            f"found {show(type(regions).__name__)}"
        )

    def _unpack(self, name: str, data: bytes) -> dict[str, object]:
        """The arrays that are needed, each checked before it takes memory."""
        if not data.startswith(b"PK"):
            found = placeholder_of(data[:HEAD_BYTES])
            found = found or f"a file that starts with {show(data[:8])}; this model takes no image"
            raise ImageError(f"{name}: expected region features, an .npz with {self._expected()}, found {found}")
        arrays: dict[str, object] = {}
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                members = {info.filename: info for info in archive.infolist()}
                for key, width in self._spec.arrays.values():
                    if (info := members.get(f"{key}.npy")) is None:
                        continue
                    limit = MOST_REGIONS * width * _LARGEST_ITEM_BYTES + _HEADER_LIMIT_BYTES
                    if info.file_size > limit:
                        raise ImageError(
                            f"{name}: {key}: expected at most {MOST_REGIONS} regions of width {width}, found "
                            f"{info.file_size} bytes"
                        )
                    arrays[key] = _array(f"{name}: {key}", archive.read(info))
        except ImageError:
            raise
        except Exception as error:  # zipfile and numpy raise a dozen kinds on damaged input
            _broken(name, error)
        return arrays

    def _expected(self) -> str:
        return " and ".join(f"{key} [regions, {width}]" for key, width in self._spec.arrays.values())


def _read(name: str, path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{name}: expected an .npz file of region features, found a folder, device or pipe")
        if status.st_size > _FILE_LIMIT_BYTES:
            raise ImageError(
                f"{name}: expected at most {_FILE_LIMIT_BYTES // 2**20} MiB, found {status.st_size / 2**20:.0f} MiB; "
                "save one image's regions alone"
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{name}: expected an .npz of region features, found no such file; check the path") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: expected a readable file, found: {problem(error)}") from error


def _array(where: str, data: bytes) -> NDArray[Any]:
    """The array in an .npy, whose header is believed only as far as there are bytes: never a pickle."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, in_columns, dtype = read_header(stream, max_header_size=_HEADER_LIMIT_BYTES)
    if dtype.kind != "f":
        raise ImageError(f"{where}: expected floating-point values, found {dtype}; convert them to float32")
    expected, available = math.prod(shape) * dtype.itemsize, len(data) - stream.tell()
    if expected != available:
        raise ImageError(f"{where}: expected {expected} bytes for {list(shape)}, found {available}; save it again")
    values = np.frombuffer(data, dtype, offset=stream.tell())
    return values.reshape(shape, order="F" if in_columns else "C")


def _checked(where: str, values: object, width: int) -> NDArray[np.float32]:
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
        dtype = values.dtype if isinstance(values, np.ndarray) else type(values).__name__
        raise ImageError(f"{where}: expected a floating-point array, found {show(str(dtype))}; convert it to float32")
    if values.ndim != 2 or values.shape[1] != width or not 1 <= values.shape[0] <= MOST_REGIONS:
        raise ImageError(
            f"{where}: expected [regions, {width}] with 1 to {MOST_REGIONS} regions, found {list(values.shape)}"
        )
    with np.errstate(over="ignore"):
        numbers = np.array(values, dtype=np.float32, order="C")
    if not np.isfinite(numbers).all():
        raise ImageError(f"{where}: expected finite values in float32, found others; compute the features again")
    return numbers


def _broken(name: str, error: Exception) -> NoReturn:
    raise ImageError(
        f"{name}: expected a whole .npz, found a damaged one ({one_line(error)}); copy or save it again"
    ) from error
