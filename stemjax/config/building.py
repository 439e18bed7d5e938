"""From an experiment to the task that it describes."""

from __future__ import annotations

import dataclasses

from stemjax import tasks
from stemjax.config.schema import Experiment
from stemjax.diffusion import noise
from stemjax.models import stem


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
