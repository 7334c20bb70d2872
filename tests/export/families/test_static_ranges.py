"""Image encoders with ranges that are fixed beforehand, in an engine that takes one channel's range for all of them."""

from pathlib import Path

import pytest

from tests.parity.small_families import SMALL_FAMILIES
from tests.support.slow import slow_after
from xattn_export import export_checkpoint, quantize_bundle
from xattn_export.engines.verify import verify_in_engine
from xattn_export.quantize.calibration.examples import golden_examples
from xattn_runtime.bundle.folder import open_bundle


@pytest.mark.parametrize("name", slow_after(1, ["SigLIP", "ViT-GPT2"]))
def test_openvino_agrees_on_an_image_encoder_with_biases(name: str, tmp_path: Path) -> None:
    family = SMALL_FAMILIES[name]
    exported, quantized = tmp_path / "fp32.xattn", tmp_path / "int8-static.xattn"
    export_checkpoint(family.save(tmp_path / "model"), exported, task=family.task)
    quantize_bundle(exported, quantized, mode="int8-static", examples=golden_examples(open_bundle(exported)))
    report = verify_in_engine(quantized, "openvino", threads=1)
    encoder = next(graph for graph in report.graphs if graph.role == "image_encoder")
    assert encoder.relative_rms is not None and encoder.relative_rms <= report.tolerance
