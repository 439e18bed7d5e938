"""Windows for tests of tasks: positions of a lattice, arrays at random, some spots absent."""

from __future__ import annotations

import numpy as np

from stemjax import tasks
from stemjax.models import histosge

GENES, WIDTH = 3, 2


def batch(windows=4, tokens=8, seed=5, genes=GENES, width=WIDTH, every_asked=False):
    """Windows as a training step is handed them; the last one lacks its last two spots.

    The first spot of a window is asked for, or with ``every_asked`` all of them.
    """
    rng = np.random.default_rng(seed)
    present = np.ones((windows, tokens), np.float32)
    present[-1, -2:] = 0
    asked = np.zeros_like(present)
    asked[:, 0] = 1
    if every_asked:
        asked = present.copy()
    there = present[..., None]
    shape = (windows, tokens)
    return {
        "cond": there * rng.standard_normal((*shape, width)).astype(np.float32),
        "x0": there * rng.standard_normal((*shape, genes)).astype(np.float32),
        "mask": there * np.ones((*shape, genes), np.float32),
        "xy": there * rng.integers(0, 60, (*shape, 2)).astype(np.float32) * 10,
        "place": there * rng.integers(0, 30, (*shape, 2)).astype(np.float32),
        "present": present,
        "asked": asked,
        "shown": present * (1 - asked),
    }


def histosge_task(published, width=8):
    """A HisToSGETask of a small network of either form."""
    shape = histosge.HisToSGEConfig(
        genes=GENES, condition=WIDTH, width=width, depth=1, heads=2, components=3
    )
    make = histosge.make_published if published else histosge.make_corrected
    net, features = make(shape)
    form = "published" if published else "corrected"
    return tasks.HisToSGETask(network=net, features=features, genes=GENES, form=form)
