"""How a prediction is made: mode, step rule, ladder, number of draws."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Literal

from jaxtyping import Array, Float

from stemjax import errors
from stemjax.diffusion import consistency, ddpm, ladders, rules, stochastic_rules
from stemjax.names import LADDERS, MODES, SAMPLERS

type Mode = Literal["mean", "marginal", "pair", "draws"]

ONE_EVALUATION = ("mean", "marginal")
OF_ONE_PROCESS = ("ddpm", "consistency")
"""Samplers that follow no denoiser: each belongs to models of the process of its name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How expression is drawn from a trained denoiser.

    Attributes:
      mode: ``mean`` is the mean token, one evaluation a spot. ``marginal`` is the mean token with
        its second channel, the standard deviation of each gene, also one evaluation. ``pair``
        averages one antithetic pair. ``draws`` gives ``n_draws`` samples for spread and joint
        structure.
      sampler: ``dpmpp2m`` (DPM-Solver++(2M)), ``dpmpp2m_sde`` (its SDE form), ``ddim``,
        ``ancestral`` (ancestral Euler, the same as ddim with eta 1), ``heun``, ``ab2`` (two-step
        Adams-Bashforth), ``ddpm``, the published ancestral steps with learned variance, for models
        of the published process only, or ``consistency``, to the end and noised again, for
        consistency models only.
      steps: noise levels above zero.
      ladder: how they are spaced: ``karras``, ``log_uniform``, ``vp_linear``, ``vp_cosine``, or
        ``ddpm``, evenly spread steps of the published process (with ``ddim`` the published DDIM).
        The sampler ``ddpm`` always uses the last.
      n_draws: samples a spot in mode ``draws``.
      antithetic: draw initial noise in pairs (+z, -z), and the noise of each step likewise, so
        that averages converge faster.
      eta: share of fresh noise a step, for ``ddim`` (0 to 1; None is 0) and ``dpmpp2m_sde`` (at
        least 0; None is 1).
      churn: EDM's S_churn, for ``heun``; 0 is deterministic.
      sigma_min: smallest noise level of the ladder, in units of the model's space; None is the
        model's own.
      sigma_max: largest noise level; None is the model's own.
      rho: curvature of the Karras ladder (EDM equation 5).

    Raises:
      ConfigError: a value that cannot work, or that the sampler does not have.
    """

    mode: Mode = "mean"
    sampler: str = "dpmpp2m"
    steps: int = 8
    ladder: str = "karras"
    n_draws: int = 20
    antithetic: bool = True
    eta: float | None = None
    churn: float = 0.0
    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float = 7.0

    def __post_init__(self) -> None:
        named = (("mode", MODES), ("sampler", SAMPLERS), ("ladder", LADDERS))
        for name, known in named:
            if getattr(self, name) not in known:
                raise errors.ConfigError(
                    f"sampling {name}", expected=" or ".join(known), found=repr(getattr(self, name))
                )
        if self.steps < 1 or self.n_draws < 1:
            raise errors.ConfigError(
                "sampling steps and n_draws",
                expected="at least 1",
                found=f"steps={self.steps}, n_draws={self.n_draws}",
            )
        if self.steps == 1 and self._on_process:
            raise errors.ConfigError(
                "steps of the published process",
                expected="at least 2: one step alone is its lowest level, .01, not noise",
                found="steps=1",
            )
        if self.eta is not None and self.sampler not in ("ddim", "dpmpp2m_sde"):
            raise errors.ConfigError(
                f"eta={self.eta} with sampler {self.sampler!r}",
                expected="no eta, since only ddim and dpmpp2m_sde have one",
                fix="use one of those, or leave eta out",
            )
        if not 0 <= self.churn < math.inf or (self.churn and self.sampler != "heun"):
            raise errors.ConfigError(
                f"churn={self.churn} with sampler {self.sampler!r}",
                expected="at least 0, and 0 for every sampler but heun",
                fix="use --sampler heun, or leave churn out",
            )
        if self.antithetic and self.mode == "draws" and self.n_draws % 2:
            raise errors.ConfigError(
                "n_draws with antithetic pairs",
                expected="an even number",
                found=str(self.n_draws),
                fix="ask for an even number of draws, or for independent ones",
            )
        _ = self.rule  # so that an eta that cannot work is named here

    @property
    def draws(self) -> int:
        """Samples that are drawn for each spot (1 for the mean, which draws none)."""
        return {"pair": 2, "draws": self.n_draws}.get(self.mode, 1)

    @property
    def in_pairs(self) -> bool:
        """Whether draws come in antithetic pairs."""
        return self.mode == "pair" or (self.mode == "draws" and self.antithetic)

    @property
    def rule(self) -> rules.StepRule:
        """The step rule; that of sampler ``ddpm`` is not on a ladder and stands in for its cost."""
        gamma = min(self.churn / self.steps, math.sqrt(2) - 1)
        made = {
            "dpmpp2m": rules.DpmSolverPP2M,
            "dpmpp2m_sde": lambda: stochastic_rules.DpmSolverPP2MSde(
                eta=1.0 if self.eta is None else self.eta
            ),
            "ddim": lambda: rules.Ddim(eta=self.eta or 0.0),
            "ancestral": lambda: rules.Ddim(eta=1.0),
            "ddpm": lambda: rules.Ddim(eta=1.0),
            "heun": lambda: stochastic_rules.HeunChurn(gamma=gamma) if self.churn else rules.Heun(),
            "ab2": rules.AdamsBashforth2,
            "consistency": consistency.Renoise,
        }
        return made[self.sampler]()

    @property
    def evaluations(self) -> int:
        """Evaluations of the denoiser for a spot; a task adds what its denoiser costs."""
        if self.mode in ONE_EVALUATION:
            return 1
        return self.draws * self.rule.evaluations(self.steps)

    def require_process(self, process: str) -> None:
        """Checks that the sampler is for models of a process.

        Raises:
          ConfigError: it is for those of another one alone.
        """
        drawn = self.mode not in ONE_EVALUATION
        if drawn and self.sampler in OF_ONE_PROCESS and self.sampler != process:
            raise errors.ConfigError(
                f"sampler {self.sampler}",
                expected=f"a model of that process (config.diffusion.process = {self.sampler})",
                found=f"one of {process}",
                fix="use one that follows any denoiser, such as --sampler dpmpp2m",
            )

    def on(self, levels: tuple[float, float]) -> Sampling:
        """Returns the same with a model's own smallest and largest noise level where none is set.

        On the steps of the published process the levels are that process's, whatever is set.

        Raises:
          ConfigError: the levels do not make a ladder.
        """
        low, high = (
            own if asked is None else asked
            for own, asked in zip(levels, (self.sigma_min, self.sigma_max))
        )
        if self._on_process:
            sigmas = ddpm.Process().respaced(self.steps).sigmas
            low, high = float(sigmas[0]), float(sigmas[-1])
            return dataclasses.replace(self, ladder="ddpm", sigma_min=low, sigma_max=high)
        found = dataclasses.replace(self, sigma_min=low, sigma_max=high)
        _ = found.rungs
        return found

    @property
    def rungs(self) -> Float[Array, " s"]:
        """The noise levels, falling to 0, [steps + 1]; on the model's levels (`on`).

        Raises:
          ConfigError: they do not make a ladder.
        """
        if self._on_process:
            return ddpm.Process().ladder(self.steps)
        make = ladders.LADDERS[self.ladder]
        if self.ladder == "karras":
            make = functools.partial(ladders.karras, rho=self.rho)
        if self.sigma_min is None or self.sigma_max is None:
            raise errors.ConfigError(
                "sampling", expected="noise levels", found="none", fix="take sampling.on(levels)"
            )
        return make(self.steps, sigma_min=self.sigma_min, sigma_max=self.sigma_max)

    @property
    def _on_process(self) -> bool:
        return "ddpm" in (self.ladder, self.sampler)
