"""A few inputs and what a model made of them when it was written: tells whether it still does.

Hashes show that the weights are those that were written. Whether this machine, this JAX and this
version of the code make the same of them only an example can show. Inputs are drawn, not taken
from anyone's tissue; arithmetic is float32 in full precision on every platform.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stemjax import config, errors
from stemjax.models import attention
from stemjax.train.trained import Trained

ROWS = 3
LEVELS = (0.1, 1.0, 10.0)
"""Noise level of each row in what is asked of the denoiser."""

TOLERANCE = 1e-3
"""Of the root mean square. Platforms differ by about 1e-5 of it, another formula by much more."""

_TREE = "inputs/cond"


def make(trained: Trained) -> dict[str, np.ndarray]:
    """Returns the inputs (``inputs/...``) and what the model makes of them (``outputs/...``)."""
    inputs = _inputs(trained)
    # In C order: safetensors writes the memory of an array as it lies.
    return {k: np.ascontiguousarray(v) for k, v in (inputs | _outputs(trained, inputs)).items()}


def require_same(trained: Trained, stored: dict[str, np.ndarray], where: str) -> None:
    """Checks that the model makes of stored inputs what it made of them when it was written.

    Args:
      trained: the model as it was read.
      stored: what `make` returned.
      where: what is checked, for the message.

    Raises:
      BundleError: it does not, or there are no such inputs.
    """
    inputs = {name: array for name, array in stored.items() if name.startswith("inputs/")}
    wanted = {name: array for name, array in stored.items() if name.startswith("outputs/")}
    ours = {name: array.shape for name, array in _inputs(trained).items()}
    theirs = {name: array.shape for name, array in inputs.items()}
    if ours != theirs:
        raise errors.BundleError(
            f"{where}: the example that it is checked by",
            expected=f"inputs {ours}",
            found=str(theirs),
            fix="export the model again",
        )
    for name, found in _outputs(trained, inputs).items():
        if name not in wanted or wanted[name].shape != found.shape:
            raise errors.BundleError(f"{where}: {name}", expected=f"an array {found.shape}")
        scale = float(np.sqrt(np.mean(np.square(wanted[name], dtype=np.float64)))) or 1.0
        apart = float(np.max(np.abs(found - wanted[name]))) / scale
        if not apart <= TOLERANCE:  # not a number is not within it either
            raise errors.BundleError(
                f"{where} does not compute what it did where it was written ({name})",
                expected=f"the same to {TOLERANCE:g} of its root mean square",
                found=f"{apart:.3g}",
                fix="the code, the libraries or the hardware differ: use the versions that "
                "bundle.json names, and report it",
            )


def _inputs(trained: Trained) -> dict[str, np.ndarray]:
    """Drawn embeddings in the encoder's own units, or windows of encoded spots."""
    card, rng = trained.card, np.random.default_rng(0)
    genes, width = len(card.space.genes), card.contract.width
    window = card.experiment.window
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), ROWS))
    found = {"inputs/keys": np.asarray(keys)}
    if window.kind == "none":
        drawn = rng.standard_normal((ROWS, width))
        embeddings = card.space.condition.mean + card.space.condition.std * drawn
        noisy = rng.standard_normal((ROWS, genes)).astype(np.float32)
        return found | {
            "inputs/embeddings": embeddings.astype(np.float32),
            "inputs/noisy": noisy * np.asarray(LEVELS, np.float32)[:, None],
        }
    length = window.length
    # Spots of a hexagonal array, a tenth of a millimetre apart, of which the first is asked for.
    place = np.stack([np.arange(length) % 8, np.arange(length) // 8], axis=-1)
    asked = np.arange(length) == 0 if window.kind == "neighbours" else np.ones(length, bool)
    spots = {
        "xy": 100.0 * place,
        "place": place,
        "present": np.ones(length),
        "asked": asked,
        "shown": ~asked,
    }
    tree = {name: np.broadcast_to(value, (ROWS, *value.shape)) for name, value in spots.items()}
    tree |= {
        "cond": rng.standard_normal((ROWS, length, width)),
        "x0": rng.standard_normal((ROWS, length, genes)),
        "mask": np.ones((ROWS, length, genes)),
    }
    return found | {
        f"{_TREE}/{name}": np.array(value, np.float32) for name, value in sorted(tree.items())
    }


def _outputs(trained: Trained, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The estimate of the mean in the value space, and of a diffusion model its denoiser."""
    card, genes = trained.card, len(trained.card.space.genes)
    experiment = _in_full_precision(card.experiment, genes)
    task: Any = config.make_task(experiment, genes=genes, condition=card.contract.width)
    estimate, denoise = _programs(task)
    keys = jax.random.wrap_key_data(jnp.asarray(inputs["inputs/keys"]))
    if "inputs/embeddings" in inputs:
        cond: Any = jnp.asarray(card.space.encode_condition(inputs["inputs/embeddings"]))
    else:
        start = len(_TREE) + 1
        cond = {name[start:]: jnp.asarray(a) for name, a in inputs.items() if name != "inputs/keys"}
    with jax.default_matmul_precision("highest"):
        drawn = np.asarray(estimate(trained.params, cond, keys))
        found = {"outputs/mean": np.asarray(card.space.values(drawn.mean(axis=0)), np.float32)}
        if "inputs/noisy" in inputs and experiment.diffusion.process != "consistency":
            noisy, sigma = jnp.asarray(inputs["inputs/noisy"]), jnp.asarray(LEVELS, jnp.float32)
            found["outputs/denoised"] = np.asarray(denoise(trained.params, cond, noisy, sigma))
    return found


# Compiled once for a network, however many bundles of it are opened.
@functools.lru_cache(maxsize=4)
def _programs(task: Any) -> tuple[Any, Any]:
    def estimate(params: Any, cond: Any, keys: jax.Array) -> jax.Array:
        return task.predict(params, cond, keys, sampling=task.estimate)

    def denoise(params: Any, cond: Any, noisy: jax.Array, sigma: jax.Array) -> jax.Array:
        return task.denoiser(params, cond)(noisy, sigma)

    return jax.jit(estimate), jax.jit(denoise)


def _in_full_precision(experiment: config.Experiment, genes: int) -> config.Experiment:
    form = attention.portable(genes)
    model = dataclasses.replace(experiment.model, dtype="float32", attention=form)
    return dataclasses.replace(experiment, model=model)
