"""What cannot be used is refused by what is wrong with it, and nothing is executed or allocated."""

import io
import pathlib
import pickle
import zipfile

import embedded_slide as made
import h5py
import numpy as np
import pytest

from stemjax import errors
from stemjax.data import embedding_files
from stemjax.foreign import torchfile

SLIDE = made.make_slide()
FEATURES = made.vector(SLIDE.pixel_xy).astype(np.float32)
CORNERS = SLIDE.pixel_xy - 112


def refused(path, match, **options):
    with pytest.raises(errors.StemjaxError, match=match) as caught:
        embedding_files.read(path, **options)
    assert path.name in str(caught.value)
    return caught.value


def test_unfinished_and_absent(tmp_path):
    path = made.write_trident(tmp_path / "G1.h5")
    lock = tmp_path / "G1.h5.lock"
    lock.write_text("{}")
    assert "remove the lock" in refused(path, "unfinished").fix
    lock.unlink()
    embedding_files.read(path)
    assert "G1.h5" in refused(tmp_path / "G2.h5", "no such file").found
    refused(tmp_path, "no zarr store")


def test_a_pickle_is_not_opened(tmp_path):
    ran = tmp_path / "ran"

    class Harm:
        def __reduce__(self):
            return (pathlib.Path.touch, (ran,))

    path = tmp_path / "G1.pkl"
    path.write_bytes(pickle.dumps(Harm()))
    refused(path, "was not opened")
    np.save(tmp_path / "G1.npy", np.array([Harm()], dtype=object), allow_pickle=True)
    (tmp_path / "G1.txt").write_text("a\n")
    refused(tmp_path / "G1.npy", "Python objects")
    np.savez(tmp_path / "G2.npz", features=FEATURES, barcodes=np.array([Harm()], dtype=object))
    refused(tmp_path / "G2.npz", "Python objects")
    assert not ran.exists()


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"barcode,1,2,3\n"])
def test_other_files(tmp_path, content):
    path = tmp_path / "G1.h5"
    path.write_bytes(content)
    refused(path, "embedding file|empty file")


def test_one_vector_for_a_slide(tmp_path):
    refused(pathlib.Path(__file__).parent / "golden" / "trident_slide.h5", "whole slide")
    one = made.write_h5(
        tmp_path / "a.h5", {"features": FEATURES[:1], "coords": CORNERS}, coords={"patch_level": 0}
    )
    refused(one, "whole slide")
    np.savez(tmp_path / "b.npz", features=FEATURES[0], coords=CORNERS[:1])
    refused(tmp_path / "b.npz", "no table")


def test_pt_files_of_others(tmp_path):
    for folder in ("features_uni_v1", "pt_files"):
        path = tmp_path / folder / "G1.pt"
        path.parent.mkdir()
        torchfile.write(path, FEATURES)
        assert "h5" in refused(path, "TRIDENT or CLAM").fix
    alone = tmp_path / "G1_uni_aug.pt"
    torchfile.write(alone, made.vectors(SLIDE.pixel_xy)[:, 1:])
    refused(alone, "without their originals")
    torchfile.write(tmp_path / "G1.pt", {"model": FEATURES})
    refused(tmp_path / "G1.pt", "as Stem writes")
    torchfile.write(tmp_path / "G2.pt", np.arange(24).reshape(8, 3))
    refused(tmp_path / "G2.pt", "no floating-point")


def test_rows_of_unlike_number(tmp_path):
    path = made.write_h5(
        tmp_path / "a.h5", {"embeddings": FEATURES[:-1], "barcodes": np.array(SLIDE.barcodes)}
    )
    error = refused(path, "barcodes do not fit")
    assert (error.expected, error.found) == ("23 of them", "24")
    path = made.write_h5(tmp_path / "b.h5", {"features": FEATURES, "coords": CORNERS[1:]})
    refused(path, "coordinates do not fit")


def test_nothing_to_join_by(tmp_path):
    path = made.write_h5(tmp_path / "a.h5", {"features": FEATURES})
    assert "never joined by their order" in refused(path, "which spots").fix
    np.save(tmp_path / "b.npy", FEATURES)
    assert "b_barcodes.csv" in refused(tmp_path / "b.npy", "which spots").expected
    np.savez(tmp_path / "c.npz", features=FEATURES)
    refused(tmp_path / "c.npz", "which spots")
    path = made.write_h5(tmp_path / "d.h5", {"img": np.zeros((2, 4, 4, 3), np.uint8)})
    assert "not yet embedded" in refused(path, "no dataset").found


def test_numbers_that_are_none(tmp_path):
    path = made.write_h5(tmp_path / "a.h5", {"features": FEATURES.astype(int), "coords": CORNERS})
    refused(path, "no floating-point")
    broken = FEATURES.copy()
    broken[3, 1] = np.nan
    path = made.write_h5(
        tmp_path / "b.h5", {"embeddings": broken, "barcodes": np.array(SLIDE.barcodes)}
    )
    file = embedding_files.read(path)
    with pytest.raises(errors.EncoderMismatchError, match=f"first in {SLIDE.barcodes[3]}"):
        file.values()
    file.values(np.array([0, 1, 2, 4]))  # what is not asked for does not matter
    places = CORNERS.copy()
    places[0] = np.inf
    path = made.write_h5(tmp_path / "c.h5", {"features": FEATURES, "coords": places})
    refused(path, "not finite")


def test_claims_beyond_the_file(tmp_path):
    # 4 TB by its header, 128 bytes by its size.
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 1024)}
    )
    (tmp_path / "a.npy").write_bytes(header.getvalue() + bytes(128))
    (tmp_path / "a.txt").write_text("b\n")
    refused(tmp_path / "a.npy", "claims more")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as packed:
        packed.writestr("features.npy", header.getvalue() + bytes(128))
        packed.writestr("coords.npy", header.getvalue())
    refused(tmp_path / "b.npz", "claims more")
    path = tmp_path / "c.h5"
    with h5py.File(path, "w") as opened:
        opened.create_dataset("features", (10**9, 1024), "f4", chunks=(1, 1024))
        opened["coords"] = CORNERS
    refused(path, "claims more")


def test_a_dataset_that_was_never_written(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as opened:
        opened.create_dataset("features", (8, 4), "f4", chunks=(1, 4))
        opened["coords"] = CORNERS[:8]
    refused(path, "never written")


def test_data_in_other_files(tmp_path):
    target = made.write_h5(tmp_path / "t.h5", {"features": FEATURES, "coords": CORNERS})
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as opened:
        opened["features"] = h5py.ExternalLink(str(target), "features")
        opened["coords"] = CORNERS
    refused(path, "points to other files")
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(24 * 6 * 4))
    path = tmp_path / "b.h5"
    with h5py.File(path, "w") as opened:
        opened.create_dataset("features", (24, 6), "f4", external=[(str(secret), 0, 24 * 6 * 4)])
        opened["coords"] = CORNERS
    refused(path, "points to other files")


def test_a_file_cut_off(tmp_path):
    path = made.write_trident(tmp_path / "G1.h5")
    path.write_bytes(path.read_bytes()[:6000])
    refused(path, "damaged")


def test_a_file_that_changes_is_noticed(tmp_path):
    path = made.write_hest(tmp_path / "G1.h5", SLIDE)
    file = embedding_files.read(path)
    made.write_hest(path, SLIDE, n=10)
    with pytest.raises(errors.EncoderMismatchError, match="changed while it was read"):
        file.values()
