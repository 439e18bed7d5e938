"""What tasks of windows share: inputs, what training hides of them, errors over measured genes."""

from __future__ import annotations

from typing import NotRequired, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from stemjax import errors
from stemjax.tasks.sampling import Sampling


class Inputs(TypedDict):
    """Windows of l spots, as `stemjax.typing.Batch` describes them; `x0` is read where shown."""

    cond: Float[Array, "b l c"]
    x0: Float[Array, "b l g"]
    mask: NotRequired[Float[Array, "b l g"]]
    xy: Float[Array, "b l 2"]
    place: Float[Array, "b l 2"]
    present: Float[Array, "b l"]
    asked: Float[Array, "b l"]
    shown: Float[Array, "b l"]


def hide_some(shown: Float[Array, "b l"], key: Key[Array, ""], most: float) -> Float[Array, "b l"]:
    """Returns the spots that training shows: of each window up to a share ``most`` is hidden.

    The share differs from window to window, evenly from 0 to ``most``, so that one model has seen
    sparse and dense surroundings.
    """
    if not most:
        return shown
    key_share, key_spot = jax.random.split(key)
    share = most * jax.random.uniform(key_share, (shown.shape[0], 1), jnp.float32)
    return shown * (jax.random.uniform(key_spot, shown.shape, jnp.float32) >= share)


def seen(x: Float[Array, "b l g"], shown: Float[Array, "b l"]) -> Float[Array, "b l g"]:
    """Returns expression where it is shown and 0 elsewhere, whatever stands there."""
    return jnp.where(shown[..., None] > 0, x, 0.0)


def disturb(x: Float[Array, "b l k"], key: Key[Array, ""], amount: float) -> Float[Array, "b l k"]:
    """Returns ``x`` with Gaussian noise of standard deviation ``amount``."""
    return x + amount * jax.random.normal(key, x.shape, jnp.float32) if amount else x


def require_mean(sampling: Sampling) -> None:
    """Checks that a model without a spread is asked for its mean.

    Raises:
      ConfigError: it is asked for draws.
    """
    if sampling.mode != "mean":
        raise errors.ConfigError(
            f"mode {sampling.mode}",
            expected="mean: HisToSGE predicts a mean and has no spread",
            fix="use --mode mean, or train Stem with neighbours (configs/stem_neighbours.py)",
        )
