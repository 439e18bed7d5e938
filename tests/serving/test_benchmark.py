"""benchmarks/serving.py: what it sends, what it counts, what its tables say."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from live import ask

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def serving():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import serving

        yield serving


def test_no_malformed_request_is_answered_with_profiles_or_harms_the_server(serving, live):
    good = serving.a_request(6, 1, 0, "mean", encoder="toy")
    found = serving.measure_malformed(live, 180, good)
    assert list(found["by_kind"]) == list(serving.KINDS)
    assert all(sum(ends.values()) == 30 for ends in found["by_kind"].values())
    allowed = {
        "random bytes": {"400", "422"}, "wrong types": {"422", "409"}, "huge numbers": {"422"},
        "wrong shapes": {"422"}, "wrong content type": {"415"}, "truncated body": {"400", "closed"},
    }  # fmt: skip
    for kind, ends in found["by_kind"].items():
        assert set(ends) <= allowed[kind], kind
    assert found["alive"]
    assert found["same_answer"]


def test_every_kind_is_malformed_in_many_ways(serving):
    good = serving.a_request(6, 1, 0, "mean")
    for kind in ("random bytes", "wrong types", "huge numbers", "wrong shapes"):
        made = {serving.KINDS[kind](np.random.default_rng(n), good) for n in range(60)}
        assert len(made) > 5, kind
        assert json.dumps(good).encode() not in made


def test_a_load_counts_answers_and_refusals(serving, live):
    asked = [serving.a_request(6, 2, n, "mean", encoder="toy") for n in range(4)]
    assert ask(live, asked[0])[0] == 200
    bodies = [json.dumps(one).encode() for one in asked]
    line = serving.measure_load(live, bodies, 2, seconds=0.5)
    assert line["refused"] == 0
    assert line["answers"] > 3
    assert 0 < line["p50_s"] <= line["p99_s"] < 5
    assert line["answers_per_s"] == pytest.approx(line["answers"] / 0.5, rel=0.5)
    assert 2 <= line["spots_per_batch"] <= 4
    found = serving.load(live, [bodies[0], b"{"], 1, 0.3)
    assert abs(len(found.latencies) - found.refused) <= 1


def line(clients, rate, **more):
    about = {"way": "mean", "clients": clients, "spots": 16, "profiles_per_s": rate}
    return {**about, "p50_s": 0.0123, "p99_s": 0.5, "refused": 1, "spots_per_batch": 7.25, **more}


def test_the_tables_say_what_share_of_the_offline_rate_is_left(serving):
    result = {
        "genes": 50, "condition": 64, "ready_s": 3.4, "lines": [line(0, 2000.0), line(8, 500.0)],
        "malformed": {
            "requests": 10_000, "seconds": 9.6, "same_answer": True,
            "by_kind": {"random bytes": {"400": 1234}, "truncated body": {"closed": 5}},
        },
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        text = serving.tables(result)
        result["malformed"]["same_answer"] = False
        assert "DOES NOT ANSWER" in serving.tables(result)
    assert "| mean | 8 | 16 | 12.3 | 500.0 | 500 | 25% | 7.2 |" in text
    assert "| mean | offline | 16 |  |  | 2,000 | 100% |" in text
    assert "Refused under load: 2." in text
    assert "| random bytes | 1,234 | 0 |" in text
    assert "10,000 malformed requests in 10 s" in text
    assert "answers a good request as before" in text
