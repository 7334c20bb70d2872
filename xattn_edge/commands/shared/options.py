"""What the commands have in common: how their applications are made, and the options that several of them take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

__all__ = [
    "BundleOption",
    "Debug",
    "Fallback",
    "Heatmap",
    "HeatmapHead",
    "HeatmapLayer",
    "Json",
    "OutputOption",
    "Overwrite",
    "Provider",
    "Quiet",
    "Threads",
    "bundle_argument",
    "find_bundles",
    "new_app",
]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the answer and errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


_Paths = TypeVar("_Paths", Path, Path | None, list[Path], list[Path] | None)


def find_bundles(value: _Paths) -> _Paths:
    """Paths of bundles as a user names them, with the names of those that came with this package resolved."""
    from xattn_runtime.bundle.folder import bundle_path

    if isinstance(value, list):
        return [bundle_path(path) for path in value]
    return None if value is None else bundle_path(value)


def _no_stream(value: Path) -> Path:
    if str(value) == "-":
        raise typer.BadParameter("expected a folder, found -, which stands for standard output; name a folder")
    return value


def bundle_argument(help_text: str, *, metavar: str = "BUNDLE") -> Any:
    """An argument that takes one bundle or several, by path or by the name of one that came with this package."""
    return typer.Argument(metavar=metavar, help=help_text, callback=find_bundles)


BundleOption = Annotated[
    Path | None,
    typer.Option(
        "--bundle",
        "-b",
        callback=find_bundles,
        help="Bundle to run: a folder, or a name that `xattn-edge data list` shows. Default: the one for this task "
        "that came with this package.",
    ),
]
OutputOption = Annotated[
    Path,
    typer.Option(
        "--output", "-o", callback=_no_stream, help="Folder to write; one that holds other things is refused."
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the output if it exists and holds nothing but what this made.")
]
Provider = Annotated[
    str, typer.Option("--provider", help="Execution provider, or auto; `xattn-edge providers` lists them.")
]
Fallback = Annotated[bool, typer.Option("--fallback", help="Let the CPU run what the provider refuses.")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads within an operator. Default: one a core, at most 4.")
]
Heatmap = Annotated[
    Path | None,
    typer.Option(
        "--heatmap",
        help="Draw the attention of each word: .png, or .html to step through the words; replace an earlier map.",
    ),
]
HeatmapLayer = Annotated[
    int | None, typer.Option("--heatmap-layer", min=0, help="Draw only this layer. Default: the mean over layers.")
]
HeatmapHead = Annotated[
    int | None, typer.Option("--heatmap-head", min=0, help="Draw only this head. Default: the mean over heads.")
]


def new_app(**options: Any) -> typer.Typer:
    """A Typer application in the style of all commands: plain help, also under -h; errors are shown by us."""
    settings: dict[str, Any] = {
        "add_completion": False,
        "context_settings": {"help_option_names": ["-h", "--help"]},
        "pretty_exceptions_enable": False,
        "rich_markup_mode": None,
    }
    return typer.Typer(**(settings | options))
