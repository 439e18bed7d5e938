import dataclasses

import numpy as np
import pytest
from scipy import integrate, stats

from stemjax import errors
from stemjax.data import synthetic


@pytest.fixture(scope="module")
def law():
    return synthetic.Law(seed=3)


def even_states(n, seed=0):
    return np.random.default_rng(seed).uniform(0.03, 0.97, (n, len(synthetic.STATES)))


def phi(z):
    """The features of one state, written out."""
    a, b, c, d = np.asarray(z) - 0.5
    return np.array([a, b, c, d, 2 * a * b, 2 * a * d, 2 * b * c])


def test_moments_agree_with_direct_sums_and_adaptive_quadrature(law):
    z = np.array([[0.9, 0.1, 0.7, 0.2]])
    mean, variance = law.conditional_mean(z)[0], law.conditional_variance(z)[0]
    own = law.coefficients
    count = np.arange(4000)
    for gene in (0, 1, law.n_mode_genes, law.n_genes - 1):

        def moment(e, power, gene=gene):
            log_rate = own.base[gene] + phi(z[0]) @ own.slope[:, gene] + law.depth_std * e
            rates = np.exp(log_rate + np.array([-0.5, 0.5]) * own.switch[gene])
            value = np.log2(count + 1) ** power
            sums = [stats.poisson.pmf(count, rate) @ value for rate in rates]
            return np.mean(sums) * (1 - own.dropout[gene]) * stats.norm.pdf(e)

        first, second = (
            integrate.quad(moment, -9, 9, args=(power,), epsabs=1e-10)[0] for power in (1, 2)
        )
        # The spline through the Poisson sums is good to 1e-8, the quadrature here to 1e-10.
        assert mean[gene] == pytest.approx(first, abs=1e-7)
        assert variance[gene] == pytest.approx(second - first**2, abs=1e-6)


@pytest.mark.parametrize("depth_std", [0.0, 0.3, 0.5])
def test_moments_agree_with_draws(depth_std):
    law = synthetic.Law(seed=1, depth_std=depth_std)
    z, n = even_states(6), 20000
    draws = law.sample_values(z, n, np.random.default_rng(7)).astype(np.float64)
    mean, variance = law.conditional_mean(z), law.conditional_variance(z)
    fourth = ((draws - mean) ** 4).mean(0)
    # 288 standard scores each: beyond 5 with probability 2e-4 if the moments are right.
    assert np.abs((draws.mean(0) - mean) / np.sqrt(variance / n)).max() < 5
    spread = np.sqrt((fourth - variance**2) / n)
    assert np.abs((((draws - mean) ** 2).mean(0) - variance) / spread).max() < 5


def test_draws_take_the_spots_in_their_places(law):
    z = np.array([[0.05, 0.5, 0.5, 0.5], [0.95, 0.5, 0.5, 0.5]])
    values = law.sample_values(z, 3000, np.random.default_rng(0))
    assert values.shape == (3000, 2, law.n_genes)
    # Standard errors are about .03; the two states differ by more than 1 in many genes.
    np.testing.assert_allclose(values.mean(0), law.conditional_mean(z), atol=0.2)
    assert np.abs(np.diff(law.conditional_mean(z), axis=0)).max() > 1


@pytest.mark.parametrize("seed", range(4))
def test_states_explain_between_a_fifth_and_three_fifths(seed):
    share = synthetic.Law(seed=seed).explained_share(even_states(400))
    assert share.min() > 0.2
    assert share.max() < 0.6


def test_explained_share_is_the_squared_correlation_of_the_exact_mean(law):
    z = even_states(20000)
    values = law.sample_values(z, 1, np.random.default_rng(5))[0]
    mean = law.conditional_mean(z)
    reached = [np.corrcoef(mean[:, g], values[:, g])[0, 1] ** 2 for g in range(law.n_genes)]
    # The standard error of a squared correlation of .4 in 20,000 spots is .005.
    np.testing.assert_allclose(reached, law.explained_share(z), atol=0.025)


def test_every_state_moves_genes_by_itself(law):
    for k in range(len(synthetic.STATES)):
        z = np.full((2, len(synthetic.STATES)), 0.5)
        z[:, k] = 0.05, 0.95
        change = np.diff(law.conditional_mean(z), axis=0)[0]
        assert (np.abs(change) > 1).sum() >= law.n_genes // 8, synthetic.STATES[k]


def test_modes_are_two_separate_groups_that_the_mean_lies_between(law):
    z = np.tile([[0.6, 0.3, 0.5, 0.7]], (4000, 1))
    sample = law.sample_counts(z, np.random.default_rng(2))
    score = law.mode_contrast(np.log2(sample.counts + 1))
    # Within a mode the score spreads by .11: 0 is nine deviations away.
    assert np.array_equal(score > 0, sample.mode == 1)
    assert (np.abs(score) < 0.4).mean() < 0.001
    assert abs(law.mode_contrast(law.conditional_mean(z[:1]))[0]) < 0.15


def test_switched_genes_are_bimodal_one_by_one_and_the_others_are_not(law):
    z = np.tile([[0.5, 0.5, 0.5, 0.5]], (8000, 1))
    sample = law.sample_counts(z, np.random.default_rng(4))
    values = np.log2(sample.counts + 1)
    low, high = (values[sample.mode == mode] for mode in (0, 1))
    distance = np.abs(high.mean(0) - low.mean(0)) / np.sqrt((high.var(0) + low.var(0)) / 2)
    programme = np.array([gene.startswith("SYNM") for gene in law.genes])
    # Two equal normal groups are bimodal from a distance of 2 on (Ashman's D is this distance).
    assert distance[programme].min() > 2.5
    # Standard error of the distance without a switch: sqrt(4 / 8000) = .022.
    assert distance[~programme].max() < 0.11
    assert programme.sum() == law.n_mode_genes == round(law.n_genes / 3)


def test_the_state_does_not_tell_the_mode(law):
    z = even_states(20000)
    mode = law.sample_counts(z, np.random.default_rng(9)).mode
    assert abs(mode.mean() - 0.5) < 0.018  # five standard errors
    assert max(abs(np.corrcoef(z[:, k], mode)[0, 1]) for k in range(z.shape[1])) < 0.035


def test_depth_is_shared_by_the_genes_of_a_spot(law):
    z = np.full((5000, len(synthetic.STATES)), 0.5)
    sample = law.sample_counts(z, np.random.default_rng(6))
    assert np.log(sample.depth).std() == pytest.approx(law.depth_std, rel=0.05)
    counts = sample.counts[:, law.n_mode_genes :]
    half = counts.shape[1] // 2
    first, second = counts[:, :half].sum(1), counts[:, half:].sum(1)
    # Without a shared depth the halves would be independent given the state: 5 / sqrt(5000) = .07.
    assert np.corrcoef(first, second)[0, 1] > 0.5


def test_contrast_serves_a_panel_in_another_order(law):
    z = even_states(500)
    sample = law.sample_counts(z, np.random.default_rng(8))
    values = np.log2(sample.counts + 1)
    panel = law.genes[40:0:-3]
    columns = law.columns(panel)
    assert [law.genes[i] for i in columns] == list(panel)
    score = law.mode_contrast(values[:, columns], genes=panel)
    assert ((score > 0) == (sample.mode == 1)).mean() > 0.97
    # The discriminant's own sample is the same, so reordering is exact up to rounding.
    backwards = law.mode_contrast(values[:, ::-1], genes=law.genes[::-1])
    np.testing.assert_allclose(backwards, law.mode_contrast(values), atol=1e-9)


def test_the_law_depends_on_its_seed_and_draws_on_the_generator():
    z = even_states(50)
    law, same, other = synthetic.Law(seed=5), synthetic.Law(seed=5), synthetic.Law(seed=6)
    np.testing.assert_array_equal(law.conditional_mean(z), same.conditional_mean(z))
    assert np.abs(law.conditional_mean(z) - other.conditional_mean(z)).max() > 0.5
    first, again, second = (
        law.sample_counts(z, np.random.default_rng(seed)).counts for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)


def test_rates_stay_within_the_table_of_sums():
    corners = np.array(np.meshgrid(*[[0.0, 1.0]] * len(synthetic.STATES))).reshape(4, -1).T
    for seed in range(3):
        law = synthetic.Law(seed=seed, depth_std=0.5)
        own = law.coefficients
        rate = own.base + np.stack([phi(z) for z in corners]) @ own.slope
        low, high = synthetic.LOG_RATE_RANGE
        assert (rate + np.abs(own.switch) / 2).max() < high
        assert (rate - np.abs(own.switch) / 2).min() > low


def test_gene_names_are_distinct_and_pass_stems_filter():
    genes = synthetic.Law(n_genes=300).genes
    assert len(set(genes)) == len(genes) == 300
    assert not any(gene.startswith(("MT", "mt", "RPS", "RPL")) for gene in genes)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("n_genes", 1),
        ("mode_share", 0.0),
        ("mode_share", 1.0),
        ("depth_std", 0.6),
        ("explained", (0.5, 0.4)),
    ],
)
def test_a_field_out_of_range_is_named(field, value):
    with pytest.raises(errors.ConfigError, match=field) as caught:
        dataclasses.replace(synthetic.Law(), **{field: value})
    assert str(value) in str(caught.value)


def test_another_transform_is_refused_with_the_reason(law):
    for moment in (law.conditional_mean, law.conditional_variance):
        with pytest.raises(errors.ConfigError, match="log1p_cp10k") as caught:
            moment(even_states(2), transform="log1p_cp10k")
        assert "log2p1" in str(caught.value)


@pytest.mark.parametrize(
    ("z", "found"),
    [
        (np.full((3, 2), 0.5), r"shape \(3, 2\)"),
        (np.full((3, 4), 1.5), "1.5 to 1.5"),
        (np.full((3, 4), np.nan), "12 NaN"),
    ],
)
def test_unusable_states_are_described(law, z, found):
    with pytest.raises(errors.ConfigError, match=found) as caught:
        law.conditional_mean(z)
    assert "nuclear_size" in str(caught.value)


def test_foreign_genes_are_named(law):
    with pytest.raises(errors.GenePanelError, match="ERBB2"):
        law.columns(["SYN001", "ERBB2"])
    with pytest.raises(errors.GenePanelError, match="expected 48 columns, found 47"):
        law.mode_contrast(np.zeros((3, 47)))


def test_the_mean_is_not_linear_in_the_state(law):
    z = even_states(600)
    mean = law.conditional_mean(z)
    design = np.column_stack([np.ones(len(z)), z])
    rest = mean - design @ np.linalg.lstsq(design, mean, rcond=None)[0]
    missed = rest.var(0) / mean.var(0)
    # Ridge on perfect states misses this share; without products the curve of log2 leaves 1 %.
    assert np.median(missed) > 0.02
    assert missed.max() < 0.3


def test_the_smallest_law_has_a_gene_of_each_kind():
    law = synthetic.Law(n_genes=2)
    assert law.genes == ("SYNM01", "SYN001")
    sample = law.sample_counts(even_states(400), np.random.default_rng(0))
    switched = np.log2(sample.counts[:, 0] + 1)
    assert switched[sample.mode == 1].mean() - switched[sample.mode == 0].mean() > 1.5


def test_moments_are_finite_and_spread_positive_at_the_corners(law):
    corners = np.array(np.meshgrid(*[[0.0, 1.0]] * len(synthetic.STATES))).reshape(4, -1).T
    mean, variance = law.conditional_mean(corners), law.conditional_variance(corners)
    assert (mean > 0).all()
    assert (mean < 12).all()  # rates stay below e^8.5 = 4,900
    assert (variance > 0.05).all()
