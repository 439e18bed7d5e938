"""The denoiser of stem_her2st tuned to draw in one evaluation, its mean token trained on.

Command: stemjax train --config=configs/stem_her2st_fewstep.py --workdir=runs/her2st_fewstep
  --start=runs/her2st --config.data.records=records/her2st --config.data.test=C5
Expected: docs/fewstep.md, whose generators are tuned this way.
Cost: about 3 minutes on two CPU cores.
"""

from typing import Any

from stemjax import config


def get_config() -> Any:
    c = config.default_config()
    c.name = "stem_her2st_fewstep"
    c.model.width = 64
    c.model.depth = 2
    c.model.heads = 2
    c.diffusion.process = "consistency"
    c.diffusion.noise = "loguniform"
    c.diffusion.noise_min = 0.02
    c.diffusion.mean_fraction = 0.25
    c.diffusion.condition_noise = 0.5
    c.optim.learning_rate = 5e-4
    c.optim.warmup = 100
    c.optim.schedule = "cosine"
    c.optim.ema = 0.995
    c.train.batch = 64
    c.train.accumulate = 8
    c.train.steps = 400
    c.train.validate_every = 0
    c.train.save_every = 400
    return c
