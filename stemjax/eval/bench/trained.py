"""The row of our own model: trained on a fold's training slides by the usual way."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from stemjax import config
from stemjax.data import records
from stemjax.eval import predict
from stemjax.train import loop, writers

type Line = Callable[[int], writers.Writer]


def default_config() -> Any:
    """Returns the experiment that a benchmark trains where none is given.

    The sizes of ``configs/stem_her2st.py``: minutes on two CPU cores for a few slides, and no size
    to compare with a published one.
    """
    c = config.default_config()
    c.name = "bench"
    c.model.width, c.model.depth, c.model.heads = 64, 2, 2
    c.diffusion.noise_mean, c.diffusion.noise_std = 0.0, 1.4
    c.diffusion.mean_fraction, c.diffusion.condition_noise = 0.25, 0.5
    c.optim.learning_rate, c.optim.schedule, c.optim.warmup = 1e-3, "cosine", 100
    c.optim.ema = 0.995
    c.train.batch, c.train.accumulate, c.train.steps = 64, 8, 1200
    c.train.save_every = 400
    return c


def predict_means(
    experiment: config.Experiment,
    source: records.Records,
    workdir: str | pathlib.Path,
    slides: Sequence[str],
    *,
    line: Line | None = None,
) -> dict[str, pd.DataFrame]:
    """Trains, or goes on where the workdir stopped, and predicts the mean of every spot.

    The mean is the mean token's where the experiment trains one, else that of an antithetic pair.

    Args:
      experiment: what to train; its split must hold out ``slides``.
      source: records of all slides.
      workdir: the run's folder.
      slides: the slides to predict.
      line: makes a writer that shows the training, given its number of steps.

    Returns:
      Predictions of each slide in the experiment's value space, barcodes x genes.

    Raises:
      CheckpointMismatchError: the workdir belongs to another run.
    """
    trained = loop.train_shown(experiment, source, workdir, line)
    sampling = trained.card.task.estimate
    return {
        slide: predict.predict_slide(trained, source, slide, sampling).to_df() for slide in slides
    }
