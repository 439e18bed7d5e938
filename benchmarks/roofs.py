"""What the device of a run can do: its matrix product and its memory, beside the rows of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import harness
import jax
import jax.numpy as jnp
import machine
import numpy as np


def matmul_rate(dtype: str = "float32", size: int | None = None, *, repeats: int = 10) -> float:
    """Returns the device's matrix product rate in FLOP/s: the roof of the same run.

    Args:
      dtype: of both factors; "float32" at JAX's own precision, which the result names.
      size: of the square matrices; None is 2048 on a CPU and 8192 elsewhere.
      repeats: timed calls.
    """
    size = size or (2048 if jax.default_backend() == "cpu" else 8192)
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    timing = harness.measure(lambda x: x @ x, lambda i: (a,), repeats=repeats)
    return 2 * size**3 / timing.median


def copy_rate(megabytes: int | None = None, *, repeats: int = 10) -> float:
    """Returns byte/s, read and written, of adding 1 to a large array in place: the memory's roof.

    Args:
      megabytes: size of the array; None is 256 on a CPU and 2048 elsewhere.
      repeats: timed calls.
    """
    megabytes = megabytes or (256 if jax.default_backend() == "cpu" else 2048)

    def arguments(i: int) -> tuple[jax.Array]:
        return (jnp.full(megabytes * 2**18, float(i)),)

    # In place: a new output would also be the operating system's clearing of new pages.
    timing = harness.measure(jax.jit(lambda x: x + 1, donate_argnums=0), arguments, repeats=repeats)
    return 2 * megabytes * 2**20 / timing.median


def roof(*, repeats: int = 10) -> dict[str, Any]:
    """Returns the rates of this process's device, and what its maker says, under their names.

    Rates are those of `matmul_rate` and `copy_rate`.
    """
    known = machine.rating()
    return {
        "matmul_flop_per_s": {
            dtype: matmul_rate(dtype, repeats=repeats) for dtype in ("float32", "bfloat16")
        },
        "copy_byte_per_s": copy_rate(repeats=repeats),
        "rating": None if known is None else dataclasses.asdict(known),
    }


@dataclasses.dataclass(kw_only=True)
class Roofs:
    """The roof beside each row of a run: on a shared machine it rises and sinks by half.

    Attributes:
      repeats: timed calls of each rate.
      beside: the roof of each row so far.
    """

    repeats: int = 10
    beside: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def around(self) -> Callable[[], dict[str, Any]]:
        """Measures the roof; what it returns does so again, and returns the mean of both."""
        before = roof(repeats=self.repeats)

        def after() -> dict[str, Any]:
            self.beside.append(_mean_roof([before, roof(repeats=self.repeats)]))
            return self.beside[-1]

        return after

    @property
    def mean(self) -> dict[str, Any]:
        """The roof of the run: the mean of those beside its rows."""
        return _mean_roof(self.beside or [roof(repeats=self.repeats)])


def _mean_roof(each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    rates = [one["matmul_flop_per_s"] for one in each]
    return each[0] | {
        "matmul_flop_per_s": {
            dtype: float(np.mean([rate[dtype] for rate in rates])) for dtype in rates[0]
        },
        "copy_byte_per_s": float(np.mean([one["copy_byte_per_s"] for one in each])),
    }
