"""Signals, as a process meets them: each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from stemjax import stopping

HEAD = "import os, signal, sys, threading, time\nfrom stemjax import stopping\n"
HEAD += "stopping.GRACE_SECONDS = .3\n"


def _run(body, *numbers, wait=60):
    """Exit code, output and seconds of a process that is signalled when it says it is ready."""
    child = subprocess.Popen(
        [sys.executable, "-c", HEAD + body],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "ready\n"
    started = time.monotonic()
    for number in numbers:
        child.send_signal(number)
        time.sleep(0.05)
    out, err = child.communicate(timeout=wait)
    return child.returncode, out, err, time.monotonic() - started


def test_listening_raises_where_the_main_thread_is():
    body = (
        "try:\n    with stopping.listening():\n        print('ready', flush=True)\n"
        "        time.sleep(30)\n"
        "except stopping.Stopped as stopped:\n    print(stopped.exit_code)\n"
    )
    code, out, _, seconds = _run(body, signal.SIGTERM)
    assert (code, out) == (0, "143\n")
    assert seconds < 10


def test_deferred_only_notes_and_a_second_signal_changes_nothing():
    body = (
        "with stopping.deferred() as stop:\n    print('ready', flush=True)\n"
        "    until = time.monotonic() + .6\n"
        "    while time.monotonic() < until:\n        time.sleep(.01)\n"
        "    print(stop.asked.name)\n"
        "    try:\n        stop.check()\n    except stopping.Stopped as one:\n"
        "        print(one.exit_code)\n"
    )
    code, out, err, _ = _run(body, signal.SIGINT, signal.SIGTERM, signal.SIGTERM)
    assert (code, out) == (0, "SIGINT\n130\n")
    assert err.count("already stopping") == 2


def test_waiting_is_interrupted_inside_a_deferred_block():
    body = (
        "with stopping.deferred() as stop:\n"
        "    try:\n        with stop.interruptible():\n            print('ready', flush=True)\n"
        "            threading.Event().wait(30)\n"
        "    except stopping.Stopped:\n        print('stopped')\n"
    )
    code, out, _, seconds = _run(body, signal.SIGTERM)
    assert (code, out) == (0, "stopped\n")
    assert seconds < 10


def test_a_main_thread_that_is_away_is_left_behind():
    """The handler never runs, as in a compilation: the thread saves, says so, and ends it all."""
    body = (
        "stopping.Stop.note = lambda self, number, frame=None: None\n"
        "with stopping.deferred() as stop:\n"
        "    with stop.abandonable(lambda: (print('saving', flush=True), 'step 7 is saved')[1]):\n"
        "        print('ready', flush=True)\n"
        "        end = time.monotonic() + 30\n"
        "        while time.monotonic() < end:\n            time.sleep(1)\n"
    )
    code, out, err, seconds = _run(body, signal.SIGTERM)
    assert (code, out) == (143, "saving\n")
    assert "SIGTERM received: step 7 is saved" in err
    assert seconds < 10


def test_a_block_that_comes_back_in_time_is_not_abandoned():
    body = (
        "with stopping.deferred() as stop:\n"
        "    try:\n"
        "        with stop.abandonable(lambda: 'saved by the thread'):\n"
        "            print('ready', flush=True)\n"
        "            while True:\n                stop.check()\n                time.sleep(.01)\n"
        "    except stopping.Stopped:\n        time.sleep(1)\n        print('saved by the block')\n"
    )
    code, out, err, _ = _run(body, signal.SIGTERM)
    assert (code, out) == (0, "saved by the block\n")
    assert "thread" not in err


def test_a_command_whose_main_thread_is_away_ends():
    body = (
        "stopping.Stop.note = lambda self, number, frame=None: None\n"
        "with stopping.listening():\n    print('ready', flush=True)\n"
        "    end = time.monotonic() + 30\n"
        "    while time.monotonic() < end:\n        time.sleep(1)\n"
    )
    code, _, err, seconds = _run(body, signal.SIGTERM)
    assert code == 143
    assert "what was finished is kept" in err
    assert seconds < 10


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    with stopping.listening() as outer:
        assert signal.getsignal(signal.SIGTERM) == outer.note
        with stopping.deferred() as inner:
            assert inner is outer
            os.kill(os.getpid(), signal.SIGTERM)
            assert inner.asked == signal.SIGTERM
            with pytest.raises(stopping.Stopped):
                inner.check()
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before


def test_where_the_process_ends_a_second_signal_does_not_end_it_first():
    body = (
        "try:\n    with stopping.listening(ending=True):\n        print('ready', flush=True)\n"
        "        time.sleep(30)\n"
        "except stopping.Stopped as stopped:\n    time.sleep(.5)\n    sys.exit(stopped.exit_code)\n"
    )
    code, _, _, seconds = _run(body, signal.SIGTERM, signal.SIGTERM, signal.SIGINT)
    assert code == 143
    assert seconds < 10
