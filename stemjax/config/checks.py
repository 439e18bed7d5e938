"""Values of an experiment that cannot work, found before anything is read or compiled."""

from __future__ import annotations

import dataclasses

from stemjax import errors
from stemjax.config.schema import Data, Diffusion, Experiment, Model
from stemjax.config.window_checks import check_window


def check(experiment: Experiment) -> None:
    """Checks the numbers of an experiment, and what goes together in it.

    Raises:
      ConfigError: a value that cannot work, by its key.
    """
    train, optim, diffusion = experiment.train, experiment.optim, experiment.diffusion
    at_least_one = {
        "data.decks": experiment.data.decks,
        "train.steps": train.steps,
        "train.batch": train.batch,
        "train.accumulate": train.accumulate,
        "train.steps_per_call": train.steps_per_call,
        "train.log_every": train.log_every,
        "train.save_every": train.save_every,
        "train.keep": train.keep,
        "train.rollback_after": train.rollback_after,
        "mesh.fsdp": experiment.mesh.fsdp,
        "mesh.genes": experiment.mesh.genes,
    }
    for name, value in at_least_one.items():
        if value < 1:
            raise errors.ConfigError(f"config.{name}", expected="at least 1", found=str(value))
    if train.rollbacks < 0:
        raise errors.ConfigError(
            "config.train.rollbacks", expected="at least 0", found=str(train.rollbacks)
        )
    if not 0 <= diffusion.mean_fraction <= 1:
        raise errors.ConfigError(
            "config.diffusion.mean_fraction",
            expected="between 0 and 1",
            found=str(diffusion.mean_fraction),
        )
    if train.batch % train.accumulate:
        raise errors.ConfigError(
            f"config.train.batch={train.batch}",
            expected=f"a multiple of config.train.accumulate={train.accumulate}",
        )
    if train.batch % experiment.data.decks:
        raise errors.ConfigError(
            f"config.data.decks={experiment.data.decks}",
            expected=f"a divisor of config.train.batch={train.batch}",
        )
    part = train.batch // train.accumulate
    if diffusion.mean_fraction and not round(diffusion.mean_fraction * part):
        raise errors.ConfigError(
            f"config.diffusion.mean_fraction={diffusion.mean_fraction}",
            expected=f"at least one mean token in {part} spots (batch / accumulate)",
            found="none after rounding",
            fix="raise config.train.batch or the fraction, or set the fraction to 0",
        )
    _check_data(experiment.data)
    _check_diffusion(diffusion)
    if diffusion.process == "consistency" and train.validate_every:
        raise errors.ConfigError(
            f"config.train.validate_every={train.validate_every} with config.diffusion.process="
            "consistency",
            expected="0: validation judges the mean, and would choose weights that cannot draw yet",
        )
    if not 0 <= optim.ema < 1:
        raise errors.ConfigError(
            "config.optim.ema", expected="at least 0 and below 1", found=str(optim.ema)
        )
    _check_model(experiment.model)
    check_window(experiment)


def _check_model(model: Model) -> None:
    if model.latents < 0 or (model.latents and model.kind != "lite"):
        raise errors.ConfigError(
            f"config.model.latents={model.latents}",
            expected="0 or more" if model.kind == "lite" else "0: only the kind lite has latents",
            fix="" if model.kind == "lite" else "set config.model.kind=lite",
        )
    # A head of HisToSGE may have a width of its own.
    has_heads = (model.kind != "lite" or model.latents) and not model.head_width
    if has_heads and model.width % model.heads:
        raise errors.ConfigError(
            f"config.model.width={model.width}",
            expected=f"a multiple of config.model.heads={model.heads}",
        )


def _check_data(data: Data) -> None:
    if not 0 <= data.corrupt_share < 1:
        raise errors.ConfigError(
            "config.data.corrupt_share",
            expected="at least 0 and below 1",
            found=str(data.corrupt_share),
        )
    if data.manifest and (data.test or data.val):
        raise errors.ConfigError(
            "config.data.manifest beside config.data.test or config.data.val",
            expected="one of the two ways to say which slides are held out",
            found=f"manifest {data.manifest}, test {data.test or 'none'}, val {data.val or 'none'}",
        )
    if bool(data.manifest) != bool(data.fold):
        raise errors.ConfigError(
            "config.data.manifest and config.data.fold go together",
            found=f"manifest {data.manifest or 'none'}, fold {data.fold or 'none'}",
        )


def _check_diffusion(diffusion: Diffusion) -> None:
    bounds = {
        "condition_noise": ("at least 0", diffusion.condition_noise >= 0),
        "condition_dropout": ("at least 0 and below 1", 0 <= diffusion.condition_dropout < 1),
        "noise_std": ("at least 0", diffusion.noise_std >= 0),
        "noise_max": (
            f"above noise_min = {diffusion.noise_min}, which is above 0",
            0 < diffusion.noise_min < diffusion.noise_max,
        ),
        "weight_gamma": ("positive", diffusion.weight_gamma > 0),
        "sigma_data": ("positive", diffusion.sigma_data > 0),
    }
    for name, (expected, holds) in bounds.items():
        if not holds:
            raise errors.ConfigError(
                f"config.diffusion.{name}", expected=expected, found=str(getattr(diffusion, name))
            )
    for name in ("residual", "marginal"):
        if getattr(diffusion, name) and not diffusion.mean_fraction:
            raise errors.ConfigError(
                f"config.diffusion.{name}",
                expected="a mean token to go with it",
                found="config.diffusion.mean_fraction=0",
                fix="set config.diffusion.mean_fraction, say to 0.1",
            )
    if diffusion.process == "edm":
        if diffusion.partner != Diffusion().partner:
            raise errors.ConfigError(
                f"config.diffusion.partner={diffusion.partner}",
                expected="config.diffusion.process=consistency to go with it",
                found="edm",
            )
        return
    if diffusion.process == "consistency":
        _check_consistency(diffusion)
        return
    plain = dataclasses.replace(Diffusion(), process="ddpm", mean_fraction=0.0)
    changed = [
        field.name
        for field in dataclasses.fields(Diffusion)
        if getattr(diffusion, field.name) != getattr(plain, field.name)
    ]
    if changed:
        name = changed[0]
        raise errors.ConfigError(
            f"config.diffusion.{name} with the published process",
            expected=f"{getattr(plain, name)!r}: the process ddpm has no such option",
            found=repr(getattr(diffusion, name)),
            fix="set it so, or take config.diffusion.process=edm",
        )


def _check_consistency(diffusion: Diffusion) -> None:
    wanted = {"noise": "loguniform", "weight": "edm", "residual": False, "marginal": False,
              "condition_dropout": 0.0}  # fmt: skip
    for name, value in wanted.items():
        if getattr(diffusion, name) != value:
            raise errors.ConfigError(
                f"config.diffusion.{name} with config.diffusion.process=consistency",
                expected=repr(value),
                found=repr(getattr(diffusion, name)),
                fix="set it so: tuning has no such option",
            )
