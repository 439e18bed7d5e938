"""From an experiment to the task that it describes."""

from __future__ import annotations

import dataclasses

from stemjax import tasks
from stemjax.config.schema import Experiment
from stemjax.diffusion import noise
from stemjax.models import lite, stem


def make_task(experiment: Experiment, *, genes: int, condition: int) -> tasks.DiffusionTask:
    """Returns an experiment's task for ``genes`` genes and embeddings ``condition`` wide."""
    diffusion = experiment.diffusion
    shape = network_shape(experiment, genes=genes, condition=condition)
    if isinstance(shape, lite.LiteConfig):
        built = lite.make_lite(shape)
    else:
        built = stem.make_stem(shape)
    if diffusion.process == "ddpm":
        return tasks.DdpmTask(network=built, genes=genes)
    law = noise.LogNormal(mean=diffusion.noise_mean, std=diffusion.noise_std)
    if diffusion.noise == "loguniform":
        law = noise.LogUniform(sigma_min=diffusion.noise_min, sigma_max=diffusion.noise_max)
    task = tasks.StemTask(
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
    if diffusion.process == "consistency":
        return tasks.ConsistencyTask(edm=task, noise=law, path=diffusion.partner)
    return task


def network_shape(
    experiment: Experiment, *, genes: int, condition: int
) -> stem.StemConfig | lite.LiteConfig:
    """Returns the shape of an experiment's network for so many genes and such embeddings."""
    options = dataclasses.asdict(experiment.model)
    two = experiment.diffusion.process == "ddpm" or experiment.diffusion.marginal
    given = {"genes": genes, "condition": condition, "channels": 2 if two else 1}
    if options.pop("kind") == "lite":
        return lite.LiteConfig(**given, **options)
    del options["latents"]
    return stem.StemConfig(**given, **options)


def flops_per_evaluation(experiment: Experiment, *, genes: int, condition: int) -> int:
    """Returns the floating-point operations of one evaluation of an experiment's network.

    For one spot, by formula; a training step costs three times as many.
    """
    shape = network_shape(experiment, genes=genes, condition=condition)
    if isinstance(shape, lite.LiteConfig):
        return lite.flops_per_evaluation(shape)
    return stem.flops_per_evaluation(shape)
