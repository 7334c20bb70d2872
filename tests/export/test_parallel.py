"""Computations in processes of their own: what they give and raise, and what is left of them."""

import gc
import multiprocessing
import os
import signal
import sys
import threading
from functools import partial

import pytest
import torch

from xattn_export.parallel import run_parallel
from xattn_runtime.errors import ImageError, XattnError

forks = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks safely")


def all_of(works):
    with run_parallel(works) as found:
        return list(found)


def fail(error):
    raise error


def test_results_come_in_order_and_see_this_process_objects():
    weights = torch.arange(5)
    assert all_of([lambda number=number: int(weights[number]) for number in range(5)]) == list(range(5))


@forks
def test_each_is_a_process_of_its_own_on_one_thread():
    found = all_of([lambda: (os.getpid(), torch.get_num_threads())] * 3)
    assert len({process for process, _ in found} | {os.getpid()}) == 4
    assert {threads for _, threads in found} == {1}


def test_an_error_keeps_its_class_and_words_and_ends_the_others():
    endless = threading.Event().wait if sys.platform == "linux" else int
    with pytest.raises(ImageError, match=r"^cat\.png: torn\n"):
        all_of([partial(fail, ImageError("cat.png: torn")), endless])
    assert not multiprocessing.active_children()


@forks
def test_the_first_is_there_before_the_last_is_done_and_the_end_of_the_block_ends_all():
    with run_parallel([os.getpid, threading.Event().wait]) as found:
        assert next(found) != os.getpid()
        assert multiprocessing.active_children()
    assert not multiprocessing.active_children()


class Session:
    """What cannot be taken apart in a fork, and refers to itself."""

    def __init__(self, taken_apart_in):
        self.itself, self.taken_apart_in = self, taken_apart_in

    def __del__(self):
        self.taken_apart_in.append(os.getpid())


@forks
def test_what_this_process_has_not_collected_is_not_collected_in_the_others():
    def collect():
        own = []
        Session(own)
        gc.collect()
        return places, own == [os.getpid()]

    places, collects = [], gc.isenabled()
    gc.disable()
    try:
        Session(places)
        assert all_of([collect, collect]) == [([], True)] * 2
        assert not gc.isenabled()
        assert places == []
        gc.enable()
        all_of([int])
        assert gc.isenabled()
    finally:
        (gc.enable if collects else gc.disable)()
    gc.collect()
    assert places == [os.getpid()]


@forks
def test_a_process_that_is_killed_is_an_error():
    with pytest.raises(XattnError, match="it was ended; is there enough memory"):
        all_of([lambda: os.kill(os.getpid(), signal.SIGKILL)])


@forks
def test_ctrl_c_in_the_midst_of_a_fork_is_not_forgotten():
    interrupting = iter([True])
    os.register_at_fork(after_in_parent=lambda: next(interrupting, False) and signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        all_of([threading.Event().wait] * 2)
    assert not multiprocessing.active_children()


@forks
def test_what_cannot_be_handed_over_is_an_error():
    with pytest.raises(XattnError, match="pickle"):
        all_of([threading.Lock])


def test_without_forks_the_work_is_done_here(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert all_of([os.getpid]) == [os.getpid()]
