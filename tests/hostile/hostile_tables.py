"""Embeddings made by others: arrays, archives, HDF5 and zarr."""

from __future__ import annotations

import io
import json
import zipfile

import h5py
import numpy as np
import payloads
from boxes import Box, case


def prepare(box: Box, name: str, content: bytes | None = None) -> list[str]:
    """A measured slide S1, and embeddings of it in a folder."""
    (box.cwd / "in").mkdir()
    payloads.spots().write_h5ad(box.cwd / "in" / "S1.h5ad")
    (box.cwd / "genes.txt").write_text("".join(f"{gene}\n" for gene in payloads.GENES))
    folder = box.cwd / "emb"
    folder.mkdir()
    if content is not None:
        (folder / name).write_bytes(content)
    return [
        *("prepare", "--data", "in", "--mpp", "0.5", "--genes", "genes.txt", "--variants", "1"),
        *("--embeddings", "emb", "--encoder", "uni", "--rows-as-slide", "-o", "out"),
    ]


def with_barcodes(box: Box, command: list[str]) -> list[str]:
    """The command, with the names of the rows beside the array."""
    (box.cwd / "emb" / "S1.txt").write_text("".join(f"{name}\n" for name in payloads.BARCODES))
    return command


def argv_of(command: list[str]) -> list[str]:
    return ["--out" if part == "-o" else part for part in command]


def embeddings(box, name, content=None):
    return argv_of(prepare(box, name, content))


@case("objects")
def npy_of_objects(box):
    return with_barcodes(box, embeddings(box, "S1.npy", payloads.object_array(box.canary)))


@case("objects")
def npz_of_objects(box):
    raw = payloads.object_array(box.canary)
    return embeddings(box, "S1.npz", payloads.zipped([("features.npy", raw)]))


@case("[SJ-D05]")
def npz_whose_members_lie_elsewhere(box):
    members = [("../../canary.npy", b"x"), (f"{box.canary}", b"x")]
    return embeddings(box, "S1.npz", payloads.zipped(members))


@case("[SJ-D05]")
def npz_that_is_a_bomb(box):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        out, {"descr": "<f4", "fortran_order": False, "shape": (12, 2**20)}
    )
    raw = out.getvalue() + bytes(12 * 2**22)
    archive = payloads.zipped([("features.npy", raw)], compression=zipfile.ZIP_DEFLATED)
    return embeddings(box, "S1.npz", archive)


@case("[SJ-D05]")
def npy_that_claims_terabytes(box):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        out, {"descr": "<f4", "fortran_order": False, "shape": (12, 10**12)}
    )
    return with_barcodes(box, embeddings(box, "S1.npy", out.getvalue()))


@case("[SJ-D05]")
def npy_whose_header_is_code(box):
    text = f"__import__('pathlib').Path({str(box.canary)!r}).touch()".encode().ljust(117) + b"\n"
    raw = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    return with_barcodes(box, embeddings(box, "S1.npy", raw))


@case("pickle")
def pickle_named_as_an_array(box):
    return embeddings(box, "S1.npy", payloads.pickled(box.canary))


@case("no embedding")
def pickle_under_its_own_name(box):
    return embeddings(box, "S1.pkl", payloads.pickled(box.canary))


@case("code to run")
def stem_folder_of_pickles(box):
    command = embeddings(box, "x")
    folder = box.cwd / "emb" / "1spot_uni_ebd"
    folder.mkdir()
    members = [("a/data.pkl", payloads.pickled(box.canary)), ("a/version", b"3")]
    (folder / "S1_uni.pt").write_bytes(payloads.zipped(members))
    return command


def linked(box, how):
    """An HDF5 of embeddings of which one array lies in the secret."""
    command = embeddings(box, "x")
    with h5py.File(box.cwd / "emb" / "S1.h5", "w") as file:
        file["coords"] = np.zeros((12, 2), np.int64)
        how(file)
    return command


@case("[SJ-U")
def embeddings_in_another_file(box):
    def how(file):
        file["features"] = h5py.ExternalLink(str(box.secret), "/x")

    return linked(box, how)


@case("[SJ-U")
def embeddings_stored_in_another_file(box):
    def how(file):
        where = [(str(box.secret), 0, 12 * 1024 * 4)]
        file.create_dataset("features", (12, 1024), "<f4", external=where)

    return linked(box, how)


@case("[SJ-U")
def embeddings_that_are_virtual(box):
    with h5py.File(box.root / "other.h5", "w") as other:
        other["x"] = np.zeros((12, 1024), np.float32)

    def how(file):
        layout = h5py.VirtualLayout((12, 1024), "<f4")
        layout[:] = h5py.VirtualSource(str(box.root / "other.h5"), "x", (12, 1024))
        file.create_virtual_dataset("features", layout)

    return linked(box, how)


@case("[SJ-D05]")
def embeddings_linked_in_a_circle(box):
    def how(file):
        file["features"] = h5py.SoftLink("/loop")
        file["loop"] = h5py.SoftLink("/features")

    return linked(box, how)


@case("[SJ-U")
def embeddings_that_claim_terabytes(box):
    def how(file):
        file.create_dataset("features", (12, 10**11), "<f4", chunks=(12, 10**8), compression=1)

    return linked(box, how)


def store(box, metadata, content):
    """A LazySlide store whose table's values have any metadata."""
    command = embeddings(box, "x")
    top = box.cwd / "emb" / "S1.zarr"
    table = top / "tables" / "uni_tiles"
    for folder in (table / "obs", table / "uns", table / "X"):
        folder.mkdir(parents=True)
    for folder in (top, top / "tables", table, table / "obs", table / "uns"):
        (folder / ".zgroup").write_text('{"zarr_format": 2}')
    (table / "obs" / "tile_id").mkdir()
    for where in (table / "X", table / "obs" / "tile_id"):
        (where / ".zarray").write_text(json.dumps(metadata))
        for chunk in ("0", "0.0"):
            (where / chunk).write_bytes(content)
    return command


PICKLE = {"id": "pickle", "protocol": 5}


def array(dtype, shape, **more):
    return {
        "zarr_format": 2,
        "shape": shape,
        "chunks": shape,
        "dtype": dtype,
        "fill_value": None,
        "order": "C",
        "filters": None,
        "compressor": None,
    } | more


@case("pickle")
def zarr_of_pickled_objects(box):
    metadata = array("|O", [12], filters=[{"id": "vlen-utf8"}, PICKLE])
    return store(box, metadata, payloads.pickled(box.canary))


@case("pickle")
def zarr_compressed_by_pickle(box):
    metadata = array("<f4", [12, 1024], compressor=PICKLE)
    return store(box, metadata, payloads.pickled(box.canary))


@case("[SJ-D05]")
def zarr_whose_metadata_are_nested_deeply(box):
    command = store(box, array("<f4", [12, 1024]), b"")
    for file in (box.cwd / "emb").rglob(".zarray"):
        file.write_text(payloads.nested())
    return command
