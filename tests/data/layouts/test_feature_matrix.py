"""Feature-barcode matrices: both forms, genes that share a symbol, other features, faults."""

import gzip
import re

import h5py
import numpy as np
import pytest
import visium_folders as made

from stemjax import errors
from stemjax.data.layouts import feature_matrix


@pytest.fixture
def path(tmp_path):
    made.write_h5(tmp_path / "filtered_feature_bc_matrix.h5")
    return tmp_path / "filtered_feature_bc_matrix.h5"


@pytest.mark.parametrize("form", ["h5", "text"])
def test_matrix_is_read_whole(path, tmp_path, form):
    if form == "text":
        path = made.write_text(tmp_path / "filtered_feature_bc_matrix")
    matrix = feature_matrix.read_matrix(path)
    assert matrix.genes == made.GENES
    assert matrix.barcodes == tuple(made.barcodes())
    np.testing.assert_array_equal(matrix.counts.toarray(), made.expression())
    assert matrix.notes == (
        "left out 2 features of type Antibody Capture",
        "added up the counts of genes that share a symbol: TBCE x2",
    )
    files = [path] if form == "h5" else sorted(path.iterdir())
    assert sorted(matrix.paths) == files


def test_matrix_without_other_features_or_doubled_symbols(path):
    made.write_h5(
        path, made.counts()[:, [0, 1, 3]], features=made.FEATURES[:2] + made.FEATURES[3:4]
    )
    matrix = feature_matrix.read_matrix(path)
    assert (matrix.genes, matrix.notes) == (("ACTB", "TBCE", "ERBB2"), ())
    np.testing.assert_array_equal(matrix.counts.toarray(), made.counts()[:, [0, 1, 3]])


def test_sum_of_small_integers_does_not_overflow(path):
    table = np.full(made.counts().shape, 200, np.uint8)
    made.write_h5(path, table)
    assert set(feature_matrix.read_matrix(path).counts.toarray()[0].tolist()) == {200, 400}


def test_gene_without_a_symbol_goes_by_its_id(path):
    features = (("ENSG09", "", "Gene Expression"), *made.FEATURES[1:])
    made.write_h5(path, features=features)
    assert feature_matrix.read_matrix(path).genes == ("ENSG09", *made.GENES[1:])


def test_matrix_is_found_by_its_name(path, tmp_path):
    made.write_text(tmp_path / "filtered_feature_bc_matrix")
    made.write_h5(tmp_path / "raw_feature_bc_matrix.h5")
    assert feature_matrix.find_matrix(tmp_path) == path  # the quicker form
    path.rename(tmp_path / "LIB1_filtered_feature_bc_matrix.h5")
    assert feature_matrix.find_matrix(tmp_path).name.startswith("LIB1_")
    made.write_h5(tmp_path / "LIB2_filtered_feature_bc_matrix.h5")
    with pytest.raises(errors.SlideError, match="which counts.*LIB1_.*LIB2_.*one slide a folder"):
        feature_matrix.find_matrix(tmp_path)
    for library in ("LIB1", "LIB2"):
        (tmp_path / f"{library}_filtered_feature_bc_matrix.h5").unlink()
    assert feature_matrix.find_matrix(tmp_path).is_dir()
    with pytest.raises(errors.SlideError, match=r"no counts in.*found no \.h5 file"):
        feature_matrix.find_matrix(tmp_path / "filtered_feature_bc_matrix")
    (tmp_path / "filtered_feature_bc_matrix").rename(tmp_path / "other")
    with pytest.raises(errors.SlideError, match=r"no counts.*raw_feature_bc_matrix\.h5.*filtered"):
        feature_matrix.find_matrix(tmp_path)


@pytest.mark.parametrize("value", [0.5, -1, np.nan, np.inf])
def test_what_is_no_count_is_named(path, value):
    table = made.counts().astype(np.float64)
    table[7, 1], table[7, 4] = value, 0.5  # of one symbol: 0.5 and 0.5 add up to a whole number
    made.write_h5(path, table)
    told = rf"matrix\.h5: 2 values are no counts.*{re.escape(made.barcodes()[7])}, feature ENSG02"
    with pytest.raises(errors.SlideError, match=told):
        feature_matrix.read_matrix(path)


def test_whole_numbers_as_floats_are_counts(path):
    made.write_h5(path, made.counts().astype(np.float32))
    matrix = feature_matrix.read_matrix(path)
    np.testing.assert_array_equal(matrix.counts.toarray(), made.expression())


def test_matrix_without_genes(path):
    features = tuple((a, b, "Antibody Capture") for a, b, _ in made.FEATURES)
    made.write_h5(path, features=features)
    with pytest.raises(errors.SlideError, match="has no genes.*Gene Expr.*7 of type Antibody Cap"):
        feature_matrix.read_matrix(path)


def test_other_hdf5_files_are_told_apart(path):
    with h5py.File(path, "r+") as file:
        file.move("matrix", "GRCh38")  # Cell Ranger 2
    with pytest.raises(errors.SlideError, match=r"no feature-barcode.*matrix/data.*found GRCh38"):
        feature_matrix.read_matrix(path)
    with h5py.File(path, "r+") as file:
        file.move("GRCh38", "matrix")
        del file["matrix/features/feature_type"]
    told = "expected matrix/features/feature_type in it"
    with pytest.raises(errors.SlideError, match=told) as missing:
        feature_matrix.read_matrix(path)
    assert "damaged" not in str(missing.value)


def replace(name, change):
    def damage(path):
        with h5py.File(path, "r+") as file:
            values = change(file[f"matrix/{name}"][:])
            del file[f"matrix/{name}"]
            file[f"matrix/{name}"] = values

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:3000]),
        lambda path: path.write_bytes(b""),
        replace("data", lambda v: v[:-3]),
        replace("data", lambda v: v.astype("S")),
        replace("indptr", lambda v: v[:-1]),
        replace("indptr", lambda v: np.r_[v[:-1], v[-1] - 1]),
        replace("indptr", lambda v: np.r_[v[0], v[2], v[1], v[3:]]),
        replace("indices", lambda v: np.r_[v[:-1], 7]),
        replace("indices", lambda v: np.r_[v[:-1], -1]),
        replace("shape", lambda v: v[::-1]),
        replace("barcodes", lambda v: v[:-1]),
        replace("features/name", lambda v: v[:-1]),
        replace("features/id", lambda v: np.arange(len(v))),
    ],
)
def test_damage_is_told(path, damage):
    damage(path)
    with pytest.raises(errors.SlideError, match=r"filtered_feature_bc_matrix\.h5"):
        feature_matrix.read_matrix(path)


@pytest.mark.parametrize("name", ["matrix.mtx.gz", "barcodes.tsv.gz", "features.tsv.gz"])
def test_damaged_text_is_told(tmp_path, name):
    folder = made.write_text(tmp_path / "filtered_feature_bc_matrix")
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(errors.SlideError, match="bc_matrix is damaged"):
        feature_matrix.read_matrix(folder)
    lines = gzip.decompress(whole).splitlines(keepends=True)
    (folder / name).write_bytes(gzip.compress(b"".join(lines[:-1])))
    with pytest.raises(errors.SlideError, match="bc_matrix is damaged"):
        feature_matrix.read_matrix(folder)
    (folder / name).unlink()
    with pytest.raises(errors.SlideError, match=rf"bc_matrix is incomplete: expected {name}"):
        feature_matrix.read_matrix(folder)
    (folder / name.removesuffix(".gz")).write_bytes(gzip.decompress(whole))  # unpacked by hand
    matrix = feature_matrix.read_matrix(folder)
    np.testing.assert_array_equal(matrix.counts.toarray(), made.expression())
