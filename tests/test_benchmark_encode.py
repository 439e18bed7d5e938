"""benchmarks/encode.py: rates, shares and ratios of a small network."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import types

import jax
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
ROOF = {"matmul_flop_per_s": {"bfloat16": 4e9, "float32": 1e9}, "copy_byte_per_s": 1e9}


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import encode
    import harness

    small = dataclasses.replace(encode.QUICK, image=32, width=16, depth=1, heads=2, hidden=32)
    monkeypatch.setattr(encode, "QUICK", small)
    rating = {"bfloat16": 1e12, "memory": 1e12}
    monkeypatch.setattr(encode.roofs, "roof", lambda **_: ROOF | {"rating": rating})
    return types.SimpleNamespace(encode=encode, harness=harness)


def flags(scripts, *more):
    return scripts.encode.read_flags(["--quick", "--spots", "13", "--batch", "2", *more])


def test_rates_are_patches_over_time_and_shares_are_of_the_roof(scripts, tmp_path, capsys):
    args = flags(scripts, "--variants", "2", "--repeats", "2")
    result = scripts.encode.run(args)
    scripts.harness.save(tmp_path / "out.json", result)
    lines = json.loads((tmp_path / "out.json").read_text())["lines"]
    assert [json.loads(line)["way"] for line in capsys.readouterr().out.splitlines()] == [
        "forward", "read", "pipeline",
    ] * 2  # fmt: skip
    # Patch projection; queries, keys, values and output; MLP; scores and sums: of 5 tokens.
    by_hand = 2 * 4 * 768 * 16 + 2 * 5 * 16 * (4 * 16 + 2 * 32) + 4 * 25 * 16
    for forward, read, pipeline in (lines[:3], lines[3:]):
        assert forward["flop_per_patch"] == by_hand
        rate = 2 / forward["median_s"]
        assert forward["patches_per_s"] == pytest.approx(rate)
        peak = ROOF["matmul_flop_per_s"][forward["dtype"]]
        assert forward["share"] == pytest.approx(rate * by_hand / peak)
        assert forward["share_of_rating"] == pytest.approx(rate * by_hand / 1e12)
        assert read["patches_per_s"] == pytest.approx(13 / read["median_s"])
        assert pipeline["patches_per_s"] == pytest.approx(26 / pipeline["median_s"])
        assert pipeline["kept"] > 0
    assert [lines[0]["dtype"], lines[3]["dtype"]] == ["bfloat16", "float32"]
    assert "a small network" in result["encoder"]


def test_what_the_pipeline_keeps_is_the_time_of_as_many_forward_passes(scripts, monkeypatch):
    encode, calls = scripts.encode, []

    def timed(call, **_):
        before = len(calls)
        call()
        passes = len(calls) - before
        seconds = float(passes) if passes else 10.0  # a pass takes 1 s, reading and embedding 10
        spread = dict.fromkeys(("p10", "p90", "p99", "median"), seconds)
        return scripts.harness.Timing(quartiles=(seconds, seconds), repeats=1, **spread)

    monkeypatch.setattr(encode.harness, "time_calls", timed)
    encoder = encode.make_encoder("uni", quick=True, dtype="float32", batch=1)
    _, pipeline = encode.slide_lines(
        encoder, encode.make_slide(13, 128.0), lambda: calls.append(1),
        batch=1, variants=2, workers=1, repeats=3,
    )  # fmt: skip
    devices = jax.local_device_count()
    assert pipeline["kept"] == 2 * -(-13 // devices) / 10


def test_the_slide_has_room_for_every_patch(scripts):
    slide = scripts.encode.make_slide(13, 128.0)
    assert slide.n_spots == 13
    side = 128.0 / scripts.encode.MPP
    height, width = slide.image.height, slide.image.width
    assert slide.pixel_xy.min() >= side / 2
    assert slide.pixel_xy[:, 0].max() <= width - side / 2
    assert slide.pixel_xy[:, 1].max() <= height - side / 2


def test_an_encoder_of_files_alone_is_not_measured(scripts):
    with pytest.raises(SystemExit, match="does not run here"):
        scripts.encode.make_encoder("ctranspath", quick=False, dtype="float32", batch=1)
