"""Many slides: what one slide's prediction gives, units and shares, stores of draws."""

from __future__ import annotations

import dataclasses
import json

import anndata
import jax
import numpy as np
import pytest
from cohort_cases import BLOCK, DRAWS, MEAN, SLIDES, job, make_trained, read, require_same

from stemjax import config, errors, tasks
from stemjax.eval import cohort, cohort_plan, draw_files, predict, steering
from stemjax.train import checkpoint
from stemjax.train import material as material_lib

SMALL = {"width": 16, "depth": 1, "heads": 2}


@pytest.fixture(scope="module")
def trained(toy_records, toy_experiment) -> checkpoint.Trained:
    """Weights away from the initial ones; calibrated for MEAN."""
    return make_trained(toy_records, toy_experiment)


@pytest.fixture
def labelled(toy_records, monkeypatch):
    """The toy records; X1 has a label whose values do not come in their order, some absent."""
    values = tuple("cba"[i % 3] if i % 7 else "" for i in range(60))
    found = type(toy_records).labels
    monkeypatch.setattr(
        type(toy_records),
        "labels",
        lambda self, slide: {"region": values} if slide == "X1" else found(self, slide),
    )
    return toy_records


@pytest.mark.parametrize(
    ("sampling", "options"),
    [
        (MEAN, {}),
        (DRAWS, {}),
        (DRAWS, {"summary": tasks.Summary(antithetic=True, quantiles=(0.05, 0.5))}),
        (DRAWS, {"steer": steering.Steering(given=("TOY01",), method="replacement")}),
    ],
)
def test_a_slide_of_parts_is_the_slide_at_once(trained, labelled, tmp_path, sampling, options):
    asked = job(trained, labelled, sampling, **options)
    outcome = cohort.predict_cohort(asked, ["X1"], tmp_path / "out", block=BLOCK)
    assert (outcome.done, outcome.failed, outcome.spots) == (("X1",), {}, 60)
    alone = predict.predict_slide(trained, labelled, "X1", sampling, seed=3, **options)
    predict.write(alone, tmp_path / "alone.h5ad")
    whole, made = anndata.read_h5ad(tmp_path / "alone.h5ad"), read(tmp_path / "out", "X1")
    # Programs for 16 rows and for 60: fp32 rounding of values of size 5, as in test_predict.
    require_same(whole, made, atol=1e-4)
    assert list(made.obs["region"].cat.categories) == ["a", "b", "c"]
    np.testing.assert_array_equal(made.obs["region"].isna(), [i % 7 == 0 for i in range(60)])
    theirs, ours = dict(whole.uns["stemjax"]), dict(made.uns["stemjax"])
    assert ours.pop("seconds") > 0
    assert json.loads(ours.pop("request"))["slide"] == "X1"
    assert theirs.keys() == ours.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    scene, image = (u.uns["spatial"]["X1"]["images"]["hires"] for u in (whole, made))
    np.testing.assert_array_equal(scene, image)


def test_nothing_but_results_is_left(trained, toy_records, tmp_path):
    cohort.predict_cohort(job(trained, toy_records), SLIDES, tmp_path, block=BLOCK)
    names = [f"{slide}.h5ad" for slide in SLIDES]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".parts", *names, "cohort.json"]
    assert list((tmp_path / ".parts").iterdir()) == []
    # Left by a process that died just after it had finished the slide.
    (tmp_path / ".parts" / "T1" / "some-16" / "000000").mkdir(parents=True)
    cohort.predict_cohort(job(trained, toy_records), SLIDES, tmp_path, block=BLOCK)
    assert list((tmp_path / ".parts").iterdir()) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"window": {"kind": "neighbours", "length": 9}},
        {"window": {"kind": "rows", "length": 7}, "model": {"kind": "histosge_published", **SMALL}},
        {"data": {"recover": "X1", "test": ""}},
    ],
)
def test_a_model_that_needs_other_spots_has_whole_slides(toy_records, tmp_path, changed):
    values = {"model": SMALL, **changed}
    values["data"] = {"test": "X1", "val": "V1"} | values.get("data", {})
    card = material_lib.gather(config.resolve(values), toy_records).card
    params = card.task.init(jax.random.key(0))
    asked = job(checkpoint.Trained(params=params, card=card, step=1, weights="last"), toy_records)
    assert [(unit.spots, unit.count) for unit in cohort_plan.plan(asked, ["X1"], BLOCK)] == [
        (60, 1)
    ]
    cohort.predict_cohort(asked, ["X1"], tmp_path, block=BLOCK)
    alone = predict.predict_slide(asked.trained, toy_records, "X1", MEAN, seed=3)
    predict.write(alone, tmp_path / "alone.h5ad")
    require_same(anndata.read_h5ad(tmp_path / "alone.h5ad"), read(tmp_path, "X1"))


def test_likelihoods_have_whole_slides(trained, toy_records):
    units = cohort_plan.plan(job(trained, toy_records, divergence="exact"), ["X1", "T1"], BLOCK)
    assert [(unit.slide, unit.spots) for unit in units] == [("T1", 60), ("X1", 60)]


def test_units_are_dealt_once_in_order_and_evenly(trained, toy_records):
    slides = {
        slide: dataclasses.replace(toy_records.slides[slide], n_spots=spots)
        for slide, spots in zip(SLIDES, (1000, 7, 301, 64))
    }
    units = cohort_plan.plan(
        job(trained, dataclasses.replace(toy_records, slides=slides)), SLIDES[::-1], 50
    )
    assert [unit.slide for unit in units] == sorted(unit.slide for unit in units)
    assert sum(unit.spots for unit in units) == 1372
    for count in (1, 2, 3, 7):
        shares = [cohort_plan.deal(units, (i, count)) for i in range(count)]
        assert [unit for share in shares for unit in share] == units
        sizes = [sum(unit.spots for unit in share) for share in shares]
        assert max(abs(size - 1372 / count) for size in sizes) <= 50
    with pytest.raises(errors.ConfigError, match="part 2 of 2"):
        cohort_plan.deal(units, (2, 2))


# ------------------------------------------------------------------------------------------- draws


@pytest.mark.parametrize("block", [BLOCK, 100])
def test_draws_in_a_store_are_those_of_the_file(trained, toy_records, tmp_path, block):
    for draws in ("h5ad", "zarr"):
        asked = job(trained, toy_records, DRAWS, draws=draws)
        cohort.predict_cohort(asked, ["X1"], tmp_path / draws, block=block)
    inside, beside = (read(tmp_path / draws, "X1") for draws in ("h5ad", "zarr"))
    store = draw_files.open_draws(tmp_path / "zarr" / beside.uns["stemjax"]["draws"])
    np.testing.assert_array_equal(store[:], inside.obsm.pop("stemjax_draws"))
    require_same(inside, beside)
    assert store.attrs["genes"] == list(beside.var_names)
    assert (store.attrs["slide"], store.attrs["seed"]) == ("X1", 3)
    assert store.attrs["value_space"] == "log2p1"
    assert block % store.chunks[0] == 0 or store.chunks[0] == 60
    index = json.loads((tmp_path / "zarr" / "cohort.json").read_text())
    assert index["slides"][0]["draws"] == "X1.draws.zarr"


def test_a_store_that_lacks_a_chunk_is_refused(tmp_path):
    store = tmp_path / "x.zarr"
    draw_files.create(store, (12, 2, 3), block=4, about={})
    draw_files.create(store, (12, 2, 3), block=4, about={"late": True})
    draws = np.random.default_rng(0).normal(size=(12, 2, 3)).astype(np.float32)
    draw_files.write(store, 8, draws[8:])
    draw_files.write(store, 0, draws[:4])
    with pytest.raises(errors.PredictionError, match="expected 3 chunks, found 2"):
        draw_files.publish(store, tmp_path / "y.zarr")
    draw_files.write(store, 4, draws[4:8])
    draw_files.publish(store, tmp_path / "y.zarr")
    found = draw_files.open_draws(tmp_path / "y.zarr")
    np.testing.assert_array_equal(found[:], draws)
    assert dict(found.attrs) == {}
    assert not store.exists()


def test_no_store_without_draws(trained, toy_records):
    with pytest.raises(errors.ConfigError, match="mode draws"):
        job(trained, toy_records, draws="zarr")
    with pytest.raises(errors.ConfigError, match="summary"):
        job(trained, toy_records, DRAWS, draws="zarr", summary=tasks.Summary(antithetic=True))


@pytest.mark.parametrize(
    ("block", "row_bytes", "rows"),
    [(2**14, 16_000, 2**10), (24, 2**23, 2), (10_007, 2**14, 10_007)],
)
def test_chunks_divide_blocks(block, row_bytes, rows):
    assert draw_files.chunk_rows(block, row_bytes) == rows
