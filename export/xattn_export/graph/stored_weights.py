"""The values of constants, wherever they lie: in the graph, or in files beside it, which are mapped and not copied.

https://onnx.ai/onnx/repo-docs/ExternalData.html
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo

from xattn_export.graph.conformance import all_initializers
from xattn_runtime.errors import BundleError
from xattn_runtime.json_reader import unsafe_path_reason

__all__ = ["WeightFiles", "is_outside", "map_weights", "tensor_values"]

WeightFiles = Mapping[str, NDArray[np.uint8]]
"""Location, as a graph names it, → the bytes of the file."""

_PLAIN_KINDS = "fiub"


def map_weights(model: ModelProto, folder: Path) -> WeightFiles:
    """The files in `folder` that hold weights of `model`, each opened once; weights are read on access.

    Raises BundleError where one is not there, or does not lie in `folder`.
    """
    locations = {ExternalDataInfo(tensor).location for tensor in all_initializers(model.graph) if is_outside(tensor)}
    return {location: _mapped(folder, location) for location in sorted(locations)}


def _mapped(folder: Path, location: str) -> NDArray[np.uint8]:
    if (reason := unsafe_path_reason(location)) is not None:
        raise BundleError(f"{folder}: expected weights beside the graph, found that {location!r} {reason}")
    path = folder / location
    if not path.is_file():
        raise BundleError(f"{path}: expected the weights of a graph, found nothing; export it again")
    if not path.stat().st_size:
        return np.zeros(0, np.uint8)
    return np.memmap(path, np.uint8, mode="r")


def is_outside(tensor: TensorProto) -> bool:
    """Whether the values of `tensor` lie in a file beside the graph."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def tensor_values(tensor: TensorProto, files: WeightFiles) -> NDArray[Any]:
    """The values of a constant; those of a file are a view of it, which cannot be written to."""
    if not is_outside(tensor):
        return numpy_helper.to_array(tensor)
    info = ExternalDataInfo(tensor)
    start = info.offset or 0
    content = files[info.location]
    content = content[start : start + info.length] if info.length else content[start:]
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if dtype.kind in _PLAIN_KINDS:
        return np.asarray(content).view(dtype.newbyteorder("<")).reshape(tuple(tensor.dims))
    inside = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=content.tobytes())
    return numpy_helper.to_array(inside)
