"""What leaves the process that evaluated a slide: enough for the table, to the last bit."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
from made_slides import predicted, truth, write_source

from stemjax import errors
from stemjax.eval import evaluate, metrics, slide_results

OPTIONS = {"resamples": 20, "leave_out": ("MLP", "embedding kNN", "HEST probe")}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def done(source):
    """Three slides with draws, likelihoods, genes not scored, alerts and a row to compare."""
    predictions, others = [], []
    for seed, (slide, train) in enumerate([("A2", ["B1"]), ("A1", ["U1"]), ("U1", ["A1"])]):
        rng, true = np.random.default_rng(seed), truth(source, slide)
        draws = true - 2.0 + rng.normal(0, 0.7, (4, *true.shape))
        made = predicted(
            source, slide, draws.mean(axis=0), train=train, mode="draws", draws=draws, seed=9,
            given_genes=["G3"],
        )  # fmt: skip
        made.obs["stemjax_nll"], made.obs["stemjax_nll_other"] = rng.normal(size=(2, 108))
        predictions.append(made)
        others.append(predicted(source, slide, 0.5 * true, train=train))
    return evaluate.evaluate_all(predictions, source, compare={"half": others}, **OPTIONS)


def results(done):
    return [slide_results.of_slide(*one, resamples=20, seed=0) for one in done]


def through_bytes(found):
    return [slide_results.from_bytes(one.to_bytes()) for one in found]


@pytest.mark.parametrize("slides", [1, 3])
def test_the_table_is_that_of_the_slides_themselves(done, slides):
    sent = through_bytes(results(done[:slides]))
    found = evaluate.tabulate(sent, resamples=20, seed=0)
    assert json.dumps(found) == json.dumps(evaluate.summarise(done[:slides], resamples=20, seed=0))
    assert len(found["rows"]) >= 7
    assert found["notes"] == sorted({note for _, one in done[:slides] for note in one.notes})
    assert {alert["level"] for alert in found["alerts"]} == {"warning", "note"}


def test_nothing_is_lost_on_the_way(done):
    for before, after in zip(results(done), through_bytes(results(done)), strict=True):
        for field in dataclasses.fields(before):
            if field.name != "rows":
                assert getattr(after, field.name) == getattr(before, field.name), field.name
        assert [row.name for row in after.rows] == [row.name for row in before.rows]
        for one, other in zip(before.rows, after.rows, strict=True):
            assert (one.source, one.sees_test) == (other.source, other.sees_test)
            assert list(one.scores) == list(other.scores)
            for key, values in one.scores.items():
                assert other.scores[key].dtype == np.float64
                np.testing.assert_array_equal(other.scores[key], values)


def test_values_at_the_edge_survive(done):
    """NaN, infinity, the smallest number and letters of another alphabet."""
    (one,) = results(done[:1])
    odd = np.array([np.nan, np.inf, 5e-324, -0.0])
    row = dataclasses.replace(one.rows[0], name="β: mean", scores={"mse": odd})
    (after,) = through_bytes([dataclasses.replace(one, rows=(row,), notes=("größer",))])
    assert after.rows[0].scores["mse"].tobytes() == odd.tobytes()
    assert (after.rows[0].name, after.notes) == ("β: mean", ("größer",))


def test_no_object_of_python_is_in_the_bytes(done):
    """What an attacker, or a stray file, could hide there would be executed by pickle."""
    content = results(done)[0].to_bytes()
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        assert all(arrays[name].dtype.kind in "fu" for name in arrays.files)
    file = io.BytesIO()
    np.savez(file, told=np.array([{"a": 1}], object))
    with pytest.raises(ValueError, match="allow_pickle"):
        slide_results.from_bytes(file.getvalue())


def test_little_is_sent(done):
    """Neither spots x genes nor genes x genes: scores with resamples, and names once."""
    (prediction, one) = done[0]
    numbers = sum(len(v) for row in one.rows for v in row.scored.values.values())
    words = len(" ".join([*prediction.obs_names, *prediction.var_names]))
    assert len(results(done)[0].to_bytes()) < 8 * numbers + 2 * words + 25_000


def test_a_slide_of_one_block_has_no_interval(source, done):
    def interval(resamples):
        prediction, one = done[0]
        single = metrics.resample(np.zeros(108, np.int64), count=resamples, seed=0)
        ground = dataclasses.replace(one.ground, resamples=single)
        found = [
            slide_results.of_slide(prediction, which, resamples=resamples, seed=0)
            for which in (one, dataclasses.replace(one, ground=ground))
        ]
        return [one.described["mismatch"]["own_is_better_interval"] for one in found]

    many, single = interval(20)
    assert many[0] < many[1]
    assert single is None
    assert interval(1) == [None, None]


def test_a_slide_is_in_a_table_once(done):
    twice = [results(done)[i] for i in (0, 1, 0)]
    with pytest.raises(errors.PredictionError, match="slide A2 is predicted more than once"):
        evaluate.tabulate(twice, resamples=20, seed=0)


def test_results_are_paired_by_spots_genes_and_resamples(done):
    def mark(found, **options):
        options = {"resamples": 20, "seed": 0} | options
        return evaluate.tabulate(found, **options)["fingerprint"]

    (one,) = results(done[:1])
    slide, barcodes, scored, genes, space = one.identity
    assert mark(through_bytes([one])) == mark([one])
    for other in (
        ["A9", barcodes, scored, genes, space],
        [slide, barcodes[::-1], scored, genes, space],
        [slide, barcodes, scored[1:], genes, space],
        [slide, barcodes, scored, genes[::-1], space],
        [slide, barcodes, scored, genes, "log1p"],
    ):
        assert mark([dataclasses.replace(one, identity=other)]) != mark([one])
    assert mark([one], seed=1) != mark([one])
