"""The published network and process against an independent PyTorch implementation.

`make_fixtures.py` (where torch is) wrote the arrays from `benchmarks/peers/torch_stem.py`, which
was made from the description of the published system and has never seen this package's code;
`PROVENANCE.json` has versions and seed. float32 throughout: errors are a few roundings of numbers
of order 1.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_networks

from stemjax import tasks
from stemjax.diffusion import ddpm, rules, sampler
from stemjax.export import published
from stemjax.foreign import torchfile
from stemjax.models import stem

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
ATOL = 1e-5


@pytest.fixture(scope="module")
def arrays():
    with np.load(FIXTURES / "small.npz") as archive:
        return {name: archive[name] for name in archive.files}


@pytest.fixture(scope="module")
def states():
    tree = torchfile.read(FIXTURES / "small.pt")
    return {
        which: {name: value.numpy() for name, value in tree[which].items()}
        for which in ("model", "ema")
    }


def _network(states, which):
    """(apply with the weights bound, parameters)."""
    state = states[which]
    size = published.infer_config({k: v.shape for k, v in state.items()}, heads=2, where="fixture")
    return stem.make_stem(size).apply, published.to_params(state)


def _bound(states, which, cond):
    apply, params = _network(states, which)
    return lambda x, t: apply(params, x, t, jnp.asarray(cond))


@pytest.mark.parametrize(
    ("which", "time", "output"),
    [
        ("ema", "t", "output"),
        ("model", "t", "output_model"),
        ("ema", "t_float", "output_float"),
        ("model", "t_float", "output_float_model"),
    ],
)
def test_forward(arrays, states, which, time, output):
    bound = _bound(states, which, arrays["cond"])
    got = bound(arrays["x"], arrays[time].astype(np.float32))
    np.testing.assert_allclose(got, arrays[output], atol=ATOL, rtol=0)


def test_loss_and_its_parts(arrays, states):
    bound = _bound(states, "model", arrays["loss/cond"])
    x0 = arrays["loss/x0"]
    terms = ddpm.hybrid_terms(
        bound, x0, np.ones_like(x0), arrays["loss/t"], arrays["loss/noise"], process=ddpm.Process()
    )
    np.testing.assert_allclose(terms.mse, arrays["loss/mse"], atol=ATOL, rtol=0)
    # Row 2, t = 1: the bound divides by a variance of 5e-5, so a rounding of x of 1e-7 shows
    # 2e4 times; both sides agree with float64 to 7e-5 there.
    np.testing.assert_allclose(terms.bound, arrays["loss/vb"], atol=ATOL, rtol=1e-4)


def test_gradient_of_every_parameter(arrays, states):
    """Of the mean loss: also that the bound is constant in eps, and eps in the bound."""
    apply, params = _network(states, "model")
    x0, cond = arrays["loss/x0"], jnp.asarray(arrays["loss/cond"])

    def loss(params):
        terms = ddpm.hybrid_terms(
            lambda x, t: apply(params, x, t, cond),
            x0, np.ones_like(x0), arrays["loss/t"], arrays["loss/noise"], process=ddpm.Process(),
        )  # fmt: skip
        return jnp.mean(terms.mse + terms.bound)

    got = published.to_state(jax.grad(loss)(params))
    wanted = {name[5:]: value for name, value in arrays.items() if name.startswith("grad/")}
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        # A sum over rows of which one carries the bound's 1e-4; softmax does not see a shift of
        # all keys, so the gradient of their bias is rounding of 1e-9.
        scale = np.abs(value).max()
        np.testing.assert_allclose(got[name], value, atol=2e-4 * scale + 1e-8, rtol=0, err_msg=name)


def test_one_ancestral_step(arrays, states):
    bound, process = _bound(states, "ema", arrays["step/cond"]), ddpm.Process()
    for i, t in enumerate(arrays["step/t"]):
        x, rows = arrays["step/x"][i], np.full(2, t)
        c = process.coefficients().at(rows)
        output = bound(x, rows.astype(np.float32))
        mean, log_variance = ddpm.posterior(output, x, c)
        np.testing.assert_allclose(mean, arrays["step/mean"][i], atol=ATOL, rtol=0)
        np.testing.assert_allclose(log_variance, arrays["step/log_variance"][i], atol=ATOL, rtol=0)
        moved = ddpm.ancestral_step(output, x, arrays["step/noise"][i], c)
        np.testing.assert_allclose(moved, arrays["step/x_prev"][i], atol=ATOL, rtol=0)


@pytest.mark.parametrize("kept", [50, 1000])
def test_a_whole_chain_with_given_noise(arrays, states, kept, monkeypatch):
    """`ddpm.ancestral` itself, with the stored noise in place of its own."""
    chain = {name.split("/")[1]: a for name, a in arrays.items() if name.startswith(f"chain{kept}")}
    bound, given = _bound(states, "ema", chain["cond"]), jnp.asarray(chain["noise"])
    monkeypatch.setattr(sampler, "step_noise", lambda keys, step, genes, dtype, signs: given[step])
    keys = jax.random.split(jax.random.key(0), 2)
    got = ddpm.ancestral(bound, ddpm.Process(kept=kept), jnp.asarray(chain["x_T"]), keys)
    np.testing.assert_allclose(got, chain["final"], atol=ATOL, rtol=0)


@pytest.mark.parametrize("kept", [10, 50, 250, 1000])
def test_respaced_times(arrays, kept):
    np.testing.assert_array_equal(ddpm.Process(kept=kept).times, arrays[f"space/{kept}"])


@pytest.mark.parametrize("kept", [50, 1000])
def test_constants(arrays, kept):
    process = ddpm.Process(kept=kept)
    # float64 on both sides; 1 - abar ratio loses up to four digits at small betas.
    np.testing.assert_allclose(process.betas, arrays[f"process{kept}/betas"], rtol=1e-11)
    np.testing.assert_allclose(process.abar, arrays[f"process{kept}/abar"], rtol=1e-12)
    np.testing.assert_allclose(
        process.posterior_log_variance,
        arrays[f"process{kept}/log_posterior_variance_clipped"],
        atol=1e-9,
    )


def test_names_and_shapes_at_the_published_size():
    wanted = json.loads((FIXTURES / "published_names.json").read_text())
    shapes = {name: tuple(shape) for name, shape in wanted["shapes"].items()}
    size = published.infer_config(shapes, heads=None, where="published")
    assert (size.genes, size.width, size.depth, size.heads, size.condition) == (
        200, 384, 12, 6, 1536,
    )  # fmt: skip
    ours = published.published_shapes(size)
    assert ours == shapes
    assert list(ours) == list(shapes)  # the optimiser numbers parameters in this order
    assert sum(np.prod(shape) for shape in ours.values()) == wanted["parameters"]
    assert stem.parameter_count(size) == wanted["parameters"] == 35_639_042


def test_state_round_trip(states):
    state = states["ema"]
    back = published.to_state(published.to_params(state))
    assert list(back) == list(state)
    for name, value in state.items():
        np.testing.assert_array_equal(back[name], value)


def test_the_same_weights_serve_every_sampler(arrays, states):
    """DDIM with respacing, in the variance-preserving form of its paper, equals the denoiser's.

    Song et al. 2021, eq. 12 with eta = 0, over the 50 kept steps.
    """
    apply, params = _network(states, "ema")
    cond, x = jnp.asarray(arrays["chain50/cond"]), jnp.asarray(arrays["chain50/x_T"])
    process = ddpm.Process(kept=50)
    before = np.append(1.0, process.abar[:-1])
    state = x
    for time, abar, abar_next in zip(process.times[::-1], process.abar[::-1], before[::-1]):
        eps = apply(params, state, jnp.full(2, float(time)), cond)[:, 0]
        x0 = (state - np.sqrt(1 - abar) * eps) / np.sqrt(abar)
        state = np.sqrt(abar_next) * x0 + np.sqrt(1 - abar_next) * eps
    denoise = ddpm.make_vp_denoiser(
        functools.partial(_apply, apply, params, cond), process=ddpm.Process()
    )
    rungs = ddpm.Process().ladder(50)
    start = x * np.float32(np.sqrt(1 / process.abar[-1]))
    keys = jax.random.split(jax.random.key(0), 2)
    got = sampler.sample(denoise, rungs, start, keys, rule=rules.Ddim())
    # x starts at 157 in noise-level form, where float32 resolves 1e-5, and 50 steps add theirs.
    np.testing.assert_allclose(got, state, atol=2e-4)


def _apply(apply, params, cond, x, time):
    return apply(params, x, time, cond)


def test_task_draws_as_published_and_in_pairs(arrays, states):
    apply, params = _network(states, "ema")
    network = toy_networks.conditional(apply, lambda key: params)
    task = tasks.DdpmTask(network=network, genes=7)
    cond = jnp.asarray(arrays["cond"])
    keys = sampler.spot_keys(0, "S", [f"b{i}" for i in range(5)])
    sampling = tasks.Sampling(mode="draws", sampler="ddpm", steps=50, n_draws=4)
    draws = task.predict(params, cond, keys, sampling=sampling)
    assert draws.shape == (4, 5, 7)
    assert task.evaluations(sampling) == 200
    # A pair's two members are drawn from opposite noise: their average varies less than that of
    # draws from different pairs. In a linear model the pair's average has no variance at all.
    pairs = np.stack([draws[0] + draws[1], draws[2] + draws[3]]) / 2
    others = np.stack([draws[0] + draws[2], draws[1] + draws[3]]) / 2
    assert np.mean((pairs[0] - pairs[1]) ** 2) < 0.3 * np.mean((others[0] - others[1]) ** 2)


def test_the_fixtures_are_those_of_the_script():
    wanted = json.loads((FIXTURES / "PROVENANCE.json").read_text())["sha256"]
    for name, digest in wanted.items():
        assert hashlib.sha256((FIXTURES / name).read_bytes()).hexdigest() == digest, name
