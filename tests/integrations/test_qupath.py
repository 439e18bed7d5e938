"""GeoJSON for QuPath, read back by json and measured."""

from __future__ import annotations

import json
import tracemalloc
import uuid

import made_prediction
import numpy as np
import pandas as pd
import pytest

from stemjax.integrations import prediction as predictions
from stemjax.integrations import qupath


def strict(text):
    """JSON without the NaN that Python's reader would let through."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def written(tmp_path, made, **options):
    path = tmp_path / "new" / "spots.geojson"
    qupath.write(predictions.of_anndata(made), path, **options)
    assert [file.name for file in path.parent.iterdir()] == ["spots.geojson"]
    return strict(path.read_text(encoding="utf-8"))


def area(ring):
    x, y = np.array(ring[:-1], float).T
    return abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def test_each_spot_is_a_circle_around_its_centre_with_its_numbers(tmp_path):
    made = made_prediction.make()
    found = written(tmp_path, made, genes=["KRT5", "HLA-A"])
    assert found["type"] == "FeatureCollection"
    assert found["stemjax"]["units"] == "log2(count + 1)"
    assert len(found["features"]) == 30
    for row, feature in enumerate(found["features"]):
        ring = feature["geometry"]["coordinates"][0]
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] == "Polygon"
        assert ring[0] == ring[-1]
        assert len(ring) == qupath.CORNERS + 1
        np.testing.assert_allclose(np.mean(ring[:-1], axis=0), made.obsm["spatial"][row], atol=0.01)
        assert area(ring) == pytest.approx(np.pi * 55**2, rel=0.03)
        assert area(ring) < np.pi * 55**2
        about = feature["properties"]
        assert about["objectType"] == "detection"
        assert about["name"] == made.obs_names[row]
        assert "classification" not in about
        wanted = {
            f"{gene} {what}": float(values[row, made.var_names.get_loc(gene)])
            for what, values in (("mean", made.X), ("std", made.layers["stemjax_std"]))
            for gene in ("KRT5", "HLA-A")
        }
        assert about["measurements"] == pytest.approx(wanted, rel=1e-5)
        assert list(about["measurements"]) == list(wanted)


def test_squares_and_annotations(tmp_path):
    found = written(
        tmp_path, made_prediction.make(), genes=["KRT5"], shape="square", object_type="annotation"
    )
    ring = found["features"][0]["geometry"]["coordinates"][0]
    assert len(ring) == 5
    assert area(ring) == pytest.approx(110.0**2)
    assert found["features"][0]["properties"]["objectType"] == "annotation"


def test_ids_are_those_of_slide_and_barcode(tmp_path):
    made = made_prediction.make()
    first = written(tmp_path, made, genes=["KRT5"])
    other = written(tmp_path, made[::-1].copy(), genes=["CD8A"])
    ids = [one["id"] for one in first["features"]]
    assert ids[::-1] == [one["id"] for one in other["features"]]
    assert len(set(ids)) == len({uuid.UUID(one) for one in ids}) == 30
    made.uns["stemjax"]["slide"] = "S2"
    assert not set(ids) & {one["id"] for one in written(tmp_path, made)["features"]}


def test_what_is_not_finite_is_left_out_and_names_are_escaped(tmp_path):
    names = ('A"B\\', "μ\n", "CD8A", "ACTB", "COL1A1", "</x>")
    made = made_prediction.make(genes=names)
    made_prediction.with_values(made, {(0, 0): np.nan, (1, 1): np.inf})
    found = written(tmp_path, made, genes=names)
    first, second = (feature["properties"]["measurements"] for feature in found["features"][:2])
    assert 'A"B\\ mean' not in first
    assert 'A"B\\ std' in first
    assert "μ\n mean" not in second
    assert set(first) | set(second) == {f"{n} {w}" for n in names for w in ("mean", "std")}


def test_domains_are_classes_with_a_colour_each(tmp_path):
    made = made_prediction.make()
    codes = [-1 if i == 4 else i % 3 for i in range(30)]
    made.obs["stemjax_domain"] = pd.Categorical.from_codes(codes, categories=["0", "1", "2"])
    found = [one["properties"].get("classification") for one in written(tmp_path, made)["features"]]
    assert found[4] is None
    assert [one and one["name"] for one in found[:3]] == ["domain 0", "domain 1", "domain 2"]
    assert len({tuple(one["color"]) for one in found[:3]}) == 3
    assert found[3] == found[0]


def test_a_spread_is_written_only_where_there_is_one(tmp_path):
    made = made_prediction.make()
    del made.layers["stemjax_std"]
    found = written(tmp_path, made, genes=["KRT5"])
    assert list(found["features"][0]["properties"]["measurements"]) == ["KRT5 mean"]


def test_a_file_that_fails_halfway_leaves_the_older_one(tmp_path, monkeypatch):
    made = predictions.of_anndata(made_prediction.make())
    path = tmp_path / "spots.geojson"
    qupath.write(made, path)
    before = path.read_bytes()

    def fail(prediction, *args):
        yield from []
        raise OSError("the disk is full")

    monkeypatch.setattr(qupath, "_features", fail)
    with pytest.raises(OSError, match="full"):
        qupath.write(made, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_memory_does_not_grow_with_the_file(tmp_path):
    import anndata

    n = 5000
    made = made_prediction.make(image=False)
    many = anndata.AnnData(
        X=np.ones((n, 6), np.float32),
        obs=pd.DataFrame(index=[made_prediction.barcode(i) for i in range(n)]),
        var=made.var,
        uns=made.uns,
        obsm={"spatial": np.arange(2 * n, dtype=float).reshape(n, 2)},
    )
    prediction = predictions.of_anndata(many)
    tracemalloc.start()
    try:
        size = qupath.write(prediction, tmp_path / "spots.geojson")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Barcodes, classes and the chosen values are held; the text, 3 MB, is not.
    assert size > 2.5e6
    assert peak < 0.6 * size
