"""What `import xattn_edge` gives, and what it does not load."""

import subprocess
import sys
from pathlib import Path

import pytest

import xattn_edge
import xattn_runtime

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("package", [xattn_edge, xattn_runtime], ids=lambda package: package.__name__)
def test_all_is_sorted_and_complete(package):
    assert list(package.__all__) == sorted(set(package.__all__))
    assert dir(package) == sorted(package.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        xattn_edge.lode  # noqa: B018 - the access is the test


def test_load_answers(vqa_bundle):
    task = xattn_edge.load(vqa_bundle)
    assert task.ask(vqa_bundle / "golden" / "0.png", "what is the cat").answer in task.labels


@pytest.mark.parametrize("package", ["xattn_edge", "xattn_runtime"])
def test_importing_loads_nothing_heavy(package):
    script = (
        f"import sys, {package} as package; package.UserError\n"
        "heavy = ('numpy', 'onnxruntime', 'tokenizers', 'PIL', 'typer', 'torch', 'onnx', 'transformers')\n"
        "assert not [name for name in heavy if name in sys.modules]"
    )
    paths = [CHECKOUT, CHECKOUT / "export", CHECKOUT / "runtime"]
    subprocess.run([sys.executable, "-c", script], check=True, env={"PYTHONPATH": ":".join(map(str, paths))})


def test_using_the_runtime_loads_neither_torch_nor_onnx(vqa_bundle):
    script = (
        "import sys, xattn_edge\n"
        f"task = xattn_edge.load({str(vqa_bundle)!r})\n"
        f"task.ask({str(vqa_bundle / 'golden' / '0.png')!r}, 'what is the cat')\n"
        "assert not [name for name in ('torch', 'onnx', 'transformers') if name in sys.modules]"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
