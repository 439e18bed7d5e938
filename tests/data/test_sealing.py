"""HDF5 files tell when what they hold is not what was written."""

from __future__ import annotations

import anndata
import h5py
import made_prediction
import numpy as np
import pytest

from stemjax import errors
from stemjax.data import sealing
from stemjax.eval import h5ad, joining, predict


def written(path, *, compression: str | None = None):
    """A sealed prediction, whose arrays lie in the file as they are where nothing is packed."""
    made = made_prediction.make()
    made.obs["kind"] = ["a", "b", "c"] * 10
    with h5py.File(path, "w") as file:
        h5ad.write_into(file, made, compression=compression)
    sealing.seal(path, same_as=h5ad.dense_arrays(made))
    return made


def flip(path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("dataset", "named"),
    [
        ("X", "X"),
        ("layers/stemjax_std", "layers/stemjax_std"),
        ("obsm/spatial", "obsm/spatial"),
        ("obs/kind/codes", "obs/kind"),
        ("obs/array_row", "obs/array_row"),
        ("uns/spatial/S1/images/hires", "uns/spatial"),
    ],
)
def test_a_flipped_bit_is_told_with_the_part_that_it_is_in(tmp_path, dataset, named):
    path = tmp_path / "p.h5ad"
    written(path)
    with h5py.File(path) as file:
        found = file[dataset]
        assert isinstance(found, h5py.Dataset)
        at = found.id.get_offset()
    assert at is not None
    flip(path, at)
    anndata.read_h5ad(path)  # which does not see it
    with pytest.raises(errors.PredictionError, match=rf"p\.h5ad is not.* {named}: sha256"):
        joining.read(path)
    with sealing.unchecked():
        joining.read(path)


def test_no_flipped_bit_goes_by_in_silence(tmp_path):
    path, other = tmp_path / "p.h5ad", tmp_path / "flipped.h5ad"
    written(path, compression="gzip")
    whole, rng = joining.read(path), np.random.default_rng(3)
    size, refused = path.stat().st_size, 0
    for _ in range(60):
        other.write_bytes(path.read_bytes())
        flip(other, int(rng.integers(size)), int(rng.integers(8)))
        try:
            found = joining.read(other)
        except (errors.PredictionError, errors.UnsafeFileError):
            refused += 1
            continue
        assert np.array_equal(np.asarray(found.X), np.asarray(whole.X))
        assert found.obs.equals(whole.obs)
        assert list(found.var_names) == list(whole.var_names)
        ours, theirs = h5ad.dense_arrays(found), h5ad.dense_arrays(whole)
        assert set(ours) == set(theirs)
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
        assert repr(found.uns) == repr(whole.uns)
    assert 0 < refused < 60


def swap_layers(file):
    file.move("layers/stemjax_lower_90", "layers/x")
    file.move("layers/stemjax_upper_90", "layers/stemjax_lower_90")
    file.move("layers/x", "layers/stemjax_upper_90")


def change_attribute(file):
    file["obs/kind"].attrs["ordered"] = True


def change_text(file):
    del file["uns/stemjax/slide"]
    file["uns/stemjax/slide"] = "S2"


def add_column(file):
    file["obs/extra"] = np.zeros(30)


def drop_layer(file):
    del file["layers/stemjax_std"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (swap_layers, "layers/stemjax_lower_90: sha256.*layers/stemjax_upper_90: sha256"),
        (change_attribute, "obs/kind: sha256"),
        (change_text, "uns/stemjax: sha256"),
        (add_column, "obs/extra: was not there"),
        (drop_layer, "layers/stemjax_std: missing"),
    ],
)
def test_what_is_changed_in_place_is_told(tmp_path, change, named):
    path = tmp_path / "p.h5ad"
    written(path)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(errors.PredictionError, match=named):
        sealing.require_whole(path)


def test_a_damaged_seal_is_told(tmp_path):
    path = tmp_path / "p.h5ad"
    written(path)
    with h5py.File(path, "r+") as file:
        file.attrs[sealing.ATTRIBUTE] = np.bytes_("0" * 64)
    with pytest.raises(errors.PredictionError, match="stemjax-sha256 itself: all parts are whole"):
        sealing.require_whole(path)


def test_a_file_that_another_program_wrote_anew_has_no_seal(tmp_path):
    path, again = tmp_path / "p.h5ad", tmp_path / "again.h5ad"
    written(path)
    assert sealing.damage(path) == []
    found = anndata.read_h5ad(path)
    found.obs["mine"] = 1
    found.write_h5ad(again)
    assert sealing.damage(again) is None
    assert list(joining.read(again).obs["mine"]) == [1] * 30


def test_a_hash_is_of_the_content_and_not_of_its_packing(tmp_path):
    seals = []
    for name, packing in (("a", None), ("b", "gzip")):
        written(tmp_path / name, compression=packing)
        with h5py.File(tmp_path / name) as file:
            seals.append(bytes(np.bytes_(file.attrs[sealing.ATTRIBUTE])))
    assert seals[0] == seals[1]


def test_what_is_not_read_back_as_it_was_written_is_told(tmp_path):
    path, made = tmp_path / "p.h5ad", made_prediction.make()
    with h5py.File(path, "w") as file:
        h5ad.write_into(file, made, compression=None)
        values = file["X"]
        assert isinstance(values, h5py.Dataset)
        values[3, 2] += 1
    with pytest.raises(errors.ResourceError, match="/X was not read back as it was written"):
        sealing.seal(path, same_as=h5ad.dense_arrays(made))


def test_the_file_is_the_one_that_anndata_writes(tmp_path):
    made = made_prediction.make()
    predict.write(made, tmp_path / "ours.h5ad")
    made.write_h5ad(tmp_path / "theirs.h5ad", compression="gzip")
    listed = []
    for name in ("ours", "theirs"):
        with h5py.File(tmp_path / f"{name}.h5ad") as file:
            parts = sealing.hash_parts(file, {}, tmp_path)
            listed.append(parts)
    assert listed[0] == listed[1]


def test_strings_of_another_division_are_other_strings(tmp_path):
    digests = []
    for texts in (["ab", "c"], ["a", "bc"]):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["x"] = texts
            digests.append(sealing.hash_parts(file, {}, tmp_path)["x"])
    assert digests[0] != digests[1]
