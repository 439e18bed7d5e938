"""Starting a command again: when, how often, and what becomes of signals."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from stemjax import cli
from stemjax.cli import exits, restarts


def _command(folder, body):
    """A command that counts its starts in a file, as ``n``."""
    head = (
        f"import os, pathlib, signal, sys, time\nfile = pathlib.Path({str(folder / 'starts')!r})\n"
        "n = int(file.read_text()) + 1 if file.exists() else 1\nfile.write_text(str(n))\n"
    )
    return [sys.executable, "-c", head + body]


def _starts(folder):
    return int((folder / "starts").read_text())


def _supervise(folder, body, *, most=3, progress=lambda: None):
    return restarts.supervise(_command(folder, body), most=most, progress=progress, pause=0.01)


@pytest.mark.parametrize(
    "end", ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(70)", "sys.exit(75)", "os.abort()"]
)
def test_a_crash_a_kill_and_a_lost_peer_are_started_again(tmp_path, end):
    assert _supervise(tmp_path, f"if n < 3:\n    {end}\n") == exits.DONE
    assert _starts(tmp_path) == 3


@pytest.mark.parametrize("code", [0, 1, 2, 130, 141, 143])
def test_what_a_start_again_would_not_mend_ends_it_with_the_same_code(tmp_path, code):
    assert _supervise(tmp_path, f"sys.exit({code})") == code
    assert _starts(tmp_path) == 1


def test_it_gives_up_and_starts_with_progress_do_not_count(tmp_path, capfd):
    assert _supervise(tmp_path, "sys.exit(75)", most=2) == 75
    assert _starts(tmp_path) == 3
    assert "3 times without progress (exit code 75): giving up" in capfd.readouterr().err
    (tmp_path / "starts").unlink()
    body = "sys.exit(0 if n == 6 else 75)"
    step = iter([0, 1, 2, 3, 4, 5])
    assert _supervise(tmp_path, body, most=1, progress=lambda: next(step)) == 0
    assert _starts(tmp_path) == 6
    (tmp_path / "starts").unlink()
    killed = "os.kill(os.getpid(), signal.SIGKILL)"
    assert _supervise(tmp_path, killed, most=0) == 128 + signal.SIGKILL


def test_a_signal_goes_on_to_the_child_which_ends_in_its_own_way(tmp_path):
    body = (
        "def save(*_):\n    (file.parent / 'saved').write_text('1')\n    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n(file.parent / 'ready').write_text('1')\n"
        "time.sleep(60)\n"
    )

    def send():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=send)
    thread.start()
    assert _supervise(tmp_path, body) == exits.TERMINATED
    thread.join()
    assert (tmp_path / "saved").exists()
    assert _starts(tmp_path) == 1


def test_a_child_that_a_signal_ends_before_it_listens_is_not_started_again(tmp_path):
    body = "(file.parent / 'ready').write_text('1')\ntime.sleep(60)\n"

    def send():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=send)
    thread.start()
    assert _supervise(tmp_path, body) == exits.TERMINATED
    thread.join()
    assert _starts(tmp_path) == 1


def test_the_newest_step_is_read_from_names_alone(tmp_path):
    assert restarts.newest_step(tmp_path) is None
    for name in ("5", "40", "40.orbax-checkpoint-tmp", "x"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert restarts.newest_step(tmp_path) == 40


@pytest.mark.parametrize("given", [["--max-restarts", "3"], ["--max-restarts=3"]])
def test_the_child_is_the_command_without_what_concerns_the_supervisor(given):
    rest = ["train", "--config=x.py", "--workdir", "run", "--config.seed=3"]
    assert restarts.child([rest[0], *given, *rest[1:]]) == [
        sys.executable, "-m", "stemjax.cli", *rest,
    ]  # fmt: skip


def test_the_command_supervises_itself(tmp_path, monkeypatch):
    asked = []

    def supervise(command, *, most, progress):
        asked.append((command[3:], most, progress()))
        return 7

    monkeypatch.setattr(restarts, "supervise", supervise)
    argv = ["train", "--config=x.py", f"--workdir={tmp_path}", "--max-restarts", "2"]
    assert cli.main(argv) == 7
    assert asked == [(argv[:3], 2, None)]


def test_an_unknown_error_is_shown_with_its_way_and_a_code_of_its_own(tmp_path):
    code = (
        "import argparse, sys\nfrom stemjax import cli\n"
        "def broken(*_):\n    raise ZeroDivisionError('by us')\n"
        "original = argparse.ArgumentParser.parse_known_args\n"
        "def parse(self, *a, **k):\n    args, rest = original(self, *a, **k)\n"
        "    args.run = broken\n    return args, rest\n"
        "argparse.ArgumentParser.parse_known_args = parse\n"
        "sys.exit(cli.main(['compare', 'a.json', 'b.json']))\n"
    )
    root = pathlib.Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=120
    )
    assert done.returncode == exits.CRASH, done.stderr
    assert "ZeroDivisionError: by us" in done.stderr
    assert "Traceback" in done.stderr
