"""Tasks: where data, model and mathematics meet.

A task is three functions over plain arrays: `init` makes parameters, `loss` scores a batch,
`predict` turns embeddings into expression. The loop, the checkpoints, prediction and evaluation
see nothing else of a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from stemjax import errors
from stemjax.data import records
from stemjax.diffusion import denoiser, ladders, noise, rules, sampler
from stemjax.models import network
from stemjax.typing import Batch, Params

type Mode = Literal["mean", "pair", "draws"]

SAMPLERS = ("dpmpp2m", "ddim", "heun")
MODES = ("mean", "pair", "draws")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How expression is drawn from a trained denoiser.

    Attributes:
      mode: ``mean`` is the mean token, one evaluation a spot. ``pair`` averages one antithetic
        pair. ``draws`` gives ``n_draws`` samples for spread and joint structure.
      sampler: step rule: ``dpmpp2m`` (DPM-Solver++(2M)), ``ddim`` or ``heun``.
      steps: rungs of the Karras ladder above zero.
      n_draws: samples a spot in mode ``draws``.
      antithetic: draw initial noise in pairs (+z, -z), so that averages converge faster.
      eta: DDIM's share of fresh noise a step; 0 is deterministic.
      sigma_min: smallest noise level of the ladder, in units of the model's space.
      sigma_max: largest noise level.
      rho: curvature of the ladder (EDM equation 5).

    Raises:
      ConfigError: a value that cannot work.
    """

    mode: Mode = "mean"
    sampler: str = "dpmpp2m"
    steps: int = 8
    n_draws: int = 20
    antithetic: bool = True
    eta: float = 0.0
    sigma_min: float = 0.01
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise errors.ConfigError(
                "sampling mode", expected=" or ".join(MODES), found=repr(self.mode)
            )
        if self.sampler not in SAMPLERS:
            raise errors.ConfigError(
                "sampler", expected=" or ".join(SAMPLERS), found=repr(self.sampler)
            )
        if self.steps < 1 or self.n_draws < 1:
            raise errors.ConfigError(
                "sampling steps and n_draws",
                expected="at least 1",
                found=f"steps={self.steps}, n_draws={self.n_draws}",
            )
        if self.eta and self.sampler != "ddim":
            raise errors.ConfigError(
                f"eta={self.eta} with sampler {self.sampler!r}",
                expected="eta=0, since only ddim adds fresh noise",
                fix="use --sampler ddim, or leave eta out",
            )
        if self.antithetic and self.mode == "draws" and self.n_draws % 2:
            raise errors.ConfigError(
                "n_draws with antithetic pairs",
                expected="an even number",
                found=str(self.n_draws),
                fix="ask for an even number of draws, or for independent ones",
            )

    @property
    def draws(self) -> int:
        """Samples that are drawn for each spot (1 for the mean, which draws none)."""
        return {"mean": 1, "pair": 2, "draws": self.n_draws}[self.mode]

    @property
    def rule(self) -> rules.StepRule:
        """The step rule."""
        if self.sampler == "ddim":
            return rules.Ddim(eta=self.eta)
        return rules.Heun() if self.sampler == "heun" else rules.DpmSolverPP2M()

    @property
    def evaluations(self) -> int:
        """Network evaluations a spot."""
        return 1 if self.mode == "mean" else self.draws * self.rule.evaluations(self.steps)


class Task(Protocol):
    """What the loop and prediction see of a model."""

    def init(self, key: Key[Array, ""]) -> Params:
        """Returns fresh parameters."""
        ...

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Returns the training loss and named parts of it."""
        ...

    def predict(
        self,
        params: Params,
        cond: Float[Array, "b c"],
        keys: Key[Array, " b"],
        *,
        sampling: Sampling,
    ) -> Float[Array, "n b g"]:
        """Returns n draws a spot in the model's space (n = 1 for a mean)."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class StemTask:
    """Expression of a spot by conditional diffusion from its patch embedding.

    Attributes:
      network: denoiser network, ``apply(params, x, noise_level, cond)``.
      genes: size of the panel.
      noise: distribution of training noise levels.
      sigma_data: standard deviation of the model's space (1 after standardisation).
      mean_fraction: share of each batch trained as the mean token (x = 0, sigma = inf). At 1
        the task is plain regression with the same backbone.
      condition_noise: standard deviation of the Gaussian noise that training adds to the
        condition. For a linear map it is ridge's penalty, alpha = spots condition_noise^2 on
        standardised features (Bishop 1995, Training with noise is equivalent to Tikhonov
        regularization), and small cohorts need one.
    """

    network: network.Network
    genes: int
    noise: noise.LogNormal
    sigma_data: float = 1.0
    mean_fraction: float = 0.1
    condition_noise: float = 0.0

    def init(self, key: Key[Array, ""]) -> Params:
        """Returns fresh parameters."""
        return self.network.init(key)

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Returns the mean loss over the batch, and the mean token's and the noisy rows' parts.

        A part that has no rows (mean_fraction 0 or 1) is left out of the dict.
        """
        x0, cond, mask = (jnp.asarray(batch[name]) for name in ("x0", "cond", "mask"))
        key_condition, key = jax.random.split(key)
        if self.condition_noise:
            cond += self.condition_noise * jax.random.normal(key_condition, cond.shape)
        losses = denoiser.denoising_loss(
            lambda x, level: self.network.apply(params, x, level, cond),
            x0,
            mask,
            key,
            noise=self.noise,
            sigma_data=self.sigma_data,
            mean_fraction=self.mean_fraction,
        )
        loss, parts = jnp.mean(losses), {}
        split = denoiser.mean_token_rows(losses.shape[0], self.mean_fraction)
        if split:
            parts["loss_mean_token"] = jnp.mean(losses[:split])
        if split < losses.shape[0]:
            parts["loss_noisy"] = jnp.mean(losses[split:])
        return loss, {"loss": loss, **parts}

    def predict(
        self,
        params: Params,
        cond: Float[Array, "b c"],
        keys: Key[Array, " b"],
        *,
        sampling: Sampling,
    ) -> Float[Array, "n b g"]:
        """Returns draws in the model's space, [n b g]; n = 1 in mode ``mean``, 2 in ``pair``.

        Row i depends on ``cond[i]`` and ``keys[i]`` alone, so predictions do not change with the
        company a spot is in.
        """
        n = sampling.draws
        cond_rows = jnp.repeat(cond, n, axis=0)  # spot-major, as sampler.draw lays out its rows
        denoise = denoiser.make_denoiser(
            lambda x, level: self.network.apply(params, x, level, cond_rows),
            sigma_data=self.sigma_data,
        )
        if sampling.mode == "mean":
            return denoiser.conditional_mean(denoise, batch=cond.shape[0], genes=self.genes)[None]
        rungs = ladders.karras(
            sampling.steps,
            sigma_min=sampling.sigma_min,
            sigma_max=sampling.sigma_max,
            rho=sampling.rho,
        )
        return sampler.draw(
            denoise,
            rungs,
            keys,
            rule=sampling.rule,
            genes=self.genes,
            n_draws=n,
            antithetic=sampling.antithetic or sampling.mode == "pair",
        )


type Progress = Callable[[int, int, str], None]


class Predictor(Protocol):
    """Prediction for any number of spots."""

    def __call__(
        self,
        params: Params,
        cond: np.ndarray,
        keys: Key[Array, " b"],
        *,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Returns draws in the model's space on the host, [n b g]."""
        ...


def make_predictor(task: Task, sampling: Sampling, *, rows: int) -> Predictor:
    """Returns ``predict(params, cond [b c], keys [b]) -> [n b g]`` on the host, for any b.

    Spots go through the device in equal portions of at most ``rows`` (spot, draw) pairs, the last
    one padded, so that one program is compiled whatever the number of spots. A spot's result
    depends on its embedding and key alone, so the portions do not show in it beyond rounding.
    """

    @jax.jit
    def portion(params: Params, cond: Array, keys: Key[Array, " b"]) -> Array:
        return task.predict(params, cond, keys, sampling=sampling)

    def predict(
        params: Params,
        cond: np.ndarray,
        keys: Key[Array, " b"],
        *,
        progress: Progress | None = None,
    ) -> np.ndarray:
        spots = cond.shape[0]
        size = max(1, min(rows // sampling.draws, spots))
        parts = []
        for start in range(0, spots, size):
            index = np.minimum(np.arange(start, start + size), spots - 1)
            drawn = portion(params, jnp.asarray(cond[index], jnp.float32), keys[index])
            parts.append(np.asarray(drawn)[:, : spots - start])
            if progress is not None:
                progress(min(start + size, spots), spots, "spots")
        return np.concatenate(parts, axis=1)

    return predict


def row_keys(seed: int, table: records.Table) -> Key[Array, " b"]:
    """Returns a key for each spot of a table, a function of (seed, slide, barcode) alone."""
    parts = []
    for number, slide in enumerate(table.slides):
        rows = np.flatnonzero(table.slide_index == number)
        if rows.size:
            barcodes = [table.barcodes[row] for row in rows]
            parts.append((rows, sampler.spot_keys(seed, slide, barcodes)))
    order = np.argsort(np.concatenate([rows for rows, _ in parts]), kind="stable")
    return jnp.concatenate([keys for _, keys in parts])[order]
