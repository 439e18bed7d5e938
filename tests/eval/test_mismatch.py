"""Negative log likelihoods of profiles under a model that is exact for a Gaussian."""

from __future__ import annotations

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from stemjax import errors
from stemjax.data import records, space, transforms
from stemjax.eval import mismatch

SPOTS, GENES, WIDTH = 11, 4, 3
RNG = np.random.default_rng(7)
W = RNG.standard_normal((WIDTH, GENES)).astype(np.float32)
ROOT = RNG.standard_normal((GENES, GENES))
COV = (0.3 * np.eye(GENES) + 0.2 * ROOT @ ROOT.T).astype(np.float32)


def _table(n: int = SPOTS) -> records.Table:
    rng = np.random.default_rng(n)
    return records.Table(
        embeddings=rng.standard_normal((n, 2, WIDTH)).astype(np.float16),
        counts=rng.poisson(6, (n, GENES)).astype(np.int32),
        total=np.full(n, 100, np.int32),
        mask=np.ones((n, GENES), np.uint8),
        slide_index=np.zeros(n, np.int32),
        slides=("S",),
        barcodes=tuple(str(i) for i in range(n)),
        array_xy=np.zeros((n, 2), np.float32),
        pixel_xy=np.zeros((n, 2), np.float32),
    )


def _trained(cov: np.ndarray = COV) -> types.SimpleNamespace:
    """What `negative_log_likelihood` reads of a model: x0 ~ N(cond @ W, cov) in its space."""
    genes = tuple(f"G{i}" for i in range(GENES))
    fitted = space.Space(
        genes=genes,
        transform="log2p1",
        expression=transforms.Standardisation(mean=np.full(GENES, 2.5), std=np.full(GENES, 0.8)),
        condition=transforms.Standardisation(mean=np.full(WIDTH, 0.1), std=np.full(WIDTH, 1.5)),
    )
    values, vectors = np.linalg.eigh(cov)

    def denoiser(params, cond, *, repeat=1):
        mean = jnp.repeat(cond, repeat, axis=0) @ params["w"]

        def denoise(x, sigma):
            shrink = values[None] / (values[None] + sigma[:, None] ** 2)
            return mean + ((x - mean) @ vectors * shrink) @ vectors.T

        return denoise

    task = types.SimpleNamespace(denoiser=denoiser, levels=(0.01, 80.0), genes=GENES)
    card = types.SimpleNamespace(space=fitted, task=task, forward_task=task)
    return types.SimpleNamespace(card=card, params={"w": jnp.asarray(W)})


def _closed_form(trained, table, cov=COV, sigma_max=80.0) -> np.ndarray:
    """-ln p(x0 of spot i | patch of spot j) / genes, float64, [l l].

    p is what the flow makes of N(0, sigma_max²): x0 - mean = K (x - mean), with K the root of
    (cov + blur²) (cov + sigma_max²)^-1; N(mean, cov + blur²) where sigma_max is infinite.
    """
    fitted = trained.card.space
    x0 = fitted.encode_expression(table.counts, table.total, table.mask).astype(float)
    means = fitted.encode_condition(table.embeddings[:, 0]).astype(float) @ W
    values, vectors = np.linalg.eigh(cov.astype(float))
    blurred = values + mismatch.SIGMA_MIN**2
    if np.isfinite(sigma_max):
        k = np.sqrt(blurred / (values + sigma_max**2))
        means, blurred = means - means @ vectors * k @ vectors.T, sigma_max**2 * k**2
    law = stats.multivariate_normal(np.zeros(GENES), vectors * blurred @ vectors.T)
    return -law.logpdf(x0[:, None] - means[None]) / GENES


# Of 40 rungs of Runge-Kutta of order 4, and of float32 sums of terms of size 4 ln 400.
ATOL = 2e-4


@pytest.fixture
def fine(monkeypatch):
    """A ladder on which the closed form is met closely."""
    monkeypatch.setattr(mismatch, "STEPS", 40)


def test_the_usual_ladder_is_as_good_as_stated():
    trained, table = _trained(), _table()
    found = mismatch.negative_log_likelihood(trained, table, divergence="exact")["own"]
    # "Below .01 nats a gene", as stated beside STEPS.
    np.testing.assert_allclose(found, np.diag(_closed_form(trained, table)), atol=0.01)
    # The blurred Gaussian itself: the flow starts from N(0, 80²), which leaves std / 80 of the mean
    # out; here up to 2 * .02 away, where the log density of a rare profile has a slope of 1.
    gaussian = np.diag(_closed_form(trained, table, sigma_max=np.inf))
    np.testing.assert_allclose(found, gaussian, atol=0.05)
    assert found.std() > 0.3


@pytest.mark.usefixtures("fine")
def test_own_and_other_are_those_of_the_blurred_gaussian():
    trained, table = _trained(), _table()
    found = mismatch.negative_log_likelihood(trained, table, divergence="exact")
    closed = _closed_form(trained, table)
    np.testing.assert_allclose(found["own"], np.diag(closed), atol=ATOL)
    # Which patch each spot was shown: the one whose closed form it has.
    gap = np.abs(closed - found["other"][:, None])
    shown = gap.argmin(axis=1)
    assert gap.min(axis=1).max() < ATOL
    assert sorted(shown) == list(range(SPOTS))
    assert (shown != np.arange(SPOTS)).all()
    # So near to one and only one that the place is told.
    assert np.sort(gap, axis=1)[:, 1].min() > 2 * gap.min(axis=1).max()


@pytest.mark.parametrize("n", [2, 3, 10, 257])
def test_every_spot_is_shown_another_ones_patch(n):
    orders = [mismatch._derangement(seed, n) for seed in range(5)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(n))
        assert (order != np.arange(n)).all()
    np.testing.assert_array_equal(orders[0], mismatch._derangement(0, n))
    if n > 3:
        assert any((order != orders[0]).any() for order in orders)


def test_one_spot_has_none_but_its_own():
    found = mismatch.negative_log_likelihood(_trained(), _table(1), divergence="exact")
    np.testing.assert_array_equal(found["own"], found["other"])


def test_a_profile_that_is_not_whole_is_refused():
    table = _table()
    mask = table.mask.copy()
    mask[2, 1] = mask[5, 1] = mask[0, 3] = 0
    with pytest.raises(errors.RecordsError, match="2 genes not measured"):
        mismatch.negative_log_likelihood(_trained(), dataclasses.replace(table, mask=mask))


@pytest.mark.usefixtures("fine")
def test_probes_estimate_the_exact_divergence():
    trained, table = _trained(), _table()
    exact = mismatch.negative_log_likelihood(trained, table, divergence="exact")["own"]
    one, other = (
        mismatch.negative_log_likelihood(trained, table, probes=4, seed=seed)["own"]
        for seed in (0, 1)
    )
    assert np.abs(one - other).max() > 1e-4  # correlated genes, so that probes do matter
    # The trace's estimate has variance 2 sum of the squared off-diagonal slopes, each below .25 and
    # of weight in ln sigma over about 2; 12 of them, 4 probes, 4 genes: a std below .3, and less.
    assert np.abs(one - exact).max() < 1.0
    many = mismatch.negative_log_likelihood(trained, table, probes=400)["own"]
    assert np.abs(many - exact).max() < 0.1  # ten times as near
    # Independent genes have a diagonal slope, of which each probe gives the trace itself.
    alone = np.diag(np.diag(COV))
    both = [
        mismatch.negative_log_likelihood(_trained(alone), table, divergence=name, probes=1)["own"]
        for name in ("exact", "hutchinson")
    ]
    np.testing.assert_allclose(both[1], both[0], atol=1e-5)  # float32
    np.testing.assert_allclose(both[0], np.diag(_closed_form(trained, table, alone)), atol=ATOL)


def test_portions_do_not_show():
    trained, table, seen = _trained(), _table(), []
    few, all_at_once = (
        mismatch.negative_log_likelihood(
            trained, table, rows=rows, progress=lambda done, total, what: seen.append((done, total))
        )
        for rows in (4, 64)  # the suite's four devices take a multiple of 4
    )
    for name in ("own", "other"):
        # float32 sums of other shapes, of terms of size 4 ln 400.
        np.testing.assert_allclose(few[name], all_at_once[name], atol=1e-5)
        assert few[name].shape == (SPOTS,)
    assert seen[:3] == [(4, 11), (8, 11), (11, 11)]
