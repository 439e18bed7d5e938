"""The published Stem as a task: DDPM loss, ancestral sampling, and every other sampler."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from stemjax import errors
from stemjax.diffusion import ddpm, denoiser, sampler
from stemjax.models import network, replicas
from stemjax.tasks import base
from stemjax.tasks.sampling import ONE_EVALUATION, Sampling
from stemjax.typing import Batch, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class DdpmTask:
    """Expression of a spot by the published process, from its patch embedding.

    It has no mean token, so it has no one-evaluation mean: mode ``pair`` averages an antithetic
    pair, and sampler ``ddpm`` draws as published, with as many ancestral steps as asked for.

    Attributes:
      network: network of two channels, ``apply(params, x_t, time step, cond)`` -> [b 2 g].
      genes: size of the panel.
      process: the process that the network is trained on.
    """

    network: network.Conditional
    genes: int
    process: ddpm.Process = ddpm.Process()
    extra_evaluations: int = dataclasses.field(default=0, init=False)

    @property
    def levels(self) -> tuple[float, float]:
        """Noise level of the first and of the last time step, .01 and 157."""
        return float(self.process.sigmas[0]), float(self.process.sigmas[-1])

    @property
    def row_bytes(self) -> int:
        """Bytes of the network's largest array for one row."""
        return self.network.row_bytes

    @property
    def estimate(self) -> Sampling:
        """One antithetic pair of 8 steps: 16 evaluations."""
        return Sampling(mode="pair")

    def sampling(self, **asked: Any) -> Sampling:
        """Returns what is asked for, with the defaults of `Sampling`."""
        return Sampling(**asked)

    def init(self, key: Key[Array, ""]) -> Params:
        """Returns fresh parameters."""
        return self.network.init(key)

    def per_replica(self) -> DdpmTask:
        """Returns the task for weights that come once a device (`tasks.Replicated`)."""
        return dataclasses.replace(self, network=replicas.per_replica(self.network))

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Returns the hybrid loss, and its parts: the error of eps and the variance's bound."""
        x0, cond, mask = (jnp.asarray(batch[name]) for name in ("x0", "cond", "mask"))
        terms = ddpm.hybrid_loss(
            self.network.bind(params, cond), x0, mask, key, process=self.process
        )
        mse, bound = jnp.mean(terms.mse), jnp.mean(terms.bound)
        return mse + bound, {"loss": mse + bound, "loss_mse": mse, "loss_bound": bound}

    def denoiser(
        self, params: Params, cond: Float[Array, "b c"], *, repeat: int = 1
    ) -> denoiser.Denoiser:
        """Returns D(x; sigma) for every spot ``repeat`` times in a row, at one sigma a spot."""
        return ddpm.make_vp_denoiser(
            self.network.bind(params, cond, repeat=repeat), process=self.process
        )

    def predict(
        self,
        params: Params,
        cond: Float[Array, "b c"],
        keys: Key[Array, " b"],
        *,
        sampling: Sampling,
    ) -> Float[Array, "n b g"]:
        """Returns draws in the model's space, [n b g].

        Raises:
          ConfigError: a mode of one evaluation, which needs a mean token, or a sampler of another
            process.
        """
        if sampling.mode in ONE_EVALUATION:
            raise errors.ConfigError(
                f"mode {sampling.mode} of a model of the published process",
                expected="pair or draws: it was trained without a mean token",
                fix="use --mode pair (16 evaluations a spot) for the mean",
            )
        sampling.require_process("ddpm")
        if sampling.sampler != "ddpm":
            return base.draw_profiles(
                self.denoiser(params, cond, repeat=sampling.draws),
                keys,
                sampling=sampling,
                levels=self.levels,
                genes=self.genes,
            )
        return sampler.draw_with(
            functools.partial(
                _ancestral,
                self.network.bind(params, cond, repeat=sampling.draws),
                self.process.respaced(sampling.steps),
            ),
            keys,
            genes=self.genes,
            n_draws=sampling.draws,
            antithetic=sampling.in_pairs,
        )

    def evaluations(self, sampling: Sampling) -> int:
        """Returns the network evaluations that a spot costs."""
        return sampling.evaluations


def _ancestral(
    bound: denoiser.RawNetwork, process: ddpm.Process, unit: Array, keys: Array, signs: Array | None
) -> Array:
    return ddpm.ancestral(bound, process, unit, keys, signs=signs)
