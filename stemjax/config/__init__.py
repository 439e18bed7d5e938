"""Experiments: an ml_collections ConfigDict becomes frozen dataclasses; an unknown key is an error.

One file in ``configs/`` is one experiment. It returns `default_config()` with its own values, so
that every key exists with a type that the command line can override, and `resolve` turns the
result into an `Experiment` that the rest of the code reads. Checkpoints carry `as_json`: a stored
experiment is data and is never executed.
"""

from stemjax.config.building import flops_per_evaluation, make_task, network_shape
from stemjax.config.schema import Data, Diffusion, Experiment, Mesh, Model, Optim, Train, Window
from stemjax.config.values import (
    as_json,
    default_config,
    differences,
    digest,
    portable,
    resolve,
)

__all__ = [
    "Data",
    "Diffusion",
    "Experiment",
    "Mesh",
    "Model",
    "Optim",
    "Train",
    "Window",
    "as_json",
    "default_config",
    "differences",
    "digest",
    "flops_per_evaluation",
    "make_task",
    "network_shape",
    "portable",
    "resolve",
]
