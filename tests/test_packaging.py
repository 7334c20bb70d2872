"""What the package promises to installers: pins that fit, extras that say what they bring, a checkout that runs."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from xattn_edge.commands.shared import console as _console

CHECKOUT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pins() -> dict[str, Version]:
    lines = (CHECKOUT / "constraints.txt").read_text().splitlines()
    found = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in found}


def required(extras: list[str]) -> list[Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    return [Requirement(line) for line in lines if not line.startswith("xattn-edge[")]


def test_every_requirement_has_a_pin_that_fits():
    known = pins()
    for requirement in required(["cpu", "export", "data", "dev"]):
        name = canonicalize_name(requirement.name)
        assert name in known, f"{name}: expected a pin in constraints.txt"
        assert requirement.specifier.contains(known[name]), f"{requirement} does not allow {known[name]}"


def test_the_pins_close_over_what_they_require():
    """A pinned package needs nothing that is not pinned itself."""
    known = pins()
    for name in known:
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                assert canonicalize_name(requirement.name) in known, f"{name} needs {requirement}"


def test_a_device_needs_neither_torch_nor_onnx():
    names = {canonicalize_name(requirement.name) for requirement in required(["cpu"])}
    assert not names & {"torch", "onnx", "transformers", "onnxscript"}


def test_the_hint_for_a_missing_package_names_an_extra_that_brings_it():
    brought_along = {"ml-dtypes", "onnx-ir"}  # by onnxscript
    for extra, modules in _console._EXTRAS.items():
        names = {canonicalize_name(requirement.name) for requirement in required([extra])}
        assert {canonicalize_name(module) for module in modules} <= names | brought_along


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> set[str]:
    """The files of the wheel that this checkout builds."""
    path = WheelBuilder(str(CHECKOUT)).build(directory=str(tmp_path_factory.mktemp("wheel")), versions=["standard"])
    with zipfile.ZipFile(next(iter(path))) as archive:
        return set(archive.namelist())


@pytest.mark.parametrize("package", ["xattn_edge", "xattn_export", "xattn_runtime"])
def test_the_wheel_says_that_each_package_is_typed(wheel, package):
    assert {f"{package}/__init__.py", f"{package}/py.typed"} <= wheel


def test_the_licence_is_whole():
    text = (CHECKOUT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_a_checkout_runs_without_installation(tmp_path):
    command = [sys.executable, CHECKOUT / "cli.py", "--version"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"xattn-edge \S+\n", result.stdout)


@pytest.mark.skipif(not (CHECKOUT / "README.md").exists(), reason="a copy without README.md")
@pytest.mark.parametrize("name", ["device", "tests"])
def test_the_readme_has_the_blocks_that_are_run(name):
    command = [sys.executable, CHECKOUT / "scripts" / "readme_block.py", name]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "pip install" in result.stdout
