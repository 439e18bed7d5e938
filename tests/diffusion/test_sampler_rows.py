"""Samplers: a row in any company, keys, devices, network evaluations, compilations."""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stemjax.diffusion import denoiser, ladders, rules, sampler

ALL_RULES = [rules.Ddim(), rules.Heun(), rules.DpmSolverPP2M(), rules.Ddim(eta=1.0)]


def _shrink(x, sigma):
    """E[x0 | x] for x0 of unit normal law."""
    return x / (1 + sigma[:, None] ** 2)


def _conditioned(cond, n_draws):
    """A denoiser with a network that mixes genes, and spot-major conditions."""
    weights = jax.random.normal(jax.random.key(3), (2, 5, 5), jnp.float32)
    cond = jnp.repeat(cond, n_draws, axis=0)
    return denoiser.make_denoiser(
        lambda x, level: jnp.tanh(x @ weights[0] + cond @ weights[1] + level[:, None] / 1000),
        sigma_data=1.0,
    )


@pytest.mark.parametrize("rule", ALL_RULES[2:], ids=["dpmpp2m", "ancestral"])
def test_a_row_is_the_same_in_any_company(key, rule):
    cond = jax.random.normal(key, (6, 5), jnp.float32)
    barcodes = [f"{i}x{i + 1}" for i in range(6)]

    def draws(rows, n_draws=4):
        @jax.jit
        def draw(cond, keys):
            return sampler.draw(
                _conditioned(cond, n_draws),
                ladders.karras(8),
                keys,
                rule=rule,
                genes=5,
                n_draws=n_draws,
                antithetic=True,
            )

        keys = sampler.spot_keys(0, "A1", [barcodes[i] for i in rows])
        return np.asarray(draw(cond[np.array(rows)], keys))

    everyone = draws(range(6))
    # Rounding only: sums of 5 in another order, in a state that starts near 200, where float32
    # resolves 1e-5, and is contracted by 20 or more.
    np.testing.assert_allclose(draws([4, 1]), everyone[:, [4, 1]], atol=1e-5)
    np.testing.assert_allclose(draws([3], n_draws=2), everyone[:2, 3:4], atol=1e-5)
    apart = np.abs(everyone[:, :, None] - everyone[:, None]).max(axis=(0, 3))
    assert (apart[~np.eye(6, dtype=bool)] > 0.1).all()


def test_four_devices_draw_what_one_draws(key):
    cond = jax.random.normal(key, (8, 5), jnp.float32)
    keys = sampler.spot_keys(0, "A1", [str(i) for i in range(8)])

    @jax.jit
    def draw(cond, keys):
        return sampler.draw(
            _conditioned(cond, 2),
            ladders.karras(8),
            keys,
            rule=rules.Ddim(eta=1.0),
            genes=5,
            n_draws=2,
            antithetic=True,
        )

    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.P("data"))
    placed = jax.device_put(cond, rows), jax.device_put(keys, rows)
    # Each device works on its own 2 spots x 2 draws and asks the others for nothing.
    program = draw.lower(*placed).compile().as_text()
    assert "f32[16,5]" not in program
    assert "all-gather" not in program
    spread = jax.block_until_ready(draw(*placed))
    # Rounding only, as above.
    np.testing.assert_allclose(spread, draw(cond, keys), atol=1e-5)


def test_spot_keys_follow_their_formula():
    barcodes = ["10x12", "AAACAAGTATCTCCCA-1", "é"]
    got = sampler.spot_keys(5, "A1", barcodes)
    for barcode, key in zip(barcodes, got):
        digest = hashlib.blake2b(b"A1\0" + barcode.encode("utf-8"), digest_size=8).digest()
        low = int.from_bytes(digest[:4], "little")
        high = int.from_bytes(digest[4:], "little")
        expected = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), low), high)
        np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(expected))


def test_spot_keys_are_unique_and_ignore_order():
    barcodes = [f"{x}x{y}" for x in range(60) for y in range(60)]
    per_slide = {
        (seed, slide): np.asarray(jax.random.key_data(sampler.spot_keys(seed, slide, barcodes)))
        for seed in (0, 1)
        for slide in ("A1", "A", "B1")
    }
    everything = np.concatenate(list(per_slide.values()))
    # 21,600 keys of 64 bits: a collision has probability 1e-11.
    assert len(np.unique(everything, axis=0)) == len(everything)
    backwards = jax.random.key_data(sampler.spot_keys(0, "A1", barcodes[::-1]))
    np.testing.assert_array_equal(backwards[::-1], per_slide[0, "A1"])
    assert not (
        jax.random.key_data(sampler.spot_keys(0, "A", ["1B"]))
        == jax.random.key_data(sampler.spot_keys(0, "A1", ["B"]))
    ).all()
    assert sampler.spot_keys(0, "A1", []).shape == (0,)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("rule", ALL_RULES, ids=["ddim", "heun", "dpmpp2m", "ancestral"])
def test_network_runs_as_often_as_stated(key, rule, steps):
    visited = []

    def counted(x, sigma):
        jax.debug.callback(lambda s: visited.append(float(s[0])), sigma)
        return _shrink(x, sigma)

    x = 80 * jax.random.normal(key, (2, 3), jnp.float32)
    rungs = ladders.karras(steps)
    jax.block_until_ready(
        sampler.sample(counted, rungs, x, sampler.spot_keys(0, "A1", "ab"), rule=rule)
    )
    jax.effects_barrier()
    heun = isinstance(rule, rules.Heun)
    assert len(visited) == rule.evaluations(steps) == (2 * steps - 1 if heun else steps)
    # Once at each rung above zero; Heun once more at each rung between the first and the last.
    expected = list(rungs[:-1]) + (list(rungs[1:-1]) if heun else [])
    np.testing.assert_allclose(sorted(visited), sorted(expected), rtol=1e-6)


def test_one_compilation_for_all_seeds_and_ladders():
    traces = []

    @jax.jit
    def draw(rungs, keys):
        traces.append(None)
        return sampler.draw(
            _shrink,
            rungs,
            keys,
            rule=rules.DpmSolverPP2M(),
            genes=3,
            n_draws=2,
            antithetic=True,
        )

    results = [
        np.asarray(draw(ladders.karras(8, sigma_max=top), sampler.spot_keys(seed, "A1", "ab")))
        for seed in (0, 1)
        for top in (40.0, 80.0)
    ]
    assert len(traces) == 1
    assert all(np.abs(results[0] - other).max() > 1e-3 for other in results[1:])
