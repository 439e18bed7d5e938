"""D5 to D7, D11, D12 and D22: counts that are none, slides without any, and all forms of X."""

from __future__ import annotations

import dataclasses

import anndata
import defective
import h5py
import numpy as np
import pytest
import scipy.sparse
from defective import ANNDATA, LAYOUTS, MPP
from refusals import command_refuses, python_refuses

import stemjax as sj
from stemjax import cli, errors
from stemjax.data import annotated, records

WHERE = {"st": "S1.tsv.gz", "visium": "matrix.h5", "h5ad": "S1.h5ad: X", "hest": "S1.h5ad: X"}


@pytest.fixture
def prepare(tmp_path):
    """Returns the command that prepares a folder, without an encoder."""
    genes = defective.write_genes(tmp_path / "genes.txt")

    def command(layout, *more):
        return ["prepare", "--layout", layout, "--data", tmp_path / layout, "--out",
                tmp_path / "out", "--genes", genes, "--encoder", "none", "--workers", "1",
                *more]  # fmt: skip

    return command


def run(command, code=0):
    assert cli.main([str(word) for word in command]) == code


def last_place(layout, made):
    """How messages name the last spot and gene."""
    gene = "feature " + defective.IDS[-1] if layout == "visium" else "gene HLA-A"
    return f"(spot {made.barcodes[-1]}, {gene}, row 39, column 5)"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("value", "case", "told"),
    [
        (-3.0, "D05", "(negative); looks scaled or centred: the least is -3"),
        (np.nan, "D06", "(NaN or infinite)"),
        (np.inf, "D06", "(NaN or infinite)"),
        (1.5, "D07", "(no whole numbers)"),
    ],
)
def test_d05_d06_d07_one_value_of_all_is_found_and_located(
    layout, value, case, told, tmp_path, prepare, capsys
):
    made = defective.make()
    made.counts[-1, -1] = value  # a sample of the first values would miss it
    defective.write(layout, tmp_path / layout, made)
    command_refuses(
        capsys, prepare(layout), "SJ-D01", case, WHERE[layout], "1 values", told,
        "whole numbers from 0 up", f"found {value:g} {last_place(layout, made)}",
    )  # fmt: skip


@pytest.mark.parametrize("case", ["D05", "D06", "D07"])
def test_d05_d06_d07_in_memory(case):
    made = defective.make()
    made.counts[3, 2] = {"D05": -2.0, "D06": np.nan, "D07": 0.25}[case]
    data = defective.table(made)
    told = ("slide S1: X holds 1 values", f"(spot {made.barcodes[3]}, gene CD8A, row 3, column 2)")
    python_refuses(
        lambda: annotated.from_anndata(data, mpp=MPP), "SJ-D01", case, *told, "adata.layers"
    )
    data.layers["counts"] = defective.make().counts
    found = annotated.from_anndata(data, mpp=MPP)
    np.testing.assert_array_equal(found.counts.toarray(), defective.make().counts)


def test_d05_the_worst_is_named_first_and_all_are_counted(tmp_path, prepare, capsys):
    made = defective.make()
    made.counts[0, :3] = (0.5, -1, np.nan)
    defective.write("h5ad", tmp_path / "h5ad", made)
    told = ("X holds 3 values that are no counts (1 of them NaN or infinite)", "gene CD8A")
    command_refuses(capsys, prepare("h5ad"), "SJ-D01", "D06", *told)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_d07_log_normalised_values_are_recognised(layout, tmp_path, prepare, capsys):
    made = defective.make()
    shares = 1e4 * made.counts / made.counts.sum(axis=1, keepdims=True)
    made.counts = np.log1p(shares).round(6)
    defective.write(layout, tmp_path / layout, made)
    command_refuses(
        capsys, prepare(layout), "SJ-D01", "D07", "looks log-normalised, ln(1 + counts per",
        f"the largest is {made.counts.max():.4g}, and 100% of those above 0 are no whole numbers",
    )  # fmt: skip


def test_d07_what_else_was_done_is_recognised(tmp_path, prepare, capsys):
    made = defective.make()
    made.counts = 1e4 * made.counts / made.counts.sum(axis=1, keepdims=True)
    defective.write("h5ad", tmp_path / "h5ad", made)
    command_refuses(capsys, prepare("h5ad"), "SJ-D01", "D07", "looks normalised to 10,000 a spot")
    made = defective.make()
    made.counts = np.log2(made.counts + 1)
    defective.write("h5ad", tmp_path / "h5ad", made)
    command_refuses(capsys, prepare("h5ad"), "SJ-D01", "D07", "looks log-normalised: the largest")
    # The cure that is told: the counts as a layer.
    data = defective.table(made)
    data.layers["counts"] = scipy.sparse.csr_matrix(defective.make().counts)
    defective.write("h5ad", tmp_path / "h5ad", made, data=data)
    run(prepare("h5ad"))
    assert "note: counts from layers['counts']: X holds other values" in capsys.readouterr().out


def test_d07_of_the_truth(tmp_path, capsys):
    data = defective.table(defective.make())
    data.write_h5ad(tmp_path / "p.h5ad")
    data.X = data.X * 0.5
    data.write_h5ad(tmp_path / "t.h5ad")
    command = ["evaluate", tmp_path / "p.h5ad", "--truth", tmp_path / "t.h5ad", "-o",
               tmp_path / "m.json"]  # fmt: skip
    told = ["t.h5ad holds no raw counts", "other values in X, no whole numbers", "looks divided: "]
    told += ["all are multiples of 0.5", "first 1.5 (spot 0x0, gene ERBB2", "give the file"]
    command_refuses(capsys, command, "SJ-E01", "D07", *told)


def test_d11_no_spot_under_tissue(tmp_path, prepare, capsys):
    data = defective.table(defective.make())
    data.obs["in_tissue"] = 0
    defective.write("h5ad", tmp_path / "h5ad", defective.make(), data=data)
    told = ("S1.h5ad has no spot under tissue", "left out 40 spots not under tissue")
    command_refuses(capsys, prepare("h5ad"), "SJ-D01", "D11", *told)
    # The other slides of a folder are prepared, and this one is told.
    other = defective.make(1, id="S2")
    defective.write("h5ad", tmp_path / "h5ad", other)
    run(prepare("h5ad"), code=1)
    said = capsys.readouterr()
    assert "1 of 2 slides could not be prepared, the others are there" in said.err
    assert "S1: SlideError [SJ-D01]: S1.h5ad has no spot under tissue" in said.err
    assert list(records.open_records(tmp_path / "out").slides) == ["S2"]


def test_d11_no_gene(tmp_path, prepare, capsys):
    made = defective.make(counts=np.zeros((40, 0)), genes=[], ids=[])
    defective.write("hest", tmp_path / "hest", made)
    told = ("slide S1 is empty", "at least one spot and one gene", "40 spots, 0 genes")
    command_refuses(capsys, prepare("hest"), "SJ-D01", "D11", *told)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_d11_one_spot_is_a_slide(layout, tmp_path, prepare, capsys):
    made = defective.make().cut(slice(17, 18))
    defective.write(layout, tmp_path / layout, made)
    more = () if layout == "hest" else ("--mpp", MPP)
    if layout in ("st", "h5ad"):  # the spot's pixel size is that of its metadata or scale factors
        refused = command_refuses(capsys, prepare(layout), "SJ-D03", "D14", "--mpp")
        assert isinstance(refused, errors.PixelSizeError)
    run(prepare(layout, *more))
    assert records.open_records(tmp_path / "out").load(["S1"]).counts.shape == (1, 6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_d12_spots_without_counts_are_kept_and_noted(layout, tmp_path, prepare, capsys):
    made = defective.make()
    made.counts[[4, 11]] = 0
    defective.write(layout, tmp_path / layout, made)
    run(prepare(layout))
    note = "2 of 40 spots have no count of any gene: kept, as zeros"
    assert capsys.readouterr().out.count(note) == 1
    source = records.open_records(tmp_path / "out")
    assert note in source.slides["S1"].notes
    table = source.load(["S1"])
    assert list(table.barcodes) == made.barcodes
    np.testing.assert_array_equal(np.asarray(table.total == 0).nonzero()[0], [4, 11])
    back = annotated.from_anndata(sj.read(tmp_path / layout, layout=layout))
    assert back.notes.count(note) == 1


def dask_array(counts):
    return pytest.importorskip("dask.array").from_array(counts, chunks=(16, 4))


def backed(counts, folder):
    data = defective.table(dataclasses.replace(defective.make(), counts=np.zeros((40, 6))))
    data.X = counts
    data.write_h5ad(folder / "backed.h5ad")
    return anndata.read_h5ad(folder / "backed.h5ad", backed="r")


FORMS = {
    "csr": lambda c: scipy.sparse.csr_matrix(c),
    "csc": lambda c: scipy.sparse.csc_matrix(c),
    "csr_array": lambda c: scipy.sparse.csr_array(c),
    "csc int64": lambda c: scipy.sparse.csc_array(c.astype(np.int64)),
    "dense": lambda c: c,
    "int64": lambda c: c.astype(np.int64),
    "uint16": lambda c: c.astype(np.uint16),
    "float16": lambda c: c.astype(np.float16),
    "float32": lambda c: c.astype(np.float32),
    "fortran": lambda c: np.asfortranarray(c),
    "dask": dask_array,
    "explicit zeros": lambda c: scipy.sparse.csr_array(
        (c.ravel(), np.tile(np.arange(6), 40), np.arange(0, 241, 6)), shape=c.shape
    ),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The digest of the records of the slide, from a CSR matrix of float32."""
    return _digest(_ready(defective.table(defective.make())), tmp_path_factory.mktemp("plain"))


def _ready(data):
    data.uns["spatial"]["S1"]["scalefactors"]["microns_per_pixel"] = MPP
    sj.pp.encode(data, "none")
    return data


def _digest(data, out):
    return sj.pp.prepare({"S1": data}, out, genes=defective.GENES).slides["S1"].digest


@pytest.mark.parametrize("form", FORMS)
def test_d22_every_form_of_x_gives_the_same_records(form, plain, tmp_path):
    data = _ready(defective.table(defective.make()))
    data.X = FORMS[form](defective.make().counts)
    assert _digest(data, tmp_path / "out") == plain


@pytest.mark.parametrize("form", ["csr", "csc", "dense", "float32", "int64", "float16"])
def test_d22_x_on_the_disk_gives_the_same_records(form, plain, tmp_path):
    whole = defective.make().counts
    if form == "float16":  # no sparse half precision in scipy
        data = backed(whole.astype(np.float16), tmp_path)
    else:
        data = backed(FORMS[form](whole), tmp_path)
    data.uns["spatial"]["S1"]["scalefactors"]["microns_per_pixel"] = MPP
    sj.pp.encode(data, "none")
    assert _digest(data, tmp_path / "out") == plain


def test_d22_a_view_gives_the_same_records(plain, tmp_path):
    made = defective.make()
    order = np.random.default_rng(3).permutation(80)
    twice = anndata.concat(
        {"a": defective.table(made), "b": defective.table(made)}, index_unique="-"
    )[order]
    view = twice[[name.endswith("-a") for name in twice.obs_names]]
    view = view[[f"{name}-a" for name in made.barcodes]]
    assert view.is_view
    counts = annotated.counts_of(view, "S1")
    np.testing.assert_array_equal(counts.toarray(), made.counts)
    data = _ready(defective.table(made))[:, list(defective.GENES)]
    assert data.is_view
    assert _digest(data, tmp_path / "out") == plain


@pytest.mark.parametrize("layout", ANNDATA)
@pytest.mark.parametrize("form", ["csc", "int64", "float16", "dense", "uint16"])
def test_d22_every_form_in_a_file(layout, form, tmp_path, prepare):
    data = defective.table(defective.make())
    data.X = FORMS[form](defective.make().counts)
    defective.write(layout, tmp_path / layout, defective.make(), data=data)
    run(prepare(layout))
    table = records.open_records(tmp_path / "out").load(["S1"])
    np.testing.assert_array_equal(table.counts, defective.make().counts)


def test_d22_what_is_no_table_of_numbers_is_told(tmp_path, prepare, capsys):
    defective.write("h5ad", tmp_path / "h5ad", defective.make())
    with h5py.File(tmp_path / "h5ad" / "S1.h5ad", "r+") as file:
        del file["X"]
        file["X"] = np.full((40, 6), b"many", "S4")
        file["X"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    run(prepare("h5ad"), code=1)
    said = capsys.readouterr().err
    assert "error [SJ-D01" in said
    assert "S1.h5ad" in said
