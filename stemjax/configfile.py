"""Experiments from files: a Python file with ``get_config()`` plus ``--config.key=value`` flags.

The file is the user's own code and is executed. Checkpoints never carry one.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from stemjax import errors

SHIPPED = (
    pathlib.Path(__file__).with_name("experiments"),  # in a wheel
    pathlib.Path(__file__).parents[1] / "configs",  # in a checkout
)


def find(name: str) -> str:
    """Returns the file of an experiment: a path, or the name of one that comes with the package."""
    if pathlib.Path(name.split(":")[0]).is_file() or not name.isidentifier():
        return name
    for folder in SHIPPED:
        if (folder / f"{name}.py").is_file():
            return str(folder / f"{name}.py")
    return name


def load(path: str, overrides: Sequence[str]) -> Any:
    """Returns the ml_collections.ConfigDict of a file, with ``--config.train.steps=10`` and such.

    Args:
      path: the file, or the name of an experiment that comes with the package: ``histosge``.
      overrides: arguments of the command line.

    Raises:
      ConfigError: no such file, it cannot be run, an unknown key, or a value of another type.
    """
    path = find(path)
    if not pathlib.Path(path.split(":")[0]).is_file():
        known = sorted({file.stem for folder in SHIPPED for file in folder.glob("*.py")})
        raise errors.ConfigError(
            f"no configuration file {path}",
            expected=f"a file, or one of {', '.join(known)}",
            fix="see configs/ for examples",
        )
    for argument in overrides:
        if not argument.startswith("--config."):
            raise errors.ConfigError(
                f"argument {argument}",
                expected="--config.KEY=VALUE",
                fix="see stemjax train --help",
            )
    values, argv = flags.FlagValues(), ["stemjax train", f"--config={path}", *overrides]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        values(argv)
        return values["config"].value
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        # ml_collections answers a misspelt key with a long chain; its last line has the hint.
        text = str(error).strip().strip('"').replace("\\n", " ").splitlines()
        raise errors.ConfigError(
            f"configuration {path}: {' '.join(text)}", fix="correct the key or its value"
        ) from error
    except Exception as error:
        cause = error.__cause__ or error
        raise errors.ConfigError(
            f"configuration {path} cannot be run ({type(cause).__name__}: {cause})"
        ) from error
