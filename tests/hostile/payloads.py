"""What would run if it were unpickled, and bits of files that several cases share."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
import warnings
import zipfile
import zlib

import anndata
import numpy as np
import pandas as pd
import scipy.sparse


class Touch:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return exec, (f"import pathlib; pathlib.Path({self.path!r}).write_text('ran')",)


def pickled(path, protocol=2):
    """A pickle that writes a file."""
    return pickle.dumps(Touch(path), protocol)


def zipped(members, *, compression=zipfile.ZIP_STORED):
    """An archive of (name, bytes); a name may occur twice."""
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", compression) as archive:
        warnings.simplefilter("ignore", UserWarning)  # of names that occur twice
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return out.getvalue()


def object_array(path):
    """An .npy of one object, which is a pickle."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        out, {"descr": "|O", "fortran_order": False, "shape": (1,)}
    )
    return out.getvalue() + pickle.dumps(np.array([Touch(path)], object), 2)


def safetensors(header, data=b""):
    """A file of safetensors with any header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def chunk(kind, data):
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, rows, *, depth=8, colour=0, extra=()):
    """A PNG with any header; ``rows`` is compressed as it is."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", head), *extra, chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(tags, *, data=b"", following=0):
    """A classic TIFF of one page: {tag: (type, value or bytes)}; ``data`` begins at byte 8."""
    size = {1: 1, 2: 1, 3: 2, 4: 4, 7: 1}
    at = 8 + len(data)
    tail, entries = b"", b""
    body = at + 2 + 12 * len(tags) + 4
    for tag, (kind, value) in sorted(tags.items()):
        raw = value
        if not isinstance(value, bytes):
            values = value if isinstance(value, tuple) else (value,)
            raw = b"".join(struct.pack("<H" if kind == 3 else "<I", one) for one in values)
        count = len(raw) // size[kind]
        if len(raw) > 4:
            place, tail = struct.pack("<I", body + len(tail)), tail + raw
        else:
            place = raw.ljust(4, b"\0")
        entries += struct.pack("<HHI", tag, kind, count) + place
    last = at if following == "itself" else following
    head = b"II*\0" + struct.pack("<I", at) + data
    return head + struct.pack("<H", len(tags)) + entries + struct.pack("<I", last) + tail


def page(width, height, **more):
    """The tags of an 8-bit RGB page of one tile or strip."""
    return {
        256: (4, width),
        257: (4, height),
        258: (3, (8, 8, 8)),
        259: (3, 1),
        262: (3, 2),
        277: (3, 3),
        284: (3, 1),
    } | {int(tag): value for tag, value in more.get("tags", {}).items()}


def nested(depth=100_000):
    """JSON of lists within lists."""
    return "[" * depth + "]" * depth


def relist(folder):
    """Writes a list of hashes that fits, as whoever made the folder would."""
    listed = {
        file.name: {
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in sorted(folder.iterdir())
        if file.is_file() and file.name != "SHA256SUMS.json"
    }
    (folder / "SHA256SUMS.json").write_text(json.dumps(listed))


GENES = tuple(f"GENE{i}" for i in range(8))


BARCODES = tuple(f"BARCODE{i:09d}" for i in range(12))


def spots(*, genes=GENES, barcodes=None):
    """A measured slide without an image: 12 spots, 8 genes."""
    rng, n = np.random.default_rng(0), len(BARCODES)
    made = anndata.AnnData(
        X=rng.poisson(4, (n, len(genes))).astype(np.float32),
        obs=pd.DataFrame(index=list(barcodes or BARCODES)),
        var=pd.DataFrame(index=list(genes)),
    )
    x, y = np.divmod(np.arange(n), 4)
    made.obsm["spatial"] = np.stack([100.0 + 200 * x, 100.0 + 200 * y], axis=1)
    made.uns["spatial"] = {"S1": {"scalefactors": {"spot_diameter_fullres": 110.0}, "images": {}}}
    return made


def slide(genes):
    """The same as a slide in memory."""
    from stemjax.data import slides

    made = spots(genes=genes)
    return slides.Slide(
        id="T1",
        patient=None,
        counts=scipy.sparse.csr_array(made.X.astype(np.int32)),
        genes=tuple(genes),
        barcodes=BARCODES,
        array_xy=made.obsm["spatial"] / 200,
        pixel_xy=made.obsm["spatial"],
        image=None,
        mpp=0.5,
        spot_diameter_um=55.0,
        sources={},
    )
