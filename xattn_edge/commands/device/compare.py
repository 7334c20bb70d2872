"""`xattn-edge compare`: two bundles, or one on two providers, on the same examples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xattn_edge.commands.shared.console import Console, command
from xattn_edge.commands.shared.options import Debug, Fallback, Json, Quiet, Threads, bundle_argument, new_app
from xattn_edge.commands.shared.output import check_writable, write_text
from xattn_runtime.errors import UserError

if TYPE_CHECKING:
    from xattn_export.compare import CompareReport, Component
    from xattn_runtime.bundle.folder import Bundle

__all__ = ["app"]

app = new_app()
_MOST_SHOWN = 10


@app.command()
def compare(
    bundles: Annotated[
        list[Path],
        bundle_argument("Two bundles, or one with two providers.", metavar="BUNDLE [OTHER]"),
    ],
    data: Annotated[
        str, typer.Option("--data", help="Compare on the test split of a data set, a folder of images, or golden.")
    ] = "golden",
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=100_000, help="Compare on at most this many examples.")
    ] = 100,
    providers: Annotated[
        list[str] | None,
        typer.Option("--provider", help="Provider of both; repeat it for the second."),
    ] = None,
    fallback: Fallback = False,
    threads: Threads = None,
    threshold: Annotated[
        float, typer.Option("--threshold", min=0.0, help="Report layers above this relative error as different.")
    ] = 1e-3,
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write a page with images to this file; replace an earlier page.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show where two bundles differ, and what that changes.

    The report counts equal answers, lists those that differ and from which token on,
    and measures the error of each component on the same inputs and the first layer that
    differs.

    \b
    Examples:
      xattn-edge compare shapes-vqa.xattn shapes-vqa-int8.xattn --data easy-vqa
      xattn-edge compare blip.xattn blip-int8.xattn --data images/ --html blip.html
      xattn-edge compare blip.xattn --provider cpu --provider cuda
    """
    with command(as_json=as_json, quiet=quiet, debug=debug) as console:
        from xattn_export.compare import compare_bundles
        from xattn_runtime.bundle.folder import open_bundle
        from xattn_runtime.execution.providers import with_fallback
        from xattn_runtime.verify.golden import chosen_settings

        if html is not None:
            check_writable(html)
        names = [with_fallback(name, fallback) for name in _provider_names(bundles, providers or [])]
        opened = [open_bundle(path) for path in bundles]
        first, second = opened[0], opened[-1]
        settings = [chosen_settings(name, threads, each) for name, each in zip(names, (first, second), strict=True)]
        samples = _samples(first, data, limit)
        with console.progress() as progress:
            report = compare_bundles(
                (first, second), (settings[0], settings[1]), samples, threshold=threshold, progress=progress
            )
        if html is not None:
            _write_page(html, report, samples)
        if as_json:
            console.document(report.to_dict())
        else:
            _print(console, report)


def _provider_names(bundles: list[Path], providers: list[str]) -> tuple[str, str]:
    if len(bundles) > 2:
        raise UserError(f"expected one bundle or two, found {len(bundles)}")
    if len(providers) > 2:
        raise UserError(f"--provider: expected at most two, found {len(providers)}")
    if len(bundles) == 1 and len(providers) < 2:
        raise UserError("expected another bundle, or --provider twice, found one bundle and one provider to run it on")
    return (providers or ["cpu"])[0], (providers or ["cpu"])[-1]


def _samples(bundle: Bundle, data: str, limit: int) -> Any:
    from xattn_edge.evaluation.samples import DATA_SETS, calibration_samples, unseen_samples

    return unseen_samples(bundle, data, limit) if data in DATA_SETS else calibration_samples(bundle, data, limit)


def _write_page(path: Path, report: CompareReport, samples: Any) -> None:
    from xattn_export.compare.page import page, thumbnail

    images = {change.number: thumbnail(samples.items[change.number].image) for change in report.changes}
    write_text(path, page(report, images))


def _print(console: Console, report: CompareReport) -> None:
    console.line(f"1: {report.first}")
    console.line(f"2: {report.second}")
    right = "" if report.right is None else f"; right: {report.right[0]} and {report.right[1]}"
    console.line(f"{report.examples} examples of {report.data}: {report.agreement:.1%} answered alike{right}")
    rows: list[tuple[object, ...]] = [("component", "error of outputs", "parts at", "its error", "grows most at")]
    console.table([*rows, *(_row(component) for component in report.components.values())])
    for change in report.changes[:_MOST_SHOWN]:
        question = f"{change.text}: " if change.text else ""
        step = "" if change.token is None else f" (from token {change.token.step} on)"
        console.line(f"{change.image}: {question}{change.first!r} / {change.second!r}{step}")
    if len(report.changes) > _MOST_SHOWN:
        console.line(f"and {len(report.changes) - _MOST_SHOWN} more; --json and --html have all")


def _row(component: Component) -> tuple[object, ...]:
    if component.note is not None:
        return component.role, "-", component.note, "-", "-"
    parts, jumps = component.parts_at, component.jumps_at
    return (
        component.role,
        "-" if component.relative_rms is None else component.relative_rms,
        "nowhere" if parts is None else f"{parts.operator} {parts.tensor}",
        "-" if parts is None else parts.relative_rms,
        "-" if jumps is None else f"{jumps.operator} {jumps.tensor}",
    )
