"""The published size of Stem (ICLR 2025, arXiv 2501.15598) with the EDM objective.

Command: stemjax train --config=configs/stem_published.py --workdir=runs/published
  --config.data.records=DIR --config.data.test=SLIDE --config.data.val=SLIDE
Expected: network, optimiser, batch and EMA as published (G 200, width 384, depth 12, 6 heads,
  35.6 M weights; the gene count comes from the records: `stemjax prepare --n-genes 200`). The
  objective is EDM with a mean token in standardised space, not the published 1000-step DDPM.
Cost: 28 GFLOP a spot and update, so 2.15e18 FLOP for 300,000 updates of 256: about two hours on
  one H200 at 40 % of its matmul rate (arithmetic, not a measurement); not a job for a CPU.
"""

from typing import Any

from stemjax import config


def get_config() -> Any:
    c = config.default_config()
    c.name = "stem_published"
    c.model.width = 384
    c.model.depth = 12
    c.model.heads = 6
    c.model.dtype = "bfloat16"
    c.optim.learning_rate = 1e-4
    c.optim.weight_decay = 0.0
    c.optim.ema = 0.9999
    c.data.residence = "auto"  # on the accelerator, where the rows take no more than half of it
    c.train.batch = 256
    c.train.steps_per_call = 10  # divides 50 and 5000, the rhythms below and of the log
    c.train.steps = 300_000
    c.train.validate_every = 5000
    c.train.save_every = 5000
    return c
