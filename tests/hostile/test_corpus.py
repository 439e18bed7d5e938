"""Every malicious file of the corpus, and the command that a user would run on it."""

from __future__ import annotations

import json
import os
import pathlib
import pickle
import subprocess
import sys

import corpus
import payloads
import pytest
import run_cases
from boxes import Box

FAST = [one for one in corpus.CASES if not one.slow]
SLOW = [one for one in corpus.CASES if one.slow]
MOST_MB = 1000
ROOT = pathlib.Path(__file__).parents[2]


def run_all(cases, folder):
    """What became of each case, by name."""
    jobs, before = [], {}
    for one in cases:
        box = Box(folder / one.name)
        box.make()
        jobs.append({"name": one.name, "argv": one.make(box), "root": str(box.root)})
        before[one.name] = box.files()
    (folder / "jobs.json").write_text(json.dumps(jobs))
    own = {"MPLCONFIGDIR": str(folder / "matplotlib"), "JAX_PLATFORMS": "cpu"}
    own |= {"OPENBLAS_NUM_THREADS": "1", "STEMJAX_CACHE": "off", "HF_HUB_OFFLINE": "1"}
    own |= {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, run_cases.__file__, str(folder / "jobs.json")],
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | own,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    told = {one["name"]: one for one in map(json.loads, done.stdout.splitlines())}
    for one in cases:
        box = Box(folder / one.name)
        after = box.files()
        told[one.name] |= {
            "argv": next(job["argv"] for job in jobs if job["name"] == one.name),
            "said": (box.root / "stdout").read_text(errors="replace"),
            "err": (box.root / "stderr").read_text(errors="replace"),
            "canary": box.canary.exists(),
            "leaks": box.leaks(),
            "secret": box.secret_text,
            "changed": sorted(
                name
                for name in before[one.name].keys() | after.keys()
                if before[one.name].get(name) != after.get(name)
                and name not in ("stdout", "stderr")
            ),
        }
    return told


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    return run_all(FAST, tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def ran_slowly(tmp_path_factory):
    return run_all(SLOW, tmp_path_factory.mktemp("hostile_slow"))


def check(case, told):
    """The promises of every command on every file."""
    text = told["said"] + told["err"]
    assert not told["canary"], "code of the file ran"
    assert told["changed"] == [], "something was written elsewhere"
    assert told["leaks"] == [], "a file of the machine was read"
    assert told["secret"] not in text
    assert "Traceback" not in text
    assert "\x1b" not in text.replace("\x1b[", "")
    assert told["seconds"] < run_cases.SECONDS
    assert told["mb"] < MOST_MB
    if case.says is None:
        assert told["code"] in (0, 1), text
    else:
        assert told["code"] == 1, text
        assert "error [SJ-" in told["err"]
        assert case.says in told["err"]


@pytest.mark.parametrize("case", FAST, ids=lambda case: case.name)
def test_a_malicious_file_does_no_harm(case, ran):
    check(case, ran[case.name])


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW, ids=lambda case: case.name)
def test_a_large_malicious_file_does_no_harm(case, ran_slowly):
    check(case, ran_slowly[case.name])


def test_there_are_a_hundred_cases_of_different_names():
    assert len(FAST) >= 100
    assert len({case.name for case in corpus.CASES}) == len(corpus.CASES)


def test_the_payloads_are_live(tmp_path):
    for number, protocol in enumerate((2, 4)):
        canary = tmp_path / f"canary{number}"
        pickle.loads(payloads.pickled(canary, protocol))
        assert canary.read_text() == "ran"
