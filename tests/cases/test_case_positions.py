"""D1 to D4: spots without a place, with a wrong one, and beside the image."""

from __future__ import annotations

import dataclasses

import defective
import numpy as np
import pandas as pd
import pytest
from defective import ANNDATA, LAYOUTS, MPP, SCALE
from refusals import command_refuses, python_refuses

import stemjax as sj
from stemjax import cli
from stemjax.data import annotated, records


@pytest.fixture
def prepare(tmp_path):
    """Returns the command that prepares a folder, without an encoder; the image is opened."""
    genes = defective.write_genes(tmp_path / "genes.txt")

    def command(layout, *more):
        data = tmp_path / layout
        return ["prepare", "--layout", layout, "--data", data, "--out", tmp_path / "out",
                "--genes", genes, "--encoder", "none", "--workers", "1", *more]  # fmt: skip

    return command


def run(command):
    assert cli.main([str(word) for word in command]) == 0


def written(tmp_path):
    source = records.open_records(tmp_path / "out")
    return source.slides["S1"], source.load(["S1"])


@pytest.mark.parametrize("layout", ANNDATA)
def test_d01_centres_in_obs_are_found_and_the_cure_is_told(layout, tmp_path, prepare, capsys):
    data = defective.table(defective.make())
    data.obs[["x", "y"]] = data.obsm.pop("spatial")
    data.obsm["X_pca"] = np.zeros((40, 2))
    defective.write(layout, tmp_path / layout, defective.make(), data=data)
    cure = "adata.obsm['spatial'] = adata.obs[['x', 'y']].to_numpy()"
    command_refuses(
        capsys, prepare(layout), "SJ-D01", "D01", "S1.h5ad has no spot coordinates",
        "obsm['spatial']: spot centres", "obsm: X_pca; obs has ['x', 'y']", cure,
    )  # fmt: skip
    data.obsm["spatial"] = data.obs[["x", "y"]].to_numpy()
    defective.write(layout, tmp_path / layout, defective.make(), data=data)
    run(prepare(layout))
    np.testing.assert_allclose(written(tmp_path)[1].pixel_xy, defective.make().pixel_xy, rtol=1e-6)


@pytest.mark.parametrize(
    ("left", "cure"),
    [("X_spatial", "adata.obsm['X_spatial']"), ("X_pca", "xy, a row for each spot")],
)
def test_d01_in_memory(left, cure):
    data = defective.table(defective.make())
    data.obsm[left] = data.obsm.pop("spatial")
    told = ("slide S1 has no spot coordinates", f"obsm: {left}", cure)
    python_refuses(lambda: annotated.from_anndata(data, mpp=MPP), "SJ-D01", "D01", *told)


def test_d01_of_the_truth(tmp_path, capsys):
    data = defective.table(defective.make())
    prediction = data.copy()
    del data.obsm["spatial"]
    data.write_h5ad(tmp_path / "truth.h5ad")
    prediction.write_h5ad(tmp_path / "p.h5ad")
    command = ["evaluate", tmp_path / "p.h5ad", "--truth", tmp_path / "truth.h5ad",
               "-o", tmp_path / "m.json"]  # fmt: skip
    command_refuses(capsys, command, "SJ-E01", "D01", "truth.h5ad has no spot coordinates")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_d02_swapped_x_and_y(layout, tmp_path, prepare, capsys):
    made = defective.make()
    swapped = dataclasses.replace(made, pixel_xy=made.pixel_xy[:, ::-1].copy())
    defective.write(layout, tmp_path / layout, swapped)
    outside = int((made.pixel_xy[:, 1] >= 240).sum())
    command_refuses(
        capsys, prepare(layout), "SJ-D02", "D02",
        f"slide S1: {outside} of 40 spots lie outside the image", "x below 240 and y below 640",
        f"{outside / 40:.0%} of the spots are outside, and if x and y were swapped, only 0 would",
        "swap the columns of the positions",
    )  # fmt: skip


@pytest.mark.parametrize("layout", ANNDATA)
def test_d02_a_third_column_and_a_missing_row(layout, tmp_path, prepare, capsys):
    data = defective.table(defective.make())
    data.obsm["spatial"] = np.pad(data.obsm["spatial"], ((0, 0), (0, 1)))
    defective.write(layout, tmp_path / layout, defective.make(), data=data)
    told = ("expected obsm['spatial'] (40, 2)", "found obsm['spatial'] (40, 3)", "[:, :2]")
    command_refuses(capsys, prepare(layout), "SJ-D01", "D02", "S1.h5ad", *told)
    python_refuses(lambda: annotated.from_anndata(data, mpp=MPP), "SJ-D01", "D02", *told)
    data.obsm["spatial"] = data.obsm["spatial"][:, :2]
    defective.write(layout, tmp_path / layout, defective.make(), data=data)
    run(prepare(layout))


def test_d02_coordinates_that_are_no_numbers(tmp_path, prepare, capsys):
    made = defective.make()
    made.pixel_xy[[7, 9], 1] = np.nan
    for layout in ANNDATA:
        defective.write(layout, tmp_path / layout, made)
        told = ("slide S1: pixel_xy of 2 spots is not finite", "first at spot 3x2", "Leave these")
        barcode = made.barcodes[7]
        told = (told[0], f"first at spot {barcode}", told[2])
        # Without a pitch the array tells no pixel size.
        command_refuses(capsys, prepare(layout, "--mpp", "2"), "SJ-D01", "D02", *told)
    defective.write("st", tmp_path / "st", made)
    run(prepare("st"))
    assert "left out 2 spots with a position that is no number" in capsys.readouterr().out


@pytest.mark.parametrize("layout", LAYOUTS)
def test_d03_a_few_spots_beside_the_image_are_left_out_and_named(layout, tmp_path, prepare, capsys):
    last = float(defective.make().pixel_xy[:, 1].max())
    made = defective.make(size=(240, int(last) - 5))
    defective.write(layout, tmp_path / layout, made)
    run(prepare(layout))
    note = f"left out 1 spot outside the image, of 40: {made.barcodes[-1]}"
    assert capsys.readouterr().out.count(note) == 1
    info, table = written(tmp_path)
    assert note in info.notes
    assert list(table.barcodes) == made.barcodes[:-1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_d03_many_spots_beside_the_image_are_an_error(layout, tmp_path, prepare, capsys):
    made = defective.make(size=(240, 300))
    defective.write(layout, tmp_path / layout, made)
    outside = int((made.pixel_xy[:, 1] >= 300).sum())
    command_refuses(
        capsys, prepare(layout), "SJ-D02", "D03", f"{outside} of 40 spots lie outside the image",
        "x below 240 and y below 300", "of the same slide and of full resolution",
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["visium", "h5ad", "hest"])
def test_d04_positions_in_pixels_of_the_reduced_image(layout, tmp_path, prepare, capsys):
    made = defective.make()
    made.pixel_xy *= SCALE
    defective.write(layout, tmp_path / layout, made)
    where = "tissue_positions.csv" if layout == "visium" else "S1.h5ad"
    told = ["positions seem to be in pixels of the hires image", "full-resolution image", where]
    told += ["positions that span 42 x 148 px of 240 x 640", "are 12 px apart", "Divide"]
    if layout != "hest":  # whose metadata say the width of a spot, and no scale
        told.append("tissue_hires_scalef is 0.25")
    command_refuses(capsys, prepare(layout), "SJ-D01", "D04", *told)
    made.pixel_xy /= SCALE
    defective.write(layout, tmp_path / "cured" / layout, made)
    command = prepare(layout)
    command[command.index("--data") + 1] = tmp_path / "cured" / layout
    run(command)


def test_d04_without_a_witness_it_is_a_note(tmp_path, prepare, capsys):
    made = defective.make()
    made.pixel_xy *= SCALE
    defective.write("st", tmp_path / "st", made)
    command_refuses(
        capsys, prepare("st", "--mpp", MPP), "SJ-D01", "D04", "S1_selection.tsv: positions seem",
        "Divide pixel_x and pixel_y by the scale",
    )  # fmt: skip
    run(prepare("st"))  # the pixel size follows from the positions: nothing contradicts them
    note = "all spots lie in the upper left corner of the image, 42 x 148 px of 240 x 640"
    assert capsys.readouterr().out.count(note) == 1
    assert any(note in one for one in written(tmp_path)[0].notes)


def test_positions_of_a_sound_slide_have_no_note(tmp_path, prepare, capsys):
    for layout in LAYOUTS:
        defective.write(layout, tmp_path / layout, defective.make())
        data = sj.read(tmp_path / layout, layout=layout)
        notes = [n for n in data.uns["stemjax_slide"]["notes"] if "pixel size" not in n]
        assert notes == []
        assert isinstance(data.obs, pd.DataFrame)
