"""The A/B against PyTorch: its wire, its turns, its refusal, its ratios. No torch in here."""

from __future__ import annotations

import pathlib
import sys
import types

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from peers import ab, protocol, rounds

    return types.SimpleNamespace(ab=ab, protocol=protocol, rounds=rounds)


# The wire.

CHILD = """
import os, subprocess, sys
sys.path.insert(0, {benchmarks!r})
from peers import protocol

def echo(value):
    print("a library that prints")
    os.write(1, b"and one that writes to the file descriptor\\n")
    subprocess.run(["echo", "and a program that it starts"])
    return {{"value": value}}

def leave():
    print("the reason", file=sys.stderr, flush=True)
    os._exit(3)

def fail():
    raise KeyError("no such job")

protocol.serve({{"echo": echo, "leave": leave, "fail": fail}})
"""


@pytest.fixture
def child(peers, tmp_path):
    script = tmp_path / "child.py"
    script.write_text(CHILD.format(benchmarks=str(BENCHMARKS)))
    with peers.protocol.Child([sys.executable, str(script)], log=tmp_path / "log") as found:
        yield found


def test_answers_come_back_whatever_else_the_child_prints(child):
    for value in (1, [0.1, None], {"text": "two\nlines"}):
        assert child.ask("echo", value=value) == {"value": value}


def test_an_error_is_told_and_the_child_goes_on(peers, child):
    with pytest.raises(peers.protocol.PeerError, match="KeyError: 'no such job'"):
        child.ask("fail")
    with pytest.raises(peers.protocol.PeerError, match="KeyError: 'dance'"):
        child.ask("dance")
    assert child.ask("echo", value=2) == {"value": 2}


def test_a_child_that_ends_leaves_its_last_words(peers, child):
    with pytest.raises(peers.protocol.PeerError, match="ended at 'leave': the reason"):
        child.ask("leave")
    with pytest.raises(peers.protocol.PeerError, match="ended at 'echo'"):
        child.ask("echo", value=1)


@pytest.mark.parametrize("said", ["hello", "[1]"])
def test_an_answer_is_an_object(peers, tmp_path, said):
    command = [sys.executable, "-c", f"input(); print({said!r})"]
    with (
        peers.protocol.Child(command, log=tmp_path / "log") as child,
        pytest.raises(peers.protocol.PeerError, match="not a JSON object"),
    ):
        child.ask("echo")


def test_a_program_that_is_not_there_is_named(peers, tmp_path):
    with pytest.raises(peers.protocol.PeerError, match="cannot start /no/python"):
        peers.protocol.Child(["/no/python"], log=tmp_path / "log")


# Numbers.


def test_differences_are_measured_and_judged(peers):
    reference = np.array([[4.0, -10.0]], np.float32)
    what = ("pair", "torch", "exact")
    found = peers.rounds.compare(what, reference, reference + np.float32(0.5), 0.05)
    assert (found.largest, found.relative) == (0.5, 0.05)
    assert found.same
    beyond = peers.rounds.compare(what, reference, reference - np.float32(0.75), 0.05)
    stated = peers.rounds.compare(what, reference, reference - np.float32(0.75), None)
    lost = peers.rounds.compare(what, reference, reference * np.nan, 0.05)
    peers.rounds.require_same([found, stated])
    for wrong in (beyond, lost):
        with pytest.raises(peers.rounds.DifferentNumbersError, match="pair torch exact"):
            peers.rounds.require_same([found, wrong])
    with pytest.raises(peers.rounds.DifferentNumbersError, match=r"\(2, 1\), not \(1, 2\)"):
        peers.rounds.compare(what, reference, reference.T, None)


# Turns.


class Scripted:
    """A side whose calls take what its table says, and which writes down who was asked."""

    def __init__(self, name, seconds, asked):
        self.name, self.seconds, self.asked = name, seconds, asked

    def time(self, variant, job, calls):
        self.asked.append((job["kind"], self.name, variant, calls))
        return [self.seconds[variant] * (1 + i) for i in range(calls)]


def test_sides_take_turns_and_a_turn_is_its_median(peers):
    asked, slept = [], []
    sides = {
        "ours": Scripted("ours", {"a": 0.5, "b": 2.0}, asked),
        "torch": Scripted("torch", {"c": 1.0, "d": 1e-6, "e": 0.3}, asked),
    }
    both = {"ours": ("a", "b"), "torch": ("c", "d", "e")}
    jobs = [
        peers.rounds.Job(name=name, values={"kind": name}, variants=v, spots=1, evaluations=1)
        for name, v in (("one", both), ("two", {"torch": ("c",)}))
    ]
    found = peers.rounds.alternate(jobs, sides, rounds=3, window=1.5, pause=0.1, sleep=slept.append)
    # A window of 1.5 s: 3 calls of .5, 1 of 2, 2 of 1 (half to even), 5 of .3, and at most 20.
    one_round = [
        ("one", "ours", "a", 3), ("one", "torch", "c", 2), ("one", "ours", "b", 1),
        ("one", "torch", "d", 20), ("one", "torch", "e", 5), ("two", "torch", "c", 2),
    ]  # fmt: skip
    assert asked == [(*turn[:3], 1) for turn in one_round] + 3 * one_round
    assert slept == [0.1] * 18
    # The i-th call of a turn takes i times as long: the median of 3 is the second.
    assert found["one", "ours", "a"] == [1.0] * 3
    assert found["one", "torch", "c"] == [1.5] * 3


# Ratios.


def test_the_interval_is_that_of_the_binomial_law(peers):
    """Rounds of ln ratio +a and -a, five each: a resample's mean is a (2 B / 10 - 1)."""
    a = np.log(3.0)
    theirs = np.exp([a, -a] * 5)
    found = peers.rounds.compare_times([1.0] * 10, list(theirs))
    assert found.ratio == pytest.approx(1.0)
    # P(B <= 1) = .011 and P(B <= 2) = .055: B's 2.5 % quantile is 2, its 97.5 % quantile 8.
    assert found.low == pytest.approx(np.exp(-0.6 * a))
    assert found.high == pytest.approx(np.exp(0.6 * a))


def test_a_slow_round_is_slow_for_both(peers):
    found = peers.rounds.compare_times([1.0, 10.0, 100.0], [2.0, 20.0, 200.0])
    assert (found.low, found.ratio, found.high) == pytest.approx((2.0, 2.0, 2.0))
    for one, other in (([1.0], [2.0]), ([1.0, 1.0], [1.0])):
        with pytest.raises(ValueError, match="two or more"):
            peers.rounds.compare_times(one, other)


@pytest.mark.parametrize(
    ("target", "verdict"), [(None, ""), (1.5, "pass"), (1.7, "open"), (2.5, "open"), (2.6, "fail")]
)
def test_a_verdict_needs_the_whole_interval(peers, target, verdict):
    assert peers.rounds.Ratio(ratio=2.0, low=1.5, high=2.5).verdict(target) == verdict


def _plan(peers, **changes):
    given = {"batches": (4,), "spots": 2, "chunk": 4, "published": (20, 2), "rounds": 2,
             "window": 0.0, **changes}  # fmt: skip
    return peers.ab.Plan(**given)


def test_ratios_by_hand(peers):
    plan = _plan(peers, batches=(16,), spots=8, published=(40, 8))
    jobs = peers.ab.make_jobs(plan, (0.01, 80.0), ("eager", "compiled"))
    times = {
        ("forward 16", "ours", "float32"): 2.0, ("forward 16", "ours", "bfloat16"): 1.0,
        ("forward 16", "torch", "eager"): 6.0, ("forward 16", "torch", "compiled"): 4.0,
        ("pair", "ours", "float32"): 2.0, ("pair", "ours", "bfloat16"): 4.0,
        ("pair", "torch", "eager"): 3.0, ("pair", "torch", "compiled"): 1.0,
        ("draws", "ours", "float32"): 5.0, ("draws", "ours", "bfloat16"): 5.5,
        ("mean", "ours", "float32"): 0.02, ("mean", "ours", "bfloat16"): 0.03,
        ("published", "torch", "eager"): 16.0,
    }  # fmt: skip
    assert set(times) == {(j.name, *turn) for j in jobs for turn in peers.rounds.order(j)}
    found = peers.ab.ratios(jobs, {k: [t, t] for k, t in times.items()}, on_cpu=True)
    rows = [(r["job"], r["ours"], r["theirs"], round(r["ratio"], 6), r["verdict"]) for r in found]
    # A spot of the published protocol: 2 s a step for 2 spots of 20 draws, 1000 steps = 1000 s.
    assert rows == [
        ("forward 16", "float32", "eager", 3.0, "pass"),
        ("forward 16", "bfloat16", "compiled", 4.0, "pass"),
        ("pair", "float32", "eager", 1.5, "fail"),
        ("pair", "float32", "compiled", 0.5, "fail"),
        ("pair", "float32", "eager", 1000 / (2 / 8), ""),
        ("draws", "float32", "eager", 1000 / 5, "pass"),
        ("mean", "float32", "eager", 1000 / (0.02 / 8), "pass"),
    ]
    lines = peers.ab.lines(jobs, {k: [t, t] for k, t in times.items()})
    each = {(line["job"], line["side"], line["variant"]): line for line in lines}
    published = each["published", "torch", "eager"]
    assert (published["seconds_per_spot"], published["extrapolated"]) == (1000.0, True)
    assert (published["steps_timed"], published["evaluations_per_spot"]) == (8, 20_000)
    assert published["us_per_evaluation"] == 16e6 / (40 * 8)
    pair = each["pair", "ours", "float32"]
    assert (pair["seconds_per_spot"], pair["us_per_evaluation"]) == (0.25, 2e6 / 128)
    assert not pair["extrapolated"]
