"""Stored calibrations: bit for bit back, and refused where they contradict themselves."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from stemjax import errors
from stemjax.train import calibration

SAMPLING = {"mode": "draws", "sampler": "dpmpp2m", "steps": 8, "eta": 0.1}
MODEL = {"config": "abc", "step": 7, "weights": "best"}


def make(**fields):
    """Two levels, three genes, of which the second was not measured; numbers of many digits."""
    values = np.sort(np.random.default_rng(0).standard_normal((4, 3)), axis=0)
    offsets = np.stack([values[[1, 2]], values[[0, 3]]])
    offsets[..., 1] = np.nan
    made = {
        "levels": (0.5, 0.9),
        "offsets": offsets,
        "floor": np.array([0.1, 1 / 3, 2.0]),
        "spots": np.array([40, 0, 100]),
        "slides": ("V1", "V2"),
        "genes": ("A", "<b>", "C"),
        "value_space": "log2p1",
        "sampling": SAMPLING,
        "model": MODEL,
        "raw": (0.1 + 0.2, 0.7),
        "held_out": (0.5, None),
        "held_out_by": "leave one slide out",
    }
    return calibration.Calibration(**made | fields)


def assert_same(found, wanted):
    for field in dataclasses.fields(wanted):
        ours, theirs = getattr(found, field.name), getattr(wanted, field.name)
        np.testing.assert_array_equal(ours, theirs, err_msg=field.name)
        assert type(ours) is type(theirs)


def test_a_file_gives_the_calibrations_back_to_the_last_bit(tmp_path):
    path = tmp_path / "calibration.json"
    assert calibration.read(path) == ()
    written = (make(), make(raw=None, sampling={"mode": "mean"}))
    calibration.write(written, path)
    assert [file.name for file in tmp_path.iterdir()] == ["calibration.json"]
    found = calibration.read(path)
    assert len(found) == 2
    for one, other in zip(found, written):
        assert_same(one, other)
    stored = json.loads(path.read_text(), parse_constant=pytest.fail)  # no NaN, which is no JSON
    assert stored["calibrations"][0]["offsets"][0][0][1] is None


def test_what_a_prediction_says_of_it_is_plain_and_short():
    about = make().describe()
    assert json.loads(json.dumps(about)) == about
    assert about["spots"] == [40, 100]
    assert about["genes_without"] == ["<b>"]
    assert (about["slides"], about["model"], about["sampling"]) == (["V1", "V2"], MODEL, SAMPLING)
    assert "offsets" not in about


def offsets(change):
    values = make().offsets.copy()
    change(values)
    return {"offsets": values}


BAD = {
    "no levels": {"levels": ()},
    "levels fall": {"levels": (0.9, 0.5)},
    "level 1": {"levels": (0.5, 1.0)},
    "level too many": {"levels": (0.5, 0.8, 0.9)},
    "one gene less": {"genes": ("A", "C")},
    "gene twice": {"genes": ("A", "C", "C")},
    "no slides": {"slides": ()},
    "value space": {"value_space": "log10"},
    "floor 0": {"floor": np.array([0.1, 0.1, 0.0])},
    "floor NaN": {"floor": np.array([0.1, np.nan, 0.1])},
    "spots below 0": {"spots": np.array([40, -1, 100])},
    "no spots": {"spots": np.zeros(3, int), "offsets": np.full((2, 2, 3), np.nan)},
    "offsets of a gene without spots": {"spots": np.array([40, 0, 0])},
    "no offsets of a gene with spots": {"spots": np.array([40, 40, 100])},
    "infinite": offsets(lambda v: v.__setitem__((1, 1, 0), np.inf)),
    "crossed": offsets(lambda v: v.__setitem__((0, slice(None), 0), v[0, ::-1, 0].copy())),
    "not nested below": offsets(lambda v: v.__setitem__((1, 0, 2), v[0, 0, 2] + 1e-9)),
    "not nested above": offsets(lambda v: v.__setitem__((1, 1, 2), v[0, 1, 2] - 1e-9)),
    "coverage of one level": {"held_out": (0.5,)},
    "raw coverage of one level": {"raw": (0.5,)},
    "coverage above 1": {"held_out": (0.5, 1.5)},
    "coverage NaN": {"raw": (0.5, float("nan"))},
    "no mode": {"sampling": {"steps": 8}},
}


@pytest.mark.parametrize("name", BAD)
def test_contradictions_are_refused(name):
    with pytest.raises(errors.CalibrationError) as caught:
        make(**BAD[name])
    assert caught.value.code == "SJ-E02"
    assert "calibrate again" in caught.value.fix


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.update(format=2), "format: expected 1, found 2"),
        (lambda v: v.pop("format"), "KeyError"),
        (lambda v: v.update(calibrations=3), "TypeError"),
        (lambda v: v.update(calibrations=[3]), "TypeError"),
        (lambda v: v["calibrations"][0].pop("floor"), "KeyError: 'floor'"),
        (lambda v: v["calibrations"][0].update(offsets="none"), "ValueError"),
        (lambda v: v["calibrations"][0].update(spots=[40.5, 0, 100]), "whole numbers"),
        (lambda v: v["calibrations"][0].update(sampling=None), "TypeError"),
        (lambda v: v["calibrations"][0].update(levels=[0.9, 0.5]), "levels (0.9, 0.5)"),
    ],
)
def test_a_file_that_makes_no_sense_is_named(tmp_path, change, words):
    path = tmp_path / "calibration.json"
    calibration.write([make()], path)
    values = json.loads(path.read_text())
    del values["sha256"]  # as files of before there were digests
    assert len(read_of(path, values)) == 1
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(errors.CalibrationError) as caught:
        calibration.read(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
    path.write_bytes(b"\xff{")
    with pytest.raises(errors.CalibrationError, match="cannot be read"):
        calibration.read(path)


def read_of(path, values):
    path.write_text(json.dumps(values))
    return calibration.read(path)


def test_no_flipped_bit_changes_a_calibration_without_a_word(tmp_path):
    path = tmp_path / "calibration.json"
    calibration.write([make()], path)
    whole, expected = path.read_bytes(), make().to_json()
    named = 0
    for place in range(len(whole)):
        raw = bytearray(whole)
        raw[place] ^= 1 << place % 8
        path.write_bytes(raw)
        try:
            found = calibration.read(path)
        except errors.CalibrationError:
            named += 1
            continue
        assert [one.to_json() for one in found] == [expected], place
    assert named > 0.9 * len(whole)


def test_a_new_one_replaces_what_it_makes_useless():
    def of(step, weights, mode):
        return make(model=MODEL | {"step": step, "weights": weights}, sampling={"mode": mode})

    earlier, same, other = of(3, "best", "pair"), of(7, "best", "mean"), of(7, "best", "draws")
    last, new = of(9, "last", "mean"), of(7, "best", "mean")
    assert calibration.replace((earlier, same, other, last), new) == (other, last, new)
    assert calibration.replace((), new) == (new,)


def test_those_of_other_weights_are_left_and_those_of_other_genes_refused():
    ours, other = make(), make(model=MODEL | {"step": 8})
    fitting = {"genes": ["A", "<b>", "C"], "value_space": "log2p1"}
    assert calibration.of_weights((other, ours), MODEL, **fitting) == (ours,)
    for change in ({"genes": ["<b>", "A", "C"]}, {"value_space": "log1p_cp10k"}):
        assert calibration.of_weights((other,), MODEL, **fitting | change) == ()
        with pytest.raises(errors.CalibrationError, match="does not fit its model"):
            calibration.of_weights((ours,), MODEL, **fitting | change)
