"""The commands with a published encoder: weights from a file, to embeddings, records and maps."""

from __future__ import annotations

import dataclasses

import anndata
import drawn_slides as drawn
import numpy as np
import pytest
import small_encoders as small
from numpy.testing import assert_allclose, assert_array_equal

import stemjax as sj
from stemjax import cli
from stemjax.data import records
from stemjax.encoders import registry

TINY = """
from stemjax import config
def get_config():
    c = config.default_config()
    c.model.width, c.model.depth, c.model.heads = 16, 1, 2
    c.train.steps, c.train.batch, c.train.log_every, c.train.save_every = 4, 8, 4, 4
    c.data.train, c.data.test = "mine", "other"
    c.data.allow_seen_panel = True
    return c
"""


@pytest.fixture(scope="module")
def small_uni():
    """UNI as the registry has it, in small: 24 px, two blocks, 24 features."""
    entry = registry.resolve("uni")
    made = dataclasses.replace(
        entry, spec=small.spec("uni", "cls"), input_px=small.SIDE, widths={"cls": 24}
    )
    usual = registry.resolve
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "resolve", lambda n: made if usual(n) is entry else usual(n))
        yield made


@pytest.fixture(scope="module")
def place(tmp_path_factory, small_uni):
    """Two drawn slides, two files of weights; embeddings, records and a run by the first."""
    path = tmp_path_factory.mktemp("encoders")
    for name, seed in (("mine", 900), ("other", 901)):
        drawn.write_hest(path / "hest", drawn.draw(name, seed=seed, n_spots=10))
    state = small.state("uni")
    small.save(state, path / "uni.safetensors")
    small.save({k: v * np.float32(1.01) for k, v in state.items()}, path / "other.safetensors")
    (path / "tiny.py").write_text(TINY)
    encoder = ["--encoder", "MahmoodLab/UNI", "--encoder-weights", str(path / "uni.safetensors")]
    data = str(path / "hest")
    work = ["--workers", "2", "--encoder-batch", "4"]
    assert cli.main(["encode", data, *encoder, *work, "-o", str(path / "features")]) == 0
    command = ["prepare", "--data", data, *encoder, *work, "--n-genes", "6"]
    assert cli.main([*command, "--out", str(path / "records")]) == 0
    train = ["train", "--config", str(path / "tiny.py"), "--workdir", str(path / "run")]
    assert cli.main([*train, f"--config.data.records={path / 'records'}"]) == 0
    return path


def test_records_by_an_encoder_and_by_its_files_are_the_same(place, tmp_path):
    genes = str(place / "records" / "genes.txt")
    command = ["prepare", "--data", str(place / "hest"), "--genes", genes, "--out", str(tmp_path)]
    assert cli.main([*command, "--embeddings", str(place / "features")]) == 0
    one, two = records.open_records(place / "records"), records.open_records(tmp_path)
    assert one.contract == two.contract
    assert (one.contract.name, one.contract.fov_um, one.contract.width) == ("uni", 128.0, 24)
    assert one.contract.revision not in ("unknown", "")
    assert (one.variants, two.variants) == (8, 1)
    ours, theirs = one.load(["mine"]).embeddings[:, 0], two.load(["mine"]).embeddings[:, 0]
    assert_allclose(ours, theirs, atol=2e-3)  # one program of eight variants, one of one
    assert np.unique(ours, axis=0).shape[0] == 10  # every spot has its own
    assert "uni/uni.safetensors" in one.slides["mine"].sources


def predict(place, *more):
    out = place / "made.h5ad"
    command = ["predict", str(place / "hest"), "--slide", "other", "--checkpoint"]
    return cli.main([*command, str(place / "run"), "--workers", "1", "-o", str(out), *more]), out


def test_a_slide_is_predicted_by_the_model_s_encoder(place, capsys):
    status, out = predict(place, "--encoder-weights", str(place / "uni.safetensors"))
    assert status == 0
    command = ["predict", "--records", str(place / "records"), "--slide", "other", "--checkpoint"]
    usual = place / "usual.h5ad"
    assert cli.main([*command, str(place / "run"), "-o", str(usual)]) == 0
    assert_allclose(anndata.read_h5ad(out).X, anndata.read_h5ad(usual).X, atol=2e-2)
    capsys.readouterr()
    status, _ = predict(place)
    assert status == 1
    told = capsys.readouterr().err
    assert "--encoder-weights" in told
    assert "MahmoodLab/UNI" in told


def test_other_weights_are_another_encoder_unless_vouched_for(place, capsys):
    other = ("--encoder-weights", str(place / "other.safetensors"))
    status, _ = predict(place, *other)
    assert status == 1
    assert "'revision'" in capsys.readouterr().err
    status, out = predict(place, *other, "--same-encoder")
    assert status == 0
    assert np.isfinite(anndata.read_h5ad(out).X).all()
    # Only tool and revision may differ.
    status, _ = predict(place, *other, "--same-encoder", "--fov-um", "300")
    assert status == 1
    assert "'fov_um'" in capsys.readouterr().err
    status, _ = predict(place, "--encoder", "texture", "--same-encoder")
    assert status == 1
    assert "'name'" in capsys.readouterr().err


def test_points_between_spots(place):
    out = place / "dense.h5ad"
    command = ["densify", "--checkpoint", str(place / "run"), "--slide", "mine", "--workers", "1"]
    command += ["--records", str(place / "records"), "--data", str(place / "hest")]
    weights = ["--encoder-weights", str(place / "uni.safetensors")]
    assert cli.main([*command, *weights, "-o", str(out)]) == 0
    dense = anndata.read_h5ad(out)
    assert dense.n_obs > 20
    assert np.isfinite(dense.X).all()


def test_python_does_the_same(place):
    data = sj.read_hest(place / "hest", "mine")
    sj.pp.encode(data, "uni_v1", weights=place / "uni.safetensors", batch=4, workers=1)
    source = records.open_records(place / "records")
    stored = source.load(["mine"])
    assert tuple(data.obs_names) == stored.barcodes
    assert_allclose(data.obsm["X_uni"], stored.embeddings[:, 0], atol=2e-3)
    sj.tl.predict(data, place / "run")
    known = np.isfinite(data.layers["stemjax"]).all(axis=0)
    assert list(data.var_names[known]) == sorted(source.genes, key=list(data.var_names).index)
    other = sj.read_hest(place / "hest", "mine")
    other.obsm["X_theirs"] = np.asarray(data.obsm["X_uni"])
    sj.pp.declare(other, "X_theirs", "uni", fov_um=128, source="stemjax",
                  revision=source.contract.revision)  # fmt: skip
    sj.tl.predict(other, place / "run")
    assert_array_equal(other.layers["stemjax"], data.layers["stemjax"])
