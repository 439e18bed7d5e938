"""What a service offers: the ways of sampling that are compiled when it starts.

A client may choose among them and no other, since a program that is compiled for one request keeps
all others waiting. Fewer draws than were compiled cost as much and are the first of them: draw i of
a spot does not depend on how many there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from stemjax import errors, tasks
from stemjax.eval import conformal, predict
from stemjax.train import calibration, checkpoint

FIRST = ("draws", "marginal", "mean", "pair")
"""Modes in which intervals are looked for, where a request leaves it open."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """What spots have to have in common to be computed together.

    Attributes:
      mode: as the request names it.
      sampling: how the profiles are drawn.
      drawn: what is compiled; has at least as many draws.
      calibration: that of mode ``intervals``; else None.
    """

    mode: str
    sampling: tasks.Sampling
    drawn: tasks.Sampling
    calibration: calibration.Calibration | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Menu:
    """The ways of sampling that a service offers.

    Attributes:
      card: the model's.
      plain: those that the server was started with, the first by default.
      calibrated: those that have intervals, each with its calibration.
    """

    card: checkpoint.Card
    plain: tuple[tasks.Sampling, ...]
    calibrated: tuple[tuple[tasks.Sampling, calibration.Calibration], ...]

    @property
    def modes(self) -> tuple[str, ...]:
        """Modes that requests can name, the first by default."""
        own = tuple(dict.fromkeys(sampling.mode for sampling in self.plain))
        return (*own, "intervals") if self.calibrated else own

    @property
    def compiled(self) -> tuple[tasks.Sampling, ...]:
        """All that is to be compiled, each once."""
        return tuple(dict.fromkeys([*self.plain, *(one for one, _ in self.calibrated)]))

    def order(self, mode: str | None, *, draws: int | None, steps: int | None) -> Order:
        """Returns what a request orders.

        Raises:
          ConfigError: it is not on the menu.
          CalibrationError: intervals of a way of sampling that has none.
        """
        mode = mode or self.modes[0]
        if mode == "intervals":
            return self._intervals(draws, steps)
        if mode not in self.modes:
            raise errors.ConfigError(
                "mode", expected=f"one that is served: {', '.join(self.modes)}", found=mode,
                fix="start the server with it (--modes)",
            )  # fmt: skip
        offered = [sampling for sampling in self.plain if sampling.mode == mode]
        offered = _with_steps(offered, mode, steps)
        if mode != "draws":
            if draws is not None:
                raise errors.ConfigError(f"draws in mode {mode}", expected="none, or mode draws")
            return Order(mode=mode, sampling=offered[0], drawn=offered[0], calibration=None)
        wanted = offered[0].n_draws if draws is None else draws
        enough = [sampling for sampling in offered if sampling.n_draws >= wanted]
        if not enough:
            most = max(sampling.n_draws for sampling in offered)
            raise errors.ConfigError(
                "draws", expected=f"at most {most}", found=str(wanted),
                fix="start the server with more (--n-draws)",
            )  # fmt: skip
        drawn = min(enough, key=lambda sampling: sampling.n_draws)
        sampling = dataclasses.replace(drawn, n_draws=wanted)
        return Order(mode=mode, sampling=sampling, drawn=drawn, calibration=None)

    def _intervals(self, draws: int | None, steps: int | None) -> Order:
        fitting = [
            (sampling, made)
            for sampling, made in self.calibrated
            if (draws is None or (sampling.mode == "draws" and sampling.n_draws == draws))
            and (steps is None or (_has_steps(sampling) and sampling.steps == steps))
        ]
        if not fitting:
            asked = [f"{n} {what}" for n, what in ((draws, "draws"), (steps, "steps")) if n]
            having = "; ".join(_in_words(sampling) for sampling, _ in self.calibrated)
            raise errors.CalibrationError(
                "intervals",
                expected=f"a way of sampling that is calibrated: {having or 'the model has none'}",
                found=" and ".join(asked) or "no choice",
                fix="calibrate the model with `stemjax calibrate` and start the server again",
            )
        sampling, made = fitting[0]
        return Order(mode="intervals", sampling=sampling, drawn=sampling, calibration=made)

    def describe(self) -> list[dict[str, Any]]:
        """Returns each way of sampling in plain values, and whether it has intervals."""
        having = {one for one, _ in self.calibrated}
        return [
            {
                **predict.describe_sampling(self.card, sampling),
                "evaluations_per_spot": self.card.task.evaluations(sampling),
                "intervals": sampling in having,
            }
            for sampling in self.compiled
        ]


def make_menu(
    trained: checkpoint.Trained,
    *,
    modes: Sequence[str] = (),
    n_draws: Sequence[int] = (),
    steps: Sequence[int] = (),
    more: Mapping[str, Any] | None = None,
) -> Menu:
    """Returns the menu of a model: every mode with every number of steps and of draws.

    Args:
      trained: the model, with its calibrations.
      modes: the default first; none is ``mean``, ``marginal`` and ``draws``, as far as the model
        has them, or ``pair`` in place of a mean that it lacks.
      n_draws: numbers of draws to compile for mode ``draws``, the default first.
      steps: numbers of steps, the default first.
      more: other fields of `stemjax.tasks.Sampling`.

    Raises:
      ConfigError: the model predicts from whole slides, or cannot be sampled so.
    """
    card = trained.card
    kind = card.experiment.window.kind
    if kind != "none":
        raise errors.ConfigError(
            f"serving a model with config.window.kind={kind}",
            expected="a model that sees a spot's patch alone",
            found="one that predicts a spot from the other spots of its slide",
            fix="use stemjax predict",
        )
    plain: list[tasks.Sampling] = []
    for mode in modes or ("mean", "marginal", "draws"):
        found = _samplings(card, mode, n_draws=n_draws, steps=steps, more=more or {})
        if modes or all(_refused(card, one) is None for one in found):
            plain += found
    if not modes and not any(one.mode == "mean" for one in plain):
        plain = [*_samplings(card, "pair", n_draws=(), steps=steps, more=more or {}), *plain]
    for one in plain:
        if (error := _refused(card, one)) is not None:
            raise error
    return Menu(
        card=card, plain=tuple(dict.fromkeys(plain)), calibrated=_calibrated(trained, plain)
    )


def _samplings(
    card: checkpoint.Card,
    mode: str,
    *,
    n_draws: Sequence[int],
    steps: Sequence[int],
    more: Mapping[str, Any],
) -> list[tasks.Sampling]:
    """Every number of steps and of draws of a mode, as far as the mode has them."""
    if mode in tasks.ONE_EVALUATION:
        return [card.task.sampling(mode=mode)]
    given = [{"steps": number} for number in steps] or [{}]
    if mode == "draws" and n_draws:
        given = [{**one, "n_draws": number} for one in given for number in n_draws]
    return [card.task.sampling(mode=mode, **one, **more) for one in given]


def _refused(card: checkpoint.Card, sampling: tasks.Sampling) -> errors.ConfigError | None:
    """Why a model cannot be sampled so, found out without running it."""
    params = jax.eval_shape(card.task.init, jax.random.key(0))
    cond = jax.ShapeDtypeStruct((1, card.contract.width), np.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    try:
        jax.eval_shape(lambda *a: card.task.predict(*a, sampling=sampling), params, cond, keys)
    except errors.ConfigError as error:
        return error
    return None


def _calibrated(
    trained: checkpoint.Trained, plain: Sequence[tasks.Sampling]
) -> tuple[tuple[tasks.Sampling, calibration.Calibration], ...]:
    """Each calibration with the sampling that it is of, modes with a spread first."""
    card, found = trained.card, []
    # Two ways of saying the same, such as levels given and the model's own, share their program.
    same = [(one, predict.describe_sampling(card, one)) for one in plain]
    for made in trained.calibrations:
        try:
            sampling = _sampling_of(made.sampling)
            described = predict.describe_sampling(card, sampling)
        except (errors.ConfigError, KeyError, TypeError):
            continue  # of a version that sampled otherwise
        # None where this version would draw otherwise than it says.
        if conformal.find((made,), described) and _refused(card, sampling) is None:
            known = (one for one, about in same if about == described)
            found.append((next(known, sampling), made))
    return tuple(sorted(found, key=lambda pair: FIRST.index(pair[0].mode)))


def _sampling_of(about: Mapping[str, Any]) -> tasks.Sampling:
    """The sampling that `predict.describe_sampling` tells of."""
    if about["mode"] in tasks.ONE_EVALUATION:
        return tasks.Sampling(mode=about["mode"])
    names = ("mode", "sampler", "steps", "ladder", "antithetic", "churn")
    names += ("sigma_min", "sigma_max", "rho")
    given: dict[str, Any] = {name: about[name] for name in names}
    if about["mode"] == "draws":
        given["n_draws"] = about["n_draws"]
    if about["sampler"] in ("ddim", "dpmpp2m_sde"):
        given["eta"] = about["eta"]
    return tasks.Sampling(**given)


def _with_steps(
    offered: list[tasks.Sampling], mode: str, steps: int | None
) -> list[tasks.Sampling]:
    """Those of the given number of steps, or of the default."""
    if not _has_steps(offered[0]):
        if steps is not None:
            raise errors.ConfigError(f"steps in mode {mode}", expected="none: one evaluation")
        return offered
    wanted = offered[0].steps if steps is None else steps
    found = [sampling for sampling in offered if sampling.steps == wanted]
    if not found:
        known = ", ".join(map(str, dict.fromkeys(one.steps for one in offered)))
        raise errors.ConfigError(
            "steps", expected=f"a number that is served: {known}", found=str(steps),
            fix="start the server with it (--steps)",
        )  # fmt: skip
    return found


def _has_steps(sampling: tasks.Sampling) -> bool:
    return sampling.mode not in tasks.ONE_EVALUATION


def _in_words(sampling: tasks.Sampling) -> str:
    """A way of sampling in few words."""
    if not _has_steps(sampling):
        return f"mode {sampling.mode}"
    draws = f"{sampling.n_draws} draws, " if sampling.mode == "draws" else ""
    return f"mode {sampling.mode} ({draws}{sampling.steps} steps of {sampling.sampler})"
