"""The examples in other languages caption a picture as the runtime does, where their tool chains can be had."""

import os
import shutil
import signal
import subprocess
import tarfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import onnxruntime
import pytest
from PIL import Image

from tests.support.programs import requires_program, run_npm
from xattn_export import export_checkpoint
from xattn_runtime import default_bundle
from xattn_runtime.loader import load

CHECKOUT = Path(__file__).resolve().parents[2]
EXAMPLES = CHECKOUT / "examples"
PICTURE = EXAMPLES / "gem-and-diamond.png"
# The headers of ONNX Runtime as a package of npm has them, among much else.
HEADERS, HEADER = "com.github.asus4.onnxruntime@0.4.9", "onnxruntime_cxx_api.h"


def run(*command: object, **settings: Any) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=240, **settings)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("example")
    export_checkpoint(CHECKOUT / "checkpoints" / "emoji-caption", folder / "bundle.xattn")
    return folder / "bundle.xattn"


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """The picture without compression."""
    path = tmp_path_factory.mktemp("picture") / "picture.ppm"
    Image.open(PICTURE).convert("RGB").save(path)
    return path


@pytest.fixture(scope="module")
def caption(bundle):
    text = load(bundle).caption(PICTURE).text
    assert text == load(default_bundle("caption")).caption(PICTURE).text
    return text


def headers(folder: Path) -> Path:
    """A folder with the headers: as the environment says, as the system has them, or from npm."""
    places = [os.environ.get("ONNXRUNTIME_INCLUDE", ""), "/usr/include/onnxruntime", "/usr/local/include/onnxruntime"]
    for place in filter(None, places):
        if (Path(place) / HEADER).is_file():
            return Path(place)
    archive = folder / run_npm("pack --silent", [HEADERS], folder).split()[-1]
    with tarfile.open(archive) as packed:
        for member in packed:
            if member.isfile() and "/ios-arm64/" in member.name and member.name.endswith(".h"):
                content = packed.extractfile(member)
                assert content is not None
                (folder / Path(member.name).name).write_bytes(content.read())
    archive.unlink()
    return folder


@pytest.mark.slow
def test_cpp(bundle, picture, caption, tmp_path):
    compiler = requires_program("c++", "g++", "clang++", package="g++")
    found = list((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    if not found:
        pytest.skip("this build of onnxruntime for Python brings no library to link with")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (tmp_path / name).symlink_to(found[0])
    include, program = headers(tmp_path), tmp_path / "caption"
    options = ("-std=c++17", "-Wall", "-Werror", "-I", include, "-L", tmp_path, f"-Wl,-rpath,{tmp_path}")
    run(compiler, EXAMPLES / "cpp" / "caption.cpp", *options, "-lonnxruntime", "-o", program)
    assert run(program, bundle, picture) == f"{caption}\n"
    cut = tmp_path / "cut.ppm"
    cut.write_bytes(picture.read_bytes()[:1000])
    done = subprocess.run([program, bundle, cut], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "the picture is cut short\n")


@pytest.mark.slow
def test_node(bundle, picture, caption, node_folder, tmp_path):
    shutil.copy(EXAMPLES / "node" / "caption.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(node_folder / "node_modules")
    assert run("node", "caption.mjs", bundle, picture, cwd=tmp_path) == f"{caption}\n"


class Quiet(SimpleHTTPRequestHandler):
    """No line for every request; the page's last word is kept."""

    said: ClassVar[list[str]] = []

    def log_message(self, *arguments: object) -> None:
        pass

    def do_POST(self) -> None:
        self.said.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(204)
        self.end_headers()


@pytest.mark.slow
def test_web_page(bundle, caption, node_folder, tmp_path):
    browser = requires_program("chromium-headless-shell", "chromium", "google-chrome", package="chromium")
    page = (EXAMPLES / "web" / "index.html").read_text(encoding="utf-8")
    # A browser without a window tells what it shows when it is asked; here the page tells as soon as it shows it.
    report = """<script>new MutationObserver(() => fetch("/", {method: "POST", body: caption.textContent}))
      .observe(document.getElementById("caption"), {childList: true})</script>"""
    (tmp_path / "index.html").write_text(page + report, encoding="utf-8")
    (tmp_path / "bundle").symlink_to(bundle)
    (tmp_path / "ort").symlink_to(node_folder / "node_modules" / "onnxruntime-web" / "dist")
    shutil.copy(PICTURE, tmp_path / "picture.png")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/index.html?image=picture.png"
    flags = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}")
    with (tmp_path / "errors.txt").open("w") as errors:
        process = subprocess.Popen(
            [browser, *flags, "--remote-debugging-port=0", address],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
        try:
            for _ in range(1200):
                if Quiet.said or process.poll() is not None:
                    break
                time.sleep(0.1)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # a browser is several processes
            process.wait()
            server.shutdown()
            server.server_close()
    assert Quiet.said == [caption], (tmp_path / "errors.txt").read_text()[-2000:]
