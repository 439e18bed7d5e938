"""Stem's denoiser: a diffusion transformer whose tokens are the genes of a panel.

A gene's token is its learned name vector plus an embedding of its noisy expression; the noise level
and the spot's image embedding condition every block through adaLN-Zero; genes have no order, so
there is no positional embedding (Zhu et al., ICLR 2025, arXiv 2501.15598, sec. 3).

    x [b g], name [g d] -> tokens [b g d] -> blocks (scan over layers) -> head -> [b g] or [b 2 g]
    noise level [b], cond [b c] -> c [b d] --^                            ^
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from stemjax import errors
from stemjax.models import layers, network

NOISE_FEATURES = 256
"""Width of the sinusoid of the noise level; fixed by the published checkpoints."""

EMBEDDING_STD = 0.02
"""Standard deviation of the first weights of the noise-level and condition embeddings."""

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StemConfig:
    """The shape of a Stem denoiser.

    The published one: genes=200, width=384, depth=12, heads=6, condition=1536, channels=2.

    Attributes:
      genes: size of the gene panel, the number of tokens.
      width: width of a token.
      depth: number of blocks.
      heads: attention heads; they share the width evenly.
      mlp_ratio: width of a block's MLP, in token widths.
      condition: width of a spot's image embedding.
      channels: 1 for one output a gene, 2 for the published (eps, variance interpolation).
      dtype: what the blocks' matrix products are rounded to, "float32" or "bfloat16". Embeddings,
        LayerNorm, softmax, residual stream, head and output are float32 in either.
      remat: compute each block again in the backward pass instead of keeping what it computed.
      attention: form of the attention, ``auto``, ``xla``, ``cudnn`` or ``flash``
        (`stemjax.models.attention`).

    Raises:
      ConfigError: a value that cannot work, by name.
    """

    genes: int
    width: int
    depth: int
    heads: int
    mlp_ratio: int = 4
    condition: int
    channels: int = 1
    dtype: str = "float32"
    remat: bool = False
    attention: str = "auto"

    def __post_init__(self) -> None:
        for name in ("genes", "width", "depth", "heads", "mlp_ratio", "condition"):
            value = getattr(self, name)
            if value < 1:
                raise errors.ConfigError(f"model.{name}", expected="at least 1", found=str(value))
        if self.width % self.heads:
            raise errors.ConfigError(
                "model.width",
                expected=f"a multiple of model.heads = {self.heads}",
                found=str(self.width),
                fix=f"Take width {self.heads * math.ceil(self.width / self.heads)} or other heads",
            )
        if self.channels not in (1, 2):
            raise errors.ConfigError(
                "model.channels",
                expected="1 (one output a gene) or 2 (eps and variance, as published)",
                found=str(self.channels),
            )
        if self.dtype not in DTYPES:
            raise errors.ConfigError(
                "model.dtype", expected=" or ".join(DTYPES), found=repr(self.dtype)
            )


def make_stem(config: StemConfig) -> network.Conditional:
    """The denoiser as ``apply(params, x [b g], noise_level [b], cond [b c])``, or bound.

    The output is [b g] for one channel, [b 2 g] for two (0: eps, 1: variance interpolation), always
    float32 and exactly zero for fresh parameters. ``noise_level`` is what the sinusoid takes
    unscaled: Stem's integer step 0..999, or EDM's c_noise on a like scale.
    """
    hidden = config.genes * config.mlp_ratio * config.width
    return network.make_conditional(
        lambda rngs: Stem(config, rngs=rngs),
        row_bytes=4 * hidden,  # GELU is float32 whatever the products are
    )


class GeneTokens(nnx.Module):
    """name[g] + Linear(SiLU(Linear(x[g]))): what a gene is, plus how much of it there is."""

    def __init__(self, genes: int, width: int, *, rngs: nnx.Rngs) -> None:
        # Kaiming-uniform with a = sqrt(5) over a (g, d) table: sqrt(6 / ((1 + 5) d)).
        bound = width**-0.5
        self.name = nnx.Param(
            jax.random.uniform(rngs.params(), (genes, width), minval=-bound, maxval=bound)
        )
        self.value = layers.Mlp((1, width, width), jax.nn.silu, rngs=rngs)

    def __call__(self, x_bg: Float[Array, "b g"]) -> Float[Array, "b g d"]:
        """The tokens."""
        return self.name[...][None] + self.value(x_bg[..., None])


class Head(nnx.Module):
    """Modulated LayerNorm and a Linear to the output channels, zero at first."""

    def __init__(self, width: int, channels: int, *, rngs: nnx.Rngs) -> None:
        self.modulation = layers.Modulation(width, 2, rngs=rngs, dtype=jnp.float32)
        self.linear = nnx.Linear(width, channels, kernel_init=layers.ZEROS, rngs=rngs)

    def __call__(
        self, x_bgd: Float[Array, "b g d"], c_ld: Float[Array, "l d"]
    ) -> Float[Array, "b g o"]:
        """The output, channels last; b / l rows in a row share a condition."""
        shift, scale = (layers.share(vector, x_bgd) for vector in self.modulation(c_ld))
        return self.linear(layers.modulated(x_bgd, shift, scale))


class Stem(nnx.Module):
    """The denoiser as a Flax module; other rooms use `make_stem`."""

    def __init__(self, config: StemConfig, *, rngs: nnx.Rngs) -> None:
        width = config.width
        normal = nnx.initializers.normal(EMBEDDING_STD)
        self.remat = config.remat
        self.tokens = GeneTokens(config.genes, width, rngs=rngs)
        self.noise = layers.Mlp(
            (NOISE_FEATURES, width, width), jax.nn.silu, rngs=rngs, kernel_init=normal
        )
        self.condition = layers.Mlp(
            (config.condition, config.condition, width),
            jax.nn.silu,
            rngs=rngs,
            kernel_init=normal,
        )
        self.blocks = layers.stack_blocks(
            lambda rngs: layers.Block(
                width,
                config.heads,
                config.mlp_ratio,
                rngs=rngs,
                dtype=jnp.dtype(config.dtype),
                form=config.attention,
            ),
            config.depth,
            rngs=rngs,
        )
        self.head = Head(width, config.channels, rngs=rngs)

    def embed(self, cond_lc: Float[Array, "l c"]) -> Float[Array, "l d"]:
        """The embedding of the condition: all that the rest of the network sees of it."""
        return self.condition(cond_lc)

    def denoise(
        self,
        x_bg: Float[Array, "b g"],
        noise_level_b: Float[Array, " b"],
        embedded_ld: Float[Array, "l d"],
    ) -> Float[Array, "b g"] | Float[Array, "b 2 g"]:
        """The raw network output, float32; b / l rows in a row share condition and level."""
        # Shapes, not lengths: the number of rows may be a symbol (`jax.export`).
        level_l = noise_level_b[:: x_bg.shape[0] // embedded_ld.shape[0]]
        c_ld = self.noise(layers.sinusoid(level_l, NOISE_FEATURES)) + embedded_ld
        tokens_bgd = layers.run_blocks(self.blocks, self.tokens(x_bg), c_ld, remat=self.remat)
        out_bgo = self.head(tokens_bgd, c_ld)
        if out_bgo.shape[-1] == 1:
            return out_bgo[..., 0]
        return jnp.swapaxes(out_bgo, 1, 2)


def parameter_count(config: StemConfig) -> int:
    """Number of parameters, counted on shapes: nothing is allocated."""
    shapes = jax.eval_shape(make_stem(config).init, jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def flops_per_evaluation(config: StemConfig) -> int:
    """Floating-point operations of one evaluation for one spot; a training step costs three times.

    Twice the multiply-adds of all matrix products, nothing else; by formula, because XLA's own
    count takes the body of a scan once.
    """
    g, d, c = config.genes, config.width, config.condition
    block = g * ((8 + 4 * config.mlp_ratio) * d**2 + 4 * g * d) + 12 * d**2
    tokens = g * (2 * d + 2 * d**2)
    embeddings = 2 * (NOISE_FEATURES * d + d**2) + 2 * (c**2 + c * d)
    head = 4 * d**2 + 2 * g * d * config.channels
    return config.depth * block + tokens + embeddings + head
