"""A small MLP with a mean and quantiles: the non-linear rival, and the quantile baseline.

JAX and Flax are imported with this module, which `fit` does only when the row is asked for.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float32, Int
from scipy import special

from stemjax.data import transforms
from stemjax.eval.baselines import linear
from stemjax.eval.baselines.spread import QUANTILE_LEVELS
from stemjax.models import mlp

_CENTRE = QUANTILE_LEVELS.index(0.5)
_NORMAL = special.ndtri(np.array(QUANTILE_LEVELS))
_HELD_SHARE = 0.2  # the fold held out is the one whose share of the rows is nearest to this


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How the MLP is trained. The same for every data set: nothing here is tuned on a test slide.

    Attributes:
      width, depth: of `mlp.MlpConfig`.
      batch: rows of a batch, drawn with replacement.
      round: updates between two looks at the held-out loss.
      rounds: rounds at most.
      patience: rounds without a better held-out loss before it stops.
      learning_rate, weight_decay: of AdamW (Loshchilov and Hutter, ICLR 2019, arXiv 1711.05101).
      noise: standard deviation of the noise added to the standardised embeddings of a batch.
    """

    width: int = 256
    depth: int = 2
    batch: int = 128
    round: int = 25
    rounds: int = 40
    patience: int = 5
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    noise: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Perceptron:
    """The MLP's prediction, its quantiles, and when its training stopped.

    Attributes:
      prediction: mean, value space, [l g]; NaN for a gene that no training row measured.
      quantiles: at `spread.QUANTILE_LEVELS`, never falling along the first axis, [q l g] float32.
      rounds: rounds trained: those after which the held-out loss was least; 0 is the constant mean.
      held_out_loss: that loss (see `perceptron`); NaN when there was nothing to hold out.
    """

    prediction: Float[np.ndarray, "l g"]
    quantiles: Float32[np.ndarray, "q l g"]
    rounds: int
    held_out_loss: float


def perceptron(
    x: Float[np.ndarray, "n c"],
    y: Float[np.ndarray, "n g"],
    mask: np.ndarray,
    test_x: Float[np.ndarray, "l c"],
    *,
    fold: Int[np.ndarray, " n"],
    seed: int = 0,
    training: Training | None = None,
) -> Perceptron:
    """An MLP from embeddings to each gene's mean and quantiles, stopped early.

    Inputs and targets are standardised over the training rows. One network has both heads; its loss
    is the squared error of the mean plus twice the pinball loss averaged over the quantile levels
    (Koenker and Bassett 1978, Econometrica 46), which tends to the CRPS with many levels. Quantiles
    do not cross by construction: the median, and positive steps from it (softplus) on either side.

    One fold (the one with about a fifth of the rows) is held out to find after how many rounds its
    loss is least; then a fresh network is trained on all rows for as many. Both are the same
    compiled program. Equal for equal arguments and seed on one kind of device.

    Args:
      x: embeddings of the training spots.
      y: their values.
      mask: not 0 where measured, [n g]; other entries take no part.
      test_x: embeddings of the test spots.
      fold: fold of each training row (`linear.ridge_folds`). With a single fold there is nothing to
        stop by, and the constant mean comes back.
      seed: of the weights, the batches and their noise.
      training: how it is trained.
    """
    training = training or Training()
    measured = np.asarray(mask) != 0
    space = transforms.Standardisation.fit(np.where(measured, y, 0.0), measured)
    z, test_z = linear.standardised(np.asarray(x, np.float64), np.asarray(test_x, np.float64))
    target = np.where(measured, space.apply(y), 0.0)
    data = tuple(np.asarray(v, np.float32) for v in (z, target, measured))
    config = mlp.MlpConfig(
        genes=y.shape[1],
        condition=x.shape[1],
        outputs=1 + len(QUANTILE_LEVELS),
        width=training.width,
        depth=training.depth,
    )
    train, predict = _programs(config, training)
    key, rounds, loss = jax.random.key(seed), 0, float("nan")
    if (held := _held_out(fold)) is not None:
        found = train(key, *data, *_rows(~held), held.astype(np.float32), training.rounds, False)
        rounds, loss = int(found[1]), float(found[2])
    # Every row, no held-out loss to stop by: the parameters of the last of `rounds` rounds.
    everything = np.ones(len(x), bool)
    nothing = np.zeros(len(x), np.float32)
    params = train(key, *data, *_rows(everything), nothing, rounds, True)[0]
    mean, quantiles = (np.asarray(v) for v in predict(params, test_z.astype(np.float32)))
    unmeasured = ~measured.any(axis=0)
    mean, quantiles = space.invert(mean).astype(np.float64), space.invert(quantiles)
    mean[:, unmeasured], quantiles[:, :, unmeasured] = np.nan, np.nan
    return Perceptron(prediction=mean, quantiles=quantiles, rounds=rounds, held_out_loss=loss)


def _held_out(fold: np.ndarray) -> np.ndarray | None:
    """Which rows are held out, [n]; None where there is one fold alone."""
    folds = list(linear.held_out_folds(fold))
    return min(folds, key=lambda out: abs(out.mean() - _HELD_SHARE)) if folds else None


def _rows(use: np.ndarray) -> tuple[np.ndarray, np.int32]:
    """The rows to draw from, first in an array as long as all, and how many they are.

    With the number an argument and the array's length fixed, both trainings are one program.
    """
    rows = np.flatnonzero(use)
    return np.resize(rows, len(use)).astype(np.int32), np.int32(len(rows))


def _heads(
    out: Float[Array, "b o g"],
) -> tuple[Float[Array, "b g"], Float[Array, "q b g"]]:
    """Mean and quantiles of the network's output; an output of 0 is the standard normal law."""
    mean, raw = out[:, 0], jnp.moveaxis(out[:, 1:], 1, 0)
    # softplus(step + its inverse at 0) is the normal law's step where the output is 0.
    steps = jnp.asarray(np.log(np.expm1(np.diff(_NORMAL))), jnp.float32)
    offsets = jnp.concatenate([steps[:_CENTRE], jnp.zeros(1), steps[_CENTRE:]])
    raw = raw + offsets[:, None, None]
    median = raw[_CENTRE : _CENTRE + 1]
    up = jnp.cumsum(jax.nn.softplus(raw[_CENTRE + 1 :]), axis=0)
    down = jnp.cumsum(jax.nn.softplus(raw[:_CENTRE][::-1]), axis=0)[::-1]
    return mean, jnp.concatenate([median - down, median, median + up])


def _loss(
    out: Float[Array, "b o g"], y: Float[Array, "b g"], weight: Float[Array, "b g"]
) -> jax.Array:
    """Squared error of the mean plus twice the mean pinball loss, over the entries weighted."""
    mean, quantiles = _heads(out)
    levels = jnp.asarray(QUANTILE_LEVELS, jnp.float32)[:, None, None]
    error = y[None] - quantiles
    pinball = jnp.maximum(levels * error, (levels - 1.0) * error).mean(axis=0)
    each = jnp.square(mean - y) + 2.0 * pinball
    return jnp.sum(weight * each) / jnp.maximum(weight.sum(), 1.0)


@functools.cache
def _programs(
    config: mlp.MlpConfig, training: Training
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The compiled training and prediction; kept, so that one shape compiles once a process."""
    network = mlp.make_mlp(config)
    optimizer = optax.adamw(training.learning_rate, weight_decay=training.weight_decay)

    def train(
        key: jax.Array,
        x: jax.Array,
        y: jax.Array,
        mask: jax.Array,
        rows: jax.Array,
        n_rows: jax.Array,
        held: jax.Array,
        limit: jax.Array,
        last: jax.Array,
    ) -> tuple[Any, jax.Array, jax.Array]:
        """(parameters, rounds, held-out loss): of the best round, or of the last if ``last``."""
        start, steps = jax.random.split(key)

        def update(carry: tuple[Any, Any], step: jax.Array) -> tuple[tuple[Any, Any], None]:
            params, state = carry
            which, noise = jax.random.split(jax.random.fold_in(steps, step))
            batch = rows[jax.random.randint(which, (training.batch,), 0, n_rows)]
            shaken = x[batch] + training.noise * jax.random.normal(
                noise, (training.batch, x.shape[1])
            )
            grads = jax.grad(lambda p: _loss(network.apply(p, shaken), y[batch], mask[batch]))(
                params
            )
            changes, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, changes), state), None

        def judge(params: Any) -> jax.Array:
            return _loss(network.apply(params, x), y, mask * held[:, None])

        def go_on(carry: tuple[Any, ...]) -> jax.Array:
            _, done, (_, best_round, _) = carry
            return (done < limit) & (last | (done - best_round < training.patience))

        def one_round(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            trained, done, best = carry
            updates = done * training.round + jnp.arange(training.round)
            trained, _ = jax.lax.scan(update, trained, updates)
            here = (trained[0], done + 1, judge(trained[0]))
            better = last | (here[2] < best[2])
            best = jax.tree.map(lambda new, old: jnp.where(better, new, old), here, best)
            return trained, done + 1, best

        params = network.init(start)
        first = (params, jnp.int32(0), judge(params))
        carry = ((params, optimizer.init(params)), jnp.int32(0), first)
        return jax.lax.while_loop(go_on, one_round, carry)[2]

    def predict(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _heads(network.apply(params, x))

    return jax.jit(train), jax.jit(predict)
