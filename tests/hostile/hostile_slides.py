"""Slides and records from strangers."""

from __future__ import annotations

import gzip
import io
import json
import pathlib
import shutil

import anndata
import h5py
import numpy as np
import payloads
from boxes import Box, case

import stemjax

SHOWN = pathlib.Path(stemjax.__file__).parent


def prepare(*more: str) -> list[str]:
    return [
        *("prepare", "--data", "in", "--encoder", "none", "--mpp", "0.5", "--genes", "genes.txt"),
        *("--variants", "1", "--out", "out", *more),
    ]


def genes(box: Box) -> None:
    (box.cwd / "genes.txt").write_text("".join(f"{gene}\n" for gene in payloads.GENES))


def slide(box: Box, change=None, *, made: anndata.AnnData | None = None, name="S1") -> list[str]:
    """A measured slide as h5ad, whose file may be changed."""
    genes(box)
    (box.cwd / "in").mkdir(exist_ok=True)
    path = box.cwd / "in" / f"{name}.h5ad"
    (payloads.spots() if made is None else made).write_h5ad(path)
    if change is not None:
        with h5py.File(path, "r+") as file:
            change(file)
    return prepare()


@case("[SJ-")
def slide_with_counts_in_another_file(box):
    def change(file):
        del file["X"]
        stored = [(str(box.secret), 0, 12 * 8)]
        made = file.create_dataset("X", (12, 8), "u1", external=stored)
        made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})

    return slide(box, change)


@case("[SJ-")
def slide_with_names_in_another_file(box):
    def change(file):
        del file["obs/_index"]
        stored = [(str(box.secret), 0, 12 * 16)]
        kind = h5py.string_dtype("ascii", 16)
        made = file.create_dataset("obs/_index", (12,), kind, external=stored)
        made.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})

    return slide(box, change)


@case("[SJ-")
def slide_linked_to_another_file(box):
    shutil.copyfile(box.secret, box.root / "other.h5")

    def change(file):
        del file["X"]
        file["X"] = h5py.ExternalLink(str(box.root / "other.h5"), "/X")

    return slide(box, change)


@case("[SJ-")
def slide_with_virtual_counts(box):
    with h5py.File(box.root / "other.h5", "w") as other:
        other["x"] = np.ones((12, 8), np.float32)

    def change(file):
        del file["X"]
        layout = h5py.VirtualLayout((12, 8), "<f4")
        layout[:] = h5py.VirtualSource(str(box.root / "other.h5"), "x", (12, 8))
        made = file.create_virtual_dataset("X", layout)
        made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})

    return slide(box, change)


@case("[SJ-")
def slide_linked_in_a_circle(box):
    def change(file):
        del file["obsm"]
        file["obsm"] = h5py.SoftLink("/obsp/loop")
        file["obsp/loop"] = h5py.SoftLink("/obsm")

    return slide(box, change)


@case("[SJ-")
def slide_that_claims_terabytes(box):
    def change(file):
        del file["X"]
        made = file.create_dataset("X", (10**6, 10**6), "f4", chunks=(1000, 1000), compression=1)
        made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})

    return slide(box, change)


@case("[SJ-")
def slide_whose_form_is_a_pickle(box):
    def change(file):
        del file["X"]
        raw = np.frombuffer(payloads.pickled(box.canary), np.uint8)
        made = file.create_dataset("X", data=raw)
        made.attrs.update({"encoding-type": "pickle", "encoding-version": "0.1.0"})

    return slide(box, change)


@case("[SJ-D")
def slide_whose_names_control_a_terminal(box):
    names = [f"B{i}\x1b]0;owned\x07\nrow" for i in range(12)]
    return slide(box, made=payloads.spots(barcodes=names))


@case(None)
def slide_whose_names_are_paths_and_formulas(box):
    names = ["../../canary", f"{box.canary}", "=cmd|' /C calc'!A0", "<script>alert(1)</script>"]
    names += [f"+{i}" for i in range(8)]
    return slide(box, made=payloads.spots(barcodes=names))


@case("[SJ-D04]")
def genes_nested_deeply(box):
    command = slide(box)
    (box.cwd / "genes.txt").write_text('{"genes": ' + payloads.nested())
    return command


@case("[SJ-D04]")
def genes_with_nul_and_directions(box):
    command = slide(box)
    (box.cwd / "genes.txt").write_bytes("A\0B\n\u202eC\n".encode())
    return command


@case("slide id cannot be used")
def slide_named_as_a_device(box):
    return slide(box, name="nul")


@case("slide id cannot be used")
def slide_of_a_hidden_name(box):
    return slide(box, name=".hidden") + ["--slides", ".hidden"]


@case("slide id cannot be used")
def slide_id_that_climbs(box):
    return [*slide(box), "--slides", "../../canary"]


@case("slide id cannot be used")
def slide_id_that_is_absolute(box):
    return [*slide(box), "--slides", str(box.canary)]


@case("slide id cannot be used")
def slide_id_with_nul(box):
    return [*slide(box), "--slides", "S1\0.h5ad"]


@case("slide id cannot be used")
def slide_id_of_300_letters(box):
    return [*slide(box), "--slides", "x" * 300]


@case("cannot both be written")
def slides_that_differ_in_case(box):
    slide(box, name="a1")
    return slide(box, name="A1")


def visium(box: Box) -> pathlib.Path:
    """A folder of Space Ranger without its matrix."""
    genes(box)
    outs = box.cwd / "in"
    (outs / "spatial").mkdir(parents=True)
    rows = [f"B{i},1,{i // 4},{2 * (i % 4) + i // 4 % 2},{200 * (i // 4)},{200 * (i % 4)}"
            for i in range(12)]  # fmt: skip
    (outs / "spatial" / "tissue_positions_list.csv").write_text("\n".join(rows))
    factors = {"spot_diameter_fullres": 110.0, "tissue_hires_scalef": 0.1}
    (outs / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    return outs


def text_matrix(box: Box, matrix: bytes, features: bytes | None = None) -> list[str]:
    folder = visium(box) / "filtered_feature_bc_matrix"
    folder.mkdir()
    rows = "".join(f"ENSG{i}\t{gene}\tGene Expression\n" for i, gene in enumerate(payloads.GENES))
    (folder / "matrix.mtx.gz").write_bytes(matrix)
    (folder / "features.tsv.gz").write_bytes(features or gzip.compress(rows.encode()))
    names = "".join(f"B{i}\n" for i in range(12))
    (folder / "barcodes.tsv.gz").write_bytes(gzip.compress(names.encode()))
    return prepare("--layout", "visium")


def bomb(line: bytes, length: int) -> bytes:
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=6) as file:
        piece = line * (2**20 // len(line))
        for _ in range(length // len(piece)):
            file.write(piece)
    return out.getvalue()


HEAD = b"%%MatrixMarket matrix coordinate integer general\n%\n"


@case("[SJ-D01]")
def matrix_that_claims_a_trillion_rows(box):
    return text_matrix(box, gzip.compress(HEAD + b"8 1000000000000 1\n1 1 1\n"))


@case("[SJ-D01]")
def matrix_that_claims_a_billion_barcodes(box):
    return text_matrix(box, gzip.compress(HEAD + b"8 2000000000 1\n1 1 1\n"))


@case("fill the memory")
def matrix_that_is_a_bomb(box):
    return text_matrix(box, gzip.compress(HEAD + b"8 12 1\n") + bomb(b"1 1 1\n", 2**28))


@case("fill the memory")
def features_that_are_a_bomb(box):
    good = gzip.compress(HEAD + b"8 12 1\n1 1 1\n")
    return text_matrix(box, good, bomb(b"ENSG\tA\tGene Expression\n", 2**28))


@case("fill the memory", slow=True)
def matrix_of_four_gigabytes(box):
    return text_matrix(box, gzip.compress(HEAD + b"8 12 1\n") + bomb(b"1 1 1\n", 2**32))


@case("fill the memory", slow=True)
def features_of_four_gigabytes(box):
    good = gzip.compress(HEAD + b"8 12 1\n1 1 1\n")
    return text_matrix(box, good, bomb(b"ENSG\tA\tGene Expression\n", 2**32))


@case("[SJ-")
def matrix_in_another_file(box):
    outs = visium(box)
    with h5py.File(outs / "filtered_feature_bc_matrix.h5", "w") as file:
        group = file.create_group("matrix")
        stored = [(str(box.secret), 0, 12 * 16)]
        kind = h5py.string_dtype("ascii", 16)
        group.create_dataset("barcodes", (12,), kind, external=stored)
        group["features/id"] = [f"ENSG{i}" for i in range(8)]
        group["features/name"] = list(payloads.GENES)
        group["features/feature_type"] = ["Gene Expression"] * 8
        group["data"], group["indices"] = np.ones(12, np.int32), np.zeros(12, np.int64)
        group["indptr"], group["shape"] = np.arange(13), np.array([8, 12])
    return prepare("--layout", "visium")


@case("[SJ-D01]")
def positions_nested_and_with_nul(box):
    outs = visium(box)
    (outs / "spatial" / "scalefactors_json.json").write_text(payloads.nested())
    (outs / "spatial" / "tissue_positions_list.csv").write_bytes(b"B0,1,\0,0,0,0\n\0\0\n")
    (outs / "filtered_feature_bc_matrix.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(200))
    return prepare("--layout", "visium")


def her2st(box: Box, counts: bytes) -> list[str]:
    genes(box)
    for name in ("ST-cnts", "ST-spotfiles", "ST-imgs"):
        (box.cwd / "in" / name).mkdir(parents=True)
    (box.cwd / "in" / "ST-cnts" / "A1.tsv.gz").write_bytes(counts)
    rows = "x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected\n10\t10\t10.0\t10.0\t100\t100\t1\n"
    (box.cwd / "in" / "ST-spotfiles" / "A1_selection.tsv").write_text(rows)
    return prepare("--layout", "st")


@case("fill the memory")
def counts_that_are_a_bomb(box):
    start = gzip.compress(b"\t" + b"\t".join(g.encode() for g in payloads.GENES) + b"\n")
    return her2st(box, start + bomb(b"10x10\t1\t1\t1\t1\t1\t1\t1\t1\n", 2**28))


@case("[SJ-")
def counts_with_nul(box):
    return her2st(box, gzip.compress(b"\tA\0\n10x10\t\0\n" * 3))
