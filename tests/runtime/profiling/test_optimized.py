"""Graphs that ONNX Runtime has optimized: made, compared, taken only where they are this bundle's and unchanged."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from xattn_runtime.bundle.folder import file_digest
from xattn_runtime.bundle.manifest import Manifest
from xattn_runtime.errors import UserError
from xattn_runtime.execution.device_profile import (
    DeviceProfile,
    OptimizedGraphs,
    device_profile_path,
    digests_of,
    optimized_graphs_path,
    read_device_profile,
    remove_device_profile,
    write_device_profile,
)
from xattn_runtime.execution.machine import describe_machine
from xattn_runtime.loader import load
from xattn_runtime.profiling import optimized as trying
from xattn_runtime.profiling.optimized import OptimizedVerdict, try_optimized
from xattn_runtime.profiling.tune import tune_bundle
from xattn_runtime.profiling.worker_process import ProfileCombination
from xattn_runtime.tasks import CaptionTask

Rewrite = Callable[[Path, Manifest], Manifest]


@pytest.fixture(scope="module")
def tried(caption_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[OptimizedVerdict, Path]:
    """What came of the captioner's graphs, and the folder that holds them."""
    folder = tmp_path_factory.mktemp("optimized")
    shares: list[float] = []
    verdict = try_optimized(ProfileCombination(str(caption_bundle), "cpu", 1, 1), folder, 0.1, shares.append)
    assert shares == sorted(shares)
    return verdict, folder


@pytest.fixture
def kept(tried: tuple[OptimizedVerdict, Path], caption_copy: Path) -> Path:
    """A bundle whose device profile has optimized graphs."""
    machine = describe_machine()
    graphs = OptimizedGraphs(file_digest(caption_copy / "manifest.json"), onnxruntime.__version__, digests_of(tried[1]))
    mine = DeviceProfile(machine.cpu, machine.cores, "cpu", 1, True, True, "latency", 0.1, graphs, 0.4)
    write_device_profile(caption_copy, mine, tried[1])
    return caption_copy


def loaded(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Path], CaptionTask]:
    """The files that ONNX Runtime was given, and the task."""
    seen: list[Path] = []
    session = onnxruntime.InferenceSession

    def watch(path: str, *rest: Any, **options: Any) -> Any:
        seen.append(Path(path))
        return session(path, *rest, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", watch)
    task = load(bundle, task="caption")
    return seen, task


def test_they_are_written_verified_and_compared(tried: tuple[OptimizedVerdict, Path]) -> None:
    verdict, folder = tried
    names = {path.name for path in folder.iterdir()}
    assert {"image_encoder.onnx", "decoder.onnx"} <= names
    assert (verdict.load_ms or 0) > 0
    assert (verdict.optimized_load_ms or 0) > 0
    assert verdict.bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert (verdict.taken is None) == bool(verdict.because)


def test_they_are_loaded_and_give_the_same(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, task = loaded(kept, monkeypatch)
    assert {path.parent for path in seen} == {optimized_graphs_path(kept)}
    picture = kept / "golden" / "0.png"
    plain = load(kept, threads=1, task="caption")
    assert seen[-1].parent == kept / "graphs"
    np.testing.assert_allclose(task.caption(picture).score, plain.caption(picture).score, rtol=1e-5)
    assert task.caption(picture).token_ids == plain.caption(picture).token_ids


def alter_a_graph(bundle: Path) -> None:
    path = optimized_graphs_path(bundle) / "decoder.onnx"
    path.write_bytes(path.read_bytes() + b"\0")


def add_a_file(bundle: Path) -> None:
    (optimized_graphs_path(bundle) / "more.onnx").write_bytes(b"x")


def remove_a_file(bundle: Path) -> None:
    (optimized_graphs_path(bundle) / "decoder.onnx").unlink()


def put_a_link(bundle: Path) -> None:
    path = optimized_graphs_path(bundle) / "decoder.onnx"
    path.rename(bundle.with_name("elsewhere.onnx"))
    path.symlink_to(bundle.with_name("elsewhere.onnx"))


def link_the_folder(bundle: Path) -> None:
    folder = optimized_graphs_path(bundle)
    folder.rename(bundle.with_name("elsewhere"))
    folder.symlink_to(bundle.with_name("elsewhere"))


def change_the_version(bundle: Path) -> None:
    path = device_profile_path(bundle)
    values = json.loads(path.read_text())
    values["optimized"]["onnxruntime"] = "1.0.0"
    path.write_text(json.dumps(values))


def break_the_list(bundle: Path) -> None:
    path = device_profile_path(bundle)
    values = json.loads(path.read_text())
    values["optimized"] = ["decoder.onnx"]
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    "damage",
    [
        alter_a_graph,
        add_a_file,
        remove_a_file,
        put_a_link,
        link_the_folder,
        change_the_version,
        break_the_list,
    ],
    ids=lambda damage: damage.__name__,
)
def test_nothing_else_is_loaded(kept: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]) -> None:
    damage(kept)
    seen, task = loaded(kept, monkeypatch)
    assert {path.parent for path in seen} == {kept / "graphs"}
    assert task.settings.threads == 1


def test_of_another_bundle(kept: Path, monkeypatch: pytest.MonkeyPatch, rewrite: Rewrite) -> None:
    manifest = load(kept, threads=1).bundle.manifest
    rewrite(kept, replace(manifest, license="MIT"))
    seen, _ = loaded(kept, monkeypatch)
    assert {path.parent for path in seen} == {kept / "graphs"}


def test_removed_with_the_profile(kept: Path) -> None:
    assert remove_device_profile(kept)
    assert not remove_device_profile(kept)
    assert not optimized_graphs_path(kept).exists()
    assert read_device_profile(kept, "cpu") is None


def test_a_new_profile_without_them_leaves_none(kept: Path) -> None:
    mine = read_device_profile(kept, "cpu")
    assert mine is not None
    write_device_profile(kept, replace(mine, optimized=None))
    assert not optimized_graphs_path(kept).exists()
    assert not [path for path in kept.parent.iterdir() if path.name.endswith(".partial")]


@pytest.mark.parametrize(
    ("load", "total", "peaks", "words"),
    [
        (0.5, 1.0, None, ""),
        (1.0, 1.0, None, "they do not surely load faster"),
        (2.0, 1.0, None, "they do not surely load faster"),
        (0.5, 1.2, None, "they run slower, by 20.0 %"),
        (0.5, 1.025, None, "they run slower, by 2.5 %"),
        (0.5, 1.0, [100, 100], ""),
        (0.5, 1.0, [100, 101], "they take more memory"),
    ],
)
def test_taken_only_where_surely_better(load: float, total: float, peaks: Any, words: str) -> None:
    noise = [1.0, 1.01, 0.99, 1.02, 0.98, 1.0]
    plain = trying._Timed(None, noise, noise)  # type: ignore[arg-type]
    kept = trying._Timed(None, [load * one for one in noise], [total * one for one in noise])  # type: ignore[arg-type]
    because, gain = trying._judged(plain, kept, peaks)
    assert because == words
    assert gain == pytest.approx(1 - load)


def test_a_bundle_that_cannot_be_optimized(vqa_copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(vqa_copy / "graphs")
    verdict = try_optimized(ProfileCombination(os.fspath(vqa_copy), "cpu", 1, 1), tmp_path, 0.1, lambda share: None)
    assert verdict.taken is None
    assert "expected" in verdict.because


def test_another_model_is_no_other_form(caption_bundle: Path, vqa_bundle: Path) -> None:
    with pytest.raises(UserError, match=r"--also: expected the model of .* in another attention form"):
        tune_bundle(caption_bundle, also=[vqa_bundle])
