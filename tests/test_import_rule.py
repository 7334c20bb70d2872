"""Who may import whom, read from the source: layers look down, and the device never sees torch or onnx."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
ROOTS = (CHECKOUT, CHECKOUT / "export", CHECKOUT / "runtime")

MODEL_PARTS = ("attention", "fusion", "encoders", "models")

# What each part may import of ours, besides itself.
OURS = {
    "xattn_edge": {"xattn_runtime"},
    "xattn_edge.commands": {
        "xattn_edge",
        "xattn_edge.data",
        "xattn_edge.evaluation",
        "xattn_edge.report",
        "xattn_edge.study",
        "xattn_edge.training",
        "xattn_export",
        "xattn_runtime",
    },
    "xattn_edge.study": {
        *(f"xattn_edge.{part}" for part in MODEL_PARTS),
        "xattn_edge.data",
        "xattn_edge.evaluation",
        "xattn_edge.training",
        "xattn_export",
        "xattn_runtime",
    },
    "xattn_edge.training": {
        *(f"xattn_edge.{part}" for part in MODEL_PARTS),
        "xattn_edge.data",
        "xattn_edge.evaluation",
        "xattn_runtime",
    },
    "xattn_edge.evaluation": {"xattn_edge.data", "xattn_runtime"},
    "xattn_edge.report": {"xattn_runtime"},
    "xattn_edge.data": {"xattn_runtime"},
    **{
        f"xattn_edge.{part}": {*(f"xattn_edge.{other}" for other in MODEL_PARTS), "xattn_runtime"}
        for part in MODEL_PARTS
    },
    "xattn_export": {*(f"xattn_edge.{part}" for part in MODEL_PARTS), "xattn_runtime"},
    "xattn_runtime": set(),
}

# What a part may import of others' packages, where that is limited.
THIRD_PARTY = {
    "xattn_edge": set(),
    "xattn_edge.commands": {"rich", "typer"},
    "xattn_edge.evaluation": {"PIL", "numpy", "pycocoevalcap", "sacrebleu"},
    "xattn_edge.data": {"PIL", "easy_vqa", "emoji", "numpy", "resvg_py", "tokenizers"},
    "xattn_edge.report": {"cycler", "matplotlib"},
    "xattn_runtime": {"PIL", "numpy", "onnxruntime", "tokenizers"},
}


def part_of(module: str) -> str | None:
    """The part of the house that a module belongs to, or None where it is not ours."""
    return next((part for part in sorted(OURS, key=len, reverse=True) if f"{module}.".startswith(f"{part}.")), None)


def sources() -> list[tuple[str, Path]]:
    """Every module of ours with its file."""
    found = []
    for root in ROOTS:
        for package in ("xattn_edge", "xattn_export", "xattn_runtime"):
            for path in sorted((root / package).rglob("*.py")):
                parts = path.relative_to(root).with_suffix("").parts
                found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


def imported(path: Path) -> Iterator[str]:
    """Names of the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: expected an absolute import"
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize(("module", "path"), sources(), ids=lambda value: value if isinstance(value, str) else "")
def test_imports(module, path):
    part = part_of(module)
    assert part is not None
    for name in imported(path):
        top = name.partition(".")[0]
        if (target := part_of(name)) is not None:
            allowed = {part, *OURS[part]}
            assert target in allowed, f"{module} imports {name}; {part} may import only {sorted(allowed)} of ours"
        elif top not in sys.stdlib_module_names and part in THIRD_PARTY:
            allowed = THIRD_PARTY[part]
            assert top in allowed, f"{module} imports {name}; {part} may import only {sorted(allowed)} of others"


def test_the_runtime_names_no_training_library():
    """Not even in a string that something could import."""
    for path in (CHECKOUT / "runtime").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant):
                assert node.value not in ("torch", "onnx", "transformers"), f"{path}:{node.lineno}"


def test_a_file_stays_small():
    large = {str(path): lines for _, path in sources() if (lines := path.read_text().count("\n")) > 400}
    assert not large
