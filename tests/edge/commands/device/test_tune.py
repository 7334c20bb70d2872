"""`xattn-edge tune` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from xattn_runtime.execution.device_profile import DeviceProfile, device_profile_path, write_device_profile
from xattn_runtime.execution.machine import describe_machine
from xattn_runtime.profiling.optimized import OptimizedVerdict
from xattn_runtime.profiling.tune import Candidate, Tuned


def tuned(bundle: Path, chosen: DeviceProfile | None, because: str = "they do not surely load faster") -> Tuned:
    candidate = Candidate(str(bundle), "decomposed", "cpu", 1, True, True, 2.0, 2.0)
    verdict = OptimizedVerdict(10.0, 11.0, 5, -0.1, None, because)
    return Tuned("latency", str(bundle), (candidate,), candidate, chosen, verdict)


def mine() -> DeviceProfile:
    machine = describe_machine()
    return DeviceProfile(machine.cpu, machine.cores, "cpu", 1, True, False, "latency", 0.25)


def test_what_is_better_is_written_and_said(invoke, stand_in, caption_copy: Path) -> None:
    asked: list[Any] = []

    def tune_bundle(*arguments: Any) -> Tuned:
        asked.extend(arguments)
        return tuned(caption_copy, mine())

    stand_in("xattn_runtime.profiling.tune", tune_bundle=tune_bundle)
    result = invoke("tune", "first.xattn", "--also", caption_copy, "--time-budget", "5", "--provider", "cpu")
    assert result.exit_code == 0, result.stderr
    assert asked[:4] == [Path("first.xattn"), "latency", ["cpu"], 5.0]
    assert asked[5] == [caption_copy]
    assert result.stderr.splitlines() == [
        "25.0 % below the defaults",
        f"take {caption_copy} on this device: its attention form is the better one here",
        "optimized graphs are not kept: they do not surely load faster",
        f"written: {device_profile_path(caption_copy)}",
    ]
    assert device_profile_path(caption_copy).is_file()


def test_what_is_no_longer_better_is_removed(invoke, stand_in, caption_copy: Path) -> None:
    write_device_profile(caption_copy, mine())
    stand_in("xattn_runtime.profiling.tune", tune_bundle=lambda *arguments: tuned(caption_copy, None))
    assert invoke("tune", caption_copy, "--dry-run").exit_code == 0
    assert device_profile_path(caption_copy).is_file()
    result = invoke("tune", caption_copy)
    assert "what an earlier tuning wrote was removed" in result.stderr
    assert not device_profile_path(caption_copy).exists()
    document = json.loads(invoke("tune", caption_copy, "--json").stdout)
    assert (document["chosen"], document["written"]) == (None, None)
