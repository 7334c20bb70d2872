"""Against a real sshd on the loopback, which the test starts with keys of its own."""

from __future__ import annotations

import dataclasses
import getpass
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.programs import requires_program
from xattn_runtime.errors import DependencyError, UserError, XattnError
from xattn_runtime.profiling import ProfileOptions
from xattn_runtime.profiling.remote.client import Host, profile_on_host

FEW = ProfileOptions(runs=3, nodes=False)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host that lets one key in, and keeps temporary files in the folder `temporary` beside its configuration."""
    for name in ("ssh", "ssh-keygen"):
        requires_program(name, package="openssh-client openssh-server")
    sshd = requires_program("sshd", package="openssh-server")
    folder = tmp_path_factory.mktemp("ssh")
    for name in ("host", "user", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    (folder / "temporary").mkdir()
    port = free_port()
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "authorized",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "SetEnv": f"TMPDIR={folder / 'temporary'} OMP_NUM_THREADS=1",
    }
    (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    log = folder / "sshd.log"
    server = subprocess.Popen([sshd, "-D", "-f", folder / "sshd_config", "-E", log])
    try:
        until = time.monotonic() + 10
        while time.monotonic() < until and server.poll() is None:
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        if server.poll() is not None:
            pytest.skip(f"sshd does not start here: {log.read_text()[-200:]}")
        key = " ".join((folder / "host.pub").read_text().split()[:2])
        (folder / "known").write_text(f"[127.0.0.1]:{port} {key}\n")
        (folder / "config").write_text(
            f"Host device\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n  IdentitiesOnly yes\n"
            f"  IdentityAgent none\n  IdentityFile {folder / 'user'}\n  UserKnownHostsFile {folder / 'known'}\n"
        )
        yield Host("device", sys.executable, f"ssh -F {shlex.quote(str(folder / 'config'))}")
    finally:
        server.terminate()
        server.wait()


def left_behind(device: Host) -> list[Path]:
    return list((folder_of(device) / "temporary").glob("xattn-edge-*"))


def folder_of(device: Host) -> Path:
    return Path(shlex.split(device.ssh)[2]).parent


def test_a_profile_of_another_machine(device: Host, caption_bundle: Path, vqa_bundle: Path, tmp_path: Path) -> None:
    odd = tmp_path / 'it\'s "odd" $HOME é.xattn'
    odd.symlink_to(caption_bundle)
    told: list[tuple[str, float]] = []
    traces: dict[Any, Any] = {}
    document = profile_on_host(
        device,
        [odd, vqa_bundle],
        ["cpu", "tensorrt"],
        [1],
        options=ProfileOptions(runs=3, images=[str(caption_bundle / "golden" / "1.png")]),
        progress=lambda text, share: told.append((text, share)),
        traces=traces,
    )
    assert [profile["bundle"] for profile in document["profiles"]] == [str(odd), str(vqa_bundle)]
    assert [profile["passes"] for profile in document["profiles"]] == [3, 3]
    assert document["host"] == "device"
    assert document["machine"]["cores"] >= 1
    assert [(failure["bundle"], failure["provider"]) for failure in document["failures"]] == [
        (str(odd), "tensorrt"),
        (str(vqa_bundle), "tensorrt"),
    ]
    assert {one.bundle for one in traces} == {str(odd), str(vqa_bundle)}
    assert [share for _, share in told] == sorted(share for _, share in told)
    assert any(str(odd) in text for text, _ in told)
    json.dumps(document, allow_nan=False)
    assert not left_behind(device)


def changed(device: Host, **changes: str) -> Host:
    """With options for ssh before the others, of which the first ones count."""
    options = changes.pop("options", "")
    name, rest = device.ssh.split(" ", 1)
    return dataclasses.replace(device, ssh=f"{name} {options} {rest}", **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"options": "-p 1"}, "found that nothing listens there .*; start sshd there"),
        ({"options": "-o HostName=nowhere.invalid"}, "no machine of that name"),
        ({"options": "-o UserKnownHostsFile=/dev/null"}, "its key is not known here .*; run ssh device once"),
        ({"options": "-o IdentityFile=none -o PubkeyAuthentication=no"}, "nobody in without a password .*ssh-copy-id"),
        ({"python": "/no such/python"}, "expected the Python /no such/python, found.*--host-python"),
        ({"python": "/bin/false"}, "found that /bin/false ended with 1"),
        ({"name": "-oProxyCommand=x"}, "--host: expected a machine such as user@device"),
        ({"name": "a b"}, "--host: expected a machine"),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else "",
)
def test_who_cannot_be_reached(device: Host, caption_bundle: Path, changes: dict[str, str], words: str) -> None:
    with pytest.raises(XattnError, match=words) as caught:
        profile_on_host(changed(device, **changes), [caption_bundle], options=FEW)
    assert isinstance(caught.value, UserError) == (changes.get("python") != "/bin/false")


def test_another_key_than_the_known_one(device: Host, caption_bundle: Path, tmp_path: Path) -> None:
    folder = folder_of(device)
    address = (folder / "known").read_text().split()[0]
    key = " ".join((folder / "stranger.pub").read_text().split()[:2])
    (tmp_path / "known").write_text(f"{address} {key}\n")
    host = changed(device, options=f"-o UserKnownHostsFile={tmp_path / 'known'}")
    with pytest.raises(UserError, match="its key is not the one known here"):
        profile_on_host(host, [caption_bundle], options=FEW)


def test_without_ssh(caption_bundle: Path) -> None:
    with pytest.raises(DependencyError, match=r"expected the program no-such-ssh.*OpenSSH client"):
        profile_on_host(Host("device", ssh="no-such-ssh"), [caption_bundle], options=FEW)


def test_packages_that_are_missing_there(device: Host, caption_bundle: Path, tmp_path: Path) -> None:
    python = tmp_path / "bare python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(str(Path(sys.executable).resolve()))} -I -S "$@"\n')
    python.chmod(0o755)
    words = (
        "expected numpy, onnxruntime, pillow, tokenizers in .*bare python .* found none; there, run .* -m pip install"
    )
    with pytest.raises(UserError, match=words):
        profile_on_host(dataclasses.replace(device, python=str(python)), [caption_bundle], options=FEW)


def test_a_login_that_talks(device: Host, caption_bundle: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho Welcome to the device\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    document = profile_on_host(dataclasses.replace(device, python=str(python)), [caption_bundle], options=FEW)
    assert document["profiles"][0]["passes"] == 3


def test_ctrl_c_brings_what_was_measured(device: Host, caption_bundle: Path) -> None:
    sent = threading.Event()

    def watch(text: str, share: float) -> None:
        if text == "round 3" and not sent.is_set():
            sent.set()
            threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()

    endless = ProfileOptions(runs=10**9, nodes=False)
    document = profile_on_host(device, [caption_bundle], threads=[1], options=endless, progress=watch)
    assert document["interrupted"]
    assert document["profiles"][0]["passes"] >= 3
    assert not left_behind(device)


def test_the_other_end_cleans_up_when_we_are_gone(device: Host, caption_bundle: Path, tmp_path: Path) -> None:
    script = tmp_path / "profile.py"
    script.write_text(
        "import sys\nfrom xattn_runtime.profiling import ProfileOptions\n"
        "from xattn_runtime.profiling.remote.client import Host, profile_on_host\n"
        "profile_on_host(Host(*sys.argv[1:4]), [sys.argv[4]], options=ProfileOptions(runs=10**9),\n"
        "                progress=lambda text, share: print(text, flush=True))\n"
    )
    arguments = [device.name, device.python, device.ssh, str(caption_bundle)]
    process = subprocess.Popen([sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while process.stdout.readline() not in ("round 2\n", ""):
        pass
    assert left_behind(device)
    process.kill()
    process.communicate()
    until = time.monotonic() + 30
    while left_behind(device) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left_behind(device)
