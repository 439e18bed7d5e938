"""Damaged copies of the golden files: each is refused by name, or read as if nothing were.

Files of HDF5 are tried by another process first.
"""

import pathlib
import shutil
import zipfile

import embedded_slide as made
import numpy as np
import pytest

from stemjax import errors
from stemjax.data import embedding_files
from stemjax.data.embedding_files import Wanted, contract_for
from stemjax.data.hdf5 import soundness

GOLDEN = pathlib.Path(__file__).parent / "golden"
SLIDE = made.make_slide()
HDF5 = ("trident.h5", "clam.h5", "hest.h5", "generic.h5", "anndata.h5", "stemjax.h5")
OTHERS = ("arrays.npz", "plain.npy", "stem", "lazyslide")
FEW, MANY = 20, 200


def lay_out(name: str, folder: pathlib.Path) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """A copy of a golden file, and the files in it that are damaged in turn."""
    if name == "stem":
        shutil.copytree(GOLDEN / "processed_data", folder / "p")
        path = folder / "p" / "1spot_uni_ebd" / "G1_uni.pt"
        return path, [path, folder / "p" / "1spot_uni_ebd_aug" / "G1_uni_aug.pt"]
    if name == "lazyslide":
        path = folder / "G1.zarr"
        with zipfile.ZipFile(GOLDEN / "lazyslide.zarr.zip") as packed:
            packed.extractall(path)
        read = [path / "zarr.json", *(path / "shapes").rglob("*"), *path.glob("tables/uni*/**/*")]
        return path, sorted(one for one in read if one.is_file())
    path = folder / name
    shutil.copy(GOLDEN / name, path)
    if name == "plain.npy":
        shutil.copy(GOLDEN / "plain_barcodes.csv", folder)
    return path, [path]


def damaged(whole: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with one to eight of them changed; one in eight is cut off too."""
    raw = bytearray(whole)
    if rng.random() < 0.125:
        raw = raw[: rng.integers(len(raw) + 1)]
    for place in rng.integers(0, max(len(raw), 1), rng.integers(1, 9)):
        if raw:
            raw[place] = rng.integers(256)
    return bytes(raw)


def use(path: pathlib.Path) -> None:
    """All that is done with a file."""
    file = embedding_files.read(path, key="uni" if path.suffix == ".zarr" else None)
    joined = embedding_files.join(file, SLIDE, missing="drop", rows="as-slide")
    values = file.values(joined.rows)
    assert np.isfinite(values).all()
    assert values.shape == (len(joined.spots), *file.shape[1:])
    said = file.stated.get("name") or file.guess
    contract_for(file, SLIDE, Wanted(encoder=None if said else "uni", fields={}))


def mutate(name: str, folder: pathlib.Path, times: int) -> tuple[int, int]:
    """How many damaged copies were refused, and how many read; anything else fails the test."""
    path, targets = lay_out(name, folder)
    rng = np.random.default_rng(len(name))
    said, read = [], 0
    for _ in range(times):
        target = targets[rng.integers(len(targets))]
        whole = target.read_bytes()
        target.write_bytes(damaged(whole, rng))
        soundness._harm.cache_clear()
        try:
            use(path)
            read += 1
        except errors.StemjaxError as error:
            said.append(error)
        finally:
            target.write_bytes(whole)
    assert all(error.fix or error.found or error.expected for error in said), said
    return len(said), read


@pytest.mark.parametrize("name", OTHERS)
def test_damage(name, tmp_path):
    refused, read = mutate(name, tmp_path, MANY // 2)
    assert refused >= MANY // 20
    assert refused + read == MANY // 2


@pytest.mark.parametrize("name", HDF5)
def test_a_little_damage_to_hdf5(name, tmp_path):
    assert sum(mutate(name, tmp_path, FEW)) == FEW


@pytest.mark.slow
@pytest.mark.parametrize("name", HDF5)
def test_damage_to_hdf5(name, tmp_path):
    refused, read = mutate(name, tmp_path, MANY)
    assert refused >= MANY // 10
    assert refused + read == MANY
