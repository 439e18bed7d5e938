"""HisToSGE, corrected: hidden spots of a section from its measured ones.

Windows are a spot's nearest measured spots, on any array; positions are in um and attention falls
with distance; the measured expression of the window is seen; scores are of hidden spots alone.

Command: stemjax recover --records records --slide B1 --config configs/histosge.py \
  --workdir runs/histosge -o b1.h5ad
Expected: docs/recovery.md.
Cost: about 20 seconds a section of HER2ST on two CPU cores.
"""

from typing import Any

from stemjax import config


def get_config() -> Any:
    c = config.default_config()
    c.name = "histosge"
    c.model.kind = "histosge"
    c.model.width = 32
    c.model.depth = 1
    c.model.heads = 4
    c.model.mlp_ratio = 1
    c.window.kind = "neighbours"
    c.window.length = 25
    c.window.hide = 0.5
    c.window.noise = 1.0
    c.window.condition_noise = 1.0
    c.window.members = 8
    c.data.augment = False
    c.optim.learning_rate = 1e-3
    c.optim.warmup = 0
    c.optim.schedule = "cosine"
    c.optim.weight_decay = 0.1
    c.optim.ema = 0.99
    c.train.batch = 32
    c.train.steps = 150
    c.train.log_every = 25
    c.train.validate_every = 0
    c.train.save_every = 150
    return c
