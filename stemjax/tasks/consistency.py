"""Draws in one evaluation or a few: a denoiser tuned into a consistency function."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from stemjax import errors
from stemjax.diffusion import consistency, denoiser, noise, rules
from stemjax.tasks import base
from stemjax.tasks.sampling import ONE_EVALUATION, Sampling
from stemjax.tasks.stem import StemTask
from stemjax.typing import Batch, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsistencyTask:
    """A consistency function and the mean token in one network, tuned from a trained denoiser.

    The mean token goes on being trained beside the function: its level is infinite, where no
    trajectory passes. There is no denoiser any more, and so no guidance, no given genes and no
    likelihood: those are asked of the model that this one was tuned from.

    Attributes:
      edm: the denoiser's task, whose network, space and condition are these; without residual and
        second channel.
      gap: how far apart the two levels of the loss are.
      noise: law of the first level. It must reach sigma_max, where one-step sampling starts; ECT's
        normal law hardly does.
      power: of the adaptive weight (`consistency.adaptive`).
      path: where the second point of a pair comes from. ``data`` is ECT: x_t and x_r are one spot
        with one noise, x0 + t n and x0 + r n. ``teacher`` is consistency distillation (arXiv
        2303.01469, Algorithm 2): x_r is one Euler step of the teacher's ODE from x_t, so that the
        error has no part of chance, and nothing of the data but the points to start from.
      teacher: weights of the denoiser that the run started from, which ``teacher`` asks; given to
        the loss by `taught`.
    """

    edm: StemTask
    gap: consistency.Gap = consistency.Gap()
    noise: noise.NoiseDistribution = noise.LogUniform(sigma_min=0.02, sigma_max=80.0)
    power: float = 0.5
    path: Literal["teacher", "data"] = "teacher"
    teacher: Params | None = dataclasses.field(default=None, compare=False, repr=False)
    extra_evaluations: int = dataclasses.field(default=0, init=False)

    @property
    def genes(self) -> int:
        """Size of the panel."""
        return self.edm.genes

    @property
    def levels(self) -> tuple[float, float]:
        """Level that the last of several steps is noised to, and where the first starts."""
        return 0.5, 80.0

    @property
    def row_bytes(self) -> int:
        """Bytes of the network's largest array for one row."""
        return self.edm.row_bytes

    @property
    def estimate(self) -> Sampling:
        """The mean token; without one, a pair."""
        return self.edm.estimate if self.edm.mean_fraction else self.sampling(mode="pair")

    def sampling(self, **asked: Any) -> Sampling:
        """Returns what is asked for; where nothing is, sampler ``consistency`` with one step."""
        return Sampling(**{"sampler": "consistency", "steps": 1, **asked})

    def taught(self, teacher: Params) -> ConsistencyTask:
        """Returns the same with a teacher's weights, which may be traced."""
        return dataclasses.replace(self, teacher=teacher)

    def init(self, key: Key[Array, ""]) -> Params:
        """Returns fresh parameters; a run takes those of its start in their place."""
        return self.edm.init(key)

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Returns the mean over rows of the adaptive consistency error or the mean token's loss.

        x_t = x0 + t n has to go where a point x_r of its trajectory goes, r < t
        (`consistency.errors`); the pair draws together with the share of the run that is done
        (``progress`` in the batch). Errors of genes that were not measured are left out. The
        condition is disturbed as in the denoiser's training, and the first rows are mean tokens, as
        many as there.
        """
        x0, cond, mask = (jnp.asarray(batch[name]) for name in ("x0", "cond", "mask"))
        key_condition, key_level, key_noise = jax.random.split(key, 3)
        cond = self.edm.disturbed(cond, key_condition)
        x0 = jnp.where(mask > 0, x0, 0.0)
        t = self.noise.sample(key_level, x0.shape[:1])
        progress = batch.get("progress")
        assert progress is not None, "the train step adds it: make_train_step(updates=)"
        r = self.gap.earlier(t, jnp.asarray(progress)[0])
        unit = jax.random.normal(key_noise, x0.shape, jnp.float32)
        tokens = denoiser.mean_token_rows(len(x0), self.edm.mean_fraction)
        losses, parts = [], {}
        if tokens:
            shown = denoiser.add_noise(
                x0[:tokens], mask[:tokens], key_noise, noise=self.noise,
                sigma_data=self.edm.sigma_data, mean_fraction=1.0,
            )  # fmt: skip
            mean = self.edm.network.apply(params, shown.x, shown.level, cond[:tokens])
            losses.append(denoiser.row_losses(mean, shown))
            parts["loss_mean_token"] = jnp.mean(losses[-1])
        if tokens < len(x0):
            x0, cond, mask, t, r, unit = (a[tokens:] for a in (x0, cond, mask, t, r, unit))
            x_t = x0 + t[:, None] * unit
            x_r = self.partner(x0, unit, cond, x_t, t, r)
            squared = consistency.errors(
                self.edm.denoiser(params, cond), x_t, t, x_r, r, mask > 0,
                sigma_data=self.edm.sigma_data,
            )  # fmt: skip
            losses.append(consistency.adaptive(squared, self.power))
            parts["loss_squared"] = jnp.mean(squared)
        loss = jnp.mean(jnp.concatenate(losses))
        return loss, {"loss": loss, **parts}

    def partner(
        self,
        x0: Float[Array, "b g"],
        unit: Float[Array, "b g"],
        cond: Float[Array, "b c"],
        x_t: Float[Array, "b g"],
        t: Float[Array, " b"],
        r: Float[Array, " b"],
    ) -> Float[Array, "b g"]:
        """Returns the point at level r that shares its end with x_t, by ``path``."""
        if self.path == "data":
            return x0 + r[:, None] * unit
        assert self.teacher is not None, "the train step gives it: the batch's teacher"
        clean = self.edm.denoiser(self.teacher, cond)(x_t, t)
        return rules.towards(clean, x_t, (r / t)[:, None])

    def predict(
        self,
        params: Params,
        cond: Float[Array, "b c"],
        keys: Key[Array, " b"],
        *,
        sampling: Sampling,
    ) -> Float[Array, "n b g"]:
        """Returns draws in the model's space, [n b g]; n = 1 in mode ``mean``, 2 in ``pair``.

        Raises:
          ConfigError: another sampler than ``consistency``, or a mode that was not trained.
        """
        if sampling.mode in ONE_EVALUATION:
            return self.edm.predict(params, cond, keys, sampling=sampling)
        if sampling.sampler != "consistency":
            raise errors.ConfigError(
                f"sampler {sampling.sampler} of a consistency model",
                expected="consistency: it has no denoiser that a solver could follow",
                fix="use --sampler consistency, with --steps 1, 2 or 4",
            )
        return base.draw_profiles(
            self.edm.denoiser(params, cond, repeat=sampling.draws),
            keys,
            sampling=sampling,
            levels=self.levels,
            genes=self.genes,
        )

    def denoiser(
        self, params: Params, cond: Float[Array, "b c"], *, repeat: int = 1
    ) -> denoiser.Denoiser:
        """Raises ConfigError: what needs a denoiser has to ask the model this was tuned from."""
        raise errors.ConfigError(
            "guidance, given genes or a likelihood of a consistency model",
            expected="a model that has a denoiser (config.diffusion.process = edm or ddpm)",
            fix="use the model that this one was tuned from (stemjax train --start)",
        )

    def evaluations(self, sampling: Sampling) -> int:
        """Returns the network evaluations that a spot costs."""
        return sampling.evaluations
