from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from xattn_runtime import default_bundle
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.bundle.manifest import Manifest
from xattn_runtime.errors import BundleError, ProviderError
from xattn_runtime.execution.providers import PROVIDERS, resolve_provider
from xattn_runtime.execution.session import GraphSession, SessionSettings, default_threads, open_session
from xattn_runtime.loader import load

Rewrite = Callable[[Path, Manifest], Manifest]
SETTINGS = SessionSettings(resolve_provider("cpu"), 1)


def options_of(session: GraphSession) -> Any:
    """What ONNX Runtime was asked for."""
    graph: Any = session._loaded.graph
    return graph.get_session_options()


def test_a_loaded_graph_says_what_it_takes(caption_bundle: Path) -> None:
    session = open_session(open_bundle(caption_bundle), "decoder", SETTINGS)
    assert (session.layers("past"), session.layers("cross"), session.layers("prefix")) == (2, 2, 0)
    assert session.input_shapes["past_key_1"][1::2] == (2, 4)
    options = options_of(session)
    assert options.intra_op_num_threads == 1
    assert options.inter_op_num_threads == 1
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_session_options_of_the_manifest_arrive(caption_copy: Path, rewrite: Rewrite) -> None:
    manifest = open_bundle(caption_copy).manifest
    rewrite(caption_copy, replace(manifest, session_options={"session.qdq_matmulnbits_accuracy_level": "1"}))
    options = options_of(open_session(open_bundle(caption_copy), "decoder", SETTINGS))
    assert options.get_session_config_entry("session.qdq_matmulnbits_accuracy_level") == "1"


def _rename(kind: str, old: str, new: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for value in getattr(model.graph, kind):
            if value.name == old:
                value.name = new
        for node in model.graph.node:
            names = node.input if kind == "input" else node.output
            names[:] = [new if name == old else name for name in names]

    return change


def _as_int32(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT32


CHANGES: list[tuple[str, Callable[[onnx.ModelProto], None], str]] = [
    ("decoder", _rename("input", "input_ids", "ids"), "expected the input input_ids of role decoder, found none"),
    ("decoder", _rename("output", "next_token", "best"), "expected the output next_token of role decoder, found none"),
    ("decoder", _rename("input", "past_key_1", "past_key_9"), "expected the input past_key_1 of role decoder"),
    ("decoder", _as_int32, "input input_ids: expected tensor(int64) of rank 2, found tensor(int32) of rank 2"),
    (
        "image_encoder",
        _rename("output", "cross_key_1", "extra"),
        "expected no output 'extra' of role image_encoder",
    ),
    ("image_encoder", _rename("input", "pixel_values", "x"), "expected the input pixel_values of role image_encoder"),
]


@pytest.mark.parametrize(("role", "change", "message"), CHANGES, ids=[message for _, _, message in CHANGES])
def test_graphs_that_break_the_contract(
    caption_copy: Path, rewrite: Rewrite, role: str, change: Callable[[onnx.ModelProto], None], message: str
) -> None:
    path = caption_copy / "graphs" / f"{role}.onnx"
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    rewrite(caption_copy, open_bundle_manifest(caption_copy))
    with pytest.raises(BundleError) as caught:
        load(caption_copy)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))


def open_bundle_manifest(folder: Path) -> Manifest:
    """The manifest alone: the graph beside it has been changed, so that the bundle does not open."""
    from xattn_runtime.bundle.folder import parse_manifest_json

    return parse_manifest_json((folder / "manifest.json").read_bytes())


@pytest.mark.parametrize("content", [b"", b"no graph at all", b"\x08\x08"])
def test_files_that_are_no_graph(
    caption_copy: Path, rewrite: Rewrite, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = open_bundle(caption_copy).manifest
    (caption_copy / "graphs/decoder.onnx").write_bytes(content)
    rewrite(caption_copy, manifest)
    with pytest.raises(BundleError, match=r"decoder\.onnx: ") as caught:
        load(caption_copy)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_run_that_fails_is_a_bundle_error_and_prints_nothing(
    caption_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    session = open_session(open_bundle(caption_bundle), "image_encoder", SETTINGS)
    with pytest.raises(BundleError, match="the graph failed while it ran") as caught:
        session.run(["cross_key_0"], {"pixel_values": np.zeros((1, 3, 4, 4), np.float32)})
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_another_provider_is_never_taken_quietly(caption_bundle: Path) -> None:
    absent = next(row for row in PROVIDERS if row.name == "cuda")
    with pytest.raises(ProviderError, match="provider cuda: "):
        open_session(open_bundle(caption_bundle), "decoder", SessionSettings(absent, 1))


def test_threads(caption_bundle: Path) -> None:
    assert 1 <= default_threads() <= 4
    assert load(caption_bundle).settings.threads == default_threads()
    assert load(caption_bundle, threads=2).settings.threads == 2
    with pytest.raises(ProviderError, match=r"threads: expected 1 to [0-9]+, found 0"):
        load(caption_bundle, threads=0)


@pytest.mark.parametrize(("role", "threads"), [("image_encoder", 2), ("whole", 2), ("decoder", 1), ("generator", 1)])
def test_of_a_small_bundle_only_what_takes_pictures_gets_several_threads(role: str, threads: int) -> None:
    session = open_session(open_bundle(default_bundle("caption")), role, replace(SETTINGS, threads=2))
    assert options_of(session).intra_op_num_threads == threads
