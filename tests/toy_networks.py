"""Networks given by a function, for tests whose network has a closed form."""

from __future__ import annotations

import jax.numpy as jnp

from stemjax.models import network


def conditional(apply, init=lambda key: {}):
    """A network of these functions; each condition is simply repeated for its rows."""

    def bind(params, cond, *, repeat=1):
        rows = jnp.repeat(cond, repeat, axis=0)
        return lambda x, level: apply(params, x, level, rows)

    return network.Conditional(init=init, apply=apply, bind=bind)
