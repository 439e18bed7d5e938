"""One process of several, as tests start it to be killed, frozen, or to outlive another."""

from __future__ import annotations

import json
import os
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from stemjax import distributed, errors, peers


def step(number: float) -> float:
    """One step of a loop: work on this process, then a sum over all."""
    return float(distributed.gather(np.full(8, number)).sum())


def compile_long(seconds: float) -> None:
    """Compiles larger and larger programs until one took so long."""
    layers = 8
    while True:

        def deep(x: jax.Array, layers: int = layers) -> jax.Array:
            for layer in range(layers):
                x = jnp.tanh(x @ x.T + layer) + jnp.sort(x, axis=0)
            return x

        began = time.monotonic()
        jax.jit(deep).lower(jnp.ones((16, 16))).compile()
        if time.monotonic() - began > seconds:
            return
        layers *= 2


def work(where: str, index: int, ready: pathlib.Path) -> None:
    """Does what the test asks, and says when it has begun."""
    victim = os.environ.get("VICTIM") == str(index)
    distributed.wait("all here")
    ready.touch()
    if where == "loop":
        for number in range(100_000):
            step(number)
    elif where == "gather":  # the victim is elsewhere, the others wait for it
        if victim:
            time.sleep(600)
        distributed.wait("the victim")
    elif where == "compile":
        compile_long(600)
    elif where == "data":
        time.sleep(600)
    elif where == "slow end":
        # Longer than the limit: one compiles, one waits, and none is dead.
        if index == 1:
            compile_long(float(os.environ["LONG"]))
        distributed.wait("done")
        time.sleep(3.0 * index)
    elif where == "nap":
        time.sleep(float(os.environ["LONG"]))
        distributed.wait("done")
    elif where == "error":
        if victim:
            raise errors.RecordsError("shard 3", expected="12 records", found="11")
        distributed.wait("the victim")
    elif where == "crash":
        if victim:
            raise KeyError("a bug")
        distributed.wait("the victim")
    else:
        raise AssertionError(where)


def main() -> int:
    """Runs ``work`` as the command does: a typed error in words, and what is asked of `peers`."""
    told = json.loads(sys.argv[1])
    distributed.start(
        coordinator=told["coordinator"], process_count=told["processes"],
        process_index=told["index"], limit_s=told["limit_s"],
    )  # fmt: skip
    peers.saved(6)
    code, said = 0, ""
    try:
        work(told["where"], told["index"], pathlib.Path(told["ready"]))
    except Exception as error:
        found = error if isinstance(error, errors.StemjaxError) else peers.explain(error)
        if found is None:
            raise
        print(found, file=sys.stderr)  # noqa: T201
        code = peers.RESTART if isinstance(found, errors.PeerLostError) else 1
        said = f"[{found.code}] {found}"
    if not os.environ.get("UNASKED"):  # as a program that knows nothing of `peers`
        peers.end(code, said)
    return code


if __name__ == "__main__":
    sys.exit(main())
