"""`xattn-edge profile`: what is refused before anything is measured, and what is shown of what was."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xattn_runtime.profiling import ProfileDocument, ProfileOptions, profile_matrix


@pytest.fixture(scope="module")
def document(caption_bundle: Path) -> ProfileDocument:
    return profile_matrix([caption_bundle], ["cpu", "tensorrt"], [1], options=ProfileOptions(time_budget_s=1.5))


@pytest.fixture
def never(stand_in: Callable[..., None]) -> None:
    """Measuring, which must not begin."""

    def measure(*arguments: object) -> None:
        raise AssertionError("it was measured")

    stand_in("xattn_runtime.profiling", profile_matrix=measure)


@pytest.mark.parametrize("option", ["--html", "--trace"])
def test_a_place_that_cannot_be_written(invoke, never, caption_bundle: Path, tmp_path: Path, option: str) -> None:
    missing = tmp_path / "none" / "report"
    result = invoke("profile", caption_bundle, option, missing)
    expected = f"error: {missing}: expected a place to write to, found: No such file or directory; name another\n"
    assert (result.exit_code, result.stderr) == (2, expected)
    result = invoke("profile", caption_bundle, option, tmp_path)
    assert (result.exit_code, "it is a folder" in result.stderr) == (2, True)
    assert not list(tmp_path.iterdir())


def test_a_report_without_matplotlib(
    invoke, never, caption_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = invoke("profile", caption_bundle, "--html", tmp_path / "page.html")
    assert (result.exit_code, "xattn-edge[report]" in result.stderr) == (2, True)


def test_what_was_measured_is_shown_whatever_failed(invoke, stand_in, document: ProfileDocument) -> None:
    stand_in("xattn_runtime.profiling", profile_matrix=lambda *arguments: document)
    result = invoke("profile", "any.xattn")
    assert result.exit_code == 2
    assert "tiny-caption.xattn" in result.stdout
    assert {"total", "step", "prefill"} <= set(result.stdout.split())
    assert f"measured here: {document.machine.cpu}" in result.stderr
    assert "error: provider tensorrt: expected an ONNX Runtime with" in result.stderr
    as_json = invoke("profile", "any.xattn", "--json")
    assert as_json.exit_code == 2
    assert json.loads(as_json.stdout)["profiles"][0]["passes"] >= 2


def test_ctrl_c_shows_what_was_measured(invoke, stand_in, document: ProfileDocument, tmp_path: Path) -> None:
    from dataclasses import replace

    stand_in("xattn_runtime.profiling", profile_matrix=lambda *arguments: replace(document, interrupted=True))
    page = tmp_path / "page.html"
    result = invoke("profile", "any.xattn", "--html", page, "--json")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n"), result.exception
    assert json.loads(result.stdout)["interrupted"]
    assert page.read_text(encoding="utf-8").count("<svg") == 5


def test_an_earlier_profile_of_another_model(invoke, stand_in, document: ProfileDocument, tmp_path: Path) -> None:
    stand_in("xattn_runtime.profiling", profile_matrix=lambda *arguments: document)
    old = tmp_path / "old.json"
    old.write_text(json.dumps(document.to_dict() | {"profiles": []}))
    result = invoke("profile", "any.xattn", "--against", old, "--json")
    assert (result.exit_code, "error: --against: expected a profile of the same" in result.stderr) == (2, True)
    assert json.loads(result.stdout)["profiles"]


def test_the_older_bundle_takes_turns(invoke, stand_in, document: ProfileDocument, tmp_path: Path) -> None:
    from dataclasses import replace

    asked: list[Any] = []
    processes: list[int] = []
    (profile,) = document.profiles
    older = tmp_path / "older.xattn"
    older.mkdir()

    def measure(bundles: Any, *others: Any) -> ProfileDocument:
        asked.extend(bundles)
        processes.append(others[3].processes)
        beside: Any = {"reference_ms": (1.0, 1.0, 1.0), "process_rounds": (3,)}
        old, new = ({stage: [ms, ms, ms] for stage in profile.rounds} for ms in (1.0, 2.0))
        slower = replace(profile, bundle="a.xattn", rounds=new, **beside)
        return replace(
            document, failures=(), profiles=(slower, replace(profile, bundle=str(older), rounds=old, **beside))
        )

    stand_in("xattn_runtime.profiling", profile_matrix=measure)
    result = invoke("profile", "a.xattn", "--against", older, "--json")
    assert (result.exit_code, asked, processes) == (1, [Path("a.xattn"), older], [4])
    values = json.loads(result.stdout)
    assert [one["bundle"] for one in values["profiles"]] == ["a.xattn"]
    assert {change["verdict"] for change in values["against"]} == {"worse"}
    result = invoke("profile", older, "--against", older)
    assert (result.exit_code, "expected an older bundle, found" in result.stderr) == (2, True)


def test_another_machine(invoke, stand_in, document: ProfileDocument, tmp_path: Path) -> None:
    asked: list[Any] = []

    def measure(*arguments: Any) -> dict[str, Any]:
        asked.extend(arguments)
        values: dict[str, Any] = json.loads(json.dumps(document.to_dict()))
        return values | {"host": "pi@device", "failures": []}

    stand_in("xattn_runtime.profiling.remote.client", profile_on_host=measure)
    old, page = tmp_path / "old.json", tmp_path / "page.html"
    old.write_text(json.dumps(document.to_dict()))
    arguments = ("--host", "pi@device", "--host-python", "~/venv/bin/python", "--ssh", "ssh -p 22", "--threads", "1,2")
    result = invoke("profile", "a.xattn", *arguments, "--provider", "cpu", "--against", old, "--html", page)
    assert result.exit_code == 0, result.stderr
    host, bundles, providers, threads, batches, *_ = asked
    assert (host.name, host.python, host.ssh) == ("pi@device", "~/venv/bin/python", "ssh -p 22")
    assert (bundles, providers, threads, batches) == ([Path("a.xattn")], ["cpu"], [1, 2], [1])
    assert "measured on pi@device: " in result.stderr
    assert "same" in result.stdout
    assert "pi@device" in page.read_text(encoding="utf-8")
