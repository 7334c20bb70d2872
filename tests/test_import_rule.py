"""Who may import whom, read from the source, lazy imports too: rooms look down, and no two files need each other."""

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from xattn_runtime.bundle.task_table import TASKS

CHECKOUT = Path(__file__).resolve().parents[1]
ROOTS = (CHECKOUT, CHECKOUT / "export", CHECKOUT / "runtime")
PACKAGES = ("xattn_edge", "xattn_export", "xattn_runtime")

MOST_FILES_OF_A_FOLDER = 15
MOST_LINES_OF_A_FILE = 500

# From the ground up. A room imports rooms of the lines above its own, and none of its own line but itself.
LEVELS: tuple[tuple[str, ...], ...] = (
    (
        "xattn_runtime.errors",
        "xattn_runtime.version",
    ),
    ("xattn_runtime.json_reader", "xattn_runtime.files", "xattn_runtime.brought_files", "xattn_runtime.progress"),
    ("xattn_runtime.arguments",),
    ("xattn_runtime.preprocess",),
    ("xattn_runtime.bundle",),
    ("xattn_runtime.execution",),
    ("xattn_runtime.generate", "xattn_runtime.retrieval"),
    ("xattn_runtime.tasks.shared",),
    ("xattn_runtime.tasks",),
    ("xattn_runtime.verify",),
    ("xattn_runtime.loader",),
    ("xattn_runtime.profiling.measure",),
    ("xattn_runtime.profiling",),
    ("xattn_runtime.profiling.remote",),
    ("xattn_runtime",),
    # The ground of xattn_edge: models in torch.
    ("xattn_edge.attention",),
    ("xattn_edge.encoders",),
    ("xattn_edge.fusion",),
    ("xattn_edge.models",),
    ("xattn_export.graph",),
    ("xattn_export.decompose", "xattn_export.bundle"),
    ("xattn_export.whole",),
    ("xattn_export.families.base",),
    ("xattn_export.families.drawings", "xattn_export.families.layers"),
    ("xattn_export.families.checkpoint_folder",),
    ("xattn_export.families.own", "xattn_export.families.transformers"),
    ("xattn_export.families",),
    ("xattn_export.parallel", "xattn_export.to_onnx", "xattn_export.golden"),
    ("xattn_export.parity",),
    ("xattn_export.quantize.base",),
    ("xattn_export.quantize.passes",),
    ("xattn_export.quantize.modes",),
    ("xattn_export.quantize.calibration",),
    ("xattn_export.quantize",),
    ("xattn_export.quantize.budget", "xattn_export.engines", "xattn_export.compare", "xattn_export.exporter"),
    ("xattn_export.targets",),
    ("xattn_export",),
    # The roof of xattn_edge: what a workstation does with models and bundles.
    ("xattn_edge.data", "xattn_edge.report"),
    ("xattn_edge.evaluation",),
    ("xattn_edge.training",),
    ("xattn_edge.study",),
    ("xattn_edge",),
    ("xattn_edge.commands.shared",),
    ("xattn_edge.commands.answers", "xattn_edge.commands.device", "xattn_edge.commands.models"),
    ("xattn_edge.commands",),
    ("xattn_edge.__main__",),
)
RANKS = {room: rank for rank, rooms in enumerate(LEVELS) for room in rooms}

# Rooms that run where no torch is: what they may import of ours, besides lower rooms of their own list.
WITHOUT_TORCH = ("xattn_edge.data", "xattn_edge.report", "xattn_edge.evaluation", "xattn_runtime")

# What a room may import of others' packages, where that is limited.
THIRD_PARTY = {
    "xattn_edge": set(),
    "xattn_edge.commands": {"rich", "typer"},
    "xattn_edge.evaluation": {"PIL", "numpy", "pycocoevalcap", "sacrebleu"},
    "xattn_edge.data": {"PIL", "easy_vqa", "emoji", "numpy", "resvg_py", "tokenizers"},
    "xattn_edge.report": {"cycler", "matplotlib"},
    "xattn_runtime": {"PIL", "numpy", "onnxruntime", "tokenizers"},
    "xattn_runtime.preprocess.prompts.sandbox": {"jinja2"},
}


def sources() -> dict[str, Path]:
    """Every module of ours with its file."""
    modules = {}
    for root in ROOTS:
        for package in PACKAGES:
            for path in sorted((root / package).rglob("*.py")):
                parts = path.relative_to(root).with_suffix("").parts
                modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


SOURCES = sources()


def longest_prefix(module: str, prefixes: Mapping[str, object] | tuple[str, ...]) -> str | None:
    """The longest of `prefixes` that is `module` or a package that it lies in."""
    return next((each for each in sorted(prefixes, key=len, reverse=True) if f"{module}.".startswith(f"{each}.")), None)


def imported(path: Path) -> Iterator[str]:
    """Names of the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: expected an absolute import"
            for name in node.names:
                full = f"{node.module}.{name.name}"
                yield full if full in SOURCES else str(node.module)


def imports_of_ours() -> dict[str, set[str]]:
    """Module → modules of ours that it imports."""
    return {
        module: {name for name in imported(path) if name in SOURCES and name != module}
        for module, path in SOURCES.items()
    }


@pytest.mark.parametrize(("module", "path"), SOURCES.items(), ids=lambda value: value if isinstance(value, str) else "")
def test_imports(module, path):
    room = longest_prefix(module, RANKS)
    assert room is not None
    for name in imported(path):
        top = name.partition(".")[0]
        limited = module if module in THIRD_PARTY else longest_prefix(module, tuple(sorted(THIRD_PARTY)[1:]))
        if (target := longest_prefix(name, RANKS)) is not None:
            assert target == room or RANKS[target] < RANKS[room], f"{module} imports {name}: {room} is below {target}"
            if (device := longest_prefix(module, WITHOUT_TORCH)) is not None:
                assert longest_prefix(name, WITHOUT_TORCH), f"{module} imports {name}, and {device} has no torch"
        elif top not in sys.stdlib_module_names and limited is not None:
            allowed = THIRD_PARTY[limited]
            assert top in allowed, f"{module} imports {name}; {limited} may import only {sorted(allowed)} of others"


def test_no_circle_of_files():
    """Files are taken away that import none of those left; none may stay."""
    left = imports_of_ours()
    while free := {module for module, names in left.items() if not names & left.keys()}:
        left = {module: names for module, names in left.items() if module not in free}
    circle = {module: sorted(names & left.keys()) for module, names in left.items()}
    assert not circle


def test_the_runtime_names_no_training_library():
    """Not even in a string that something could import."""
    for path in (CHECKOUT / "runtime").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant):
                assert node.value not in ("torch", "onnx", "transformers"), f"{path}:{node.lineno}"


def python_files() -> list[Path]:
    """All of the checkout, tests and scripts too."""
    folders = ("xattn_edge", "export", "runtime", "tests", "scripts", "benchmarks")
    return [path for folder in folders for path in sorted((CHECKOUT / folder).rglob("*.py"))]


def test_a_file_stays_small():
    sizes = {str(path): path.read_text(encoding="utf-8").count("\n") for path in python_files()}
    assert not {path: lines for path, lines in sizes.items() if lines > MOST_LINES_OF_A_FILE}


def test_a_folder_stays_small():
    folders: dict[Path, int] = {}
    for path in python_files():
        folders[path.parent] = folders.get(path.parent, 0) + 1
    assert not {str(folder): files for folder, files in folders.items() if files > MOST_FILES_OF_A_FOLDER}


def test_no_two_classes_have_one_name():
    homes: dict[str, list[str]] = {}
    for module, path in SOURCES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name.lstrip("_"), []).append(module)
    assert not {name: modules for name, modules in homes.items() if len(modules) > 1}


TASK_CLASSES = re.compile(r"\b(Caption|Vqa|Retrieval|Sentiment)Task\b")


def asks_which_task(node: ast.AST) -> bool:
    """Whether it branches by a task's class, or compares a task's name with one that is written there."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
        return TASK_CLASSES.search(ast.unparse(node.args[1])) is not None
    if isinstance(node, ast.MatchClass):
        return TASK_CLASSES.search(ast.unparse(node.cls)) is not None
    if isinstance(node, ast.Compare):
        names = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)}
        return bool(names & TASKS.keys()) and re.search(r"\btask$", ast.unparse(node.left)) is not None
    return False


def test_only_a_task_itself_knows_which_it_is():
    """Tests and scripts may compare names, but not classes: `load(path, task=…)` gives the class."""
    asking = set()
    for path in python_files():
        file = path.relative_to(CHECKOUT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            may_compare = path not in SOURCES.values() and isinstance(node, ast.Compare)
            if not may_compare and not file.startswith("runtime/xattn_runtime/tasks/") and asks_which_task(node):
                asking.add(f"{file}:{getattr(node, 'lineno', '')}")
    assert not asking


def test_no_module_has_the_name_of_one_of_python():
    names = {part for module in SOURCES for part in module.split(".")} - {"__main__"}
    assert not names & sys.stdlib_module_names


# A checkout's command line, which nobody has installed; and the program that a remote host receives with the packages.
MAY_EDIT_SYS_PATH = {"cli.py", "runtime/xattn_runtime/profiling/remote/bootstrap.py"}


def edits_sys_path(node: ast.AST) -> bool:
    """Whether the statement or call changes `sys.path`: by a method, or by assigning to it or to a part of it."""
    if isinstance(node, ast.Call):
        return re.fullmatch(r"sys\.path\.(append|extend|insert|remove|pop)", ast.unparse(node.func)) is not None
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(target is not None and ast.unparse(target).startswith("sys.path") for target in targets)


def test_nothing_edits_sys_path():
    kinds = (ast.Call, ast.Assign, ast.AugAssign)
    editing = set()
    for path in [CHECKOUT / "cli.py", *python_files()]:
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if any(edits_sys_path(node) for node in nodes if isinstance(node, kinds)):
            editing.add(path.relative_to(CHECKOUT).as_posix())
    assert editing == MAY_EDIT_SYS_PATH
