"""Numbers: noise levels fall, transforms and standardisations come back, moments add up."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import or_refused
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stemjax import errors
from stemjax.data import transforms
from stemjax.diffusion import ladders, rules, stochastic_rules

LEVELS = st.floats(1e-6, 1e6)


@pytest.mark.parametrize("name", ladders.LADDERS)
@given(steps=st.integers(-2, 300), low=st.floats(), high=st.floats())
def test_any_two_numbers_make_a_ladder_or_an_error(name, steps, low, high):
    rungs = or_refused(ladders.LADDERS[name], steps, sigma_min=low, sigma_max=high)
    if rungs is not None:
        assert len(rungs) == steps + 1
        assert np.isfinite(rungs).all()


@pytest.mark.parametrize("name", ladders.LADDERS)
@given(steps=st.integers(1, 60), low=LEVELS, ratio=st.floats(1.5, 1e5))
def test_levels_fall_from_one_end_to_the_other_and_to_nothing(name, steps, low, ratio):
    high = low * ratio
    rungs = or_refused(ladders.LADDERS[name], steps, sigma_min=low, sigma_max=high)
    if rungs is None:  # so close that float32 cannot tell them apart
        assert ratio < 1 + 1e-5 * steps or name.startswith("vp")
        return
    rungs = np.asarray(rungs)
    assert (np.diff(rungs) < 0).all()
    assert rungs[0] == np.float32(high)
    assert rungs[-1] == 0
    assert steps == 1 or rungs[-2] == np.float32(low)


RULES = {
    "ddim": rules.Ddim(),
    "heun": rules.Heun(),
    "ab2": rules.AdamsBashforth2(),
    "dpmpp2m": rules.DpmSolverPP2M(),
    "churn": stochastic_rules.HeunChurn(gamma=0.2),
    "sde": stochastic_rules.DpmSolverPP2MSde(),
}


@pytest.mark.parametrize("name", RULES)
@given(steps=st.integers(1, 9))
@hypothesis.settings(max_examples=9)
def test_a_rule_states_its_evaluations(name, steps):
    """Counted one step after the other, without compiling: a branch not taken asks nothing."""
    rule, asked = RULES[name], []

    def denoise(x, sigma):
        asked.append(1)
        return 0.5 * x

    rungs = ladders.karras(steps)
    x = jnp.ones((1, 2))
    with jax.disable_jit():
        carry = rule.init(x)
        for sigma, sigma_next in zip(rungs[:-1], rungs[1:], strict=True):
            noise = jnp.ones_like(x) if rule.stochastic else None
            x, carry = rule.step(denoise, carry, x, sigma, sigma_next, noise)
    assert len(asked) == rule.evaluations(steps)


FEW_COUNTS = arrays.arrays(np.int32, (5, 4), elements=st.integers(0, 2))
COUNTS = FEW_COUNTS | arrays.arrays(np.int32, (5, 4), elements=st.integers(0, 10**6))


@pytest.mark.parametrize("name", transforms.TRANSFORMS)
@given(counts=COUNTS, depth=st.sampled_from([0, 1, 20, 10**6]))
def test_counts_come_back_from_the_value_space(name, counts, depth):
    total = counts.sum(axis=1) + depth
    values = transforms.get_transform(name).forward(counts, total)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    assert (values >= 0).all()
    assert ((values == 0) == (counts == 0)).all()
    back = transforms.get_transform(name).inverse(values, total)
    # log2 of a count to 24 bits is a count to about 2e-6; the others have a few roundings more.
    np.testing.assert_allclose(back, counts, rtol=2e-5, atol=1e-4)


# Of ten-thousandths: a deviation of 1e-38 would be blown up beyond float32 where it is not meant.
STEPS = st.integers(-(10**8), 10**8).map(lambda number: np.float32(number / 1e4))
VALUES = arrays.arrays(np.float32, (12, 3), elements=STEPS)


@given(VALUES, arrays.arrays(np.uint8, (12, 3), elements=st.integers(0, 1)))
def test_a_standardisation_has_no_mean_and_comes_back(values, mask):
    made = transforms.Standardisation.fit(values, mask)
    again = transforms.Standardisation.from_json(made.to_json())
    assert (again.mean == made.mean).all()
    assert (again.std == made.std).all()
    for column in range(3):
        used = values[mask[:, column] != 0, column].astype(np.float64)
        if not len(used):
            assert (made.mean[column], made.std[column]) == (0, 1)
        elif np.std(used) > 1e-4 * abs(used.mean()) + 1e-20:
            np.testing.assert_allclose(made.mean[column], used.mean(), rtol=1e-5, atol=1e-30)
            np.testing.assert_allclose(made.std[column], used.std(), rtol=1e-3)
    shown = made.apply(values)
    # Rounding of the standardised number, in units of std, and of the sum with the mean.
    slack = 1e-5 * (np.abs(values) + np.abs(made.mean) + made.std)
    assert (np.abs(made.invert(shown) - values) <= slack).all()


@given(VALUES, st.lists(st.integers(0, 12), max_size=4))
def test_moments_do_not_depend_on_how_rows_come(values, cuts):
    whole, parts = transforms.Moments(), transforms.Moments()
    whole.add(values)
    edges = [0, *sorted(cuts), len(values)]
    for start, stop in zip(edges, edges[1:]):
        if stop > start:
            one = transforms.Moments()
            one.add(values[start:stop])
            parts.merge(transforms.Moments.from_array(one.to_array()))
    first, second = whole.to_array(), parts.to_array()
    # float64 sums of 12 numbers of at most 1e4.
    np.testing.assert_allclose(first[:2], second[:2], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(first[2], second[2], rtol=1e-9, atol=1e-6)


@given(st.text(max_size=12))
def test_a_transform_has_a_known_name(name):
    if name not in transforms.TRANSFORMS:
        with pytest.raises(errors.ConfigError):
            transforms.get_transform(name)
