"""Stem on real HER2ST sections, sized for two CPU cores.

Command: stemjax train --config=configs/stem_her2st.py --workdir=runs/her2st
  --config.data.records=records/her2st --config.data.test=C5
Expected: the table in the README. The number of steps was chosen on C3, held out by
  --config.data.val=C3, and the final run trains on B4, C2, C3 and C4.
Cost: about 7 minutes on two CPU cores.
"""

from typing import Any

from stemjax import config


def get_config() -> Any:
    c = config.default_config()
    c.name = "stem_her2st"
    c.model.width = 64
    c.model.depth = 2
    c.model.heads = 2
    c.diffusion.noise_mean = 0.0
    c.diffusion.noise_std = 1.4
    c.diffusion.mean_fraction = 0.25
    c.diffusion.condition_noise = 0.5
    c.optim.learning_rate = 1e-3
    c.optim.warmup = 100
    c.optim.schedule = "cosine"
    c.optim.ema = 0.995
    c.train.batch = 64
    c.train.accumulate = 8
    c.train.steps = 1200
    c.train.validate_every = 100
    c.train.save_every = 400
    return c
