"""A light denoiser for millions of bins (Visium HD): the whole profile through one vector.

Command: stemjax train --config=configs/lite.py --workdir=runs/lite
  --config.data.records=DIR --config.data.test=SLIDE --config.data.val=SLIDE
Expected: panels of 200 to 2,000 genes, 108 to 119 MFLOP an evaluation at 1,536 features: 1/86 of
  the published network at 200 genes, 1/1,300 at 2,000. Quality and cost beside the gene
  tokens: docs/lite.md.
Cost: 0.33 GFLOP a spot and update, so 1.3e16 FLOP for 40,000 updates of 1,024: under a minute on
  one H200 at 40 % of its matmul rate and ten hours at 350 GFLOP/s of two CPU cores (arithmetic,
  not a measurement); input is the bound on the former.
"""

from typing import Any

from stemjax import config


def get_config() -> Any:
    c = config.default_config()
    c.name = "lite"
    c.model.kind = "lite"
    c.model.width = 1024
    c.model.depth = 4
    c.model.mlp_ratio = 4
    c.model.dtype = "bfloat16"
    c.diffusion.noise_mean = 0.0
    c.diffusion.noise_std = 1.4
    c.diffusion.mean_fraction = 0.25
    c.diffusion.condition_noise = 0.5
    c.optim.learning_rate = 3e-4
    c.optim.schedule = "cosine"
    c.optim.warmup = 500
    c.optim.ema = 0.999
    c.train.batch = 1024
    c.train.steps = 40_000
    c.train.steps_per_call = 10
    c.train.validate_every = 2000
    c.train.save_every = 2000
    return c
