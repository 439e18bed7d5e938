"""The model's space: closed forms, masks, and the way back."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from stemjax import errors
from stemjax.data import records, space, transforms


def make_table(n=500, g=4, c=3, v=2, seed=0, mask=None):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(2, 3, g), (n, g)).astype(np.int32)
    return records.Table(
        embeddings=rng.normal(5, [1, 2, 30][:c], (n, v, c)).astype(np.float16),
        counts=counts,
        total=(counts.sum(axis=1) * 7).astype(np.int32),
        mask=np.ones((n, g), np.uint8) if mask is None else mask,
        slide_index=np.zeros(n, np.int32),
        slides=("A",),
        barcodes=tuple(map(str, range(n))),
        array_xy=np.zeros((n, 2), np.float32),
        pixel_xy=np.zeros((n, 2), np.float32),
    )


def take(table, rows):
    names = ("embeddings", "counts", "total", "mask", "slide_index", "array_xy", "pixel_xy")
    barcodes = tuple(np.array(table.barcodes)[rows])
    parts = {name: getattr(table, name)[rows] for name in names}
    return dataclasses.replace(table, barcodes=barcodes, **parts)


NAMES = tuple("abcd")
ORIGINAL = np.zeros(500, int)


@pytest.mark.parametrize("transform", ["log2p1", "log1p_cp10k"])
def test_training_rows_have_mean_0_and_variance_1(transform):
    table = make_table()
    fitted = space.Space.fit(table, genes=NAMES, transform=transform)
    batch = fitted.batch(table, ORIGINAL)
    for name in ("x0", "cond"):
        values = np.asarray(batch[name], np.float64)
        # float32 rounding of about 6e-8, relative to means up to 5 standard deviations from 0.
        np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(values.std(axis=0), 1, atol=1e-6)
    assert {batch[name].dtype for name in ("x0", "cond", "mask")} == {np.dtype(np.float32)}


def test_x0_is_the_standardised_logarithm():
    table = make_table()
    x0 = space.Space.fit(table, genes=NAMES, transform="log2p1").batch(table, ORIGINAL)["x0"]
    values = np.log2(table.counts.astype(np.float64) + 1)
    expected = (values - values.mean(axis=0)) / values.std(axis=0)
    np.testing.assert_allclose(x0, expected, atol=2e-6)  # float32 of values up to about 5


def test_the_published_space_is_the_logarithm_alone():
    table = make_table()
    plain = space.Space.fit(
        table,
        genes=NAMES,
        transform="log2p1",
        standardise_expression=False,
        standardise_condition=False,
    )
    batch = plain.batch(table, ORIGINAL)
    np.testing.assert_allclose(batch["x0"], np.log2(table.counts + 1.0), rtol=1e-6)  # float32
    np.testing.assert_array_equal(batch["cond"], table.embeddings[:, 0].astype(np.float32))


def test_unmeasured_genes_enter_neither_the_fit_nor_the_batch():
    table = make_table()
    mask = np.ones_like(table.mask)
    mask[:200, 1] = 0
    counts = table.counts.copy()
    counts[:200, 1] = 10_000  # must not be looked at
    masked = dataclasses.replace(table, counts=counts, mask=mask)
    fitted = space.Space.fit(masked, genes=NAMES, transform="log2p1")
    measured = np.log2(table.counts[200:, 1].astype(np.float64) + 1)
    # float32 of the stored mean and standard deviation.
    assert fitted.expression.mean[1] == pytest.approx(measured.mean(), rel=1e-6)
    assert fitted.expression.std[1] == pytest.approx(measured.std(), rel=1e-6)
    batch = fitted.batch(masked, ORIGINAL)
    assert (batch["x0"][:200, 1] == 0).all()
    np.testing.assert_array_equal(batch["mask"], mask)


def test_a_gene_that_no_slide_measured_is_left_alone():
    mask = np.ones((500, 4), np.uint8)
    mask[:, 2] = 0
    fitted = space.Space.fit(make_table(mask=mask), genes=NAMES, transform="log2p1")
    assert (fitted.expression.mean[2], fitted.expression.std[2]) == (0, 1)


def test_constant_columns_are_shifted_and_not_blown_up():
    table = make_table()
    table.counts[:, 3] = 6
    table.embeddings[..., 1] = 0.1  # no short binary fraction: its mean rounds
    fitted = space.Space.fit(table, genes=NAMES, transform="log2p1")
    assert fitted.expression.std[3] == 1
    assert fitted.condition.std[1] == 1
    batch = fitted.batch(table, ORIGINAL)
    # What is left is the float32 rounding of log2(7) and of 0.1.
    assert np.abs(batch["x0"][:, 3]).max() < 1e-6
    assert np.abs(batch["cond"][:, 1]).max() < 1e-6


def test_a_fit_slide_by_slide_equals_the_fit_of_all():
    table = make_table(n=9000)  # more than one chunk
    table.embeddings[:, :, 0] += np.float16(100)  # a mean far from 0 against a spread of 1
    table.mask[4500:, 0] = 0
    parts = [take(table, slice(*cut)) for cut in ((0, 10), (10, 4000), (4000, 9000))]
    apart = space.Space.fit(iter(parts), genes=NAMES, transform="log1p_cp10k")
    values = transforms.get_transform("log1p_cp10k").forward(table.counts, table.total)
    expression = transforms.Standardisation.fit(values, table.mask)
    condition = transforms.Standardisation.fit(table.embeddings[:, 0].astype(np.float64))
    # Both sum in float64 and round to float32 at the end: at most the last bit differs.
    for ours, theirs in ((apart.expression, expression), (apart.condition, condition)):
        np.testing.assert_allclose(ours.mean, theirs.mean, rtol=2e-7)
        np.testing.assert_allclose(ours.std, theirs.std, rtol=2e-7)


def test_the_condition_is_fitted_on_the_original_patch():
    table = make_table()
    turned = dataclasses.replace(table, embeddings=table.embeddings.copy())
    turned.embeddings[:, 1] += np.float16(50)
    one, two = (space.Space.fit(t, genes=NAMES, transform="log2p1") for t in (table, turned))
    np.testing.assert_array_equal(one.condition.mean, two.condition.mean)


def test_each_row_shows_the_variant_asked_for():
    table = make_table()
    fitted = space.Space.fit(table, genes=NAMES, transform="log2p1", standardise_condition=False)
    variants = np.arange(500) % 2
    cond = fitted.batch(table, variants)["cond"]
    np.testing.assert_array_equal(cond[::2], table.embeddings[::2, 0].astype(np.float32))
    np.testing.assert_array_equal(cond[1::2], table.embeddings[1::2, 1].astype(np.float32))


@pytest.mark.parametrize("transform", ["log2p1", "log1p_cp10k"])
def test_the_way_back_gives_the_counts(transform):
    table = make_table()
    fitted = space.Space.fit(table, genes=NAMES, transform=transform)
    x0 = np.asarray(fitted.batch(table, ORIGINAL)["x0"])
    # exp of a float32 near 8 multiplies its rounding of 6e-8 relative by 8, on either way.
    np.testing.assert_allclose(fitted.counts(x0, table.total), table.counts, rtol=1e-5, atol=1e-5)
    forward = fitted.forward(table.counts, table.total)
    np.testing.assert_allclose(fitted.values(x0), forward, rtol=1e-5, atol=1e-6)
    # Draws have a leading axis.
    np.testing.assert_array_equal(fitted.values(np.stack([x0, x0]))[1], fitted.values(x0))


@pytest.mark.parametrize("transform", ["log2p1", "log1p_cp10k"])
@pytest.mark.parametrize("size", [1, 3, 17, 64])
def test_a_row_is_encoded_to_the_same_bits_in_any_company(transform, size):
    table = make_table(n=5000)
    fitted = space.Space.fit(table, genes=NAMES, transform=transform)
    whole = fitted.batch(table, np.zeros(5000, int))
    rows = np.random.default_rng(1).integers(0, 5000, size)
    part = fitted.batch(take(table, rows), np.zeros(size, int))
    for name in ("x0", "cond", "mask"):
        np.testing.assert_array_equal(np.asarray(whole[name])[rows], part[name])


def test_json_brings_back_every_bit():
    table = make_table()
    fitted = space.Space.fit(table, genes=NAMES, transform="log1p_cp10k")
    again = space.Space.from_json(json.loads(json.dumps(fitted.to_json())))
    assert (again.genes, again.transform) == (NAMES, "log1p_cp10k")
    for name in ("x0", "cond"):
        one, two = (np.asarray(s.batch(table, ORIGINAL)[name]) for s in (fitted, again))
        np.testing.assert_array_equal(one, two)


def test_a_space_that_does_not_fit_its_genes_is_refused():
    fitted = space.Space.fit(make_table(), genes=NAMES, transform="log2p1")
    with pytest.raises(errors.GenePanelError, match="expected 3 genes, found 4"):
        dataclasses.replace(fitted, genes=NAMES[:3])
    with pytest.raises(errors.ConfigError, match="log2p1"):
        dataclasses.replace(fitted, transform="log10")


def test_no_rows_cannot_be_fitted():
    with pytest.raises(errors.RecordsError, match="no training rows"):
        space.Space.fit([], genes=NAMES, transform="log2p1")
