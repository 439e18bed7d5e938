"""From an experiment to the task that it describes."""

from __future__ import annotations

import dataclasses

from stemjax import tasks
from stemjax.config.schema import Experiment
from stemjax.config.window_checks import WINDOW_OF
from stemjax.diffusion import noise
from stemjax.models import histosge, lite, stem


def make_task(experiment: Experiment, *, genes: int, condition: int) -> tasks.AnyTask:
    """Returns an experiment's task for ``genes`` genes and embeddings ``condition`` wide."""
    if experiment.model.kind in WINDOW_OF:
        return _make_histosge(experiment, genes=genes, condition=condition)
    diffusion, window = experiment.diffusion, experiment.window
    shape = network_shape(experiment, genes=genes, condition=condition)
    assert not isinstance(shape, histosge.HisToSGEConfig)
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
    if window.kind == "neighbours":
        return tasks.NeighbourTask(
            regression=_make_histosge(experiment, genes=genes, condition=condition),
            edm=task,
            reaches_um=window.reaches_um,
            hide=window.hide,
        )
    return task


def _make_histosge(experiment: Experiment, *, genes: int, condition: int) -> tasks.HisToSGETask:
    """The HisToSGE that an experiment trains, by itself or as the mean of Stem with neighbours."""
    shape = histosge_shape(experiment, genes=genes, condition=condition)
    published = experiment.model.kind == "histosge_published"
    make = histosge.make_published if published else histosge.make_corrected
    network, features = make(shape)
    return tasks.HisToSGETask(
        network=network,
        features=features,
        genes=genes,
        form="published" if published else "corrected",
        hide=experiment.window.hide,
        noise=experiment.window.noise,
        condition_noise=experiment.window.condition_noise,
        members=experiment.window.members,
        bag=experiment.window.bag,
    )


def histosge_shape(
    experiment: Experiment, *, genes: int, condition: int
) -> histosge.HisToSGEConfig:
    """Returns the shape of the network of windows that an experiment has."""
    model, window = experiment.model, experiment.window
    given = {
        "genes": genes,
        "condition": condition,
        "components": min(window.components, genes),
    }
    if model.kind in WINDOW_OF:
        kept = ("width", "depth", "heads", "head_width", "mlp_ratio")
        return histosge.HisToSGEConfig(**given, **{name: getattr(model, name) for name in kept})
    return histosge.HisToSGEConfig(**given, width=window.width, depth=1, heads=4)


def network_shape(
    experiment: Experiment, *, genes: int, condition: int
) -> stem.StemConfig | lite.LiteConfig | histosge.HisToSGEConfig:
    """Returns the shape of an experiment's network for so many genes and such embeddings."""
    options = dataclasses.asdict(experiment.model)
    kind, _ = options.pop("kind"), options.pop("head_width")
    if kind in WINDOW_OF:
        return histosge_shape(experiment, genes=genes, condition=condition)
    if experiment.window.kind == "neighbours":
        condition += tasks.summary_width(genes, len(experiment.window.reaches_um))
    two = experiment.diffusion.process == "ddpm" or experiment.diffusion.marginal
    given = {"genes": genes, "condition": condition, "channels": 2 if two else 1}
    if kind == "lite":
        return lite.LiteConfig(**given, **options)
    del options["latents"]
    return stem.StemConfig(**given, **options)


def flops_per_evaluation(experiment: Experiment, *, genes: int, condition: int) -> int:
    """Returns the floating-point operations of one evaluation of an experiment's network.

    For one spot (of a network of windows, for one window), by formula; a training step costs three
    times as many. Of Stem with neighbours, those of its diffusion network.
    """
    shape = network_shape(experiment, genes=genes, condition=condition)
    if isinstance(shape, histosge.HisToSGEConfig):
        return experiment.window.members * histosge.flops_per_window(
            shape,
            tokens=experiment.window.length,
            published=experiment.model.kind == "histosge_published",
        )
    if isinstance(shape, lite.LiteConfig):
        return lite.flops_per_evaluation(shape)
    return stem.flops_per_evaluation(shape)
