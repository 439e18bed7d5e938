"""Predictions of hidden spots of small slides: exact where measured, off by noise elsewhere."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
from made_slides import predicted, truth

from stemjax.eval import evaluate, recovered

FAST = ("MLP", "embedding kNN", "kriging", "component kriging")
"""Rows that most tests need not wait for."""

FLOORS = ["constant mean", "nearest measured mean", "kriging", "component kriging"]
HIDDEN = np.random.default_rng(5).permutation(108) < 40
"""Which spots of a slide of `made_slides` are hidden."""


def flagged(source, slide="A2", *, noise=0.5, hidden=HIDDEN, **about):
    """A prediction that is exact at measured spots, and off by noise at hidden ones."""
    true = truth(source, slide)
    off = np.random.default_rng(1).normal(0, noise, true.shape)
    made = predicted(source, slide, np.where(hidden[:, None], true + off, true), train=[slide])
    made.obs[recovered.MEASURED] = ~hidden
    made.uns["stemjax"] |= about
    return made


def evaluated(prediction, source, **options):
    options = {"resamples": 5, "leave_out": FAST} | options
    return evaluate.evaluate(prediction, source, **options)


def dense(source, made, spots=30):
    """The prediction with points between the spots, which nobody measured, rows shuffled."""
    between = anndata.AnnData(
        X=np.full((spots, made.n_vars), 99.0, np.float32),
        obs=pd.DataFrame(index=[f"{i}.5x{i}" for i in range(spots)]),
        var=made.var,
    )
    between.obs[recovered.MEASURED] = False
    first = made.copy()
    if recovered.MEASURED not in first.obs:
        first.obs[recovered.MEASURED] = True
    joined = anndata.concat([between, first])
    joined = joined[np.random.default_rng(8).permutation(joined.n_obs)].copy()
    joined.uns["stemjax"] = dict(made.uns["stemjax"])
    return joined
