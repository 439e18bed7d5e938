"""Moments and quantiles of draws, computed where the draws are.

A million bins with 20 draws of 200 genes are 16 GB; their mean, spread and two quantiles are 3 GB.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stemjax import errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What is kept of a spot's draws: mean, standard deviation, standard error, quantiles.

    Calling it with draws [n b g] gives [3 + q, b, g] in the draws' own space: the mean; the
    standard deviation (ddof 1); the standard error of the mean, over pairs where draws come in
    antithetic pairs, since a pair's two draws are no independent ones; then the quantiles by linear
    interpolation. A scale and a shift of each gene, as the model's standardisation is, commute
    with all of them and may come afterwards.

    Attributes:
      antithetic: draws 2i and 2i + 1 are a pair.
      quantiles: levels between 0 and 1, rising.

    Raises:
      ConfigError: levels that do not rise from 0 to 1.
    """

    antithetic: bool
    quantiles: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        levels = np.asarray(self.quantiles, np.float64)
        if not ((levels >= 0) & (levels <= 1)).all() or (np.diff(levels) <= 0).any():
            raise errors.ConfigError(
                "quantiles of the draws",
                expected="rising numbers from 0 to 1",
                found=", ".join(map(str, self.quantiles)),
            )

    def __call__(self, draws: Float[Array, "n b g"]) -> Float[Array, "k b g"]:
        """Returns mean, standard deviation, standard error and quantiles of the draws."""
        n = draws.shape[0]
        parts = [draws.mean(axis=0), draws.std(axis=0, ddof=min(1, n - 1))]
        each = draws.reshape(n // 2, 2, *draws.shape[1:]).mean(axis=1) if self.antithetic else draws
        # A single one tells nothing of its own error.
        known = each.shape[0] > 1
        error = each.std(axis=0, ddof=1) if known else jnp.full(parts[0].shape, jnp.nan)
        parts.append(error / each.shape[0] ** 0.5)
        if self.quantiles:
            parts.extend(jnp.quantile(draws, jnp.asarray(self.quantiles, draws.dtype), axis=0))
        return jnp.stack(parts)
