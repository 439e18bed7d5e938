"""Experiments: an ml_collections ConfigDict becomes frozen dataclasses; an unknown key is an error.

One file in ``configs/`` is one experiment. It returns `default_config()` with its own values, so
that every key exists with a type that the command line can override, and `resolve` turns the
result into an `Experiment` that the rest of the code reads. Checkpoints carry `as_json`: a stored
experiment is data and is never executed.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

import ml_collections

from stemjax import errors, tasks
from stemjax.diffusion import noise
from stemjax.models import stem
from stemjax.names import split_names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Which records, which slides are held out, and how they become arrays.

    Attributes:
      records: record directories, comma-separated.
      test: slides that training never sees, comma-separated.
      val: slides for choices (early stopping, hyperparameters), comma-separated; may be empty.
      manifest: file of folds (`stemjax split`) that says the roles instead of the two above.
      fold: the fold of the manifest.
      leakage: where a test patient also has a training slide, ``mark`` the result or ``refuse``.
      transform: ``log2p1`` (published), ``log1p_cp10k`` or ``log1p`` (HEST-Benchmark).
      standardise_expression: scale each gene to mean 0, std 1 over the training spots.
      standardise_condition: scale each embedding feature likewise.
      augment: choose one of the 8 flips and rotations per record and step; else the original.
      residence: ``ram``, ``stream``, or ``auto`` (RAM where it fits).
      allow_seen_panel: accept a test slide on which the gene panel was selected.
    """

    records: str = ""
    test: str = ""
    val: str = ""
    manifest: str = ""
    fold: str = ""
    leakage: Literal["mark", "refuse"] = "mark"
    transform: Literal["log2p1", "log1p_cp10k", "log1p"] = "log2p1"
    standardise_expression: bool = True
    standardise_condition: bool = True
    augment: bool = True
    residence: Literal["auto", "ram", "stream"] = "auto"
    allow_seen_panel: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """Size and precision of the Stem denoiser; see `stemjax.models.stem.StemConfig`."""

    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: int = 4
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion:
    """Process, training noise and loss; see `stemjax.tasks.StemTask`.

    Attributes:
      process: ``edm``, or ``ddpm``, the published process: eps and learned variance over 1000
        linear betas, which has none of the options below (mean_fraction must be 0).
      noise: law of the training noise levels, ``lognormal`` or ``loguniform`` (log-SNR uniform).
      noise_mean: mean of ln sigma (EDM's P_mean), for ``lognormal``.
      noise_std: standard deviation of ln sigma (EDM's P_std), for ``lognormal``.
      noise_min: smallest noise level, for ``loguniform``.
      noise_max: largest noise level, for ``loguniform``.
      weight: loss weight over noise levels, ``edm``, ``min_snr`` or ``soft_min_snr``.
      weight_gamma: signal-to-noise ratio at which the last two level off.
      sigma_data: standard deviation of the model's space; with ``residual``, of what the
        condition leaves unexplained.
      mean_fraction: share of each batch trained as the mean token; 1 is plain regression.
      condition_noise: standard deviation of the noise added to the condition in training, in units
        of its standardised features; regularises as ridge does.
      condition_dropout: share of spots trained without their condition, which classifier-free
        guidance needs.
      residual: diffuse the expression less its mean given the condition (CorrDiff's form).
      marginal: train a second output channel as the log variance of each gene given the
        condition, for the spread in one evaluation (mode marginal).
    """

    process: Literal["edm", "ddpm"] = "edm"
    noise: Literal["lognormal", "loguniform"] = "lognormal"
    noise_mean: float = -1.2
    noise_std: float = 1.2
    noise_min: float = 0.01
    noise_max: float = 80.0
    weight: Literal["edm", "min_snr", "soft_min_snr"] = "edm"
    weight_gamma: float = 5.0
    sigma_data: float = 1.0
    mean_fraction: float = 0.1
    condition_noise: float = 0.0
    condition_dropout: float = 0.0
    residual: bool = False
    marginal: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optim:
    """AdamW with warm-up, clipping and an exponential moving average of the weights.

    Attributes:
      learning_rate: peak rate.
      schedule: ``constant`` or ``cosine`` (to zero at the last step) after the warm-up.
      warmup: steps of linear warm-up.
      weight_decay: AdamW's, on kernels only.
      clip: global norm of the gradient.
      ema: decay of the moving average; ramps up as (1 + step) / (10 + step).
    """

    learning_rate: float = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = 100
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.9999


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Length and rhythm of a run, in steps.

    Attributes:
      steps: updates in all.
      batch: spots an update, over all devices.
      accumulate: parts that a batch is worked through in, one after another, before the update.
        More parts need less memory; on a CPU, parts of about 8 stay in its caches and halve the
        time.
      log_every: steps between metrics.
      validate_every: steps between validations on ``data.val``; 0 is never.
      save_every: steps between checkpoints.
      keep: checkpoints kept.
    """

    steps: int = 300_000
    batch: int = 256
    accumulate: int = 1
    log_every: int = 50
    validate_every: int = 1000
    save_every: int = 1000
    keep: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that a run needs besides the records themselves."""

    name: str = "stem"
    seed: int = 0
    data: Data = Data()
    model: Model = Model()
    diffusion: Diffusion = Diffusion()
    optim: Optim = Optim()
    train: Train = Train()

    @property
    def val_slides(self) -> tuple[str, ...]:
        """Slides held out for choices."""
        return split_names(self.data.val)

    @property
    def test_slides(self) -> tuple[str, ...]:
        """Slides held out for test."""
        return split_names(self.data.test)


def default_config() -> Any:
    """Returns an ml_collections.ConfigDict with every key of `Experiment` at its default.

    Typed Any, because a ConfigDict has its attributes at run time only.
    """
    return ml_collections.ConfigDict(dataclasses.asdict(Experiment()))


def _build(cls: type, values: Mapping[str, Any], where: str) -> Any:
    types = get_type_hints(cls)
    unknown = [name for name in values if name not in types]
    if unknown:
        near = difflib.get_close_matches(unknown[0], types, n=1)
        raise errors.ConfigError(
            f"unknown configuration key {where}{unknown[0]}",
            expected="one of " + ", ".join(types),
            fix=f"did you mean {where}{near[0]}?" if near else "remove it, or correct its name",
        )
    built = {}
    for name, value in values.items():
        kind = types[name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            if not isinstance(value, Mapping):
                raise errors.ConfigError(
                    f"configuration key {where}{name}",
                    expected="a group of keys",
                    found=repr(value),
                )
            built[name] = _build(kind, value, f"{where}{name}.")
        elif get_origin(kind) is Literal:
            if value not in get_args(kind):
                raise errors.ConfigError(
                    f"configuration key {where}{name}",
                    expected=" or ".join(get_args(kind)),
                    found=repr(value),
                )
            built[name] = value
        else:
            if kind is float and type(value) is int:
                value = float(value)
            if type(value) is not kind:
                raise errors.ConfigError(
                    f"configuration key {where}{name}",
                    expected=kind.__name__,
                    found=f"{value!r} ({type(value).__name__})",
                )
            built[name] = value
    return cls(**built)


def resolve(values: Mapping[str, Any] | ml_collections.ConfigDict) -> Experiment:
    """Returns the experiment that a ConfigDict or a plain dict describes.

    Raises:
      ConfigError: an unknown key, a value of another type, or one that cannot work.
    """
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    experiment = _build(Experiment, values, "config.")
    _check(experiment)
    return experiment


def _check(experiment: Experiment) -> None:
    train, optim, diffusion = experiment.train, experiment.optim, experiment.diffusion
    at_least_one = {
        "train.steps": train.steps,
        "train.batch": train.batch,
        "train.accumulate": train.accumulate,
        "train.log_every": train.log_every,
        "train.save_every": train.save_every,
        "train.keep": train.keep,
    }
    for name, value in at_least_one.items():
        if value < 1:
            raise errors.ConfigError(f"config.{name}", expected="at least 1", found=str(value))
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
    if not 0 <= optim.ema < 1:
        raise errors.ConfigError(
            "config.optim.ema", expected="at least 0 and below 1", found=str(optim.ema)
        )
    if experiment.model.width % experiment.model.heads:
        raise errors.ConfigError(
            f"config.model.width={experiment.model.width}",
            expected=f"a multiple of config.model.heads={experiment.model.heads}",
        )


def _check_data(data: Data) -> None:
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


def as_json(experiment: Experiment) -> dict[str, Any]:
    """Returns the experiment as plain values; `resolve` reads it back."""
    return dataclasses.asdict(experiment)


def digest(experiment: Experiment) -> str:
    """Returns the first 12 hex digits of the SHA-256 of the experiment's JSON."""
    text = json.dumps(as_json(experiment), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(left: Mapping[str, Any], right: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Returns a line for every key whose value differs, as ``key: left -> right``."""
    lines = []
    for name in sorted({*left, *right}):
        a, b = left.get(name), right.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{prefix}{name}.")
        elif a != b:
            lines.append(f"{prefix}{name}: {a!r} -> {b!r}")
    return lines


def make_task(experiment: Experiment, *, genes: int, condition: int) -> tasks.DiffusionTask:
    """Returns an experiment's task for ``genes`` genes and embeddings ``condition`` wide."""
    model, diffusion = experiment.model, experiment.diffusion
    published = diffusion.process == "ddpm"
    built = stem.make_stem(
        stem.StemConfig(
            genes=genes,
            condition=condition,
            channels=2 if published or diffusion.marginal else 1,
            **dataclasses.asdict(model),
        )
    )
    if published:
        return tasks.DdpmTask(network=built, genes=genes)
    law = noise.LogNormal(mean=diffusion.noise_mean, std=diffusion.noise_std)
    if diffusion.noise == "loguniform":
        law = noise.LogUniform(sigma_min=diffusion.noise_min, sigma_max=diffusion.noise_max)
    return tasks.StemTask(
        network=built,
        genes=genes,
        noise=law,
        sigma_data=diffusion.sigma_data,
        mean_fraction=diffusion.mean_fraction,
        condition_noise=diffusion.condition_noise,
        condition_dropout=diffusion.condition_dropout,
        weight=diffusion.weight,
        weight_gamma=diffusion.weight_gamma,
        residual=diffusion.residual,
        marginal=diffusion.marginal,
    )
