"""`xattn-edge data`: fetches and lists data sets, and lists the bundles that came with this package."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from xattn_edge.commands.shared.console import command
from xattn_edge.commands.shared.options import Debug, Json, Quiet, new_app

__all__ = ["app"]

app = new_app(help="Fetch and list data sets.")

_Name = Annotated[
    Literal["easy-vqa", "emoji", "sentiment"], typer.Argument(metavar="NAME", help="easy-vqa, emoji or sentiment.")
]


@app.command()
def fetch(name: _Name, as_json: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Fetch a data set and print its folder.

    It is stored in the user's cache, or in the folder that XATTN_EDGE_CACHE names.

    \b
    Examples:
      xattn-edge data fetch emoji
    """
    with command(as_json=as_json, quiet=quiet, debug=debug) as console:
        from xattn_edge.data import fetch as fetch_data

        with console.progress() as progress:
            folder = fetch_data(name, progress=progress)
        if as_json:
            console.document({"name": name, "path": str(folder)})
        else:
            console.line(str(folder))


@app.command(name="list")
def list_command(as_json: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """List the data sets, and the bundles that came with this package.

    The name of such a bundle stands wherever a command takes a BUNDLE.

    \b
    Examples:
      xattn-edge data list
    """
    with command(as_json=as_json, quiet=quiet, debug=debug) as console:
        from xattn_edge.data import data_sets
        from xattn_runtime.bundle.folder import open_bundle, shipped_bundles

        entries = [data_set.to_dict() for data_set in data_sets()]
        bundles = [
            {"name": name, "task": open_bundle(path).manifest.task, "path": str(path)}
            for name, path in shipped_bundles().items()
        ]
        if as_json:
            console.document({"data_sets": entries, "bundles": bundles})
            return
        rows = [("name", "task", "here", "license", "synthetic", "splits")]
        for entry in entries:
            fetched = "yes" if entry["fetched"] else "no"
            splits = ", ".join(entry["splits"])
            rows.append((entry["name"], entry["task"], fetched, entry["license"], entry["synthetic"], splits))
        console.table(rows)
        if bundles:
            console.line("")
            console.table([("bundle", "task"), *((entry["name"], entry["task"]) for entry in bundles)])
