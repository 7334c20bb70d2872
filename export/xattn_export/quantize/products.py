"""Dynamic int8 products: `MatMul` with a constant becomes `DynamicQuantizeLinear` and `MatMulInteger`.

ONNX Runtime's quantizer does it. Left to its defaults it would also quantize attention, into operators of its own:
hence the options here.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import onnx
from onnx import ModelProto

from xattn_export.conformance import drop_unused_imports
from xattn_export.quantize.prepare import Constants
from xattn_runtime._reading import one_line
from xattn_runtime.errors import OutputError

__all__ = ["quantize_products"]

# Quantizing the input of a smaller product costs more than it saves.
_FEWEST_WEIGHTS = 4096


def quantize_products(model: ModelProto) -> tuple[ModelProto, int]:
    """`model` with its large constant products in int8, a scale a column; and how many they are.

    Weights are signed and symmetric: ARM's dot product and x86's VNNI both take them at full speed. Processors with
    neither need `session.x64quantprecision`, which the caller puts into the bundle.

    Raises:
        OutputError: there is no room for temporary files.
    """
    constants = Constants(model.graph)
    products = [node for node in model.graph.node if node.op_type == "MatMul" and constants.is_float(node.input[1], 2)]
    chosen = [node.name for node in products if constants.elements(node.input[1]) >= _FEWEST_WEIGHTS]
    if not chosen:
        return model, 0
    quantized = _quantize(model, chosen)
    drop_unused_imports(quantized)
    del quantized.graph.value_info[:]
    quantized.producer_name, quantized.producer_version = model.producer_name, model.producer_version
    return quantized, len(chosen)


def _quantize(model: ModelProto, chosen: list[str]) -> ModelProto:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with tempfile.TemporaryDirectory(prefix="xattn-quantize-") as folder:
            path = Path(folder) / "graph.onnx"
            quantize_dynamic(
                model,
                path,
                op_types_to_quantize=["MatMul"],
                nodes_to_quantize=chosen,
                per_channel=True,
                reduce_range=False,
                weight_type=QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True, "WeightSymmetric": True},
            )
            return onnx.load_model(path)
    except OSError as error:
        raise OutputError(
            f"{tempfile.gettempdir()}: cannot hold temporary files: {error.strerror or one_line(error)}; "
            "free some space, or name another place with the variable TMPDIR"
        ) from error
    finally:
        logging.disable(disabled)
