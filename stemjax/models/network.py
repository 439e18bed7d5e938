"""The seam to Flax: a module built once becomes functions over a plain dict of arrays.

    build(rngs) -> nnx.Module  --make_network-->  Network(init(key) -> params, apply(params, ...))
                               --make_conditional-->  Conditional: the same, and bind(params, cond)

The rest of the package never sees a module, a `nnx.State` or a Flax variable, so that checkpoints,
sharding rules and exports deal with paths such as ``blocks/attn/qkv/kernel`` and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
from flax import nnx
from jaxtyping import Array, Float, Key, PyTree

from stemjax import errors
from stemjax.models import placing
from stemjax.typing import Params

type Bound = Callable[[Float[Array, "b g"], Float[Array, " b"]], Array]
"""(noisy profiles, noise level) -> output; weights and condition are bound."""


class Bind(Protocol):
    """Binds weights and conditions; see `Conditional`."""

    def __call__(self, params: Params, cond: Float[Array, "l c"], *, repeat: int = 1) -> Bound:
        """Returns the network of these conditions, each for ``repeat`` rows in a row."""
        ...


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditional(Network):
    """A network of a noisy profile, its noise level and a condition.

    ``apply(params, x [b g], noise_level [b], cond [b c])`` is what training calls.

    Attributes:
      bind: (params, cond [l c], repeat n=1) -> ``bound(x [b g], noise_level [b])``, with b = l n
        rows: each condition serves n rows in a row, which share their noise level. What depends on
        the condition alone is computed here, once a spot, and not again at each step and draw.
      row_bytes: size of the largest array that one row makes on its way; 0 where it is unknown.
    """

    bind: Bind
    row_bytes: int = 0


def make_network(build: Callable[[nnx.Rngs], nnx.Module], *, method: str = "__call__") -> Network:
    """The functions of the module that ``build`` makes.

    Args:
      build: makes the module from random streams; called here once, on shapes only, and again by
        each `Network.init`. All of the module's state must be `nnx.Param`.
      method: which of the module's methods `Network.apply` calls.

    Returns:
      The network. Nothing is allocated before `Network.init` is called.
    """
    graph, wanted = _abstract(build)

    def init(key: Key[Array, ""]) -> Params:
        _, state = nnx.split(build(nnx.Rngs(key)), nnx.Param)
        return nnx.to_pure_dict(state)

    def apply(params: Params, *inputs: Array) -> jax.Array:
        _require_same(wanted, _shapes(params))
        return getattr(nnx.merge(graph, nnx.State(_at_hand(params))), method)(*inputs)

    return Network(init=init, apply=apply)


def make_conditional(build: Callable[[nnx.Rngs], nnx.Module], *, row_bytes: int = 0) -> Conditional:
    """The functions of the module that ``build`` makes, as `make_network`.

    Args:
      build: makes a module with ``embed(cond [l c]) -> [l d]`` and ``denoise(x [b g],
        noise_level [b], embedded [l d])``.
      row_bytes: size of the largest array that one row makes on its way.
    """
    graph, wanted = _abstract(build)
    plain = make_network(build)

    def bind(params: Params, cond: Array, *, repeat: int = 1) -> Bound:
        _require_same(wanted, _shapes(params))
        module: Any = nnx.merge(graph, nnx.State(_at_hand(params)))
        embedded = module.embed(cond)

        def bound(x: Array, noise_level: Array) -> jax.Array:
            if x.shape[0] != repeat * cond.shape[0]:
                raise ValueError(
                    f"{x.shape[0]} rows for {cond.shape[0]} conditions of {repeat} rows each"
                )
            return module.denoise(x, noise_level, embedded)

        return bound

    def apply(params: Params, x: Array, noise_level: Array, cond: Array) -> jax.Array:
        return bind(params, cond)(x, noise_level)

    return Conditional(init=plain.init, apply=apply, bind=bind, row_bytes=row_bytes)


def _abstract(
    build: Callable[[nnx.Rngs], nnx.Module],
) -> tuple[nnx.GraphDef, dict[str, tuple[int, ...]]]:
    """The graph definition of a module, and its parameters' shapes; nothing is allocated."""
    # The graph definition (structure without arrays) is the same for every key, so it is taken
    # here, from shapes, and every later call works on arrays alone.
    graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))), nnx.Param)
    return graph, _shapes(nnx.to_pure_dict(state))


def _at_hand(params: Params) -> Params:
    """The parameters, those outside the loop over blocks gathered from where they are split."""
    return {
        name: part if name == "blocks" else placing.gathered(part) for name, part in params.items()
    }


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
