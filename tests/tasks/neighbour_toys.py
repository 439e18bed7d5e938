"""A NeighbourTask of closed form: a linear regression, and an exact denoiser of the rest."""

from __future__ import annotations

import functools

import gaussian_toys as exact
import jax
import jax.numpy as jnp
import numpy as np
import window_toys as toys

from stemjax import tasks
from stemjax.diffusion import noise, sampler
from stemjax.models import network

REACHES = (100.0, 300.0)
SUMMARY = 2 * toys.GENES + 2 * 4 + 1
REGRESSION = {
    "v": np.array([[0.4, 0.1, -0.5], [-0.3, 0.6, 0.2]], np.float32),
    "c": np.array([0.9, -0.6, 1.2], np.float32),
}
KEYS = sampler.spot_keys(0, "S", [str(i) for i in range(4)])


def means_by_hand(batch):
    """Gaussian-weighted means of what is shown, [b m g], a spot at a time."""
    found = np.zeros((len(batch["xy"]), len(REACHES), toys.GENES))
    for b, m in np.ndindex(found.shape[:2]):
        total = 0.0
        for at, x, shown in zip(batch["xy"][b], batch["x0"][b], batch["shown"][b]):
            square = np.sum((np.float64(at) - batch["xy"][b, 0]) ** 2)
            weight = shown * np.exp(-square / (2 * REACHES[m] ** 2))
            found[b, m] += weight * x
            total += weight
        found[b, m] /= total or 1.0
    return found


def joined_by_hand(batch):
    """The embedding, and what the condition tells of the neighbours, [b c + s]."""
    rows = []
    for b, means in enumerate(means_by_hand(batch)):
        near = range(1, 5)
        apart = [np.linalg.norm(batch["xy"][b, i] - batch["xy"][b, 0]) / 100 for i in near]
        shown = batch["shown"][b]
        told = [np.log(1 + apart[i - 1]) * shown[i] for i in near]
        share = shown[1:].mean()
        rows.append([*batch["cond"][b, 0], *means.ravel(), *told, *shown[1:5], share])
    return np.array(rows)


def pooled_by_hand(batch):
    """What the toy regression sees of the neighbours, [b g]."""
    shown = np.float64(batch["shown"])
    x = np.where(shown[..., None] > 0, batch["x0"], 0)
    return x.sum(axis=1) / (1 + shown.sum(axis=1, keepdims=True))


def centre_by_hand(batch, params=REGRESSION):
    return batch["cond"][:, 0] @ params["v"] + params["c"] * pooled_by_hand(batch)


def regression_task(**options):
    """A regression linear in the embedding and in a mean of the neighbours."""

    def apply(params, cond, x, seen, shown, present, xy):
        pooled = jnp.sum(x * shown[..., None], axis=1) / (1 + jnp.sum(shown, axis=1)[:, None])
        return cond[:, 0] @ params["v"] + params["c"][None] * pooled

    built = network.Network(init=lambda key: dict(REGRESSION), apply=apply)
    return tasks.HisToSGETask(network=built, features=built, genes=toys.GENES, **options)


def given():
    """Windows with a neighbour that is not shown, one among the nearest four and one beyond."""
    batch = toys.batch()
    batch["shown"][0, 2] = batch["shown"][1, 6] = 0
    return batch


def exact_task(**options):
    """The exact denoiser of x0 = centre + cond w + L n, and its parameters."""
    task = tasks.NeighbourTask(
        regression=regression_task(), edm=exact.edm_task(**options), reaches_um=REACHES
    )
    w = np.random.default_rng(1).normal(0, 0.4, (toys.WIDTH + SUMMARY, toys.GENES))
    w[: toys.WIDTH] = exact.W
    inner = {"w": w.astype(np.float32), "cov": exact.COV}
    return task, {"denoiser": inner, "regression": REGRESSION}


def spied_task(output, hide=0.0, **options):
    spied = exact.Spied(output)
    edm = tasks.StemTask(
        network=spied.network, genes=toys.GENES, noise=noise.LogNormal(mean=0.0, std=1.0), **options
    )
    task = tasks.NeighbourTask(regression=regression_task(), edm=edm, reaches_um=REACHES, hide=hide)
    return task, spied


def predict(task, params, batch, keys=KEYS, **asked):
    sampling = tasks.Sampling(**asked)
    run = jax.jit(functools.partial(task.predict, sampling=sampling))
    return np.asarray(run(params, batch, keys))
