"""The model that comes with the package: whole, small, offline."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import stemjax
from stemjax import demo, errors, tasks
from stemjax.data import integrity
from stemjax.diffusion import sampler
from stemjax.export import bundle

FOLDER = pathlib.Path(stemjax.__file__).parent / "pretrained" / "demo"


@pytest.fixture(scope="module")
def model():
    return stemjax.load("demo")


def test_it_is_the_demo_s_model(model):
    assert not integrity.damage(FOLDER)
    assert model.card.space.genes == demo.LAW.genes
    assert model.card.split["test"] == [demo.TEST]
    assert model.card.contract.name == "texture"
    # It comes with every installation.
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 1.2e6
    scores = {row["name"]: row["scores"] for row in model.scores["rows"]}
    rows = ("known law: mean", "prediction: draws(20)", "ridge")
    law, best, floor = (scores[name]["mse"]["value"] for name in rows)
    assert law < best < floor


def test_it_predicts(model):
    rng = np.random.default_rng(0)
    fitted = model.card.space
    given = fitted.condition.mean + fitted.condition.std * rng.standard_normal((7, 236))
    keys = sampler.spot_keys(0, "mine", [str(i) for i in range(7)])
    run = tasks.make_predictor(model.card.task, model.card.task.sampling(mode="mean"))
    found = fitted.values(run(model.params, fitted.encode_condition(given), keys))[0]
    assert found.shape == (7, 48)
    assert np.isfinite(found).all()
    assert found.std(axis=0).min() > 0.01  # it looks at what it is given


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    bundle.write(model, tmp_path / "demo")
    values = json.loads((tmp_path / "demo" / "bundle.json").read_text())
    (tmp_path / "demo" / "bundle.json").write_text(json.dumps(values | {"step": 7}))
    integrity.write_manifest(tmp_path / "demo")
    assert stemjax.load("demo").step == 7
    assert model.step != 7


def test_a_name_that_there_is_none_of_says_so():
    with pytest.raises(errors.CheckpointError, match="no checkpoint in another"):
        stemjax.load("another")


def test_the_package_is_light_until_it_is_asked():
    script = "import sys, stemjax; print(sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert not {"'jax'", "'numpy'", "'flax'"} & set(done.stdout.strip("[]\n").split(", "))
