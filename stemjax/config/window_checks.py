"""Values of windows, recovery and HisToSGE that cannot work, or do not go together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from stemjax import errors
from stemjax.config.schema import Data, Diffusion, Experiment, Model, Window

WINDOW_OF = {"histosge": "neighbours", "histosge_published": "rows"}
"""The kind of window that a kind of model works on; Stem takes none or ``neighbours``."""

_LEAST = 6
"""Spots in a window of neighbours: the spot itself and some whose distances are told."""


def check_window(experiment: Experiment) -> None:
    """Checks windows, hidden spots, and the model that is to see them.

    Raises:
      ConfigError: a value that cannot work, by its key.
    """
    window, model, diffusion = experiment.window, experiment.model, experiment.diffusion
    bounds = {
        "window.hide": ("at least 0 and at most 1", 0 <= window.hide <= 1, window.hide),
        "window.noise": ("at least 0", 0 <= window.noise < math.inf, window.noise),
        "data.hide_share": (
            "above 0 and below 1",
            0 < experiment.data.hide_share < 1,
            experiment.data.hide_share,
        ),
        "data.hide_block": (
            "above 0",
            0 < experiment.data.hide_block < math.inf,
            experiment.data.hide_block,
        ),
        "model.head_width": ("at least 0", model.head_width >= 0, model.head_width),
        "window.condition_noise": (
            "at least 0",
            0 <= window.condition_noise < math.inf,
            window.condition_noise,
        ),
        "window.components": ("at least 1", window.components >= 1, window.components),
        "window.members": ("at least 1", window.members >= 1, window.members),
        "window.bag": (
            "at least 0 and below 1, and 0 for a single member",
            0 <= window.bag < 1 and (window.members > 1 or not window.bag),
            window.bag,
        ),
        "window.width": (
            "a multiple of 4, its heads",
            window.width > 0 and not window.width % 4,
            window.width,
        ),
    }
    for name, (expected, holds, found) in bounds.items():
        if not holds:
            raise errors.ConfigError(f"config.{name}", expected=expected, found=str(found))
    least = _LEAST if window.kind == "neighbours" else 1
    if window.length < least:
        raise errors.ConfigError(
            "config.window.length", expected=f"at least {least}", found=str(window.length)
        )
    _check_reaches(experiment)
    if window.kind != "none" and experiment.data.decks > 1:
        raise errors.ConfigError(
            f"config.data.decks={experiment.data.decks} with config.window.kind={window.kind}",
            expected="1: windows share their spots, which could not be dealt out",
        )
    wanted = WINDOW_OF.get(model.kind)
    if wanted and window.kind != wanted:
        raise errors.ConfigError(
            f"config.window.kind={window.kind} with config.model.kind={model.kind}",
            expected=wanted,
            fix=f"set config.window.kind={wanted}",
        )
    if window.kind == "rows" and not wanted:
        raise errors.ConfigError(
            "config.window.kind=rows",
            expected="config.model.kind=histosge_published to go with it",
            found=model.kind,
        )
    if wanted:
        _check_histosge(experiment)
    else:
        _check_others(model)
    if window.kind == "neighbours" and not wanted:
        _check_stem(diffusion)
    _check_lists(experiment.data)


def _check_reaches(experiment: Experiment) -> None:
    try:
        good = all(0 < reach < math.inf for reach in experiment.window.reaches_um)
    except ValueError:
        good = False
    if not good or not experiment.window.reaches_um:
        raise errors.ConfigError(
            "config.window.reaches",
            expected="numbers above 0 (um), comma-separated",
            found=repr(experiment.window.reaches),
        )


def _check_histosge(experiment: Experiment) -> None:
    beside, none = f"config.model.kind={experiment.model.kind}", "it has no such option"
    plain = dataclasses.asdict(Diffusion())
    _require("diffusion", experiment.diffusion, plain, beside, "it is no diffusion model")
    fixed = {"dtype": "float32", "attention": "auto", "remat": False}
    _require("model", experiment.model, fixed, beside, none)
    if experiment.train.remat == "blocks":
        raise errors.ConfigError(
            f"config.train.remat=blocks with {beside}", expected=f"auto or none: {none}"
        )
    # A member that leaves spots out serves Stem with neighbours; the published form sees no
    # measurement that could be hidden or disturbed, and interpolates none.
    useless = ["bag"]
    if experiment.model.kind == "histosge_published":
        useless += ["hide", "noise", "components"]
    defaults = {name: getattr(Window(), name) for name in useless}
    _require("window", experiment.window, defaults, beside, none)


def _require(group: str, values: Any, wanted: Mapping[str, object], beside: str, why: str) -> None:
    """Raises at the first key of a group that has another value than the one it must have."""
    for name, value in wanted.items():
        if getattr(values, name) != value:
            raise errors.ConfigError(
                f"config.{group}.{name} with {beside}",
                expected=f"{value!r}: {why}",
                found=repr(getattr(values, name)),
            )


def _check_others(model: Model) -> None:
    if model.head_width:
        raise errors.ConfigError(
            f"config.model.head_width with config.model.kind={model.kind}",
            expected="0: only HisToSGE has such an option",
            found=str(model.head_width),
        )


def _check_stem(diffusion: Diffusion) -> None:
    wanted = {"process": "edm", "condition_dropout": 0.0, "residual": False}
    why = "Stem with neighbours has no such option"
    _require("diffusion", diffusion, wanted, "config.window.kind=neighbours", why)


def _check_lists(data: Data) -> None:
    for name in ("recover", "train"):
        if data.manifest and getattr(data, name):
            raise errors.ConfigError(
                f"config.data.{name} beside config.data.manifest",
                expected="one of the two ways to say which slides train",
                found=f"{name} {getattr(data, name)}, manifest {data.manifest}",
            )
