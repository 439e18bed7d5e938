"""Easy consistency tuning: a trained denoiser becomes a map from any noise level to a sample.

A consistency function f(x; sigma) takes every point of a trajectory of the probability-flow ODE to
the trajectory's end at sigma = 0 (Song et al. 2023, arXiv 2303.01469). Tuning (ECT, Geng et al.
2024, arXiv 2406.14548) starts from the denoiser, which is the same function with the second level
r at 0, and lets r rise towards t.

Parametrisation. f is the denoiser's own D(x; sigma) = c_skip x + c_out F(c_in x, c_noise) with new
weights in F: at sigma = 0 c_skip is 1 and c_out is 0, so f(x; 0) = x whatever F is (the boundary of
arXiv 2303.01469, eq. 5), and before the first update f is the denoiser.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from fewstep import tuning
from stemjax import errors, tasks
from stemjax.diffusion import denoiser, noise, rules, sampler
from stemjax.models import network
from stemjax.typing import Batch, Params

type Path = Literal["data", "teacher"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gap:
    """How far the second level lies below the first, closing in doublings.

    r / t = 1 - n(t) / 2^(i + 1) with n(t) = 1 + k sigmoid(-b t), and r = 0 where that is negative
    (ECT, section 3.2 and its table of settings: k = 8, b = 1); i = 0, 1, ... is the doubling, of
    which all last equally long. In the first, every t below ln 7 = 1.95 has r = 0, which is the
    denoiser's own objective.

    Attributes:
      doublings: how many there are.
      k, b: height and slope of n.
    """

    doublings: int = 8
    k: float = 8.0
    b: float = 1.0

    def earlier(self, t: Float[Array, " b"], progress: Float[Array, ""]) -> Float[Array, " b"]:
        """Returns r, 0 <= r < t, at a share of the run in 0..1."""
        doubling = jnp.floor(progress * self.doublings)
        ratio = 1 - (1 + self.k * jax.nn.sigmoid(-self.b * t)) / 2 ** (doubling + 1)
        return t * jnp.maximum(ratio, 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Renoise:
    """Multistep consistency sampling (arXiv 2303.01469, Algorithm 1): to the end, then noise again.

    x at the next level is f(x; sigma) + sigma_next n with fresh n. One evaluation a step.
    """

    @property
    def stochastic(self) -> bool:
        """True."""
        return True

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
        """Returns x at ``sigma_next``; ``denoise`` is the consistency function."""
        assert noise is not None
        return denoise(x, rules.rows(sigma, x)) + sigma_next * noise, carry


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ConsistencyTask:
    """A consistency function tuned from a denoiser, which keeps its own weights for the mean.

    Attributes:
      teacher: the denoiser's task, without residual and second channel.
      start: the denoiser's weights: the start, and with ``path`` teacher the guide.
      path: where x_r comes from. ``data`` is ECT: x_t and x_r are one spot with one noise,
        x0 + t n and x0 + r n. ``teacher`` is consistency distillation (arXiv 2303.01469, Algorithm
        2): x_r is one Euler step of the denoiser's ODE from x_t, so that its error has no part of
        chance, and nothing of the data but the points to start from.
      gap: the second level.
      noise: law of the first level. It must reach sigma_max, where one-step sampling starts.
      power: of the adaptive weight (`tuning.adaptive`).
    """

    teacher: tasks.StemTask
    start: Params
    path: Path = "data"
    gap: Gap = Gap()
    noise: noise.NoiseDistribution = noise.LogUniform(sigma_min=0.02, sigma_max=80.0)
    power: float = 0.5

    @property
    def network(self) -> network.Network:
        """The denoiser's network."""
        return self.teacher.network

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
        """Returns a copy of the denoiser's weights."""
        return jax.tree.map(jnp.copy, self.start)

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Returns the mean over rows of ||f(x_t; t) - stop f(x_r; r)||² / c_out(t)², adaptive.

        ECT equation 9 with our weight: 1 / c_out² measures the error in units of the network's
        output, as the denoiser's own loss does. Errors of genes that were not measured are left
        out. The condition is disturbed as in the denoiser's training.
        """
        x0, cond, mask = (jnp.asarray(batch[name]) for name in ("x0", "cond", "mask"))
        key_condition, key_level, key_noise = jax.random.split(key, 3)
        cond += self.teacher.condition_noise * jax.random.normal(key_condition, cond.shape)
        x0 = jnp.where(mask > 0, x0, 0.0)
        t = self.noise.sample(key_level, x0.shape[:1])
        r = self.gap.earlier(t, tuning.progress(batch))
        unit = jax.random.normal(key_noise, x0.shape)
        x_t = x0 + t[:, None] * unit
        if self.path == "data":
            x_r = x0 + r[:, None] * unit
        else:
            clean = self.teacher.denoiser(self.start, cond)(x_t, t)
            x_r = rules.towards(clean, x_t, (r / t)[:, None])
        squared = consistency_errors(
            self.teacher.denoiser(params, cond), x_t, t, x_r, r, mask > 0,
            sigma_data=self.teacher.sigma_data,
        )  # fmt: skip
        loss = jnp.mean(tuning.adaptive(squared, self.power))
        return loss, {"loss": loss, "loss_squared": jnp.mean(squared)}

    def predict(
        self,
        params: Params,
        cond: Float[Array, "b c"],
        keys: Key[Array, " b"],
        *,
        sampling: tasks.Sampling,
    ) -> Float[Array, "n b g"]:
        """Returns draws in the model's space, [n b g], by `Renoise` on the sampling's ladder.

        The ladder's sigma_min is the last level that is noised to; one step has sigma_max alone.

        Raises:
          ConfigError: a mode of one evaluation, which is the denoiser's.
        """
        if sampling.mode in tasks.ONE_EVALUATION:
            raise errors.ConfigError(
                f"mode {sampling.mode} of a consistency function",
                expected="pair or draws",
                fix="take the mean from the denoiser, whose weights are kept",
            )
        return sampler.draw(
            self.teacher.denoiser(params, cond, repeat=sampling.draws),
            sampling.on(self.teacher.levels).rungs,
            keys,
            rule=Renoise(),
            genes=self.genes,
            n_draws=sampling.draws,
            antithetic=sampling.in_pairs,
        )

    def evaluations(self, sampling: tasks.Sampling) -> int:
        """Returns draws times steps."""
        return sampling.draws * sampling.steps


def consistency_errors(
    function: denoiser.Denoiser,
    x_t: Float[Array, "b g"],
    t: Float[Array, " b"],
    x_r: Float[Array, "b g"],
    r: Float[Array, " b"],
    measured: Float[Array, "b g"],
    *,
    sigma_data: float,
) -> Float[Array, " b"]:
    """Returns each row's mean of ((f(x_t; t) - stop f(x_r; r)) / c_out(t))² over measured genes."""
    target = jax.lax.stop_gradient(function(x_r, r))
    scale = denoiser.Preconditioning(sigma_data=sigma_data).scalings(t).c_out
    error = (function(x_t, t) - target) / scale[:, None]
    return denoiser.mean_over_measured(error**2, measured)
