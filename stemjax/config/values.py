"""Experiments from and to plain values: an unknown key is an error, and so is another type."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

import ml_collections

from stemjax import errors
from stemjax.config.checks import check
from stemjax.config.schema import Experiment
from stemjax.names import split_names


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
    if not isinstance(values, Mapping):
        raise errors.ConfigError(
            "a configuration", expected="a group of keys", found=type(values).__name__
        )
    experiment = _build(Experiment, values, "config.")
    check(experiment)
    return experiment


def as_json(experiment: Experiment) -> dict[str, Any]:
    """Returns the experiment as plain values; `resolve` reads it back."""
    return dataclasses.asdict(experiment)


def portable(experiment: Experiment) -> dict[str, Any]:
    """Returns `as_json` without the places of this machine: of files and folders the names alone.

    What a model is made of travels with it, and where that lay is nobody's business.
    """
    plain = as_json(experiment)
    records = [pathlib.PurePath(name).name for name in split_names(experiment.data.records)]
    manifest = pathlib.PurePath(experiment.data.manifest).name
    return plain | {"data": plain["data"] | {"records": ",".join(records), "manifest": manifest}}


def digest(experiment: Experiment) -> str:
    """Returns the first 12 hex digits of the SHA-256 of what differs from the defaults, as JSON.

    A key that a later version adds changes no digest while it is at its default, and where the
    records lie changes none.
    """
    plain, defaults = portable(experiment), as_json(Experiment())
    plain["data"]["records"] = defaults["data"]["records"]
    changed = {
        name: {key: v for key, v in value.items() if v != defaults[name][key]}
        if isinstance(value, dict)
        else value
        for name, value in plain.items()
        if value != defaults[name]
    }
    return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:12]


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
