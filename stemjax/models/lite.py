"""A denoiser of the whole profile at once, for millions of bins: FLOPs of a few gene tokens.

Stem spends 23 MFLOP on every gene of a panel and scores of every pair of genes. Here the panel is
read into one vector, or into a few latent tokens, and written back:

    x [b g] -> read -> blocks (adaLN-Zero) -> write -> + gain x -> [b g] or [b 2 g]
    noise level [b], cond [b c] -> c [b d] --^           ^

``latents = 0``: Linear(genes, width), residual MLP blocks, Linear(width, genes). With latents, m
tokens each gather their own share of the panel with weights that come from the genes' name vectors
alone (soft groups; the cross-attention of Perceiver IO, arXiv 2107.14795, with keys that do not
depend on x), a small transformer mixes the tokens, and each gene reads them back by its name.

The gain is a number for each gene, from noise level and condition. Genes outnumber the width, so
what goes through it has that rank at most; counting noise does not. The best linear denoiser of a
factor model, covariance L L^T + diag, is of low rank plus diagonal, and the gain is its diagonal.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from stemjax import errors
from stemjax.models import layers, network, stem


@dataclasses.dataclass(frozen=True, kw_only=True)
class LiteConfig:
    """The shape of a lite denoiser.

    Attributes:
      genes: size of the gene panel.
      width: width of the vector, or of a latent token.
      depth: number of blocks.
      latents: latent tokens; 0 is one vector and no attention.
      heads: heads of reading, attention and writing, where there are latents.
      mlp_ratio: width of a block's MLP, in widths.
      condition: width of a spot's image embedding.
      channels: 1 for one output a gene, 2 for two (`stem.StemConfig`).
      dtype: what the blocks' matrix products are rounded to, "float32" or "bfloat16". Reading,
        embeddings, LayerNorm, residual stream, writing and output are float32 in either.
      remat: compute each block again in the backward pass instead of keeping what it computed.
      attention: form of the attention of latents (`stemjax.models.attention`).

    Raises:
      ConfigError: a value that cannot work, by name.
    """

    genes: int
    width: int
    depth: int
    latents: int = 0
    heads: int = 4
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
        if self.latents < 0:
            raise errors.ConfigError(
                "model.latents", expected="0 (no tokens) or more", found=str(self.latents)
            )
        if self.latents and self.width % self.heads:
            raise errors.ConfigError(
                "model.width",
                expected=f"a multiple of model.heads = {self.heads}",
                found=str(self.width),
                fix=f"Take width {self.heads * math.ceil(self.width / self.heads)} or other heads",
            )
        if self.channels not in (1, 2):
            raise errors.ConfigError(
                "model.channels", expected="1 or 2 outputs a gene", found=str(self.channels)
            )
        if self.dtype not in stem.DTYPES:
            raise errors.ConfigError(
                "model.dtype", expected=" or ".join(stem.DTYPES), found=repr(self.dtype)
            )


def make_lite(config: LiteConfig) -> network.Conditional:
    """The denoiser as ``apply(params, x [b g], noise_level [b], cond [b c])``, or bound.

    Inputs and output are those of `stem.make_stem`: [b g] for one channel, [b 2 g] for two, always
    float32 and exactly zero for fresh parameters. A gene that is 0 in ``x`` (unmeasured, or at its
    mean) adds nothing to what is read.
    """
    hidden = max(config.latents, 1) * config.mlp_ratio * config.width
    return network.make_conditional(
        lambda rngs: Lite(config, rngs=rngs),
        row_bytes=4 * max(hidden, config.genes),
    )


class Vector(nnx.Module):
    """The panel through one vector: Linear, residual MLP blocks, Linear, zero at first."""

    def __init__(self, config: LiteConfig, *, rngs: nnx.Rngs) -> None:
        self.remat = config.remat
        self.read = nnx.Linear(config.genes, config.width, kernel_init=layers.XAVIER, rngs=rngs)
        self.blocks = layers.stack_blocks(
            lambda rngs: layers.VectorBlock(
                config.width, config.mlp_ratio, rngs=rngs, dtype=jnp.dtype(config.dtype)
            ),
            config.depth,
            rngs=rngs,
        )
        self.head = stem.Head(config.width, config.channels * config.genes, rngs=rngs)

    def __call__(self, x_bg: Float[Array, "b g"], c_ld: Float[Array, "l d"]) -> Float[Array, "b m"]:
        """The output, m = channels times genes, channel after channel."""
        x_b1d = layers.run_blocks(self.blocks, self.read(x_bg)[:, None], c_ld, remat=self.remat)
        return self.head(x_b1d, c_ld)[:, 0]


class Latents(nnx.Module):
    """The panel through latent tokens, which find their genes by the genes' name vectors.

    With heads h of width k, latent tokens j and names, queries and values of width d = h k:

        gather[h j g] = softmax over genes of (query_j . name_g / sqrt k), per head
        token_j       = latent_j + sqrt(g) sum_g gather[h j g] x_g value_g
        give[h j g]   = softmax over latents of (answer_j . name_g / sqrt k), per head
        out_g         = sum_j give[h j g] (token_j . output_g)

    Neither of the two weights depends on x or on the condition: they are computed once a call, and
    reading and writing are one matrix product each, whatever the number of rows.
    """

    def __init__(self, config: LiteConfig, *, rngs: nnx.Rngs) -> None:
        g, d, m = config.genes, config.width, config.latents
        self.remat, self.heads = config.remat, config.heads

        def normal(*shape: int) -> nnx.Param:
            return nnx.Param(jax.random.normal(rngs.params(), shape))

        self.name, self.value = normal(g, d), normal(g, d)
        self.latent, self.query, self.answer = normal(m, d), normal(m, d), normal(m, d)
        self.blocks = layers.stack_blocks(
            lambda rngs: layers.Block(
                d,
                config.heads,
                config.mlp_ratio,
                rngs=rngs,
                dtype=jnp.dtype(config.dtype),
                form=config.attention,
            ),
            config.depth,
            rngs=rngs,
        )
        self.modulation = layers.Modulation(d, 2, rngs=rngs, dtype=jnp.float32)
        self.output = nnx.Param(jnp.zeros((config.channels, g, d)))

    def __call__(self, x_bg: Float[Array, "b g"], c_ld: Float[Array, "l d"]) -> Float[Array, "b m"]:
        """The output, m = channels times genes, channel after channel."""
        b, g = x_bg.shape
        latent_jd = self.latent[...]
        gather = jax.nn.softmax(self._scores(self.query[...]), axis=2)
        reading = jnp.einsum("hjg,ghk->gjhk", gather, self._split(self.value[...]))
        # Weights of one token add up to 1 over the panel: sqrt(g) keeps the scale for any panel.
        read_bm = g**0.5 * x_bg @ reading.reshape(g, -1)
        tokens_bjd = latent_jd[None] + read_bm.reshape(b, *latent_jd.shape)
        tokens_bjd = layers.run_blocks(self.blocks, tokens_bjd, c_ld, remat=self.remat)
        shift, scale = (layers.share(vector, tokens_bjd) for vector in self.modulation(c_ld))
        tokens_bm = layers.modulated(tokens_bjd, shift, scale).reshape(b, -1)
        give = jax.nn.softmax(self._scores(self.answer[...]), axis=1)
        writing = jnp.einsum("hjg,oghk->jhkog", give, self._split(self.output[...]))
        return tokens_bm @ writing.reshape(tokens_bm.shape[1], -1)

    def _split(self, table: Float[Array, "... d"]) -> Float[Array, "... h k"]:
        return table.reshape(*table.shape[:-1], self.heads, -1)

    def _scores(self, ask_jd: Float[Array, "j d"]) -> Float[Array, "h j g"]:
        names, asks = self._split(self.name[...]), self._split(ask_jd)
        return jnp.einsum("jhk,ghk->hjg", asks, names) * names.shape[-1] ** -0.5


class Lite(nnx.Module):
    """The denoiser as a Flax module; other rooms use `make_lite`."""

    def __init__(self, config: LiteConfig, *, rngs: nnx.Rngs) -> None:
        width, c = config.width, config.condition
        normal = nnx.initializers.normal(stem.EMBEDDING_STD)
        self.channels = config.channels
        self.noise = layers.Mlp(
            (stem.NOISE_FEATURES, width, width), jax.nn.silu, rngs=rngs, kernel_init=normal
        )
        self.condition = layers.Mlp((c, c, width), jax.nn.silu, rngs=rngs, kernel_init=normal)
        self.profile = (Latents if config.latents else Vector)(config, rngs=rngs)
        outputs = config.channels * config.genes
        self.gain = nnx.Linear(width, outputs, kernel_init=layers.ZEROS, rngs=rngs)

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
        (b, g), spots = x_bg.shape, embedded_ld.shape[0]
        level_l = noise_level_b[:: b // spots]
        c_ld = self.noise(layers.sinusoid(level_l, stem.NOISE_FEATURES)) + embedded_ld
        gain = self.gain(jax.nn.silu(c_ld)).reshape(spots, 1, self.channels, g)
        out = self.profile(x_bg, c_ld).reshape(spots, -1, self.channels, g)
        out = (out + gain * x_bg.reshape(spots, -1, 1, g)).reshape(b, self.channels, g)
        return out[:, 0] if self.channels == 1 else out


def parameter_count(config: LiteConfig) -> int:
    """Number of parameters, counted on shapes: nothing is allocated."""
    shapes = jax.eval_shape(make_lite(config).init, jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def flops_per_evaluation(config: LiteConfig) -> int:
    """Floating-point operations of one evaluation for one spot, with all that it takes.

    Twice the multiply-adds of all matrix products, by formula, as `stem.flops_per_evaluation`. Of
    these, `flops_per_spot` are done once a spot, and what depends on the noise level and not on x
    once for all draws of a spot. The latents' weights, which do not depend on the rows, are left
    out: once a call, about as much as one row's reading and writing.
    """
    g, d, o = config.genes, config.width, config.channels
    m, r = config.latents, config.mlp_ratio
    parts = 6 if m else 3
    level = 2 * (stem.NOISE_FEATURES * d + d**2) + config.depth * 2 * parts * d**2 + 4 * d**2
    block = m * ((8 + 4 * r) * d**2 + 4 * m * d) if m else 4 * r * d**2
    panel = 2 * max(m, 1) * d * g * (1 + o) + 2 * d * g * o
    return flops_per_spot(config) + level + config.depth * block + panel


def flops_per_spot(config: LiteConfig) -> int:
    """The part of `flops_per_evaluation` that is done once a spot: embedding the condition."""
    return 2 * (config.condition**2 + config.condition * config.width)
