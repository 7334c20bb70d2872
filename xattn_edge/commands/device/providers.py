"""`xattn-edge providers`: the execution providers of this machine, and how to get the others."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from xattn_edge.commands.shared.console import Console, command
from xattn_edge.commands.shared.options import Debug, Json, Quiet, new_app

if TYPE_CHECKING:
    from xattn_runtime.execution.provider_status import MachineStatus

__all__ = ["app"]

app = new_app()


@app.command()
def providers(as_json: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """List execution providers, and how to get them.

    "yes" means that nothing is known to be missing; `xattn-edge verify BUNDLE --provider NAME` proves it.

    \b
    Examples:
      xattn-edge providers
      xattn-edge providers --json
    """
    with command(as_json=as_json, quiet=quiet, debug=debug) as console:
        from xattn_runtime.execution.provider_status import machine_status

        status = machine_status()
        if as_json:
            console.document(asdict(status))
            return
        _print(console, status)
        if status.conflict is not None:
            console.warn(f"{status.conflict}; run {status.conflict.fix_command}")


def _print(console: Console, status: MachineStatus) -> None:
    rows = [("provider", "here", "devices", "what is missing", "how to get it")]
    for row in status.providers:
        here = "yes" if row.available else "no"
        how = "-" if row.available else row.how_to_get
        rows.append((row.name, here, ", ".join(row.devices) or "-", row.missing or "-", how))
    console.table(rows)
    for name, version in status.versions.items():
        console.line(f"{name} {version}")
    driver = status.nvidia
    if driver is not None:
        console.line(f"NVIDIA driver for CUDA {driver.cuda_version}: {', '.join(driver.devices) or 'no GPU'}")
