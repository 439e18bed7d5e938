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


def load(path: str, overrides: Sequence[str]) -> Any:
    """Returns the ml_collections.ConfigDict of a file, with ``--config.train.steps=10`` and such.

    Raises:
      ConfigError: no such file, it cannot be run, an unknown key, or a value of another type.
    """
    if not pathlib.Path(path.split(":")[0]).is_file():
        raise errors.ConfigError(f"no configuration file {path}", fix="see configs/ for examples")
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
