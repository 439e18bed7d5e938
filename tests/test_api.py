"""Python for scanpy's users: AnnData in, AnnData annotated, the same numbers as the commands."""

from __future__ import annotations

import json
import subprocess
import sys

import anndata
import drawn_slides as drawn
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal

import stemjax as sj
from stemjax import cli, errors
from stemjax.data import annotated, records


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of two drawn slides in HEST's layout."""
    path = tmp_path_factory.mktemp("hest")
    drawn.write_hest(path, drawn.draw("mine"))
    return drawn.write_hest(path, drawn.draw("other", seed=901))


@pytest.fixture(scope="module")
def read(folder):
    return sj.read_hest(folder, "mine")


@pytest.fixture
def adata(read):
    return read.copy()


@pytest.fixture(scope="module")
def encoded(read):
    data = read.copy()
    sj.pp.encode(data, workers=1)
    return data


def test_a_slide_is_read(adata):
    slide = drawn.draw("mine")
    assert_array_equal(adata.X.toarray(), slide.counts.toarray())
    assert tuple(adata.obs_names) == slide.barcodes
    assert_array_equal(adata.obsm["spatial"], slide.pixel_xy)
    factors = adata.uns["spatial"]["mine"]["scalefactors"]
    assert factors["microns_per_pixel"] == slide.mpp
    picture = adata.uns["spatial"]["mine"]["images"]["hires"]
    assert picture.dtype == np.uint8
    scale = factors["tissue_hires_scalef"]
    assert max(picture.shape) == round(scale * max(slide.image.width, slide.image.height))


def test_a_slide_survives_anndata_and_a_file(adata, tmp_path):
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = annotated.from_anndata(anndata.read_h5ad(tmp_path / "a.h5ad"))
    slide = drawn.draw("mine")
    assert (back.id, back.genes, back.barcodes) == (slide.id, slide.genes, slide.barcodes)
    assert (back.mpp, back.spot_diameter_um) == (slide.mpp, slide.spot_diameter_um)
    assert_array_equal(back.array_xy, slide.array_xy)
    assert_array_equal(back.counts.toarray(), slide.counts.toarray())
    image = annotated.image_of(adata)
    assert_array_equal(image.read(50, 60, 40, 30), slide.image.read(50, 60, 40, 30))


def test_several_slides_need_a_name(folder):
    with pytest.raises(errors.ConfigError, match="mine, other"):
        sj.read(folder)


def test_spots_that_were_filtered_keep_their_patches(adata, encoded):
    """Rows are joined by barcode: the image is read again, not the rows."""
    some = adata[::-3].copy()
    sj.pp.encode(some, workers=1)
    order = [list(encoded.obs_names).index(name) for name in some.obs_names]
    assert_array_equal(some.obsm["X_texture"], encoded.obsm["X_texture"][order])


def test_encode_annotates(adata, encoded):
    copied = sj.pp.encode(adata, key_added="X_mine", variants=2, workers=1, copy=True)
    assert "X_mine" not in adata.obsm
    assert_array_equal(copied.obsm["X_mine"], encoded.obsm["X_texture"])
    assert copied.obsm["X_mine_variants"].shape == (24, 2, 236)
    assert json.loads(copied.uns["stemjax_encoders"]["X_mine"])["name"] == "texture"


def test_prediction_is_that_of_the_command(encoded, folder, tmp_path):
    data = encoded.copy()
    sj.tl.predict(data, "demo", seed=3)
    command = ["predict", str(folder), "--slide", "mine", "--checkpoint", "demo"]
    assert (
        cli.main([*command, "--seed", "3", "--workers", "1", "-o", str(tmp_path / "p.h5ad")]) == 0
    )
    told = anndata.read_h5ad(tmp_path / "p.h5ad")
    assert_array_equal(data[:, told.var_names].layers["stemjax"], told.X)
    assert data.uns["stemjax"]["value_space"] == told.uns["stemjax"]["value_space"]
    assert (data.X != encoded.X).nnz == 0  # measured counts are never touched
    with pytest.raises(errors.PredictionError, match="X are counts"):
        sj.report(data, folder / "st" / "mine.h5ad", tmp_path / "r.html")
    alone = sj.tl.predict(encoded.copy(), "demo", seed=3, inplace=False)
    assert_array_equal(alone.X, told.X)


def test_a_model_finds_its_encoder_or_says_what_it_needs(adata, encoded):
    fresh = adata.copy()
    sj.tl.predict(fresh, "demo")  # embeds with the built-in encoder
    data = encoded.copy()
    sj.tl.predict(data, "demo")
    assert_array_equal(fresh.layers["stemjax"], data.layers["stemjax"])
    other = adata.copy()
    sj.pp.encode(other, "none")
    with pytest.raises(errors.EncoderMismatchError, match="'name'"):
        sj.tl.predict(other, "demo", embedding="X_none")


def test_an_image_alone(folder, tmp_path):
    path = drawn.write_image(tmp_path / "alone.tif", drawn.draw("mine"))
    data = sj.read_image(path, pitch_um=200)
    assert data.n_vars == 0
    assert data.n_obs > 5
    with pytest.raises(errors.ConfigError, match="inplace=False"):
        sj.tl.predict(data, "demo")
    found = sj.tl.predict(data, "demo", inplace=False)
    assert found.shape == (data.n_obs, 48)
    assert not found.obs["stemjax_measured"].any()


@pytest.fixture(scope="module")
def source(encoded, folder, tmp_path_factory):
    other = sj.read_hest(folder, "other")
    sj.pp.encode(other, variants=8, workers=1)
    return sj.pp.prepare([encoded, other], tmp_path_factory.mktemp("records"), n_genes=6)


def test_records_of_objects(source, encoded):
    assert isinstance(source, records.Records)
    assert set(source.slides) == {"mine", "other"}
    assert source.variants == 1  # one of them has no more
    table = source.load(["mine"])
    assert_array_equal(table.embeddings[:, 0], encoded.obsm["X_texture"])
    assert_array_equal(table.counts, encoded[:, list(source.genes)].X.toarray())


def test_training_predicting_and_a_report(source, encoded, tmp_path):
    small = {
        "model.width": 16, "model.depth": 1, "model.heads": 2, "train.steps": 4,
        "train.batch": 8, "train.save_every": 4, "train.log_every": 4,
        "data.allow_seen_panel": True,
    }  # fmt: skip
    model = sj.tl.train(source, tmp_path / "run", test=["mine"], overrides=small)
    assert model.step == 4
    assert model.card.split["test"] == ["mine"]
    result = sj.tl.predict(encoded, model, inplace=False)
    page = sj.report(result, source, tmp_path / "report.html", resamples=20)
    assert "mine" in page.read_text()
    with pytest.raises(errors.ConfigError, match=r"train\.stepz"):
        sj.tl.train(source, tmp_path / "other", overrides={"train.stepz": 1})


def test_recovery(encoded, tmp_path):
    data = encoded.copy()
    config = {"train.steps": 5, "train.save_every": 5, "window.length": 9, "window.members": 1}
    from stemjax import config as configs
    from stemjax import configfile

    values = configfile.load("histosge", ())
    values.update_from_flattened_dict(config)
    found = sj.tl.recover(data, tmp_path, config=configs.resolve(values), n_genes=5)
    hidden = ~data.obs["stemjax_measured"].to_numpy(bool)
    assert 8 <= hidden.sum() <= 16
    assert found["slides"][0]["spots"] == hidden.sum()
    assert np.isfinite(data.layers["stemjax"]).all(axis=0).sum() == 5


def test_densify_and_domains(encoded):
    dense = sj.tl.densify(encoded.copy(), "demo", factor=4)
    assert dense.obs["stemjax_measured"].sum() == 24
    assert dense.n_obs > 48
    data = encoded.copy()
    sj.tl.predict(data, "demo")
    sj.tl.domains(data, k=3)
    assert isinstance(data.obs["stemjax_domain"].dtype, pd.CategoricalDtype)
    assert data.obs["stemjax_domain"].nunique() == 3
    alone = sj.tl.predict(encoded.copy(), "demo", inplace=False)
    sj.tl.domains(alone, k=3)
    same = pd.crosstab(alone.obs["stemjax_domain"], data.obs["stemjax_domain"].to_numpy())
    assert ((same > 0).sum() == 1).all()  # the same parts, of the layer and of the prediction's X


def test_figures(encoded, tmp_path):
    data = encoded.copy()
    with pytest.raises(errors.GenePanelError, match="predict first"):
        sj.pl.gene(data, "SYNM01")
    sj.tl.predict(data, "demo", mode="draws", n_draws=2, steps=2)
    figure = sj.pl.gene(data, "SYNM01", save=tmp_path / "gene.png")
    titles = [axis.get_title() for axis in figure.axes]
    assert len([title for title in titles if title]) == 3  # measured, predicted, spread
    assert (tmp_path / "gene.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(errors.GenePanelError, match="Did you mean SYNM"):
        sj.pl.gene(data, "SYNM0l")
    sj.tl.domains(data, k=2)
    sj.pl.domains(data, save=tmp_path / "domains.png")
    with pytest.raises(errors.PredictionError, match="annotation"):
        sj.pl.domains(data, "annotation")


def test_quiet_unless_asked(encoded, capsys):
    data = encoded.copy()
    sj.tl.predict(data, "demo")
    assert capsys.readouterr() == ("", "")
    sj.tl.predict(data, "demo", progress=True)
    assert "predict" in capsys.readouterr().err


def test_the_package_is_light_until_a_part_is_used():
    code = (
        "import sys, stemjax\n"
        "heavy = ('jax', 'numpy', 'anndata', 'flax')\n"
        "print([m for m in heavy if m in sys.modules], 'tl' in dir(stemjax))\n"
        "stemjax.tl, stemjax.pp, stemjax.pl, stemjax.read_visium\n"
        "print([m for m in ('jax', 'flax', 'anndata') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[] True", "[]"]
    with pytest.raises(AttributeError, match="read_tea_leaves"):
        sj.read_tea_leaves  # noqa: B018
