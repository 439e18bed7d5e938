"""Tasks: where data, model and mathematics meet.

A task is a few functions over plain arrays: `Task.init` makes parameters, `Task.loss` scores a
batch, `Task.predict` turns embeddings into expression. The loop, the checkpoints, prediction and
evaluation see nothing else of a model.

    StemTask   the EDM objective with a mean token (`stemjax.diffusion.denoiser`)
    DdpmTask   the published process, eps and learned variance (`stemjax.diffusion.ddpm`)
    ConsistencyTask  draws in one evaluation or a few, tuned from a StemTask
    NeighbourTask  a StemTask that is also told what was measured around the spot
    HisToSGETask   a mean from patches, positions and the spots around, no denoiser
    Steered    either of them, guided by a weaker denoiser or told some genes

`Sampling` says how a prediction is made, for all of them.
"""

from stemjax.tasks.base import AnyTask, DiffusionTask, Fitted, Replicated, Task, draw_profiles
from stemjax.tasks.consistency import ConsistencyTask
from stemjax.tasks.ddpm import DdpmTask
from stemjax.tasks.histosge import HisToSGETask
from stemjax.tasks.neighbours import NEAREST, NeighbourTask, summary_width
from stemjax.tasks.predictor import Predictor, Progress, by_portions, make_predictor, row_keys
from stemjax.tasks.sampling import LADDERS, MODES, ONE_EVALUATION, SAMPLERS, Mode, Sampling
from stemjax.tasks.steered import Steered
from stemjax.tasks.stem import StemTask
from stemjax.tasks.summary import Summary

__all__ = [
    "LADDERS",
    "MODES",
    "NEAREST",
    "ONE_EVALUATION",
    "SAMPLERS",
    "AnyTask",
    "ConsistencyTask",
    "DdpmTask",
    "DiffusionTask",
    "Fitted",
    "HisToSGETask",
    "Mode",
    "NeighbourTask",
    "Predictor",
    "Progress",
    "Replicated",
    "Sampling",
    "Steered",
    "StemTask",
    "Summary",
    "Task",
    "by_portions",
    "draw_profiles",
    "make_predictor",
    "row_keys",
    "summary_width",
]
