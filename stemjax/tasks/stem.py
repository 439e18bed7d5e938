"""Stem with the EDM objective: a mean token, and options for spread, residual and guidance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from stemjax import errors
from stemjax.diffusion import denoiser, guidance, noise
from stemjax.models import network, replicas
from stemjax.tasks import base
from stemjax.tasks.sampling import Sampling
from stemjax.typing import Batch, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class StemTask:
    """Expression of a spot by conditional diffusion from its patch embedding.

    Attributes:
      network: denoiser network, ``apply(params, x, noise_level, cond)`` -> [b g], or [b 2 g] with
        ``marginal``.
      genes: size of the panel.
      noise: distribution of training noise levels.
      sigma_data: standard deviation of the model's space (1 after standardisation); with
        ``residual``, of what the condition leaves unexplained.
      mean_fraction: share of each batch trained as the mean token (x = 0, sigma = inf). At 1
        the task is plain regression with the same backbone.
      condition_noise: standard deviation of the Gaussian noise that training adds to the
        condition. For a linear map it is ridge's penalty, alpha = spots condition_noise^2 on
        standardised features (Bishop 1995, Training with noise is equivalent to Tikhonov
        regularization), and small cohorts need one.
      condition_dropout: share of rows that are trained without their condition, for
        classifier-free guidance.
      weight: name of the loss weight over noise levels (`noise.WEIGHTS`).
      weight_gamma: where the min-SNR weights level off.
      residual: diffuse x0 less its mean given the condition, which the mean token of the same
        network gives; costs one evaluation more a spot, and a forward pass more in training.
      marginal: the second channel is the log variance of each gene at the mean token.
    """

    network: network.Conditional
    genes: int
    noise: noise.NoiseDistribution
    sigma_data: float = 1.0
    mean_fraction: float = 0.1
    condition_noise: float = 0.0
    condition_dropout: float = 0.0
    weight: str = "edm"
    weight_gamma: float = 5.0
    residual: bool = False
    marginal: bool = False

    @property
    def levels(self) -> tuple[float, float]:
        """.01 and 80, EDM's top."""
        return 0.01, 80.0

    @property
    def extra_evaluations(self) -> int:
        """1 for a residual model, whose denoiser starts from the mean; else 0."""
        return int(self.residual)

    @property
    def row_bytes(self) -> int:
        """Bytes of the network's largest array for one row."""
        return self.network.row_bytes

    @property
    def estimate(self) -> Sampling:
        """The mean token; without one, an antithetic pair."""
        return Sampling(mode="mean" if self.mean_fraction > 0 else "pair")

    def sampling(self, **asked: Any) -> Sampling:
        """Returns what is asked for, with the defaults of `Sampling`."""
        return Sampling(**asked)

    def init(self, key: Key[Array, ""]) -> Params:
        """Returns fresh parameters."""
        return self.network.init(key)

    def per_replica(self) -> StemTask:
        """Returns the task for weights that come once a device (`tasks.Replicated`)."""
        return dataclasses.replace(self, network=replicas.per_replica(self.network))

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Returns the mean loss over the batch, and the mean token's and the noisy rows' parts.

        A part that has no rows (mean_fraction 0 or 1) is left out of the dict. With ``marginal``
        the likelihood of the variances is added, weighed by the share of mean tokens.
        """
        x0, cond, mask = (jnp.asarray(batch[name]) for name in ("x0", "cond", "mask"))
        key_condition, key = jax.random.split(key)
        cond = self.disturbed(cond, key_condition)
        noised = denoiser.add_noise(
            x0,
            mask,
            key,
            noise=self.noise,
            sigma_data=self.sigma_data,
            mean_fraction=self.mean_fraction,
            weigh=self._weigh,
            centre=jax.lax.stop_gradient(self._mean(params, cond)) if self.residual else None,
        )
        output = self.network.apply(params, noised.x, noised.level, cond)
        mean = output[:, 0] if self.marginal else output
        losses = denoiser.row_losses(mean, noised)
        loss, parts = jnp.mean(losses), {}
        split = denoiser.mean_token_rows(losses.shape[0], self.mean_fraction)
        if split:
            parts["loss_mean_token"] = jnp.mean(losses[:split])
        if split < losses.shape[0]:
            parts["loss_noisy"] = jnp.mean(losses[split:])
        if self.marginal:
            likelihood = denoiser.variance_losses(mean, output[:, 1], noised)
            parts["loss_variance"] = jnp.mean(likelihood[:split])
            loss += jnp.sum(likelihood[:split]) / losses.shape[0]
        return loss, {"loss": loss, **parts}

    def denoiser(
        self, params: Params, cond: Float[Array, "b c"], *, repeat: int = 1
    ) -> denoiser.Denoiser:
        """Returns D(x; sigma) for every spot ``repeat`` times in a row, at one sigma a spot."""
        bound = self._bind(params, cond, repeat)
        if not self.residual:
            return bound
        return denoiser.centred(bound, jnp.repeat(self._mean(params, cond), repeat, axis=0))

    def predict(
        self,
        params: Params,
        cond: Float[Array, "b c"],
        keys: Key[Array, " b"],
        *,
        sampling: Sampling,
    ) -> Float[Array, "n b g"]:
        """Returns draws in the model's space, [n b g]; n = 1 in mode ``mean``, 2 in ``pair``.

        Mode ``marginal`` gives mean and standard deviation instead of draws, [2 b g]. Row i
        depends on ``cond[i]`` and ``keys[i]`` alone, so predictions do not change with the
        company a spot is in.

        Raises:
          ConfigError: a mode or sampler that this model was not trained for.
        """
        self._require(sampling)
        if sampling.mode == "mean":
            return self._mean(params, cond)[None]
        if sampling.mode == "marginal":
            return self._marginal(params, cond)
        return base.draw_profiles(
            self.denoiser(params, cond, repeat=sampling.draws),
            keys,
            sampling=sampling,
            levels=self.levels,
            genes=self.genes,
        )

    def evaluations(self, sampling: Sampling) -> int:
        """Returns the network evaluations that a spot costs."""
        one = sampling.mode in ("mean", "marginal")
        return sampling.evaluations + (0 if one else self.extra_evaluations)

    @property
    def _weigh(self) -> Callable[[Array, float], Array] | None:
        if self.weight == "edm":
            return None
        return lambda sigma, sigma_data: noise.network_weight(
            self.weight, sigma, sigma_data, self.weight_gamma
        )

    def disturbed(self, cond: Array, key: Array) -> Array:
        """Returns the condition as training shows it: with noise, and left out here and there."""
        key_noise, key_drop = key, key
        if self.condition_dropout:
            key_noise, key_drop = jax.random.split(key)
        if self.condition_noise:
            cond += self.condition_noise * jax.random.normal(key_noise, cond.shape)
        # After the noise, so that a condition left out is the null condition itself.
        return guidance.drop_condition(cond, key_drop, self.condition_dropout)

    def _bind(self, params: Params, cond: Array, repeat: int = 1) -> denoiser.Denoiser:
        bound = self.network.bind(params, cond, repeat=repeat)

        def raw(x: Array, level: Array) -> Array:
            output = bound(x, level)
            return output[:, 0] if self.marginal else output

        return denoiser.make_denoiser(raw, sigma_data=self.sigma_data)

    def _mean(self, params: Params, cond: Array) -> Array:
        """Returns E[x0 | cond] by the mean token, [b g]."""
        return denoiser.conditional_mean(
            self._bind(params, cond), batch=cond.shape[0], genes=self.genes
        )

    def _marginal(self, params: Params, cond: Array) -> Array:
        """Returns mean and standard deviation of each gene given the condition, [2 b g]."""
        # At the mean token c_skip and c_in are 0 and c_out is sigma_data.
        x = jnp.zeros((cond.shape[0], self.genes), jnp.float32)
        level = jnp.full(cond.shape[:1], denoiser.MEAN_TOKEN, jnp.float32)
        output = self.network.apply(params, x, level, cond).astype(jnp.float32)
        return self.sigma_data * jnp.stack([output[:, 0], jnp.exp(output[:, 1] / 2)])

    def _require(self, sampling: Sampling) -> None:
        if sampling.mode in ("mean", "marginal") and not self.mean_fraction:
            raise errors.ConfigError(
                f"mode {sampling.mode}",
                expected="a model trained with a mean token (config.diffusion.mean_fraction > 0)",
                fix="use --mode pair for the mean",
            )
        if sampling.mode == "marginal" and not self.marginal:
            raise errors.ConfigError(
                "mode marginal",
                expected="a model trained with config.diffusion.marginal",
                fix="use --mode draws for the spread, or train with that option",
            )
        sampling.require_process("edm")
