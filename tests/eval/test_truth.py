"""Truths from files of counts: what is read, and what is refused."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from stemjax import errors
from stemjax.eval import truth


def counts_file(tmp_path, *, name="section.h5ad", change=None):
    rng = np.random.default_rng(0)
    counts = rng.poisson(3.0, size=(20, 4))
    xy = np.stack(np.meshgrid(np.arange(5), np.arange(4)), axis=-1).reshape(-1, 2)
    data = anndata.AnnData(
        X=scipy.sparse.csr_array(counts.astype(np.float32)),
        obs=pd.DataFrame(index=[f"spot {i}" for i in range(20)]),
        var=pd.DataFrame(index=["A", "B", "<script>", 'D"']),
    )
    data.obsm["spatial"] = xy * 40.0 + 7
    if change:
        change(data)
    path = tmp_path / name
    data.write_h5ad(path)
    return path, counts, xy


def test_counts_and_positions_of_a_plain_file(tmp_path):
    path, counts, xy = counts_file(tmp_path)
    source = truth.open_truth(str(path))
    assert source.slides == ("section",)
    assert source.records is None
    found = source.load("section")
    np.testing.assert_array_equal(found.counts, counts)
    np.testing.assert_array_equal(found.total, counts.sum(axis=1))
    np.testing.assert_allclose(found.array_xy, (xy * 40.0 + 7) / 40)  # in spot distances
    assert (found.unit, found.image, found.patient) == ("px", None, None)
    assert found.genes == ("A", "B", "<script>", 'D"')
    np.testing.assert_allclose(found.values("log2p1"), np.log2(counts + 1.0), rtol=1e-6)
    with pytest.raises(errors.RecordsError, match="no truth of slide 'other'.*section"):
        source.load("other")


def test_counts_are_taken_from_the_layer_before_normalised_values(tmp_path):
    def normalised(data):
        data.layers["counts"] = data.X.copy()
        data.X = data.X * 0.37

    path, counts, _ = counts_file(tmp_path, change=normalised)
    np.testing.assert_array_equal(truth.open_truth(str(path)).load("section").counts, counts)


def test_raw_is_looked_at_before_x(tmp_path):
    def normalised(data):
        data.raw = data.copy()
        data.X = data.X * 0.37

    path, counts, _ = counts_file(tmp_path, change=normalised)
    np.testing.assert_array_equal(truth.open_truth(str(path)).load("section").counts, counts)


def test_space_rangers_slots_give_scale_image_and_name(tmp_path):
    def visium(data):
        data.obs["array_row"], data.obs["array_col"] = np.arange(20), np.arange(20)[::-1]
        data.uns["spatial"] = {
            "TENX95": {
                "images": {"hires": np.full((30, 40, 3), 0.5), "lowres": np.zeros((6, 8, 3))},
                "scalefactors": {
                    "microns_per_pixel": 2.0,
                    "spot_diameter_fullres": 30.0,
                    "tissue_hires_scalef": 0.1,
                    "tissue_lowres_scalef": 0.02,
                },
            }
        }

    path, _, xy = counts_file(tmp_path, change=visium)
    found = truth.open_truth(str(path)).load("TENX95")
    np.testing.assert_array_equal(found.array_xy[:, 1], np.arange(20))
    np.testing.assert_allclose(found.xy, (xy * 40.0 + 7) * 2)
    assert (found.unit, found.diameter) == ("um", 60.0)
    image, per_um = found.image
    assert image.shape == (30, 40, 3)
    assert image.dtype == np.uint8
    assert image.max() == 127  # 0..1 floats become 0..255
    assert per_um == pytest.approx(0.05)


def nan_positions(data):
    data.obsm["spatial"][3, 0] = np.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.obsm.pop("spatial"), "no spot coordinates"),
        (nan_positions, "spatial"),
        (lambda d: setattr(d, "X", d.X * 0.5), "no raw counts.*other values in X"),
        (lambda d: setattr(d, "X", -d.X), "no raw counts"),
        (lambda d: setattr(d, "var_names", ["A", "A", "B", "C"]), "1 gene more than once.*'A'"),
        (lambda d: setattr(d, "obs_names", ["s"] * 20), "1 spot more than once.*'s'"),
    ],
)
@pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning")
@pytest.mark.filterwarnings("ignore:Observation names are not unique:UserWarning")
def test_what_cannot_be_a_truth_is_refused(tmp_path, change, message):
    path, *_ = counts_file(tmp_path, change=change)
    with pytest.raises(errors.PredictionError, match=message):
        truth.open_truth(str(path))


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "broken.h5ad"
    path.write_bytes(b"no hdf5")
    with pytest.raises(errors.PredictionError, match="broken.h5ad cannot be read"):
        truth.open_truth(str(path))
