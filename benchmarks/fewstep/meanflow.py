"""MeanFlow: a network of two times whose output is the average velocity between them.

On the straight path z_t = (1 - t) x0 + t n, with velocity v(z, t) = E[n - x0 | z_t = z], the
average velocity from r to t is u(z_t; t, r) = 1 / (t - r) int_r^t v(z_s, s) ds, and
z_r = z_t - (t - r) u (Geng et al. 2025, arXiv 2505.13447, eq. 3 and 12). Its identity (eq. 6) is

    u = v - (t - r) d/dt u,    d/dt u = v dz u + dt u

With sigma = t / (1 - t) this is the same ODE as everywhere here: z_t = (1 - t) x with
x = x0 + sigma n. The network answers with the point X on the clean side of the chord,
u = (z_t - X) / t, and X = c_skip x + c_out F(c_in x; sigma, sigma_r) has the denoiser's scalings:
at r = t the best X is the denoiser, E[x0 | x], at r = 0 it is the sample. A step to sigma_r is then
the straight move x_r = X + (sigma_r / sigma) (x - X), DDIM's with another X.

Level embedding. The derivative along t passes through the network's embedding of its level. That
of the denoiser resolves 1 / 250 of a unit of ln sigma, and a trained network is rough at that
scale: of a trained one, |d/dt v| was 10 to 27 where differences over .04 give .8 to 2.5. The
two-time network therefore gets an embedding of its own, of both levels, that is smooth (`SMOOTH`),
and learns it in tuning; all other weights start as the denoiser's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from fewstep.consistency import Path
from stemjax import errors, tasks
from stemjax.diffusion import consistency, denoiser, noise, rules, sampler
from stemjax.models import layers, network, stem
from stemjax.typing import Batch, Params

SMOOTH = 100.0
"""Levels are divided by this before the sinusoid: its finest wave is 2.5 times ln sigma."""
LEVELS = (0.002, 80.0)
"""Levels that t and r are drawn between; what lies below the first is that level to the network."""


class TwoTime(nnx.Module):
    """`stem.Stem` with a smooth embedding of two levels in the place of its one level's."""

    def __init__(self, config: stem.StemConfig, *, rngs: nnx.Rngs) -> None:
        self.body = stem.Stem(config, rngs=rngs)
        widths = (2 * stem.NOISE_FEATURES, config.width, config.width)
        self.body.noise = layers.Mlp(widths, jax.nn.silu, rngs=rngs)

    def __call__(
        self,
        x_bg: Float[Array, "b g"],
        level_b: Float[Array, " b"],
        earlier_b: Float[Array, " b"],
        cond_bc: Float[Array, "b c"],
    ) -> Float[Array, "b g"]:
        """The raw output, float32, [b g]."""
        body, width = self.body, stem.NOISE_FEATURES
        waves = [layers.sinusoid(level / SMOOTH, width) for level in (level_b, earlier_b)]
        c_bd = body.noise(jnp.concatenate(waves, axis=-1)) + body.condition(cond_bc)
        tokens = layers.run_blocks(body.blocks, body.tokens(x_bg), c_bd, remat=False)
        return body.head(tokens, c_bd)[..., 0]


def make_two_time(config: stem.StemConfig) -> network.Network:
    """Returns ``apply(params, x [b g], level [b], earlier level [b], cond [b c])`` as a network."""
    return network.make_network(lambda rngs: TwoTime(config, rngs=rngs))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chord:
    """MeanFlow sampling (arXiv 2505.13447, eq. 12): along the chord from one level to the next.

    One evaluation a step, no fresh noise.

    Attributes:
      point: (x [b g], sigma [b], sigma_next [b]) -> X [b g].
    """

    point: Callable[[Array, Array, Array], Array]

    @property
    def stochastic(self) -> bool:
        """False."""
        return False

    def evaluations(self, steps: int) -> int:
        """Returns steps."""
        return steps

    def init(self, x: Float[Array, "b g"]) -> rules.Carry:
        """Returns an empty carry."""
        return ()

    def step(
        self,
        denoise: denoiser.Denoiser,
        carry: rules.Carry,
        x: Float[Array, "b g"],
        sigma: Float[Array, ""],
        sigma_next: Float[Array, ""],
        noise: Float[Array, "b g"] | None,
    ) -> tuple[Float[Array, "b g"], rules.Carry]:
        """Returns x at ``sigma_next``; the denoiser is not asked."""
        end = self.point(x, rules.rows(sigma, x), rules.rows(sigma_next, x))
        return rules.towards(end, x, sigma_next / sigma), carry


def identity_errors(
    point: Callable[[Array, Array, Array], Array],
    z: Float[Array, "b g"],
    velocity: Float[Array, "b g"],
    t: Float[Array, " b"],
    r: Float[Array, " b"],
    measured: Float[Array, "b g"],
) -> Float[Array, " b"]:
    """Returns each row's mean of (u - stop(v - (t - r) d/dt u))² over measured genes.

    MeanFlow's loss (arXiv 2505.13447, eq. 9 and 10) before its adaptive weight; d/dt u is one
    Jacobian-vector product of u with (v, 0, 1) for (z, r, t).

    Args:
      point: (x [b g], sigma [b], earlier sigma [b]) -> X.
      z: (1 - t) x0 + t n.
      velocity: v at z, or n - x0 whose mean it is.
      t: later time, in 0..1 without the ends.
      r: earlier time, at most t.
      measured: whether a gene counts.
    """
    sigma_r = r / (1 - r)

    def average(z: Array, t: Array) -> Array:
        left = (1 - t)[:, None]
        return (z - point(z / left, t / (1 - t), sigma_r)) / t[:, None]

    found, slope = jax.jvp(average, (z, t), (velocity, jnp.ones_like(t)))
    target = jax.lax.stop_gradient(velocity - (t - r)[:, None] * slope)
    return denoiser.mean_over_measured((found - target) ** 2, measured)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MeanFlowTask:
    """Average velocities tuned from a denoiser, which keeps its own weights for the mean.

    Attributes:
      network: `make_two_time` of the denoiser's shape.
      teacher: the denoiser's task, without residual and second channel.
      start: the denoiser's weights.
      path: ``data`` takes n - x0 for the velocity, as the paper does; ``teacher`` the denoiser's.
      apart: share of rows with r below t (25 % in the paper's table 1a; the others are plain flow
        matching).
      noise: law of sigma = t / (1 - t), from which t and r are the larger and the smaller of two.
        The paper's normal law of ln sigma hardly reaches sigma_max.
      power: of the adaptive weight (the paper's p, 1 in its table 1e).
    """

    network: network.Network
    teacher: tasks.StemTask
    start: Params
    path: Path = "teacher"
    apart: float = 0.25
    noise: noise.NoiseDistribution = noise.LogUniform(sigma_min=LEVELS[0], sigma_max=LEVELS[1])
    power: float = 1.0

    @property
    def genes(self) -> int:
        """Size of the panel."""
        return self.teacher.genes

    @property
    def row_bytes(self) -> int:
        """Bytes of the denoiser's largest array for one row."""
        return self.teacher.row_bytes

    @property
    def estimate(self) -> tasks.Sampling:
        """One pair of one step."""
        return tasks.Sampling(mode="pair", steps=1)

    def init(self, key: Key[Array, ""]) -> Params:
        """Returns the denoiser's weights with a fresh embedding of the levels."""
        fresh = self.network.init(key)["body"]
        kept = {name: self.start[name] for name in fresh if name != "noise"}
        return {"body": jax.tree.map(jnp.copy, {**fresh, **kept})}

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Returns the mean over rows of `identity_errors`, adaptive; the condition is disturbed."""
        x0, cond, mask = (jnp.asarray(batch[name]) for name in ("x0", "cond", "mask"))
        key_condition, key_level, key_noise = jax.random.split(key, 3)
        cond += self.teacher.condition_noise * jax.random.normal(key_condition, cond.shape)
        x0 = jnp.where(mask > 0, x0, 0.0)
        rows = len(x0)
        sigma = jnp.sort(self.noise.sample(key_level, (2, rows)), axis=0)
        # Rows come in random order, so the first ones may be those of one kind.
        apart = jnp.arange(rows) < round(self.apart * rows)
        sigma_r, sigma_t = jnp.where(apart, sigma[0], sigma[1]), sigma[1]
        t, r = sigma_t / (1 + sigma_t), sigma_r / (1 + sigma_r)
        unit = jax.random.normal(key_noise, x0.shape)
        z = (1 - t)[:, None] * x0 + t[:, None] * unit
        velocity = unit - x0
        if self.path == "teacher":
            clean = self.teacher.denoiser(self.start, cond)(z / (1 - t)[:, None], sigma_t)
            velocity = (z - clean) / t[:, None]
        squared = identity_errors(self.point(params, cond), z, velocity, t, r, mask > 0)
        loss = jnp.mean(consistency.adaptive(squared, self.power))
        return loss, {"loss": loss, "loss_squared": jnp.mean(squared)}

    def point(
        self, params: Params, cond: Float[Array, "b c"]
    ) -> Callable[[Array, Array, Array], Array]:
        """Returns X(x; sigma, earlier sigma) of the rows of ``cond``."""
        scalings = denoiser.Preconditioning(sigma_data=self.teacher.sigma_data).scalings

        def point(x: Array, sigma: Array, earlier: Array) -> Array:
            c = scalings(sigma)
            level = denoiser.noise_level(jnp.maximum(earlier, LEVELS[0]))
            output = self.network.apply(params, c.c_in[:, None] * x, c.c_noise, level, cond)
            return c.c_skip[:, None] * x + c.c_out[:, None] * output

        return point

    def predict(
        self,
        params: Params,
        cond: Float[Array, "b c"],
        keys: Key[Array, " b"],
        *,
        sampling: tasks.Sampling,
    ) -> Float[Array, "n b g"]:
        """Returns draws in the model's space, [n b g], by `Chord` on the sampling's ladder.

        Raises:
          ConfigError: a mode of one evaluation, which is the denoiser's.
        """
        if sampling.mode in tasks.ONE_EVALUATION:
            raise errors.ConfigError(
                f"mode {sampling.mode} of average velocities",
                expected="pair or draws",
                fix="take the mean from the denoiser, whose weights are kept",
            )
        rows = jnp.repeat(cond, sampling.draws, axis=0)
        return sampler.draw(
            self.teacher.denoiser(self.start, cond, repeat=sampling.draws),
            sampling.on(self.teacher.levels).rungs,
            keys,
            rule=Chord(point=self.point(params, rows)),
            genes=self.genes,
            n_draws=sampling.draws,
            antithetic=sampling.in_pairs,
        )

    def evaluations(self, sampling: tasks.Sampling) -> int:
        """Returns draws times steps."""
        return sampling.draws * sampling.steps
