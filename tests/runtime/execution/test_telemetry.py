"""ONNX Runtime neither writes into the home folder nor asks the network for anything, unless the user wants it to."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.programs import requires_program
from xattn_runtime.execution.telemetry import TELEMETRY_VARIABLE, disable_telemetry

CAPTION = """
import sys, time, xattn_runtime
task = xattn_runtime.load(sys.argv[1])
for _ in range(int(sys.argv[2])):
    print(task.caption(task.bundle.file("golden/0.png")).token_ids)
    time.sleep(int(sys.argv[2]) > 1)
"""


def run(bundle: Path, home: Path | str, *before: str, calls: int = 1) -> subprocess.CompletedProcess[str]:
    """Captions in a process of their own, whose environment says nothing of telemetry."""
    said = {key: value for key, value in os.environ.items() if key not in (TELEMETRY_VARIABLE, "XDG_CACHE_HOME")}
    return subprocess.run(
        [*before, sys.executable, "-c", CAPTION, str(bundle), str(calls)],
        env={**said, "HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )


def test_nothing_is_written_below_home(caption_bundle: Path, tmp_path: Path) -> None:
    done = run(caption_bundle, tmp_path)
    assert done.stderr == ""
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_home_that_cannot_be_written_and_no_network_say_nothing(caption_bundle: Path, tmp_path: Path) -> None:
    unshare = requires_program("unshare", package="util-linux")
    alone = (unshare, "--net", "--map-root-user")
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("a process may have no network of its own here")
    there, away = run(caption_bundle, tmp_path), run(caption_bundle, os.devnull + "/home", *alone)
    assert away.stderr == ""
    assert away.stdout == there.stdout


@pytest.mark.slow  # it asks after some 20 seconds
def test_no_host_is_asked_for(caption_bundle: Path, tmp_path: Path) -> None:
    strace = requires_program("strace", package="strace")
    trace = tmp_path / "trace"
    run(
        caption_bundle, tmp_path, strace, "-f", "-o", str(trace), "-e", "trace=socket,connect,sendto,sendmmsg", calls=30
    )
    assert trace.read_text()
    assert re.findall(r".*(?:AF_INET|AF_NETLINK|mobile\.events).*", trace.read_text()) == []


@pytest.mark.parametrize(("said", "value"), [(None, "1"), ("", "1"), ("0", "0"), ("1", "1"), ("true", "true")])
def test_what_the_user_says_holds(monkeypatch: pytest.MonkeyPatch, said: str | None, value: str) -> None:
    if said is None:
        monkeypatch.delenv(TELEMETRY_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(TELEMETRY_VARIABLE, said)
    assert disable_telemetry() is (not said)
    assert os.environ[TELEMETRY_VARIABLE] == value
    assert not disable_telemetry()
    monkeypatch.setenv(TELEMETRY_VARIABLE, "1")
