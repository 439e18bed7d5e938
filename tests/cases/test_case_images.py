"""D13, D14, D19, D21 and D23: images, pixel sizes, patients, files cut short, others' warnings."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import defective
import drawn_slides
import numpy as np
import pandas as pd
import pytest
from defective import ANNDATA, LAYOUTS, MPP, PITCH_PX
from PIL import Image
from refusals import command_refuses, python_refuses

import stemjax as sj
from stemjax import cli
from stemjax.data import annotated, records, splits


@pytest.fixture
def prepare(tmp_path):
    """Returns the command that prepares a folder."""
    genes = defective.write_genes(tmp_path / "genes.txt")

    def command(layout, *more, encoder="none"):
        return ["prepare", "--layout", layout, "--data", tmp_path / layout, "--out",
                tmp_path / "out", "--genes", genes, "--encoder", encoder, "--workers", "1",
                *more]  # fmt: skip

    return command


def run(command):
    assert cli.main([str(word) for word in command]) == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_d13_no_image_and_how_to_do_without(layout, tmp_path, prepare, capsys):
    defective.write(layout, tmp_path / layout, defective.make(), image=False)
    place = {"st": "ST-imgs/S/S1", "visium": "outs", "h5ad": "S1.tif", "hest": "wsis/S1.tif"}
    command_refuses(
        capsys, prepare(layout, encoder="texture"), "SJ-D02", "D13", "S1", place[layout],
        "`stemjax prepare --embeddings PATH`", "`stemjax predict --embeddings PATH`",
    )  # fmt: skip
    # Embeddings made where the image is are all that is needed.
    defective.write(layout, tmp_path / "whole" / layout, defective.make())
    run(["encode", tmp_path / "whole" / layout, "--layout", layout, "--workers", "1",
         "-o", tmp_path / "embeddings"])  # fmt: skip
    command = prepare(layout, "--embeddings", tmp_path / "embeddings")
    run(command[: command.index("--encoder")] + command[command.index("--encoder") + 2 :])
    info = records.open_records(tmp_path / "out")
    assert (info.contract.name, info.slides["S1"].n_spots) == ("texture", 40)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_d13_several_images(layout, tmp_path, prepare, capsys):
    if layout == "hest":
        return  # its image has one name
    defective.write(layout, tmp_path / layout, defective.make())
    image = next(path for path in (tmp_path / layout).rglob("*.*g") if path.suffix != ".h5")
    other = {"st": "other.jpg", "visium": "other.tif", "h5ad": "S1.tif"}[layout]
    Image.open(image).save(image.with_name(other))
    told = ("S1: which image", image.name, other)
    command_refuses(capsys, prepare(layout), "SJ-D02", "D13", *told)


@pytest.mark.parametrize("layout", ANNDATA)
def test_d14_an_unknown_pixel_size_and_what_visium_s_would_be(layout, tmp_path, prepare, capsys):
    data = defective.table(defective.make(), factors=False)
    defective.write(layout, tmp_path / layout, defective.make(), data=data)
    if layout == "hest":
        about = {"patient": None, "spot_diameter": 55.0}
        (tmp_path / "hest" / "metadata" / "S1.json").write_text(json.dumps(about))
    error = command_refuses(
        capsys, prepare(layout), "SJ-D03", "D14", "slide S1: the pixel size is unknown",
        f"--mpp {MPP:.3g} if the spots, which are {PITCH_PX:g} px apart, are Visium's",
    )  # fmt: skip
    if layout == "h5ad":  # which does not know the width of a spot either, without scale factors
        data.uns["spatial"] = {"S1": {"scalefactors": {"spot_diameter_fullres": 26.0}}}
        del data.obs["array_row"]
        defective.write(layout, tmp_path / layout, defective.make(), data=data)
    told = re.search(r"--mpp ([0-9.]+)", str(error.fix).partition(";")[2])
    run(prepare(layout, "--mpp", told[1]))
    assert records.open_records(tmp_path / "out").slides["S1"].mpp == pytest.approx(MPP, rel=3e-3)


def test_d14_contradictory_pixel_sizes(tmp_path, prepare, capsys):
    data = defective.table(defective.make())
    data.uns["spatial"]["S1"]["scalefactors"]["microns_per_pixel"] = 0.5
    defective.write("h5ad", tmp_path / "h5ad", defective.make(), data=data)
    told = ("slide S1", "contradictory", "microns_per_pixel 0.5; 2.083 from spots 100 um apart")
    error = command_refuses_d14(capsys, prepare("h5ad"), *told)
    assert "--mpp" in error.fix
    run(prepare("h5ad", "--mpp", MPP))


def command_refuses_d14(capsys, command, *told):
    return command_refuses(capsys, command, "SJ-D03", "D14", *told)


def test_d14_an_image_alone(tmp_path, capsys):
    defective.picture(defective.make()).save(tmp_path / "S1.png")
    command = ["encode", tmp_path / "S1.png", "--workers", "1", "-o", tmp_path / "out"]
    command_refuses_d14(capsys, command, "S1.png does not tell its pixel size", "--mpp")


def test_d14_in_memory():
    data = defective.table(defective.make())
    told = ("slide S1: the pixel size is unknown", "in Python mpp=", f"--mpp {MPP:.3g} if")
    python_refuses(lambda: annotated.from_anndata(data), "SJ-D03", "D14", *told)
    assert annotated.from_anndata(data, mpp=MPP).mpp == MPP


def test_d19_a_patient_on_both_sides(tmp_path, prepare, capsys):
    for seed, (name, patient) in enumerate(
        {"S1": "P3", "S2": "P7", "S3": "P3", "S4": "P7", "S5": "P9"}.items()
    ):
        made = defective.make(seed, id=name, patient=patient)
        defective.write("hest", tmp_path / "hest", made, image=False)
    run(prepare("hest"))
    command = ["train", "--config", "histosge", "--workdir", tmp_path / "run",
               f"--config.data.records={tmp_path / 'out'}", "--config.data.test=S1,S2",
               "--config.data.leakage=refuse"]  # fmt: skip
    told = (
        "P3, P7 on both",
        "patient P3: test S1, train S3",
        "patient P7: test S2, train S4",
        "`stemjax split",
    )
    error = command_refuses(capsys, command, "SJ-D07", "D19", *told)
    assert "P9" not in str(error)
    assert not (tmp_path / "run" / "checkpoints").exists()
    patients = {"S1": "P3", "S3": "P3", "S5": "P9"}
    python_refuses(
        lambda: splits.require_apart(splits.make_split(patients, test=["S1"])), "SJ-D07", "D19"
    )
    splits.require_apart(splits.make_split(patients, test=["S5"]))


@pytest.mark.parametrize("layout", ["visium", "h5ad", "hest"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_d21_files_cut_short_are_named_with_their_bytes(layout, share, tmp_path, prepare, capsys):
    defective.write(layout, tmp_path / layout, defective.make())
    path = next(p for p in (tmp_path / layout).rglob("*") if p.suffix in (".h5", ".h5ad"))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    told = (
        path.name,
        "incomplete",
        f"{int(share * len(whole)):,} of {len(whole):,} bytes",
        "again",
    )
    command = [str(word) for word in prepare(layout)]
    assert cli.main(command) == 1
    said = capsys.readouterr().err
    assert "error [SJ-D01" in said
    for text in told:
        assert text in said
    path.write_bytes(whole)
    run(command)


def test_d21_a_prediction_and_a_truth(tmp_path, capsys):
    data = defective.table(defective.make())
    data.write_h5ad(tmp_path / "whole.h5ad")
    whole = (tmp_path / "whole.h5ad").read_bytes()
    (tmp_path / "cut.h5ad").write_bytes(whole[: len(whole) // 2])
    for files in (("cut", "whole"), ("whole", "cut")):
        prediction, truth = (str(tmp_path / f"{name}.h5ad") for name in files)
        command = ["evaluate", prediction, "--truth", truth, "-o", str(tmp_path / "m.json")]
        assert cli.main(command) == 1
        said = capsys.readouterr().err
        assert "error [SJ-E01" in said
        assert re.search(r"cut\.h5ad\b.* incomplete", said)
        assert f"{len(whole) // 2:,} of {len(whole):,} bytes" in said


# Of anndata 0.13 at every AnnData; Python shows no such warning of a library's to a user.
KNOWN = "ignore:The 'future.infer_string' option is deprecated"


def child(*words, strict=True):
    """Runs a command, by default with every warning an error; returns its output."""
    strictly = ["-W", "error", "-W", KNOWN] if strict else []
    done = subprocess.run(
        [sys.executable, *strictly, "-m", "stemjax.cli", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stdout + done.stderr
    return done.stdout


def test_d23_categories_and_strings_of_any_kind_bring_no_warning(tmp_path, prepare):
    made = defective.make()
    made.counts[2] = 0
    data = defective.table(made)
    data.obs["annotation"] = pd.Categorical(np.where(np.arange(40) % 2, "a", "b"))
    data.obs["region"] = pd.array(["x"] * 40, dtype="string")
    data.obs["in_tissue"] = pd.Categorical([1] * 40)
    data.var["gene_ids"] = pd.Categorical(made.ids)
    data.var["feature_types"] = pd.Categorical(["Gene Expression"] * 6)
    defective.write("h5ad", tmp_path / "h5ad", made, data=data)
    said = child(*prepare("h5ad"))
    child(*prepare("h5ad", "--slides", "S1"), strict=False)
    assert "label: annotation, 40 spots" in said
    assert "1 of 40 spots have no count of any gene" in said
    read = sj.read_h5ad(tmp_path / "h5ad")
    assert list(read.obs["annotation"]) == list(data.obs["annotation"])


def test_d23_predict_and_evaluate_bring_no_warning(tmp_path):
    folder = drawn_slides.write_hest(tmp_path / "hest", drawn_slides.draw("mine"))
    child("predict", folder, "--checkpoint", "demo", "--workers", "1", "-o", tmp_path / "p.h5ad")
    child("evaluate", tmp_path / "p.h5ad", "--truth", folder / "st" / "mine.h5ad",
          "--resamples", "10", "-o", tmp_path / "m.json")  # fmt: skip
    assert json.loads((tmp_path / "m.json").read_text())["rows"]
