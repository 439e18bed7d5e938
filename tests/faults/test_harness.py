"""The harness itself: cases are a function of (seed, number), and broken promises are seen."""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the package is tests.faults, as `python -m tests.faults` has it

from tests.faults import __main__ as program  # noqa: E402
from tests.faults import cases, damage, digests, playing, verdicts  # noqa: E402

# One of most kinds, of seed 7; those of two processes take a minute each.
SMALL = "2,3,4,5,8,17,20,29,30,31,51,60"


def run_harness(*argv, folder, module="tests.faults"):
    """Exit code, numbers of the last line by name, and all that was printed."""
    command = [sys.executable, "-m", module, "--folder", str(folder), *argv]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=540
    )
    last = (done.stdout.strip().splitlines() or [""])[-1]
    return done.returncode, dict(re.findall(r"(\w+) (\w+)", last)), done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where artefacts are made once for all runs of the harness here."""
    return tmp_path_factory.mktemp("faults")


def test_a_case_is_a_function_of_seed_and_number():
    forwards = [cases.choose(7, number) for number in range(150)]
    backwards = [cases.choose(7, number) for number in reversed(range(150))]
    assert forwards == backwards[::-1]
    assert [c.kind for c in forwards] != [cases.choose(8, number).kind for number in range(150)]
    draws = [case.generator().random(3).tolist() for case in forwards]
    assert draws == [case.generator().random(3).tolist() for case in forwards]
    assert len({tuple(draw) for draw in draws}) == len(draws)


def test_each_deck_has_every_kind_by_its_weight():
    for deck in range(3):
        numbers = range(deck * cases.DECK, (deck + 1) * cases.DECK)
        counts = collections.Counter(cases.choose(7, number).kind for number in numbers)
        assert counts == collections.Counter(cases.KINDS)
    only = [next(cases.of_kind(7, kind)) for kind in cases.KINDS]
    assert all(case == cases.choose(7, case.number) for case in only)


def test_every_kind_has_a_play():
    playing.require_all_kinds()
    with pytest.raises(ValueError, match="no kind of cases begins with 'storage/x'"):
        cases.require_kind("storage/x")


TYPED = "stemjax predict: error [SJ-D06]\n  /x/a.json is damaged: found sha256 0.\n"


def ended(code=0, err="", out="", *, late=False, extra="right"):
    return verdicts.Done(argv=["x"], code=code, out=out, err=err, seconds=1, late=late, extra=extra)


@pytest.mark.parametrize(
    ("done", "outcome"),
    [
        (ended(), "right"),
        (ended(1, TYPED), "named [SJ-D06]"),
        (ended(75, TYPED), "named [SJ-D06]"),
        (ended(0, "a.json is damaged: using step 4", extra="other"), "another result, said"),
        # A file that is only mentioned is no warning.
        (ended(0, "wrote a.json", extra="other"), verdicts.Silent),
        (ended(extra="other"), verdicts.Silent),
        (ended(1, TYPED.replace("a.json", "b.json")), verdicts.Lost),
        (ended(1, "stemjax predict: error\n  a.json: No such file\n"), verdicts.Lost),
        (ended(1, "Traceback (most recent call last)\n" + TYPED), verdicts.Lost),
        (ended(0, "Traceback (most recent call last)\n"), verdicts.Lost),
        (ended(70, TYPED), verdicts.Lost),
        (ended(-11), verdicts.Lost),
        (ended(-9, late=True), verdicts.Lost),
        (ended(0, late=True), verdicts.Lost),
    ],
)
def test_the_user_of_something_damaged_is_judged(done, outcome):
    def judge():
        return verdicts.require_right_or_named(done, "right", ["a.json"], "it")

    if isinstance(outcome, str):
        assert judge() == outcome
    else:
        with pytest.raises(outcome) as raised:
            judge()
        assert type(raised.value) is outcome


@pytest.mark.parametrize(
    ("logged", "committed", "little"),
    [(0, 0, True), (4, 0, True), (5, 0, True), (8, 0, True), (9, 0, False), (9, 4, True),
     (20, 12, True), (21, 12, False), (24, 16, True), (24, 12, False)],
)  # fmt: skip
def test_what_a_killed_run_may_lose(logged, committed, little):
    assert verdicts.within_one_save(logged, committed, 4) is little


def test_damage_changes_what_it_says_and_nothing_else(tmp_path):
    seen = set()
    for seed in range(80):
        root = tmp_path / str(seed)
        (root / "deep").mkdir(parents=True)
        for number, name in enumerate(("a.json", "deep/b.bin", "deep/c.bin")):
            (root / name).write_bytes(bytes(range(1, 200 + number)))
        (root / "empty").touch()
        before = digests.of_folder(root)
        done = damage.inflict(root, np.random.default_rng(seed))
        after = digests.of_folder(root)
        changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
        assert changed == {done.path.relative_to(root).as_posix()}, done
        assert set(done.names(root)) == {done.path.name, *changed}
        seen.add(done.how)
    assert seen == set(damage.HOW)


def test_the_kinds_are_listed_from_the_root_of_the_repository():
    command = [sys.executable, "-m", "tests.faults", "--list"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(cases.KINDS)


@pytest.mark.slow
def test_some_cases_survive(folder, tmp_path):
    report = tmp_path / "report.json"
    argv = ["--numbers", SMALL, "--seed", "7", "--retry", "--json", str(report)]
    code, last, said = run_harness(*argv, folder=folder)
    count = len(SMALL.split(","))
    assert last == {"cases": f"{count}", "survived": f"{count}", "lost": "0", "silent": "0"}, said
    assert code == 0
    kinds = json.loads(report.read_text())["kinds"]
    assert sum(kind["survived"] for kind in kinds.values()) == count
    assert str(folder) not in pathlib.Path("/proc/mounts").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sabotage", "number"), [("manifest", "31"), ("rename", "60"), ("signals", "17")]
)
def test_a_safeguard_that_is_switched_off_is_seen(folder, sabotage, number):
    # With it switched on the case survives: it is among those of the test above.
    assert number in SMALL.split(",")
    argv = ["--numbers", number, "--seed", "7", "--sabotage", sabotage]
    code, last, said = run_harness(*argv, folder=folder)
    assert int(last["lost"]) + int(last["silent"]) == 1, said
    assert code == 1
    assert "the case itself failed" not in said


@pytest.mark.slow
def test_a_run_that_is_interrupted_again_and_again_ends_as_if_it_never_was(folder):
    argv = ["--times", "6", "--steps", "40", "--seed", "1"]
    code, last, said = run_harness(*argv, folder=folder, module="tests.faults.interruptions")
    assert last == {"interruptions": "6", "digest": "same"}, said
    assert code == 0


def test_lost_cases_are_played_once_more_and_silent_ones_are_not(monkeypatch):
    def verdict(number, outcome):
        return playing.Verdict(
            number=number, kind="training/kill", outcome=outcome, seconds=0.0, what="", evidence=""
        )

    asked = []

    def play(chosen, stage, args):
        asked.append(([case.number for case in chosen], args.jobs))
        return iter([verdict(2, "survived"), verdict(5, "lost")])

    monkeypatch.setattr(program, "_play", play)
    first = [verdict(1, "silent"), verdict(2, "lost"), verdict(5, "lost"), verdict(6, "survived")]
    args = argparse.Namespace(seed=7, jobs=2)
    found = program._once_more(first, None, args)
    assert asked == [([2, 5], 1)]
    assert [one.outcome for one in found] == ["silent", "survived", "lost", "survived"]
