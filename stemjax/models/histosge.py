"""HisToSGE: transformers whose tokens are spots, published and corrected.

    window of l spots: patch features, positions, and in the corrected form what was measured there
      -> tokens [b l d] -> blocks -> head -> expression

The published network (Shi, Xue, Zhu and Min, BIBM 2024, arXiv 2407.20518) looks up learned vectors
for whole array columns and rows, and sees no expression. The corrected one takes positions as they
are, in micrometres, and the measured expression of the other spots of the window; its attention
falls with distance. What it predicts are the principal components of expression (`make_corrected`):

    score = drift(patch) + w (measured scores - their drifts) + head(token),    w by kriging

which is regression kriging (Hengl, Heuvelink and Rossiter 2007, Computers & Geosciences 33) with a
drift that is a network, a covariance that is learned, and what the transformer adds to both.

Names of arrays carry their dimensions: b batch, l spots in a window, g genes, c condition, d width,
h heads, k head width, or components of expression.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from stemjax import errors
from stemjax.models import kriging, layers, network

PLACES = 512
"""Rows of the published tables of array columns and of array rows."""

LENGTHS_UM = (50.0, 3200.0)
"""Shortest and longest length, in um, over which attention falls to 1/e before training."""

WAVES_UM = (200.0, 12800.0)
"""Shortest and longest wavelength of the Fourier features of a position."""

WAVES = 7
"""Wavelengths for each of the two axes, each twice as long as the one before."""

TORCH_EPS = 1e-5

_NEVER = -1e30


@dataclasses.dataclass(frozen=True, kw_only=True)
class HisToSGEConfig:
    """The shape of a HisToSGE network.

    The published one: genes=1000, condition=width=1024, depth=1, heads=4, head_width=64,
    mlp_ratio=1.

    Attributes:
      genes: size of the gene panel.
      condition: width of a spot's image embedding.
      width: width of a token.
      depth: number of blocks.
      heads: attention heads.
      head_width: width of a head; 0 is width / heads.
      mlp_ratio: width of a block's MLP, in token widths.
      components: of the measured profiles, that the corrected head interpolates; at most as many
        as there are genes.

    Raises:
      ConfigError: a value that cannot work, by name.
    """

    genes: int
    condition: int
    width: int
    depth: int
    heads: int
    head_width: int = 0
    mlp_ratio: int = 1
    components: int = 1

    def __post_init__(self) -> None:
        for name in ("genes", "condition", "width", "depth", "heads", "mlp_ratio", "components"):
            if getattr(self, name) < 1:
                raise errors.ConfigError(
                    f"model.{name}", expected="at least 1", found=str(getattr(self, name))
                )
        if not self.head_width and self.width % self.heads:
            raise errors.ConfigError(
                "model.width",
                expected=f"a multiple of model.heads = {self.heads}",
                found=str(self.width),
                fix=f"Take width {self.heads * math.ceil(self.width / self.heads)} or other heads",
            )

    @property
    def per_head(self) -> int:
        """Width of a head."""
        return self.head_width or self.width // self.heads


def make_published(config: HisToSGEConfig) -> tuple[network.Network, network.Network]:
    """The published network, and the same that stops at the tokens before the head.

    ``apply(params, cond [b l c], place [b l 2], present [b l])``; ``place`` are array columns and
    rows, cut to whole numbers as the published code does. The first gives every token's expression,
    [b l g], not below 0; the second the tokens, [b l d].
    """
    return _both(lambda rngs: Published(config, rngs=rngs))


def make_corrected(config: HisToSGEConfig) -> tuple[network.Network, network.Network]:
    """The corrected network, and the same that stops at the tokens before the head.

    ``apply(params, cond [b l c], x [b l g], seen [b l g], shown [b l], present [b l],
    xy [b l 2])``. The first gives the expression of each window's first token, [b g] float32, the
    second all tokens, [b l d]. ``x``, which is interpolated, and ``seen``, which the tokens see of
    it, are read where ``shown`` is 1 and nowhere else; ``xy`` is in um.
    """
    return _both(lambda rngs: Corrected(config, rngs=rngs))


def _both(build: Callable[[nnx.Rngs], nnx.Module]) -> tuple[network.Network, network.Network]:
    return network.make_network(build), network.make_network(build, method="hidden")


def exact_gelu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """GELU by the error function."""
    return jax.nn.gelu(x, approximate=False)


class SpotAttention(nnx.Module):
    """Self-attention of the spots of a window; absent ones are not attended to."""

    def __init__(self, config: HisToSGEConfig, *, rngs: nnx.Rngs) -> None:
        inner = config.heads * config.per_head
        self.heads = config.heads
        self.qkv = nnx.Linear(
            config.width, 3 * inner, use_bias=False, kernel_init=layers.XAVIER, rngs=rngs
        )
        self.proj = nnx.Linear(inner, config.width, kernel_init=layers.XAVIER, rngs=rngs)

    def __call__(
        self, x_bld: Float[Array, "b l d"], bias_bhll: Float[Array, "b h l l"]
    ) -> Float[Array, "b l d"]:
        """The attended tokens; ``bias`` is added to the logits."""
        b, tokens, _ = x_bld.shape
        q, k, v = jnp.moveaxis(self.qkv(x_bld).reshape(b, tokens, 3, self.heads, -1), 2, 0)
        logits = jnp.einsum("blhk,bmhk->bhlm", q, k) * q.shape[-1] ** -0.5
        weights = jax.nn.softmax(logits + bias_bhll, axis=-1)
        return self.proj(jnp.einsum("bhlm,bmhk->blhk", weights, v).reshape(b, tokens, -1))


class SpotBlock(nnx.Module):
    """A pre-norm transformer block over spots."""

    def __init__(
        self,
        config: HisToSGEConfig,
        *,
        rngs: nnx.Rngs,
        activation: Callable[[jax.Array], jax.Array] = layers.gelu,
        epsilon: float = layers.LAYER_NORM_EPS,
    ) -> None:
        width = config.width
        self.norm_attn = nnx.LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.attn = SpotAttention(config, rngs=rngs)
        self.norm_mlp = nnx.LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.mlp = layers.Mlp((width, config.mlp_ratio * width, width), activation, rngs=rngs)

    def __call__(
        self, x_bld: Float[Array, "b l d"], bias_bhll: Float[Array, "b h l l"]
    ) -> Float[Array, "b l d"]:
        """The residual stream after the block."""
        x_bld = x_bld + self.attn(self.norm_attn(x_bld), bias_bhll)
        return x_bld + self.mlp(self.norm_mlp(x_bld))


class Published(nnx.Module):
    """The published network; other rooms use `make_published`."""

    def __init__(self, config: HisToSGEConfig, *, rngs: nnx.Rngs) -> None:
        width = config.width
        # Published: the features are the tokens. Another encoder's width takes a projection.
        self.feature = (
            None
            if config.condition == width
            else nnx.Linear(config.condition, width, kernel_init=layers.XAVIER, rngs=rngs)
        )
        # What PyTorch, in which it was published, does where nothing is said: GELU by the error
        # function, LayerNorm with an epsilon of 1e-5, tables that start at unit variance.
        unit = nnx.initializers.normal(1.0)
        self.column = nnx.Embed(PLACES, width, embedding_init=unit, rngs=rngs)
        self.row = nnx.Embed(PLACES, width, embedding_init=unit, rngs=rngs)
        self.blocks = nnx.List(
            SpotBlock(config, rngs=rngs, activation=exact_gelu, epsilon=TORCH_EPS)
            for _ in range(config.depth)
        )
        self.fc1 = nnx.Linear(width, 2 * width, kernel_init=layers.XAVIER, rngs=rngs)
        self.norm = nnx.LayerNorm(2 * width, epsilon=TORCH_EPS, rngs=rngs)
        self.fc2 = nnx.Linear(2 * width, config.genes, kernel_init=layers.XAVIER, rngs=rngs)

    def __call__(
        self,
        cond_blc: Float[Array, "b l c"],
        place_bl2: Float[Array, "b l 2"],
        present_bl: Float[Array, "b l"],
    ) -> Float[Array, "b l g"]:
        """Every token's expression."""
        x_bld = self.hidden(cond_blc, place_bl2, present_bl)
        return jax.nn.relu(self.fc2(self.norm(jax.nn.relu(self.fc1(x_bld)))))

    def hidden(
        self,
        cond_blc: Float[Array, "b l c"],
        place_bl2: Float[Array, "b l 2"],
        present_bl: Float[Array, "b l"],
    ) -> Float[Array, "b l d"]:
        """The tokens after all blocks."""
        place = jnp.clip(place_bl2.astype(jnp.int32), 0, PLACES - 1)
        x_bld = cond_blc if self.feature is None else self.feature(cond_blc)
        x_bld = x_bld + self.column(place[..., 0]) + self.row(place[..., 1])
        bias = jnp.where(present_bl[:, None, None, :] > 0, 0.0, _NEVER)
        for block in self.blocks:
            x_bld = block(x_bld, bias)
        return x_bld


def fourier(xy_bl2: Float[Array, "b l 2"]) -> Float[Array, "b l w"]:
    """Sines and cosines of positions in um at `WAVES` wavelengths for each axis."""
    lengths = np.geomspace(*WAVES_UM, WAVES)
    phase = xy_bl2[..., None] * jnp.asarray(2 * np.pi / lengths, jnp.float32)[None, None, None]
    features = jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)
    return features.reshape(*xy_bl2.shape[:2], -1)


def slopes(count: int) -> Float[np.ndarray, " h"]:
    """First slopes of ``count`` falls with distance, in 1 / `kriging.UNIT_UM`, before softplus."""
    wanted = kriging.UNIT_UM / np.geomspace(*LENGTHS_UM, count)
    return np.log(np.expm1(wanted)).astype(np.float32)


class Corrected(nnx.Module):
    """The corrected network; other rooms use `make_corrected`."""

    def __init__(self, config: HisToSGEConfig, *, rngs: nnx.Rngs) -> None:
        width, components = config.width, config.components
        self.feature = nnx.Linear(config.condition, width, kernel_init=layers.XAVIER, rngs=rngs)
        self.position = nnx.Linear(4 * WAVES, width, kernel_init=layers.XAVIER, rngs=rngs)
        self.measured = nnx.Linear(config.genes, width, kernel_init=layers.XAVIER, rngs=rngs)
        self.unknown = nnx.Param(jnp.zeros((2, width)))
        self.slope = nnx.Param(jnp.tile(slopes(config.heads)[None], (config.depth, 1)))
        self.blocks = nnx.List(SpotBlock(config, rngs=rngs) for _ in range(config.depth))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.centre = nnx.Param(jnp.zeros((config.genes,)))
        self.loadings = nnx.Param(jnp.zeros((components, config.genes)))
        self.kriging = kriging.Kriging(components)
        self.drift = layers.Mlp((config.condition, width, components), layers.gelu, rngs=rngs)
        self.drift.fc2 = nnx.Linear(width, components, kernel_init=layers.ZEROS, rngs=rngs)
        self.head = nnx.Linear(width, components, kernel_init=layers.ZEROS, rngs=rngs)

    def __call__(
        self,
        cond_blc: Float[Array, "b l c"],
        x_blg: Float[Array, "b l g"],
        seen_blg: Float[Array, "b l g"],
        shown_bl: Float[Array, "b l"],
        present_bl: Float[Array, "b l"],
        xy_bl2: Float[Array, "b l 2"],
    ) -> Float[Array, "b g"]:
        """The first token's expression."""
        hidden_bld = self.hidden(cond_blc, x_blg, seen_blg, shown_bl, present_bl, xy_bl2)
        # Found in the rows that are trained on and kept: bent to a section's few hundred spots,
        # they fit them and no others.
        centre, loadings = jax.lax.stop_gradient((self.centre[...], self.loadings[...]))
        told_bl1 = shown_bl[..., None]
        # Whatever stands where nothing is shown: 0 times a NaN is one.
        score_blk = jnp.where(told_bl1 > 0, x_blg - centre[None, None], 0.0) @ loadings.T
        drift_blk = self.drift(cond_blc)
        weights_bkl = self.kriging(shown_bl, distances(xy_bl2, xy_bl2))
        left_blk = told_bl1 * (score_blk - drift_blk)
        found_bk = drift_blk[:, 0] + jnp.einsum("bkl,blk->bk", weights_bkl, left_blk)
        return centre[None] + (found_bk + self.head(hidden_bld[:, 0])) @ loadings

    def hidden(
        self,
        cond_blc: Float[Array, "b l c"],
        x_blg: Float[Array, "b l g"],
        seen_blg: Float[Array, "b l g"],
        shown_bl: Float[Array, "b l"],
        present_bl: Float[Array, "b l"],
        xy_bl2: Float[Array, "b l 2"],
    ) -> Float[Array, "b l d"]:
        """The tokens after all blocks, normalised."""
        del x_blg  # the tokens see `seen` of it
        told = shown_bl[..., None]
        # Which spot is asked for, and which merely was not measured, are two things.
        asked = jnp.zeros_like(shown_bl).at[:, 0].set(1.0)[..., None]
        x_bld = (
            self.feature(cond_blc)
            + self.position(fourier(xy_bl2 - xy_bl2[:, :1]))
            + told * self.measured(jnp.where(told > 0, seen_blg, 0.0))
            + (1 - told) * self.unknown[None, :1]
            + asked * self.unknown[None, 1:]
        )
        distance = distances(xy_bl2, xy_bl2)
        absent = jnp.where(present_bl[:, None, None, :] > 0, 0.0, _NEVER)
        for depth, block in enumerate(self.blocks):
            fall = jax.nn.softplus(self.slope[depth])
            x_bld = block(x_bld, absent - fall[None, :, None, None] * distance[:, None])
        return self.norm(x_bld)


def distances(
    one_bl2: Float[Array, "b l 2"], other_bm2: Float[Array, "b m 2"]
) -> Float[Array, "b l m"]:
    """Distances between positions in um, in units of 100 um."""
    square = jnp.sum((one_bl2[:, :, None] - other_bm2[:, None]) ** 2, axis=-1)
    # The square root has no gradient at 0, and positions are not trained anyway.
    return jnp.sqrt(square) / kriging.UNIT_UM


def flops_per_window(config: HisToSGEConfig, *, tokens: int, published: bool) -> int:
    """Floating-point operations of one evaluation for one window, twice the multiply-adds.

    Args:
      config: the network's shape.
      tokens: spots in the window.
      published: whether every token has a head, as published, or the first alone.
    """
    d, g, inner = config.width, config.genes, config.heads * config.per_head
    block = 2 * tokens * (4 * inner * d + 2 * config.mlp_ratio * d**2) + 4 * tokens**2 * inner
    if published:
        feature = 0 if config.condition == d else 2 * tokens * config.condition * d
        return config.depth * block + feature + 2 * tokens * (2 * d**2 + 2 * d * g)
    tokens_in = 2 * tokens * d * (config.condition + 4 * WAVES + g)
    k = config.components
    drift = 2 * tokens * d * (config.condition + k)
    # Scores of the tokens; weights by Cholesky's decomposition and two triangular solves, used
    # once; the head; and back to genes.
    found = k * (2 * tokens * g + tokens**3 // 3 + 2 * tokens**2 + 2 * tokens + 2 * d + 2 * g)
    return config.depth * block + tokens_in + drift + found
