"""Region features from files that nobody vouches for: right values, or one line that says what is wrong."""

import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xattn_runtime.bundle import manifest as m
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.errors import BundleError, ImageError
from xattn_runtime.loader import load
from xattn_runtime.preprocess.regions import MOST_REGIONS, RegionReader, RegionSpec

WIDTH = 6
READER = RegionReader(RegionSpec(WIDTH, 4))


def _values(count: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(count)
    return {"features": rng.normal(size=(count, WIDTH)), "boxes": rng.random((count, 4)).astype(np.float32)}


def _npz(save: Callable[..., None] = np.savez, **arrays: Any) -> bytes:
    stream = io.BytesIO()
    save(stream, **arrays)
    return stream.getvalue()


def _members(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return stream.getvalue()


def _npy(values: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, values, **options)
    return stream.getvalue()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_floating_point_layout(dtype: str, save: Callable[..., None], order: Any, tmp_path: Path) -> None:
    values = _values()
    features = np.array(values["features"], dtype=dtype, order=order)
    data = _npz(save, features=features, boxes=values["boxes"], names=np.array(["cat", "dog", "cup"]))
    (tmp_path / "regions.npz").write_bytes(data)
    path = tmp_path / "regions.npz"
    for given in (data, path, str(path), io.BytesIO(data), values | {"features": features}):
        found = READER(given)
        assert list(found) == ["visual_features", "visual_boxes"]
        assert all(each.dtype == np.float32 and each.flags.c_contiguous for each in found.values())
        np.testing.assert_array_equal(found["visual_features"], features.astype(np.float32))
        np.testing.assert_array_equal(found["visual_boxes"], values["boxes"])


def test_a_model_without_boxes_does_not_read_them() -> None:
    data = _members(features=_npy(_values()["features"]), boxes=b"no array")
    assert list(RegionReader(RegionSpec(WIDTH, 0))(data)) == ["visual_features"]


def _with(**changed: Any) -> dict[str, Any]:
    return {**_values(), **changed}


_LIE = _npy(np.zeros((1, WIDTH))).replace(b"(1, 6)", b"(9, 6)")
BAD: dict[str, tuple[Any, str]] = {
    "empty": (b"", "found a file that starts with b''"),
    "picture": (b"\xff\xd8\xff\xe0", r"an .npz with features \[regions, 6\] and boxes \[regions, 4\], found a file"),
    "no zip": (b"PK\x03\x04 and then nothing", "expected a whole .npz, found a damaged one"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "found a Git LFS pointer in place of the file; run"),
    "cut": (_npz(**dict[str, Any](_values()))[:-40], "expected a whole .npz, found a damaged one"),
    "no features": (_npz(boxes=_values()["boxes"]), "expected an array 'features' .*, found none"),
    "no boxes": ({"features": _values()["features"]}, r"expected an array 'boxes' \[regions, 4\], found none"),
    "whole numbers": (_npz(**_with(features=np.ones((3, WIDTH), np.int64))), "floating-point values, found int64"),
    "objects": (_npz(**_with(features=np.array([[{}]], dtype=object))), "floating-point values, found object"),
    "lists": (_with(features=[[0.0] * WIDTH]), "expected a floating-point array, found 'list'"),
    "other width": (_npz(**_with(features=np.ones((3, 5)))), r"expected \[regions, 6\] with .*, found \[3, 5\]"),
    "one vector": (_npz(**_with(features=np.ones(WIDTH))), r"expected \[regions, 6\] with .*, found \[6\]"),
    "a batch": (_npz(**_with(features=np.ones((1, 3, WIDTH)))), r"found \[1, 3, 6\]"),
    "no region": (_npz(features=np.ones((0, WIDTH)), boxes=np.ones((0, 4))), r"with 1 to 1000 regions, found \[0, 6\]"),
    "too many": (_with(features=np.ones((MOST_REGIONS + 1, WIDTH))), r"with 1 to 1000 regions, found \[1001, 6\]"),
    "not finite": (_with(features=np.full((3, WIDTH), np.nan)), "expected finite values in float32"),
    "beyond float32": (_with(features=np.full((3, WIDTH), 1e300)), "expected finite values in float32"),
    "other number of boxes": (_with(boxes=np.ones((2, 4))), "boxes: expected 3, one a region, found 2"),
    "boxes in pixels": (_with(boxes=np.full((3, 4), 640.0)), "from 0 to 1, found 640 to 640; divide by the image's"),
    "header that lies": (_members(features=_LIE, boxes=b""), "features: expected .* bytes for .*, found"),
    "long header": (_members(features=b"\x93NUMPY\x02\x00\xff\xff\xff\x00" + b" " * 300), "found a damaged one"),
    "bomb": (
        _members(features=bytes(80_000_000)),
        "features: expected at most 1000 regions of width 6, found 80000000",
    ),
    "number": (7, "expected the path of an .npz, its bytes, or a mapping of arrays, .* found 'int'"),
}


@pytest.mark.parametrize("case", BAD)
def test_regions_that_cannot_be_used(case: str) -> None:
    regions, message = BAD[case]
    with pytest.raises(ImageError, match=message) as raised:
        READER(regions)
    assert "\n" not in str(raised.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none.npz", "found no such file"), (tmp_path, "found a folder, device or pipe")):
        with pytest.raises(ImageError, match=message):
            READER(path)
    with (tmp_path / "large.npz").open("wb") as stream:
        stream.truncate(65 * 2**20)
    with pytest.raises(ImageError, match="expected at most 64 MiB, found 65 MiB"):
        READER(tmp_path / "large.npz")


def test_the_manifest_says_what_is_taken(vqa_bundle: Path) -> None:
    data = open_bundle(vqa_bundle).manifest.to_dict()
    data["preprocessing"] = {"regions": {"feature_width": 2048, "box_width": 4}}
    found = m.parse(data)
    assert (found.regions, found.image_steps) == (RegionSpec(2048, 4), ())
    assert m.parse(found.to_dict()) == found
    for regions, message in (
        ({"feature_width": 0, "box_width": 4}, r"preprocessing.regions.feature_width: expected an integer of at least"),
        ({"feature_width": 8}, r"preprocessing.regions.box_width: expected an integer .*, found no such key"),
        ({"feature_width": 8, "box_width": 4, "more": 1}, "expected only the keys box_width, feature_width"),
    ):
        with pytest.raises(BundleError, match=message):
            m.parse(data | {"preprocessing": {"regions": regions}})
    with pytest.raises(BundleError, match=r"preprocessing\.image: expected only the keys regions"):
        m.parse(data | {"preprocessing": {"regions": {"feature_width": 8, "box_width": 4}, "image": []}})


def test_a_graph_that_takes_pictures(vqa_copy: Path, rewrite: Callable[[Path, m.Manifest], m.Manifest]) -> None:
    rewrite(vqa_copy, replace(open_bundle(vqa_copy).manifest, regions=RegionSpec(WIDTH, 0), image_steps=()))
    with pytest.raises(
        BundleError, match=r"expected the inputs visual_features, .* found pixel_values; export it again"
    ):
        load(vqa_copy)
