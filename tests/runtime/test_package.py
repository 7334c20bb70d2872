from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import xattn_runtime

ROOT = Path(xattn_runtime.__file__).parents[1]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(xattn_runtime.__path__, "xattn_runtime.")
    if not module.name.endswith("__main__")
)


def _python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stderr == ""
    return done.stdout


def test_public_names_are_sorted_and_there() -> None:
    assert sorted(xattn_runtime.__all__) == xattn_runtime.__all__
    for name in xattn_runtime.__all__:
        assert getattr(xattn_runtime, name) is not None
    assert dir(xattn_runtime) == xattn_runtime.__all__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = xattn_runtime.nothing


def test_every_public_error_is_exported() -> None:
    from xattn_runtime import errors

    classes = {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}
    assert "UserError" in classes and classes <= set(xattn_runtime.__all__)


@pytest.mark.parametrize("name", MODULES)
def test_all_of_every_module_is_there_and_complete(name: str) -> None:
    module = importlib.import_module(name)
    public = getattr(module, "__all__", [])
    assert set(public) <= set(dir(module))
    defined = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and isinstance(value, type) and value.__module__ == name
    }
    assert defined <= set(public)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, xattn_runtime; print(*{'numpy', 'onnxruntime', 'PIL', 'tokenizers'} & set(sys.modules))"
    assert _python(code).split() == []


def test_using_every_part_needs_neither_torch_nor_onnx_nor_transformers(caption_bundle: Path, vqa_bundle: Path) -> None:
    code = """
import sys
import xattn_runtime as xr
caption, vqa = sys.argv[1:]
task = xr.load(caption, threads=1)
print(len(task.caption(task.bundle.file("golden/0.png")).token_ids) > 0)
task = xr.load(vqa, threads=1)
print(task.ask(task.bundle.file("golden/0.png"), "cat").confidence > 0)
print(xr.verify_bundle(caption, threads=1).passed)
print(xr.profile_matrix([vqa], options=xr.ProfileOptions(runs=1, nodes=False)).profiles[0].passes)
print(xr.provider_status()[0].available, bool(xr.__version__))
print(*sorted({"torch", "onnx", "transformers", "xattn_edge", "xattn_export"} & set(sys.modules)))
"""
    assert _python(code, str(caption_bundle), str(vqa_bundle)).split() == ["True", "True", "True", "1", "True", "True"]
