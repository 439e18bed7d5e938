"""Our own files: what is written is read, by us and by what reads HEST's benchmark."""

import dataclasses
import json
import os
import pathlib

import embedded_slide as made
import h5py
import numpy as np
import pytest

from stemjax import errors
from stemjax.data import embedding_files, hest_bench, sealing
from stemjax.data.embedding_files import own

SLIDE = made.make_slide()
VALUES = made.vectors(SLIDE.pixel_xy).astype(np.float16)


def test_round_trip(tmp_path):
    path = tmp_path / "G1.h5"
    for variants in (8, 1):
        embedding_files.write(path, VALUES[:, :variants], SLIDE, made.CONTRACT)
        file = embedding_files.read(path)
        assert (file.contract, file.slide_id, file.mpp) == (made.CONTRACT, "G1", 0.5)
        assert (file.patch_px, file.barcodes) == (224, SLIDE.barcodes)
        np.testing.assert_array_equal(file.xy, SLIDE.pixel_xy - 112)
        np.testing.assert_array_equal(file.values(), VALUES[:, :variants])
        opened = embedding_files.open_embeddings(tmp_path)
        assert opened.contract == made.CONTRACT
        np.testing.assert_array_equal(opened.embed(SLIDE, variants=5), VALUES[:, :variants][:, :5])
    assert [one.name for one in tmp_path.iterdir()] == ["G1.h5"]


def test_readers_of_hest_bench_read_it(tmp_path):
    path = tmp_path / "G1.h5"
    embedding_files.write(path, VALUES, SLIDE, made.CONTRACT)
    found = hest_bench.read_embeddings(path, encoder="uni")
    assert found.barcodes == SLIDE.barcodes
    np.testing.assert_array_equal(found.embeddings, VALUES[:, :1])
    np.testing.assert_array_equal(found.coords, SLIDE.pixel_xy - 112)
    with h5py.File(path) as opened:  # as HEST's benchmark itself does
        assert opened["barcodes"].shape == (24, 1)
        names = opened["barcodes"][:].flatten().astype(str).tolist()
        assert opened["coords"].dtype == np.int64
        about = json.loads(opened.attrs[own.SLIDE])
    assert names == list(SLIDE.barcodes)
    assert about == {"id": "G1", "mpp": 0.5, "patch_px": 224, "sources": {"G1.h5ad": "0" * 64}}


@pytest.mark.parametrize(
    "values",
    [VALUES[:-1], VALUES[..., :5], VALUES[:, 0], VALUES.astype(np.float64), VALUES[:, :0]],
    ids=["rows", "width", "dimensions", "type", "no variant"],
)
def test_what_does_not_fit_is_not_written(tmp_path, values):
    with pytest.raises(errors.EncoderMismatchError, match="cannot be written"):
        embedding_files.write(tmp_path / "G1.h5", values, SLIDE, made.CONTRACT)
    broken = VALUES.copy()
    broken[0, 0, 0] = np.inf
    with pytest.raises(errors.EncoderMismatchError, match="NaN or infinity"):
        embedding_files.write(tmp_path / "G1.h5", broken, SLIDE, made.CONTRACT)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "G1.h5"
    embedding_files.write(path, VALUES, SLIDE, made.CONTRACT)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(errors.ResourceError, match="no space left"):
        embedding_files.write(path, VALUES[:, :1], SLIDE, made.CONTRACT)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def change(path: pathlib.Path, name: str, value: bytes) -> None:
    """Says something else, as a writer with other ideas would."""
    with h5py.File(path, "a") as opened:
        opened.attrs[name] = np.bytes_(value)
        for seal in (sealing.ATTRIBUTE, sealing.PARTS):
            opened.attrs.pop(seal, None)
    sealing.seal(path)


def test_no_flipped_bit_is_read_without_a_word(tmp_path):
    path = tmp_path / "G1.h5"
    embedding_files.write(path, VALUES, SLIDE, made.CONTRACT)
    assert sealing.damage(path) == []
    whole, place = path.read_bytes(), 0
    with h5py.File(path) as opened:
        place = opened["variants" if "variants" in opened else "embeddings"].id.get_offset()
    raw = bytearray(whole)
    raw[place + 5] ^= 16
    path.write_bytes(raw)
    with pytest.raises(errors.EncoderMismatchError, match="not as it was written"):
        embedding_files.read(path)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        (own.CONTRACT, b"{", "stemjax_contract"),
        (own.CONTRACT, b"[]", "no object"),
        (own.CONTRACT, json.dumps(made.CONTRACT.to_json() | {"width": 7}).encode(), "does not fit"),
        (own.CONTRACT, b"{}", "missing: name"),
        (own.SLIDE, b'{"mpp": "half"}', "'mpp'"),
    ],
)
def test_damaged_statements(tmp_path, name, value, match):
    path = tmp_path / "G1.h5"
    embedding_files.write(path, VALUES, SLIDE, made.CONTRACT)
    change(path, name, value)
    with pytest.raises(errors.EncoderMismatchError, match=match) as caught:
        embedding_files.read(path)
    assert "G1.h5" in caught.value.what


def test_a_flipped_bit_anywhere_in_the_structure_is_noticed(tmp_path):
    # Checksums: whatever byte of the object headers changes, the file is refused.
    path = tmp_path / "G1.h5"
    embedding_files.write(path, VALUES, SLIDE, made.CONTRACT)
    whole = path.read_bytes()
    place = whole.index(b"stemjax_contract")
    path.write_bytes(whole[: place + 40] + bytes([whole[place + 40] ^ 4]) + whole[place + 41 :])
    with pytest.raises(errors.EncoderMismatchError, match="damaged"):
        embedding_files.read(path)


def test_what_is_written_need_not_be_written_again(tmp_path):
    path = tmp_path / "G1.h5"
    assert not own.is_written(path, SLIDE, made.CONTRACT)
    own.write(path, VALUES[:, :4], SLIDE, made.CONTRACT)
    assert own.is_written(path, SLIDE, made.CONTRACT)
    assert own.is_written(path, SLIDE, made.CONTRACT, variants=4)
    assert not own.is_written(path, SLIDE, made.CONTRACT, variants=8)
    for changed in (
        made.make_slide(suffix="-2"),
        made.make_slide("G1", mpp=0.49),
        dataclasses.replace(SLIDE, sources={"G1.h5ad": "1" * 64}),
    ):
        with pytest.raises(errors.EncoderMismatchError, match="another version") as caught:
            own.is_written(path, changed, made.CONTRACT)
        assert "remove the file" in caught.value.fix
    other = dataclasses.replace(made.CONTRACT, revision="a2")
    with pytest.raises(errors.EncoderMismatchError, match="field 'revision'"):
        own.is_written(path, SLIDE, other)
    # Half a file is written again; a file of another tool is not overwritten.
    path.write_bytes(path.read_bytes()[:3000])
    assert not own.is_written(path, SLIDE, made.CONTRACT)
    made.write_hest(path, SLIDE)
    with pytest.raises(errors.EncoderMismatchError, match="not one of stemjax's"):
        own.is_written(path, SLIDE, made.CONTRACT)
    path.write_text("notes")
    with pytest.raises(errors.EncoderMismatchError, match="not one of stemjax's"):
        own.is_written(path, SLIDE, made.CONTRACT)
