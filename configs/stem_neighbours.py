"""Stem told what was measured around a spot: recovery with a spread as well as a mean.

The mean is a small HisToSGE's, of members each of which leaves out a quarter of the spots; what is
diffused is what they leave where they have not seen the spot. The diffusion's condition is the
patch embedding and a summary of the nearest measured spots, under so much noise, for a section of
hundreds of spots, that little of a single spot is left in it.

Command: stemjax recover --records records --slide C5 --config configs/stem_neighbours.py \
  --workdir runs/neighbours --mode draws -o c5.h5ad
Expected: docs/recovery.md.
Cost: about 2 minutes a section of HER2ST on two CPU cores.
"""

from typing import Any

from stemjax import config


def get_config() -> Any:
    c = config.default_config()
    c.name = "stem_neighbours"
    c.model.kind = "lite"
    c.model.width = 64
    c.model.depth = 1
    c.window.kind = "neighbours"
    c.window.length = 25
    c.window.hide = 0.5
    c.window.noise = 1.0
    c.window.condition_noise = 1.0
    c.window.members = 8
    c.window.bag = 0.25
    c.window.reaches = "100,200,400"
    c.data.augment = False
    c.diffusion.noise_mean = 0.0
    c.diffusion.noise_std = 1.4
    c.diffusion.mean_fraction = 0.25
    c.diffusion.condition_noise = 8.0
    c.optim.learning_rate = 1e-3
    c.optim.warmup = 0
    c.optim.schedule = "cosine"
    c.optim.weight_decay = 0.1
    c.optim.ema = 0.99
    c.train.batch = 32
    c.train.steps = 150
    c.train.validate_every = 0
    c.train.save_every = 150
    return c
