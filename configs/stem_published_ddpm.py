"""Stem as published (ICLR 2025, arXiv 2501.15598): network, process, loss and space.

Command: stemjax train --config=configs/stem_published_ddpm.py --workdir=runs/published_ddpm
  --config.data.records=DIR --config.data.test=SLIDE --config.data.val=SLIDE
Then: stemjax predict --checkpoint=runs/published_ddpm --records=DIR --slide=SLIDE --mode=draws
  --sampler=ddpm --steps=1000 --independent -o out.h5ad (20,000 evaluations a spot, as published),
  or --mode=pair (16 evaluations, DPM-Solver++ on the same weights)
Expected: 35.6 M weights at 200 genes; eps and learned variance over 1000 linear betas, hybrid
  loss, log2(count + 1) and embeddings as they are, 7 flips and turns beside the original. Its
  checkpoint goes to the original code by `stemjax export --format torch`. What differs from the
  published run: blocks in bfloat16 as its author's figure has it, the EMA ramps up over the first
  90,000 updates, each spot shows one of its 8 views an update instead of a fixed mixture, and
  spots without any count of the panel stay in.
Cost: 28 GFLOP a spot and update, so 2.15e18 FLOP for 300,000 updates of 256: about two hours on
  one H200 at 40 % of its matmul rate (arithmetic, not a measurement); not a job for a CPU.
"""

from typing import Any

from stemjax import config


def get_config() -> Any:
    c = config.default_config()
    c.name = "stem_published_ddpm"
    c.data.transform = "log2p1"
    c.data.standardise_expression = False
    c.data.standardise_condition = False
    c.model.width = 384
    c.model.depth = 12
    c.model.heads = 6
    c.model.dtype = "bfloat16"
    c.diffusion.process = "ddpm"
    c.diffusion.mean_fraction = 0.0
    c.optim.learning_rate = 1e-4
    c.optim.warmup = 0
    c.optim.weight_decay = 0.0
    c.optim.clip = 1e9  # none, as published
    c.optim.ema = 0.9999
    c.data.residence = "auto"  # on the accelerator, where the rows take no more than half of it
    c.train.batch = 256
    c.train.steps_per_call = 10  # divides 50 and 5000, the rhythms below and of the log
    c.train.steps = 300_000
    c.train.validate_every = 5000
    c.train.save_every = 5000
    return c
