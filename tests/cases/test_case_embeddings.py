"""D15 to D18: embeddings of another encoder, of other spots, and of no use."""

from __future__ import annotations

import dataclasses
import itertools
import json

import defective
import h5py
import numpy as np
import pytest
from defective import MPP
from refusals import command_refuses, python_refuses

import stemjax as sj
from stemjax import cli, encoders, errors
from stemjax.data import annotated, embeddings, records, sealing
from stemjax.data.embedding_files import own

CONTRACT = embeddings.EncoderContract(
    name="made",
    width=6,
    input_px=224,
    fov_um=112.0,
    resize="lanczos",
    mean=(),
    std=(),
    pooling="cls",
    projection="none",
    source="test",
    revision="1",
)


def contracts():
    """The contract of every encoder that is known, by name."""
    found = {}
    for row in encoders.list_entries():
        if not row.built_in:
            entry = encoders.resolve(row.name)
            found[row.name] = entry.contract(
                fov_um=row.fov_um, pooling=None, source="test", revision="1"
            )
    return found


def test_d15_d16_every_pair_of_encoders_is_told_apart():
    known = contracts()
    assert len(known) >= 16
    cases = set()
    for (a, one), (b, other) in itertools.permutations(known.items(), 2):
        with pytest.raises(errors.EncoderMismatchError) as caught:
            one.require_same(other, where="the file and the model")
        error, same_width = caught.value, one.width == other.width
        cases.add(error.case)
        assert error.case == ("D16" if same_width else "D15")
        for text in (repr(a), repr(b), f"{one.width:,}", f"{other.width:,}", "Embed the slides"):
            assert text in str(error), (text, str(error))
    assert cases == {"D15", "D16"}
    for one in known.values():
        one.require_same(one, where="itself")


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("fov_um", 224.0, "expected fov_um = 112 um, found fov_um = 224 um"),
        ("pooling", "cls+mean", "expected pooling = 'cls', found pooling = 'cls+mean'"),
        ("input_px", 448, "expected input_px = 224, found input_px = 448"),
        ("mean", (0.5, 0.5, 0.5), "the field 'mean'"),
        ("name", "other", "both of 6 features"),
    ],
)
def test_d16_one_width_and_another_meaning(field, value, told):
    changed = dataclasses.replace(CONTRACT, **{field: value})
    python_refuses(
        lambda: changed.require_same(CONTRACT, where="the file and the model"),
        "SJ-D05", "D16", told, "the file and the model",
    )  # fmt: skip


def test_d15_the_command_names_both_encoders(tmp_path, capsys):
    defective.write("h5ad", tmp_path / "h5ad", defective.make())
    command = ["predict", tmp_path / "h5ad", "--checkpoint", "demo", "--encoder", "none",
               "-o", tmp_path / "p.h5ad"]  # fmt: skip
    command_refuses(
        capsys, command, "SJ-D05", "D15", "encoders 'none' and 'texture'", "236 features",
        "the encoder and the model",
    )  # fmt: skip


@pytest.fixture
def made(tmp_path):
    """A slide without its image, its embeddings, and the command that prepares it from files."""
    genes = defective.write_genes(tmp_path / "genes.txt")
    defective.write("h5ad", tmp_path / "h5ad", defective.make(), image=False)
    slide = annotated.from_anndata(sj.read_h5ad(tmp_path / "h5ad"))
    values = np.random.default_rng(5).normal(size=(40, 1, 6)).astype(np.float32)
    (tmp_path / "files").mkdir()
    own.write(tmp_path / "files" / "S1.h5", values, slide, CONTRACT)
    command = ["prepare", "--data", tmp_path / "h5ad", "--out", tmp_path / "out", "--genes", genes,
               "--embeddings", tmp_path / "files"]  # fmt: skip
    return tmp_path / "files" / "S1.h5", command


def run(command, code=0):
    assert cli.main([str(word) for word in command]) == code


def change(path, rows=None, values=None):
    """Other rows of the file, in another order; or other values of its rows."""
    with h5py.File(path, "r+") as file:
        for name in ("embeddings", "barcodes", "coords"):
            old = file[name][()]
            new = values(old) if name == "embeddings" and values else old
            del file[name]
            file[name] = new if rows is None else new[rows]
        for mark in (sealing.ATTRIBUTE, sealing.PARTS):
            file.attrs.pop(mark, None)
    sealing.seal(path)  # as a writer that meant it


def kept(tmp_path):
    return records.open_records(tmp_path / "out").load(["S1"])


def test_d17_rows_in_another_order_give_the_same_records(made, tmp_path):
    path, command = made
    run(command)
    before = kept(tmp_path)
    change(path, rows=np.random.default_rng(1).permutation(40))
    run([*command[:4], tmp_path / "again" / "out", *command[5:]])
    after = kept(tmp_path / "again")
    assert before.barcodes == after.barcodes
    np.testing.assert_array_equal(before.embeddings, after.embeddings)


def test_d17_spots_without_an_embedding_are_counted_and_left_out_on_request(made, tmp_path, capsys):
    path, command = made
    change(path, rows=np.random.default_rng(1).permutation(40)[:37])
    lost = sorted(set(defective.make().barcodes) - set(_barcodes(path)))
    command_refuses(
        capsys, command, "SJ-D05", None, "3 of 40 spots of slide S1 have no embedding", "S1.h5",
        *lost,
    )  # fmt: skip
    run([*command, "--drop-missing"])
    said = capsys.readouterr().out
    for note in ("3 of 40 spots have no embedding in S1.h5", "left out 3 spots without an embed"):
        assert said.count(note) == 1
    assert len(kept(tmp_path).barcodes) == 37


def _barcodes(path):
    with h5py.File(path) as file:
        return [name.decode() for name in file["barcodes"][:].ravel()]


@pytest.mark.parametrize(
    ("value", "told"),
    [(np.nan, "finite"), (np.inf, "finite"), (1e6, "do not fit into half precision")],
)
def test_d18_values_that_cannot_be(value, told, made, capsys):
    path, command = made
    change(path, values=lambda old: np.where(np.arange(40)[:, None] == 31, value, old))
    run(command, code=1)
    said = capsys.readouterr().err
    assert "error [SJ-D0" in said
    for text in ("S1", "expected", "found", told):
        assert text in said, said


def test_d18_failed_tiles_and_a_failed_encoder_are_noted(made, tmp_path, capsys):
    path, command = made
    change(path, values=lambda old: np.where(np.arange(40)[:, None] < 7, 0, old))
    run(command)
    note = "7 spots have an embedding of zeros only: failed patches?"
    assert capsys.readouterr().out.count(note) == 1
    assert note in records.open_records(tmp_path / "out").slides["S1"].notes
    change(path, values=lambda old: np.repeat(old[20:21], 40, axis=0))
    run([*command[:4], tmp_path / "again" / "out", *command[5:]])
    note = "all 40 spots have the same embedding: a blank image, or a failed encoder?"
    assert capsys.readouterr().out.count(note) == 1
    assert note in records.open_records(tmp_path / "again" / "out").slides["S1"].notes


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_d18_in_memory(tmp_path):
    data = defective.table(defective.make())
    data.uns["spatial"]["S1"]["scalefactors"]["microns_per_pixel"] = MPP
    sj.pp.encode(data, "none")
    key = next(iter(data.obsm.keys() - {"spatial"}))
    given = dataclasses.replace(CONTRACT, width=data.obsm[key].shape[1]).to_json()
    data.uns["stemjax_encoders"] = {key: json.dumps(given)}
    values = np.random.default_rng(0).normal(size=data.obsm[key].shape)
    values[3, 0] = 1e5  # above what half precision holds
    data.obsm[key] = values
    python_refuses(
        lambda: sj.pp.prepare({"S1": data}, tmp_path / "out", genes=defective.GENES),
        "SJ-D02", None, "S1", defective.make().barcodes[3], "65,504",
    )  # fmt: skip
