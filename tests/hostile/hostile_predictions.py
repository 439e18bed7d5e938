"""Predictions, results and records from strangers, and names that attack whoever opens a file."""

from __future__ import annotations

import functools
import json
import pathlib
import shutil
import tempfile

import anndata
import h5py
import made_prediction
import numpy as np
import payloads
from boxes import Box, case

NAMES = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "=cmd|' /C calc'!A0",
    "../../canary",
    "CON",
    "@SUM(1+1)",
)


def prediction(box: Box, change=None, *, genes=NAMES, slide=None) -> None:
    made: anndata.AnnData = made_prediction.make(genes=genes)
    if slide is not None:
        made.uns["stemjax"]["slide"] = slide
    made.write_h5ad(box.cwd / "p.h5ad")
    if change is not None:
        with h5py.File(box.cwd / "p.h5ad", "r+") as file:
            change(file)


def convert(to: str, out: str = "out") -> list[str]:
    return ["convert", "p.h5ad", "--to", to, "-o", out]


@case(None)
def names_into_geojson(box):
    prediction(box, slide='"><script>')
    return convert("qupath", "out.geojson")


@case(None)
def names_into_csv(box):
    prediction(box)
    return convert("loupe")


@case(None)
def names_into_pictures(box):
    prediction(box)
    return convert("png")


@case(None)
def names_into_bare_pictures(box):
    prediction(box, genes=("../../canary", "/canary", "nul", "NUL", "a" * 300, "-rf"))
    return [*convert("png"), "--bare"]


@case(None)
def names_into_zarr(box):
    prediction(box, slide="../../../canary")
    return convert("ome-zarr")


@case("[SJ-U")
def prediction_with_names_in_another_file(box):
    def change(file):
        del file["obs/_index"]
        stored = [(str(box.secret), 0, 30 * 16)]
        kind = h5py.string_dtype("ascii", 16)
        made = file.create_dataset("obs/_index", (30,), kind, external=stored)
        made.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})

    prediction(box, change)
    return convert("qupath", "out.geojson")


@case("[SJ-U")
def prediction_that_claims_terabytes(box):
    def change(file):
        del file["X"]
        made = file.create_dataset("X", (10**6, 10**6), "f4", chunks=(1000, 1000), compression=1)
        made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})

    prediction(box, change)
    return convert("qupath", "out.geojson")


@case("[SJ-")
def prediction_that_is_a_pickle(box):
    (box.cwd / "p.h5ad").write_bytes(payloads.pickled(box.canary))
    return convert("qupath", "out.geojson")


@case(None)
def report_of_hostile_names(box):
    prediction(box, slide="<img src=x onerror=alert(1)>")
    return ["report", "p.h5ad", "-o", "out.html"]


@case("[SJ-")
def results_nested_deeply(box):
    for name in ("a.json", "b.json"):
        (box.cwd / name).write_text(payloads.nested())
    return ["compare", "a.json", "b.json"]


@case("[SJ-")
def scores_nested_deeply(box):
    (box.cwd / "m.json").write_text(payloads.nested())
    return ["export", "demo", "--format", "bundle", "--metrics", "m.json", "-o", "out"]


@functools.cache
def _records() -> pathlib.Path:
    """Records of one slide that the demo's panel is of, written once."""
    from stemjax.data import genes, records
    from stemjax.export import bundle

    card = bundle.open_model("demo", verify=False).card
    out = pathlib.Path(tempfile.mkdtemp(prefix="stemjax-hostile-"))
    made = payloads.slide(card.space.genes)
    values = np.random.default_rng(0).standard_normal((made.n_spots, 1, card.contract.width))
    panel = genes.Panel(genes=made.genes, rule="made", slides=())
    records.write_slide(out, made, values.astype(np.float32), panel=panel, contract=card.contract)
    return out


def records_of(box: Box) -> pathlib.Path:
    """A copy of them; returns the slide's version folder."""
    shutil.copytree(_records(), box.cwd / "rec")
    return next((box.cwd / "rec").rglob("metadata.json")).parent


def relist(folder: pathlib.Path) -> None:
    from stemjax.data import integrity

    integrity.write_manifest(folder)


def split() -> list[str]:
    return ["split", "--records", "rec", "--by", "slide", "--leave-one-out", "-o", "out.json"]


def predict() -> list[str]:
    return ["predict", "--records", "rec", "--slides", "all", "--checkpoint", "demo", "-o", "out"]


def everywhere(told):
    """The description of features with another class wherever one is named."""
    if not isinstance(told, dict):
        return told
    return {
        k: "evil.Features" if k == "pythonClassName" else everywhere(v) for k, v in told.items()
    }


@case(None)
def records_whose_features_name_a_module(box):
    folder = records_of(box)
    evil = f"open({str(box.canary)!r}, 'w').write('ran')\n"
    (box.cwd / "evil.py").write_text(evil)
    told = json.loads((folder / "features.json").read_text())
    told = everywhere(told)
    (folder / "features.json").write_text(json.dumps(told))
    relist(folder)
    return predict()


@case("[SJ-")
def records_whose_slide_lies_elsewhere(box):
    folder = records_of(box)
    told = json.loads((folder / "metadata.json").read_text())
    told["slide"]["id"] = "../../../canary"
    (folder / "metadata.json").write_text(json.dumps(told))
    relist(folder)
    return split()


@case("[SJ-")
def records_whose_metadata_are_nested_deeply(box):
    folder = records_of(box)
    (folder / "metadata.json").write_text(payloads.nested())
    relist(folder)
    return split()


@case("leads outside")
def records_with_a_link_outside(box):
    folder = records_of(box)
    shard = next(folder.glob("*array_record*"))
    shutil.move(shard, box.root / "shard")
    shard.symlink_to(box.root / "shard")
    return split()


def draws(box: Box) -> None:
    prediction(box)
    store = box.cwd / "p.draws.zarr"
    store.mkdir()
    metadata = {
        "zarr_format": 2, "shape": [30, 2, 6], "chunks": [30, 2, 6], "dtype": "<f4",
        "fill_value": 0, "order": "C", "filters": None,
        "compressor": {"id": "pickle", "protocol": 5},
    }  # fmt: skip
    (store / ".zarray").write_text(json.dumps(metadata))
    (store / "0.0.0").write_bytes(payloads.pickled(box.canary))


@case("[SJ-")
def evaluation_of_pickled_draws(box):
    draws(box)
    with h5py.File(box.cwd / "p.h5ad", "r+") as file:
        file["uns/stemjax/draws"] = "p.draws.zarr"
        made = file["uns/stemjax/draws"]
        made.attrs.update({"encoding-type": "string", "encoding-version": "0.2.0"})
    records_of(box)
    return ["evaluate", "p.h5ad", "--truth", "rec", "-o", "out"]
