"""Labels of the records' spots as columns of a prediction."""

from __future__ import annotations

import anndata
import jax
import numpy as np
import pandas as pd
import pytest

from stemjax import errors, tasks
from stemjax.data import records, slides
from stemjax.eval import labels, predict
from stemjax.train import checkpoint
from stemjax.train import material as material_lib

REGIONS = tuple(np.tile(["tumour", "", "stroma", "fat/skin", "tumour", "tumour"], 10).tolist())


@pytest.fixture(scope="module")
def labelled(toy_records, tmp_path_factory) -> records.Records:
    """Records of slide X1 with two labels, and of V1 with none."""
    out = tmp_path_factory.mktemp("labelled")
    known = {"X1": {"pathologist": REGIONS, "leiden": ("",) * len(REGIONS)}, "V1": {}}
    for name, values in known.items():
        table = toy_records.load([name])
        slide = slides.Slide(
            id=name,
            patient="R",
            counts=table.counts,
            genes=toy_records.genes,
            barcodes=table.barcodes,
            array_xy=table.array_xy,
            pixel_xy=table.pixel_xy,
            image=None,
            mpp=1.0,
            spot_diameter_um=100.0,
            sources={},
            labels=values,
        )
        records.write_slide(
            out,
            slide,
            table.embeddings,
            panel=toy_records.panel,
            contract=toy_records.contract,
        )
    return records.open_records(out)


def test_labels_become_categories_and_none_is_missing(labelled):
    columns = labels.label_columns(labelled, "X1", labelled.load(["X1"]).barcodes)
    assert list(columns) == ["pathologist", "leiden"]
    found = columns["pathologist"]
    assert list(found.categories) == ["fat/skin", "stroma", "tumour"]
    assert list(pd.isna(found)) == [value == "" for value in REGIONS]
    assert [value for value in found if not pd.isna(value)] == [v for v in REGIONS if v]
    assert pd.isna(columns["leiden"]).all()
    assert labels.label_columns(labelled, "V1", [""] * 60) == {}


def test_labels_of_other_spots_are_refused(labelled):
    with pytest.raises(errors.RecordsError, match="pathologist of slide X1.*expected 59.*found 60"):
        labels.label_columns(labelled, "X1", labelled.load(["X1"]).barcodes[1:])


def test_a_prediction_carries_them_to_its_file(labelled, toy_records, toy_experiment, tmp_path):
    card = material_lib.gather(toy_experiment, toy_records).card
    params = card.task.init(jax.random.key(1))
    trained = checkpoint.Trained(params=params, card=card, step=1, weights="last")
    result = predict.predict_slide(trained, labelled, "X1", tasks.Sampling(mode="mean"))
    assert list(result.obs) == ["in_tissue", "array_row", "array_col", "pathologist", "leiden"]
    predict.write(result, tmp_path / "x.h5ad")
    column = anndata.read_h5ad(tmp_path / "x.h5ad").obs["pathologist"]
    assert isinstance(column.dtype, pd.CategoricalDtype)
    by_spot = dict(zip(labelled.load(["X1"]).barcodes, REGIONS, strict=True))
    expected = {spot: value for spot, value in by_spot.items() if value}
    assert column.dropna().to_dict() == expected
