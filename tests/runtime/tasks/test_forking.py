"""A model that was loaded before a fork: each child answers with sessions of its own, and none hangs at its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.slow import slow_after

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system forks nothing")

IMAGE = Path(__file__).resolve().parents[3] / "examples" / "gem-and-diamond.png"
RIGHT = "gem stone to the left of a diamond suit"
# Each runs in a process of its own: this one has threads of its own, and loads what it loads.
BEGIN = """
import gc, multiprocessing, os, shutil, sys, tempfile, threading
from concurrent.futures import ProcessPoolExecutor
import xattn_runtime
image, right = sys.argv[1:]
folder = tempfile.mkdtemp() + "/m.xattn"
shutil.copytree(xattn_runtime.default_bundle("caption"), folder)
model = xattn_runtime.load(folder, threads=2, task="caption")
assert model.caption(image).text == right
def use(_=None):
    assert model.caption(image).text == right
    assert "".join(token.text for token in model.stream(image)) == right
    return True
def child(work, end=os._exit):
    number = os.fork()
    if number == 0:
        try:
            work()
        except BaseException as error:
            print("in the child:", type(error).__name__, error)
            sys.stdout.flush()
            os._exit(1)
        end(0)
    status = os.waitpid(number, 0)[1]
    assert status == 0, status
"""
CASES = {
    "all that a child may do": """
def let_go():
    globals().pop("model")
    gc.collect()
def load_again():
    globals().update(model=xattn_runtime.load(folder, task="caption"))
    use()
child(use)
child(use, sys.exit)
child(lambda: None, sys.exit)
child(lambda: (model.close(), gc.collect()), sys.exit)
child(let_go, sys.exit)
child(load_again, sys.exit)
child(lambda: print(len(list(model.caption_each([image] * 40, at_once=2)))), sys.exit)
child(lambda: (use(), child(use)), sys.exit)
use()
model.caption(image, beams=2)
child(lambda: model.caption(image, beams=2), sys.exit)
use()
""",
    "without its folder": "shutil.rmtree(folder); child(use, sys.exit); use()",
    "a pool": "print(multiprocessing.get_context('fork').Pool(2).map(use, range(4)))",
    "an executor": """
with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
    assert all(pool.map(use, range(4)))
""",
    "a stream that was begun": """
stream = model.stream(image)
first = next(stream).text
def rest():
    assert first + "".join(token.text for token in stream) == right
child(rest, sys.exit)
rest()
""",
    "images that were begun": """
many = model.caption_each([image] * 40, batch=2, at_once=2)
next(many)
def rest():
    try:
        next(many)
    except xattn_runtime.UserError as error:
        assert "make the call again in this process" in str(error)
    use()
child(rest, sys.exit)
child(lambda: None, sys.exit)
assert len(list(many)) == 39
""",
    "in the midst of calls of other threads": """
stop = threading.Event()
def call(beams):
    while not stop.is_set():
        model.caption(image, beams=beams)
threads = [threading.Thread(target=call, args=(beams,)) for beams in (1, 2)]
for thread in threads: thread.start()
for _ in range(8): child(use, sys.exit)
stop.set()
for thread in threads: thread.join()
""",
    "while another thread loads the decoder": """
from xattn_runtime.execution.session import HeldGraph
load, began, may = HeldGraph.load, threading.Event(), threading.Event()
def slow(held, **more):
    began.set(); may.wait()
    return load(held, **more)
HeldGraph.load = slow
thread = threading.Thread(target=lambda: model.caption(image, beams=2))
thread.start(); began.wait()
def beams():
    HeldGraph.load = load
    assert model.caption(image, beams=2).text
child(beams, sys.exit)
may.set(); thread.join()
""",
}


@pytest.mark.parametrize("case", slow_after(3, list(CASES)))
def test_a_forked_process_answers_and_ends(case: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", BEGIN + CASES[case], str(IMAGE), RIGHT],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 0, output
    assert "Error" not in output
    assert "warning" not in output.lower()


def test_a_child_cannot_use_the_device_of_its_parent(caption_bundle: Path) -> None:
    """What such a provider says itself, `CUDA failure 3: initialization error`, tells nobody what to do."""
    from dataclasses import replace

    from xattn_runtime import ProviderError, open_bundle
    from xattn_runtime.execution.providers import resolve_provider
    from xattn_runtime.execution.session import SessionSettings, open_session

    session = open_session(open_bundle(caption_bundle), "decoder", SessionSettings(resolve_provider("cpu"), 1))
    on_gpu = SessionSettings(replace(resolve_provider("cpu"), name="cuda", device="GPU"), 1)
    session._loaded.source = replace(session._loaded.source, settings=on_gpu)
    session._loaded.after_fork()
    with pytest.raises(ProviderError, match=r"provider cuda: .* forked .*; load the bundle in each process"):
        session.run(["logits"], {})
