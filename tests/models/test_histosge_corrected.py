"""HisToSGE's corrected network: definition, invariances, what it may see, gradients."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_histosge
import pytest
from histosge_inputs import CORRECTED, NAMES, still, trained, windows
from sklearn import gaussian_process

from stemjax.models import histosge

_corrected = jax.jit(histosge.make_corrected(CORRECTED)[0].apply)


@functools.cache
def _fresh():
    """Parameters before training, with components in their places."""
    params = jax.jit(histosge.make_corrected(CORRECTED)[0].init)(jax.random.key(0))
    rng = np.random.default_rng(2)
    loadings = np.linalg.qr(rng.normal(size=(CORRECTED.genes, CORRECTED.components)))[0].T
    centre = rng.normal(size=CORRECTED.genes)
    return {**params, "loadings": np.float32(loadings), "centre": np.float32(centre)}


def _run(params, given, **changed):
    return np.asarray(_corrected(params, *((given | changed)[name] for name in NAMES)))


def test_the_corrected_network_is_what_its_page_says():
    params, given = trained(histosge.make_corrected(CORRECTED)[0]), windows()
    expected = numpy_histosge.corrected(params, *(given[name] for name in NAMES), heads=4)
    assert expected.std() > 0.3
    # float32: phases up to 2 pi 680 / 200 rad carry 1e-6, and two blocks and a head pass it on.
    np.testing.assert_allclose(_run(params, given), expected, atol=3e-5, rtol=3e-5)


def _lengths(count):
    """Lengths in um over which weights fall to 1/e before training."""
    return 50.0 * (3200.0 / 50.0) ** (np.arange(count) / (count - 1))


def test_a_fresh_network_is_a_gaussian_process_on_the_components():
    given, params = windows(), _fresh()
    expected = np.zeros((3, CORRECTED.genes))
    for b in range(3):
        kept = given["shown"][b] > 0
        scores = (given["x"][b, kept] - params["centre"]) @ params["loadings"].T
        # A length of 400 um, a level, as much noise as process, and what keeps spots apart.
        process = gaussian_process.GaussianProcessRegressor(
            gaussian_process.kernels.Matern(400.0, nu=1.5)
            + gaussian_process.kernels.ConstantKernel(0.3),
            alpha=1.001,
            optimizer=None,
        ).fit(np.float64(given["xy"][b, kept]), scores)
        found = process.predict(np.float64(given["xy"][b, :1]))
        expected[b] = params["centre"] + found[0] @ params["loadings"]
    assert (expected - params["centre"]).std() > 0.1
    np.testing.assert_allclose(_run(params, given), expected, atol=5e-6, rtol=5e-6)


def test_components_are_read():
    params, given = trained(histosge.make_corrected(CORRECTED)[0]), windows()
    for name in ("centre", "loadings"):
        moved = {**params, name: params[name] + np.float32(0.5)}
        assert np.abs(_run(moved, given) - _run(params, given)).max() > 0.1


def test_spots_on_one_place_can_be_told_from_nothing():
    """Equal places make the covariance singular but for the noise, which is kept above 0."""
    params, given = trained(histosge.make_corrected(CORRECTED)[0]), windows()
    given["xy"] = np.zeros_like(given["xy"])
    params["kriging"] = {**params["kriging"], "noise": np.full(3, -2.0, np.float32)}
    found = _run(params, given)
    expected = numpy_histosge.corrected(params, *(given[name] for name in NAMES), heads=4)
    # A condition number of a thousand in float32.
    np.testing.assert_allclose(found, expected, atol=2e-3, rtol=2e-3)


def test_a_fresh_network_attends_over_lengths_from_50_to_3200_um():
    slope = np.asarray(_fresh()["slope"])
    assert slope.shape == (2, 4)
    # Slopes are in 1 / 100 um.
    lengths = 100.0 / np.log1p(np.exp(np.float64(slope)))
    np.testing.assert_allclose(lengths, np.tile(_lengths(4), (2, 1)), rtol=1e-5)


def test_far_from_all_spots_the_level_of_the_window_is_left():
    given, params = windows(), _fresh()
    given["xy"][:, 0] += np.float32(1e6)
    higher = given["x"] + 2 * params["loadings"][0]

    def share(level):
        """How much of a rise of all measured spots the prediction follows."""
        kept = {**params["kriging"], "level": np.full(3, level, np.float32)}
        one, other = (_run({**params, "kriging": kept}, given, x=x) for x in (given["x"], higher))
        return (other - one) @ params["loadings"][0] / 2

    np.testing.assert_allclose(share(-1.0), 0.0, atol=0.02)  # simple kriging: the mean of all
    np.testing.assert_allclose(share(0.4), 1.0, atol=0.03)  # ordinary kriging: theirs
    np.testing.assert_array_less(0.2, share(0.0))
    np.testing.assert_array_less(share(0.0), 0.8)


@pytest.mark.parametrize("name", ["length", "noise", "level"])
@pytest.mark.parametrize("weight", [-3.0, 3.0])
def test_no_weight_of_the_kriging_makes_it_fail(name, weight):
    given, params = windows(), _fresh()
    given["xy"] = given["xy"] / np.float32(100)  # spots as close as those of Visium HD
    far = {"level": np.full(3, 3.0, np.float32), "noise": np.full(3, -3.0, np.float32)}
    kept = {**params["kriging"], **far, name: np.full(3, weight, np.float32)}
    found = _run({**params, "kriging": kept}, given)
    assert np.isfinite(found).all()
    # A mean of what is measured, or less; never an extrapolation out of rounding.
    assert np.abs(found).max() < 3 * np.abs(given["x"]).max()


def test_where_a_window_lies_does_not_matter():
    params, given = trained(histosge.make_corrected(CORRECTED)[0]), windows()
    # 16,384 um off, positions on a lattice of 8 um are still exact in float32.
    shift = np.array([16384.0, -8192.0], np.float32)
    np.testing.assert_array_equal(_run(params, given, xy=given["xy"] + shift), _run(params, given))
    stretched = _run(params, given, xy=2 * given["xy"])
    assert np.abs(stretched - _run(params, given)).max() > 0.05


@pytest.mark.parametrize("fresh", [True, False])
def test_the_order_of_the_neighbours_does_not_matter(fresh):
    params = _fresh() if fresh else trained(histosge.make_corrected(CORRECTED)[0])
    given = windows()
    order = np.array([0, 3, 6, 1, 5, 2, 4])
    turned = {name: values[:, order] for name, values in given.items()}
    # The sums over spots run in another order: a few float32 roundings.
    np.testing.assert_allclose(_run(params, turned), _run(params, given), atol=2e-5)
    other = {name: values[:, np.roll(order, 1)] for name, values in given.items()}
    assert np.abs(_run(params, other) - _run(params, given)).max() > 0.05  # which is asked for does


def test_absent_spots_change_nothing():
    params, given = trained(histosge.make_corrected(CORRECTED)[0]), windows()
    whole, absent = _run(params, given), given["present"] == 0
    rng = np.random.default_rng(1)
    changed = {k: given[k].copy() for k in ("cond", "x", "seen", "xy")}
    for values in changed.values():
        values[absent] = 300 * rng.normal(size=(2, values.shape[-1]))
    np.testing.assert_array_equal(_run(params, given, **changed), whole)
    padded = {k: np.pad(v, [(0, 0), (0, 4)] + [(0, 0)] * (v.ndim - 2)) for k, v in given.items()}
    # Longer sums, whose further terms are 0: other matrix shapes.
    np.testing.assert_allclose(_run(params, padded), whole, atol=1e-5)


def _turned(xy, angle=np.pi / 2):
    """Positions turned about the origin; by a right angle exactly."""
    cos, sin = round(np.cos(angle)), round(np.sin(angle))
    return (xy @ np.array([[cos, -sin], [sin, cos]])).astype(np.float32)


def test_turning_a_window_changes_what_the_waves_see_and_nothing_else():
    params, given = trained(histosge.make_corrected(CORRECTED)[0]), windows()
    turned = _turned(given["xy"])
    assert np.abs(_run(params, given, xy=turned) - _run(params, given)).max() > 0.05
    deaf = {**params, "position": jax.tree.map(np.zeros_like, params["position"])}
    np.testing.assert_allclose(
        _run(deaf, given, xy=turned), _run(deaf, given), atol=1e-6
    )  # distances: the same two squares in another order
    # What a fresh network does, interpolation, knows distances alone.
    np.testing.assert_allclose(_run(_fresh(), given, xy=turned), _run(_fresh(), given), atol=1e-6)


@pytest.mark.parametrize("value", [1e20, np.nan], ids=["huge", "nan"])
def test_expression_that_is_not_shown_is_not_read(value):
    params, given = trained(histosge.make_corrected(CORRECTED)[0]), windows()
    hidden = given["shown"] == 0
    assert hidden[:, 0].all()  # the asked spots
    assert hidden[0, 2]  # and a neighbour
    spoilt = {k: given[k].copy() for k in ("x", "seen")}
    for values in spoilt.values():
        values[hidden] = value
    np.testing.assert_array_equal(_run(params, given, **spoilt), _run(params, given))

    def loss(params, x, seen):
        out = histosge.make_corrected(CORRECTED)[0].apply(
            params, *((given | {"x": x, "seen": seen})[name] for name in NAMES)
        )
        return jnp.square(out).sum()

    grad = jax.jit(jax.grad(loss))
    for one, other in zip(
        *map(jax.tree.leaves, (grad(params, given["x"], given["seen"]), grad(params, **spoilt)))
    ):
        np.testing.assert_array_equal(one, other)
    # And what is shown is read, by its own way each.
    for name, values in spoilt.items():
        shifted = given[name] + np.float32(3)
        assert np.abs(_run(params, given, **{name: shifted}) - _run(params, given)).max() > 0.1
        assert not np.array_equal(values, given[name])


def test_without_any_measured_neighbour_the_head_alone_speaks():
    params, given = trained(histosge.make_corrected(CORRECTED)[0]), windows()
    nothing = {"shown": np.zeros_like(given["shown"])}
    found = _run(params, given, **nothing)
    changed = given | nothing
    expected = numpy_histosge.corrected(params, *(changed[n] for n in NAMES), heads=4)
    np.testing.assert_allclose(found, expected, atol=3e-5, rtol=3e-5)
    centre = np.tile(_fresh()["centre"], (3, 1))
    np.testing.assert_array_equal(_run(_fresh(), given, **nothing), centre)
    net = histosge.make_corrected(CORRECTED)[0]
    grad = jax.jit(jax.grad(lambda p: jnp.square(net.apply(p, *(changed[n] for n in NAMES))).sum()))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grad(params)))


def test_a_window_does_not_see_the_others_of_its_batch():
    params, given = trained(histosge.make_corrected(CORRECTED)[0]), windows()
    picked = [2, 0]
    part = _run(params, {name: values[picked] for name, values in given.items()})
    np.testing.assert_allclose(part, _run(params, given)[picked], atol=1e-5)


def test_the_gradient_reaches_every_parameter_of_the_corrected_network():
    net, given = histosge.make_corrected(CORRECTED)[0], windows(batch=6)
    dead = still(net, [given[name] for name in NAMES], trained(net))
    assert sorted(dead) == ["centre", "loadings"]  # found before training, and kept


def test_a_fresh_corrected_network_wakes_up():
    net, given = histosge.make_corrected(CORRECTED)[0], windows(batch=6)
    given = [given[name] for name in NAMES]
    params = _fresh()
    target = np.random.default_rng(9).normal(size=(6, 5)).astype(np.float32)
    grad = jax.jit(jax.grad(lambda p: jnp.square(net.apply(p, *given) - target).mean()))
    # The last Linears of head and drift open first, then what lies behind them.
    for _ in range(2):
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grad(params))
    assert sorted(still(net, given, params)) == ["centre", "loadings"]
