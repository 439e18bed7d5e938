"""The seam to Flax: a module built once becomes two functions over a plain dict of arrays.

    build(rngs) -> nnx.Module  --make_network-->  Network(init(key) -> params, apply(params, ...))

The rest of the package never sees a module, a `nnx.State` or a Flax variable, so that checkpoints,
sharding rules and exports deal with paths such as ``blocks/attn/qkv/kernel`` and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import Array, Key, PyTree

from stemjax import errors
from stemjax.typing import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A network as two pure functions.

    Attributes:
      init: random key -> parameters, a nested dict of float32 arrays. Works under `jax.jit` and
        `jax.eval_shape`.
      apply: (params, *inputs) -> output. Pure: it takes no key and keeps no state.
        Raises `CheckpointMismatchError` when the parameters are those of another network.
    """

    init: Callable[[Key[Array, ""]], Params]
    apply: Callable[..., jax.Array]


def make_network(build: Callable[[nnx.Rngs], nnx.Module]) -> Network:
    """The functions of the module that ``build`` makes.

    Args:
      build: makes the module from random streams; called here once, on shapes only, and again by
        each `Network.init`. All of the module's state must be `nnx.Param`.

    Returns:
      The network. Nothing is allocated before `Network.init` is called.
    """
    # The graph definition (structure without arrays) is the same for every key, so it is taken
    # here, from shapes, and every later call works on arrays alone.
    graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))), nnx.Param)
    wanted = _shapes(nnx.to_pure_dict(state))

    def init(key: Key[Array, ""]) -> Params:
        _, state = nnx.split(build(nnx.Rngs(key)), nnx.Param)
        return nnx.to_pure_dict(state)

    def apply(params: Params, *inputs: Array) -> jax.Array:
        _require_same(wanted, _shapes(params))
        module = nnx.merge(graph, nnx.State(params))
        return module(*inputs)  # pyright: ignore[reportCallIssue]  # nnx.Module declares no call

    return Network(init=init, apply=apply)


def _shapes(params: PyTree) -> dict[str, tuple[int, ...]]:
    """Parameter path -> shape."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def _require_same(wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    """Nothing, or an error that names the first parameter that does not fit."""
    for path in sorted(wanted.keys() | found.keys()):
        if wanted.get(path) != found.get(path):
            raise errors.CheckpointMismatchError(
                f"parameter {path} does not fit the network",
                expected=f"shape {wanted[path]}" if path in wanted else "no such parameter",
                found=f"shape {found[path]}" if path in found else "no such parameter",
                fix="Build the network from the configuration that the parameters came with",
            )
