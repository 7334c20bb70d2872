"""`xattn-edge providers`: the execution providers that are here, and how to get the others."""

from __future__ import annotations

from dataclasses import asdict

from xattn_edge.commands._console import command
from xattn_edge.commands._options import Debug, Json, Quiet, new_app

__all__ = ["app"]

app = new_app()


@app.command()
def providers(as_json: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """List execution providers, and how to get them.

    \b
    Examples:
      xattn-edge providers
      xattn-edge providers --json
    """
    with command(as_json=as_json, quiet=quiet, debug=debug) as console:
        from xattn_runtime.providers import provider_status

        found = provider_status()
        if as_json:
            console.document({"providers": [asdict(status) for status in found]})
            return
        rows = [("provider", "here", "devices", "how to get it")]
        for status in found:
            here = "yes" if status.available else "no"
            rows.append((status.name, here, ", ".join(status.devices) or "-", status.how_to_get))
        console.table(rows)
