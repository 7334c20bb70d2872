"""A task is a file and a row: one that only this test registers goes through every tool, and no tool knows its name."""

import ast
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from PIL import Image
from typer.testing import CliRunner

from tests.end_to_end import colour_task
from tests.support.tiny_bundle import STEPS, write_manifest, write_tokenizer
from xattn_edge.commands.app import app
from xattn_edge.data.easy_vqa import EasyVqa
from xattn_runtime import load
from xattn_runtime.bundle import manifest as m
from xattn_runtime.bundle.task_table import TASKS, TaskSpec
from xattn_runtime.tasks import TaskInput
from xattn_runtime.tasks.table import task_class

CHECKOUT = Path(__file__).resolve().parents[2]
HIDDEN = 1536
SITE = """
from xattn_runtime.bundle.task_table import TASKS
from tests.end_to_end.colour_task import ROW
TASKS["colour"] = ROW
"""


def graph() -> onnx.ModelProto:
    """The mean colour of an image, widened and narrowed again: `[batch, 3]`."""
    rng = np.random.default_rng(0)
    wide = np.kron(np.eye(3), np.ones((1, HIDDEN // 3 + 1)))[:, :HIDDEN].astype(np.float32)
    weights = {"wide": wide + rng.normal(0, 0.01, wide.shape).astype(np.float32), "narrow": wide.T / wide.sum(1)}
    body = f"""image_encoder (float[batch,3,16,16] pixel_values) => (float[batch,3] image_embeddings)
        <float[3,{HIDDEN}] wide, float[{HIDDEN},3] narrow, int64[2] sides> {{
        mean = ReduceMean<keepdims=0>(pixel_values, sides)
        hidden = MatMul(mean, wide)
        image_embeddings = MatMul(hidden, narrow)
        }}"""
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\n{body}')
    del model.graph.initializer[:]
    values = {name: value.astype(np.float32) for name, value in weights.items()} | {"sides": np.array([2, 3])}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    onnx.checker.check_model(model, full_check=True)
    return model


def scores_of(image: Path) -> np.ndarray:
    """What the graph computes, in numpy; `STEPS` normalise each channel alike, so that the order is the mean's."""
    from tests.support.tiny_bundle import reference_pixels

    weights = {each.name: numpy_helper.to_array(each) for each in graph().graph.initializer}
    return reference_pixels(image).mean((0, 2, 3)) @ weights["wide"] @ weights["narrow"]


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle for the task, which this process and those that it starts know."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    paths = (site, CHECKOUT, *map(Path, filter(None, [os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    monkeypatch.setitem(cast(dict[str, TaskSpec], TASKS), "colour", colour_task.ROW)
    folder = tmp_path / "colour.xattn"
    for part in ("graphs", "golden"):
        (folder / part).mkdir(parents=True)
    onnx.save(graph(), folder / "graphs/image_encoder.onnx")
    write_tokenizer(folder / "tokenizer.json")
    cases = []
    for number, colour in enumerate(colour_task.COLOURS):
        pixels = np.random.default_rng(number).integers(0, 100, (24, 24, 3))
        pixels[..., number] += 150
        path = folder / f"golden/{number}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        np.savez(path.with_suffix(".npz"), image_embeddings=scores_of(path).astype(np.float32))
        cases.append(m.GoldenCase(f"golden/{number}.png", f"golden/{number}.npz", colour))
    facts = m.Provenance("numpy", "0" * 64, "pytest", "2026-01-01T00:00:00Z", {"onnx": onnx.__version__})
    manifest = m.Manifest(
        name="colour",
        task=cast(m.TaskName, "colour"),
        license="Apache-2.0",
        attention="decomposed",
        opset=18,
        graphs={"image_encoder": m.Graph("graphs/image_encoder.onnx", "fp32")},
        image_steps=STEPS,
        tokenizer=m.TokenizerSpec("tokenizer.json", 1, 8),
        provenance=facts,
        golden=m.Golden(1e-4, tuple(cases)),
        files={},
    )
    write_manifest(folder, manifest)
    return folder


@pytest.fixture
def run() -> Callable[..., Any]:
    """What a command prints with `--json`."""

    def call(*arguments: object) -> Any:
        result = CliRunner().invoke(app, [*map(str, arguments), "--json"], prog_name="xattn-edge")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return call


def test_a_fifth_task_goes_through_every_tool(bundle: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    with load(bundle, "auto") as task:
        result = task.answer(TaskInput(bundle / "golden/1.png"))
        assert (result.text, result.data["colour"]) == ("green", "green")

    verified = run("verify", bundle)
    assert verified["passed"] and [case["found_text"] for case in verified["cases"]] == list(colour_task.COLOURS)

    (measured,) = run("profile", bundle, "--runs", "2")["profiles"]
    assert measured["task"] == "colour" and set(measured["stages"]) >= {"preprocess", "encode", "total"}

    small = tmp_path / "small.xattn"
    run("quantize", bundle, "-o", small, "--mode", "int8-static", "--data", "golden")
    assert json.loads((small / "manifest.json").read_text())["graphs"]["image_encoder"]["precision"] == "int8"

    compared = run("compare", bundle, small, "--data", "golden")
    assert compared["agreement"] == 1 and 0 < compared["components"]["image_encoder"]["relative_rms"] < 0.1

    evaluated = run("evaluate", bundle, "--data", "easy-vqa", "--limit", "30")
    samples = EasyVqa().samples("test")[:30]
    with load(bundle) as task:
        right = [task.answer(TaskInput(sample.image)).text == sample.answer for sample in samples]
    assert (evaluated["metric"], evaluated["n"]) == ("accuracy", 30)
    assert evaluated["value"] == pytest.approx(100 * np.mean(right))


def test_a_row_names_a_class_that_runs_it() -> None:
    for name, row in TASKS.items():
        found = task_class(name)
        assert f"{found.__module__}:{found.__name__}" == row.runs
        assert all(hasattr(found, part) for part in ("answer", "run_case", "timed", "token_logits", "close"))


def product_files() -> list[Path]:
    """All of the product but the tasks' own files."""
    folders = [CHECKOUT / "runtime", CHECKOUT / "export", CHECKOUT / "xattn_edge"]
    files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    return [path for path in files if not path.is_relative_to(CHECKOUT / "runtime/xattn_runtime/tasks")]


def test_no_tool_asks_which_task_it_is() -> None:
    """No `isinstance` over the classes of tasks, and no comparison with their names."""
    classes = {row.runs.partition(":")[2] for row in TASKS.values()}
    found = []
    for path in product_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
                if {each.id for each in ast.walk(node.args[1]) if isinstance(each, ast.Name)} & classes:
                    found.append(f"{path}:{node.lineno}")
            elif isinstance(node, ast.Compare) and "task" in ast.unparse(node):
                sides = [side for part in (node.left, *node.comparators) for side in ast.walk(part)]
                if {side.value for side in sides if isinstance(side, ast.Constant)} & TASKS.keys():
                    found.append(f"{path}:{node.lineno}")
    assert not found
