"""CSV files for Loupe, read back by csv."""

from __future__ import annotations

import csv

import made_prediction
import numpy as np
import pandas as pd
import pytest

from stemjax import errors
from stemjax.integrations import loupe
from stemjax.integrations import prediction as predictions


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_a_row_a_barcode_with_bins_of_equal_numbers(tmp_path):
    made = made_prediction.make()
    made.obs["stemjax_domain"] = pd.Categorical(["0", "1"] * 15)
    files = loupe.write(
        predictions.of_anndata(made), tmp_path / "out", genes=["KRT5", "HLA-A"], bins=3
    )
    head, *body = rows(files[0])
    assert head == ["Barcode", "stemjax_domain", "KRT5", "HLA-A"]
    assert [line[0] for line in body] == list(made.obs_names)
    assert [line[1] for line in body[:3]] == ["0", "1", "0"]
    labels, counts = np.unique([line[2] for line in body], return_counts=True)
    assert list(counts) == [10, 10, 10]
    values = np.asarray(made.X)[:, made_prediction.GENES.index("KRT5")]
    for label in labels:
        number, low, high = label[0], *map(float, label.split(": ")[1].split(" to "))
        inside = values[[line[2] == label for line in body]]
        assert label.startswith(f"{number} of 3: ")
        assert (low, high) == pytest.approx((inside.min(), inside.max()), abs=0.005)
    assert sorted(labels, key=lambda label: float(label.split()[3])) == list(labels)


def test_equal_values_share_a_bin_and_missing_ones_have_none():
    assert loupe.bin_labels(np.full(4, 2.0), 5) == ["1 of 1: 2.00 to 2.00"] * 4
    many = np.array([0.0] * 8 + [1.0, 2.0])
    labels = loupe.bin_labels(many, 5)
    assert len(set(labels[:8])) == 1
    assert labels[8] != labels[0]
    # A value on an edge belongs to the bin above.
    edge = loupe.bin_labels(np.array([0.0, 1.0, 1.0, 1.0, 3.0]), 2)
    assert edge == ["1 of 2: 0.00 to 0.00"] + ["2 of 2: 1.00 to 3.00"] * 4
    assert loupe.bin_labels(np.array([1.0, np.nan, 3.0]), 2)[1] == "none"
    assert loupe.bin_labels(np.full(2, np.nan), 2) == ["none", "none"]


def test_the_projection_is_the_plane_of_largest_variance(tmp_path):
    made = made_prediction.make()
    prediction = predictions.of_anndata(made)
    _, path = loupe.write(prediction, tmp_path / "out")
    head, *body = rows(path)
    assert head[0] == "Barcode"
    assert len(head) == 3
    plane = np.array([line[1:] for line in body], float)
    centred = np.asarray(made.X, float) - np.asarray(made.X, float).mean(axis=0)
    _, singular, loadings = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(plane.std(axis=0) * np.sqrt(30), singular[:2], rtol=1e-3)
    for axis in range(2):
        wanted = centred @ loadings[axis]
        sign = np.sign(loadings[axis][np.abs(loadings[axis]).argmax()])
        np.testing.assert_allclose(plane[:, axis], sign * wanted, atol=1e-3)


def test_a_panel_of_one_gene_has_a_projection_too():
    made = made_prediction.make()[:, :1].copy()
    assert loupe.principal_plane(predictions.of_anndata(made)).shape == (30, 2)


def test_no_cell_is_a_formula(tmp_path):
    names = ("=HYPERLINK(1)", "+1", "-AS1", "@x", "\tB", 'A,"B')
    made = made_prediction.make(genes=names)
    made.obs["stemjax_domain"] = pd.Categorical(["=1+1", "2"] * 15)
    path, _ = loupe.write(predictions.of_anndata(made), tmp_path / "out", genes=names)
    head, *body = rows(path)
    assert head[2:] == ["'=HYPERLINK(1)", "'+1", "'-AS1", "'@x", "'\tB", 'A,"B']
    assert body[0][1] == "'=1+1"
    assert not any(cell.startswith(("=", "+", "-", "@", "\t")) for line in body for cell in line)


@pytest.mark.parametrize(
    "name",
    [
        "AACACCTACTATCGAA-1", "AACACCTACTATCGAA", "s_008um_00301_00321-1", "cellid_000000001-1",
        "S1_AACACCTACTATCGAA-1", "AACACCTACTATCGAA-1_2",
    ],
)  # fmt: skip
def test_barcodes_of_10x_are_taken(tmp_path, name):
    made = made_prediction.make()[:1].copy()
    made.obs_names = [name]
    path, _ = loupe.write(predictions.of_anndata(made), tmp_path / "out")
    assert rows(path)[1][0] == name


@pytest.mark.parametrize(
    "name", ["10x12", "point-3", "AACACC-1", "=AACACCTACTATCGAA-1", "AACACCTACTATCGAA-1 x"]
)
def test_other_barcodes_are_refused_and_nothing_is_written(tmp_path, name):
    made = made_prediction.make()
    made.obs_names = [*made.obs_names[:-1], name]
    with pytest.raises(errors.PredictionError, match="1 of 30 barcodes are not 10x's"):
        loupe.write(predictions.of_anndata(made), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_is_there_stays(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(errors.ConfigError, match="in the way"):
        loupe.write(predictions.of_anndata(made_prediction.make()), tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"
