"""A process that dies or freezes ends the others soon, in one sentence; a slow one does not."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from stemjax import errors, peers

PROGRAM = pathlib.Path(__file__).with_name("peer_process.py")
NAMES = {"SIGKILL": "was killed or crashed", "SIGSTOP": r"stopped answering \d+ s ago"}


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


class Processes:
    """Several of them, and what they print."""

    def __init__(self, folder, stack, *, where, limit_s, processes=2, **environment):
        told = {"coordinator": f"127.0.0.1:{free_port()}", "processes": processes}
        told |= {"where": where, "limit_s": limit_s}
        self.ready = [folder / f"ready{i}" for i in range(processes)]
        self.logs = [folder / f"log{i}.txt" for i in range(processes)]
        self.running = []
        for index in range(processes):
            given = json.dumps(told | {"index": index, "ready": str(self.ready[index])})
            log = stack.enter_context(self.logs[index].open("w"))
            process = subprocess.Popen(
                [sys.executable, str(PROGRAM), given], stdout=log, stderr=log,
                env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.kill)  # the last is called first
            self.running.append(process)

    def wait_until_ready(self, seconds=120):
        until = time.monotonic() + seconds
        while not all(path.exists() for path in self.ready):
            assert time.monotonic() < until, self.printed()
            time.sleep(0.05)

    def printed(self):
        return [path.read_text() for path in self.logs]


def lines(text):
    """What was printed, but for what gloo says of its connections."""
    return [line for line in text.splitlines() if not line.startswith("[Gloo]")]


def lose(folder, victim, sent, where, *, limit_s, processes=2):
    """Seconds until the others ended, their exit codes and lines."""
    with contextlib.ExitStack() as stack:
        run = Processes(
            folder, stack, where=where, limit_s=limit_s, processes=processes, VICTIM=str(victim)
        )
        run.wait_until_ready()
        time.sleep(1.0)
        began = time.monotonic()
        os.kill(run.running[victim].pid, getattr(signal, sent))
        others = [process for i, process in enumerate(run.running) if i != victim]
        codes = [process.wait(timeout=60) for process in others]
        seconds = time.monotonic() - began
        printed = [lines(text) for i, text in enumerate(run.printed()) if i != victim]
    print(f"{victim} {sent} {where}: {seconds:.1f} s")  # noqa: T201
    return seconds, codes, printed, run.running[victim].pid


def require_one_sentence(found, victim, sent, *, within, processes=2):
    seconds, codes, printed, pid = found
    assert codes == [75] * len(codes), printed
    for said in printed:
        assert len(said) == 1, said
        assert re.fullmatch(
            rf"Process {victim} of {processes}"
            rf" \(host {re.escape(socket.gethostname())}, pid {pid}\)"
            rf" {NAMES[sent]}\. All processes end; start them again with the same command to go on"
            r" from step 6\.",
            said[0],
        )
    assert seconds < within


def test_a_killed_process_ends_the_others_at_once(tmp_path):
    # The first process: with it goes JAX's own service, on which JAX would abort.
    found = lose(tmp_path, 0, "SIGKILL", "gather", limit_s=20)
    require_one_sentence(found, 0, "SIGKILL", within=15)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["loop", "gather", "compile", "data"])
@pytest.mark.parametrize("sent", ["SIGKILL", "SIGSTOP"])
@pytest.mark.parametrize("victim", [0, 1])
def test_the_others_end_in_one_sentence(tmp_path, victim, sent, where):
    found = lose(tmp_path, victim, sent, where, limit_s=20)
    require_one_sentence(found, victim, sent, within=40)


@pytest.mark.slow
def test_of_three_the_two_left_name_the_same(tmp_path):
    found = lose(tmp_path, 2, "SIGSTOP", "loop", limit_s=5, processes=3)
    require_one_sentence(found, 2, "SIGSTOP", within=20, processes=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "code", "said"),
    [
        ("error", 1, r"ended with error \[SJ-D06\] shard 3: expected 12 records, found 11\."),
        ("crash", 70, r"ended with error KeyError: 'a bug'\."),
    ],
)
@pytest.mark.parametrize("victim", [0, 1])
def test_an_error_of_one_ends_who_waits_for_it(tmp_path, victim, where, code, said):
    with contextlib.ExitStack() as stack:
        run = Processes(tmp_path, stack, where=where, limit_s=20, VICTIM=str(victim))
        run.wait_until_ready()
        began = time.monotonic()
        codes = [process.wait(timeout=100) for process in run.running]
        seconds = time.monotonic() - began
        printed = [lines(text) for text in run.printed()]
    # Whose collective failed before the watch ended it says so by itself, as a typed error.
    assert codes[victim] == code, printed
    assert codes[1 - victim] in {code, 1}, printed
    other = printed[1 - victim]
    assert len(other) == 1, other
    assert re.search(rf"^Process {victim} of 2 \(host .*\) {said}", other[0])
    assert seconds < 40


@pytest.mark.slow
@pytest.mark.parametrize("unasked", ["", "1"])
def test_a_long_compilation_and_a_slow_end_are_no_death(tmp_path, unasked):
    with contextlib.ExitStack() as stack:
        run = Processes(tmp_path, stack, where="slow end", limit_s=5, LONG="12", UNASKED=unasked)
        codes = [process.wait(timeout=300) for process in run.running]
        printed = [lines(text) for text in run.printed()]
    assert codes == [0, 0], printed
    assert printed == [[], []]


@pytest.mark.slow
def test_machines_that_stood_still_together_go_on(tmp_path):
    with contextlib.ExitStack() as stack:
        run = Processes(tmp_path, stack, where="nap", limit_s=5, LONG="4")
        run.wait_until_ready()
        for sent in (signal.SIGSTOP, signal.SIGCONT):
            for process in run.running:
                os.kill(process.pid, sent)
            time.sleep(8)
        codes = [process.wait(timeout=100) for process in run.running]
        printed = [lines(text) for text in run.printed()]
    assert (codes, printed) == ([0, 0], [[], []])


def watched(**given):
    """The first of two processes, and how it ended if it did."""
    listener, ended = socket.create_server(("127.0.0.1", 0)), []
    first = peers.Watch(
        index=0, count=2, token="secret", listener=listener, leave=ended.append, **given
    )
    first.start()
    return first, listener.getsockname(), ended


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n", b'["hello", "guess", 1, "h", 7]\n', b"[]\n", b"{}\n7\n",
        b'["left", [1, "h", 7], 1, "stop!"]\n', b"\xff\n", b"x" * 200_000,
    ],
)  # fmt: skip
def test_a_stranger_says_nothing_that_counts(said):
    first, address, ended = watched(limit_s=20)
    with socket.create_connection(address) as stranger:
        stranger.settimeout(30)
        with contextlib.suppress(OSError):
            stranger.sendall(said)
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(1000) == b""
    assert first._thread.is_alive()
    assert (first.knows(0.0), ended) == (None, [])
    first.stop()


def test_silence_counts_only_from_a_process_of_the_run(capfd):
    first, address, ended = watched(limit_s=1.0)
    with socket.create_connection(address) as second:
        second.sendall(json.dumps(["hello", "secret", 1, "far", 7]).encode() + b"\n")
        for _ in range(8):
            time.sleep(0.25)
            second.sendall(b'["beat"]\n')
        assert first.lost is None
        assert until(lambda: ended)
    assert ended == [75]
    said = capfd.readouterr().err
    assert re.fullmatch(
        r"Process 1 of 2 \(host far, pid 7\) stopped answering 1 s ago\. .* command\.\n", said
    )
    assert str(first.lost) + "\n" == said


def test_who_waits_for_one_that_failed_is_ended_with_its_error(capfd):
    first, address, ended = watched(limit_s=20, grace_s=0.2)
    with socket.create_connection(address) as second:
        second.sendall(json.dumps(["hello", "secret", 1, "far", 7]).encode() + b"\n")
        # As one does that still has its connections open, where no collective fails.
        second.sendall(b'["left", [1, "far", 7], 1, "[SJ-D06] shard 3"]\n')
        assert until(lambda: ended)
    assert ended == [1]
    assert "(host far, pid 7) ended with error [SJ-D06] shard 3. All" in capfd.readouterr().err


@pytest.mark.parametrize("code", peers.ORDERLY)
def test_who_is_done_or_stopped_leaves_the_others_to_their_work(code):
    first, address, ended = watched(limit_s=1, grace_s=0.2)
    with socket.create_connection(address) as second:
        second.sendall(json.dumps(["hello", "secret", 1, "far", 7]).encode() + b"\n")
        second.sendall(json.dumps(["left", [1, "far", 7], code, ""]).encode() + b"\n")
        time.sleep(2)
        assert (ended, first.lost) == ([], None)
    if code:  # it is gone, was not done, and this one does not stop
        assert until(lambda: ended)
        assert ended == [75]
        return
    time.sleep(2)
    assert (ended, first.lost) == ([], None)
    assert first.leave(0, "", 5)
    first.stop()


def test_a_relay_outlives_the_other_side():
    with socket.create_server(("127.0.0.1", 0)) as far:
        relay = peers.Relay(*far.getsockname())
        host, port = relay.address.split(":")
        assert relay.is_reached(30)
        far.accept()[0].close()
        for held in (False, True):
            if held:
                relay.hold()
            with socket.create_connection((host, int(port)), timeout=30) as near:
                near.sendall(b"asked")
                end, _ = far.accept()
                assert end.recv(100) == b"asked"
                end.sendall(b"answered" * 100_000)
                end.close()
                found = b""
                while len(found) < 800_000:
                    found += near.recv(2**20)
                assert found == b"answered" * 100_000
                if not held:
                    assert near.recv(1) == b""
                    continue
                # JAX's client aborts the process that sees this connection close.
                near.settimeout(1.0)
                with pytest.raises(TimeoutError):
                    near.recv(1)
        relay.close()


def test_whoever_asks_gets_the_error_and_ends_by_itself(capfd):
    first, address, ended = watched(limit_s=20)
    found = []
    asking = threading.Thread(target=lambda: found.append(first.knows(30)))
    asking.start()
    second = socket.create_connection(address)
    second.sendall(json.dumps(["hello", "secret", 1, "far", 7]).encode() + b"\n")
    second.close()
    asking.join(30)
    assert isinstance(found[0], errors.PeerLostError)
    first.leave(75, str(found[0]), 1.0)
    assert until(lambda: not first._thread.is_alive())
    assert (ended, capfd.readouterr().err) == ([], "")


def test_one_process_alone_watches_nobody():
    before = threading.active_count()
    peers.begin(None, index=0, count=1, host="", shutdown=lambda: None)
    peers.end(1, "[SJ-D01] not told to anybody")
    assert peers.explain(RuntimeError("gloo: connection closed")) is None
    assert threading.active_count() == before
