"""Reads ONNX files into models whose weights stay where they are."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto

from xattn_runtime.errors import BundleError
from xattn_runtime.json_reader import one_line

__all__ = ["read_graph"]


def read_graph(path: Path) -> ModelProto:
    """The ONNX model in `path`; weights beside it are left where they are.

    Raises:
        BundleError: it cannot be read, or is no ONNX model.
    """
    try:
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise BundleError(f"{path}: expected an ONNX model, found: {one_line(error)}; export it again") from error
    if not model.ir_version or not model.opset_import or not model.graph.node:
        raise BundleError(f"{path}: expected an ONNX model, found a file without a graph; export it again")
    return model
