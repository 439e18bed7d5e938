"""A model that nobody trained, jobs for it, and comparisons of what they write."""

from __future__ import annotations

import pathlib

import anndata
import jax
import numpy as np
import pandas as pd

from stemjax import tasks
from stemjax.eval import calibrate, cohort, predict
from stemjax.train import checkpoint
from stemjax.train import material as material_lib

MEAN = tasks.Sampling(mode="mean")
DRAWS = tasks.Sampling(mode="draws", n_draws=4, steps=2)
SLIDES = ("T1", "T2", "V1", "X1")
BLOCK = 16  # of 60 spots: three units of 16 and one of 12


def make_trained(toy_records, toy_experiment) -> checkpoint.Trained:
    """Weights away from the initial ones, without the cost of training; calibrated for MEAN."""
    card = material_lib.gather(toy_experiment, toy_records).card
    params = card.task.init(jax.random.key(1))
    keys = iter(jax.random.split(jax.random.key(2), 100))
    moved = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape), params)
    made = checkpoint.Trained(params=moved, card=card, step=7, weights="last")
    return made.with_calibrations([calibrate.calibrate(made, toy_records, MEAN, seed=5)])


def job(trained, source, sampling=MEAN, **options) -> cohort.Job:
    """What is asked of every slide, with seed 3."""
    return cohort.Job(trained=trained, source=source, sampling=sampling, seed=3, **options)


def arrays(made: anndata.AnnData) -> dict[str, np.ndarray]:
    """Every array of a prediction with a row a spot, but for ``obs``."""
    found = {"X": np.asarray(made.X)}
    found |= {f"layers/{name}": np.asarray(layer) for name, layer in made.layers.items()}
    found |= {f"obsm/{name}": np.asarray(made.obsm[name]) for name in made.obsm}
    return found


def require_same(one: anndata.AnnData, two: anndata.AnnData, **near) -> None:
    """Passes if two predictions have the same slots and values, or near ones."""
    mine, theirs = arrays(one), arrays(two)
    assert list(mine) == list(theirs)
    for name, values in mine.items():
        assert values.dtype == theirs[name].dtype, name
        if near:
            np.testing.assert_allclose(values, theirs[name], err_msg=name, **near)
        else:
            np.testing.assert_array_equal(values, theirs[name], err_msg=name)
    for left, right in ((one.obs, two.obs), (one.var, two.var)):
        assert isinstance(left, pd.DataFrame)
        assert isinstance(right, pd.DataFrame)
        pd.testing.assert_frame_equal(left, right)


def read(out: pathlib.Path, slide: str) -> anndata.AnnData:
    """The prediction of a slide in a folder of them."""
    return anndata.read_h5ad(out / f"{slide}.h5ad")


def stopping_after(monkeypatch, calls: int) -> list[int]:
    """Lets that many units be predicted, then stops the run as Ctrl-C does; returns the starts."""
    begun, made = [], predict.predict_rows

    def predict_rows(trained, source, table, *args, **options):
        if len(begun) == calls:
            raise KeyboardInterrupt
        begun.append(table.barcodes[0])
        return made(trained, source, table, *args, **options)

    monkeypatch.setattr(predict, "predict_rows", predict_rows)
    return begun
