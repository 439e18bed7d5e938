"""A small multilayer perceptron from a patch embedding to all genes: the baseline network."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from stemjax.models import layers, network


@dataclasses.dataclass(frozen=True, kw_only=True)
class MlpConfig:
    """Shape of the network.

    Attributes:
      genes: genes of the panel.
      condition: width of the embedding.
      outputs: numbers for each gene.
      width: units of each hidden layer.
      depth: hidden layers.
    """

    genes: int
    condition: int
    outputs: int = 1
    width: int = 256
    depth: int = 2


def make_mlp(config: MlpConfig) -> network.Network:
    """The network as ``apply(params, cond [b c]) -> [b outputs genes]``, float32.

    The output is exactly zero for fresh parameters: on standardised targets that is each gene's
    mean, so training starts from the constant baseline, and a gene that no batch measured stays
    there.
    """
    return network.make_network(lambda rngs: GeneMlp(config, rngs=rngs))


class GeneMlp(nnx.Module):
    """Hidden layers with GELU, then one Linear to all genes' outputs, zero at first."""

    def __init__(self, config: MlpConfig, *, rngs: nnx.Rngs) -> None:
        widths = [config.condition, *[config.width] * config.depth]
        self.hidden = nnx.List(
            nnx.Linear(inside, out, kernel_init=layers.XAVIER, rngs=rngs)
            for inside, out in zip(widths[:-1], widths[1:], strict=True)
        )
        self.head = nnx.Linear(
            widths[-1], config.outputs * config.genes, kernel_init=layers.ZEROS, rngs=rngs
        )
        self.shape = (config.outputs, config.genes)

    def __call__(self, cond: Float[Array, "b c"]) -> Float[Array, "b o g"]:
        """The outputs of every gene."""
        x = cond
        for layer in self.hidden:
            x = layers.gelu(layer(x))
        return jnp.reshape(self.head(x), (-1, *self.shape))
