"""Stem with a panel of 10,000 genes: the tokens of a spot are split over four accelerators.

Command: stemjax train --config=configs/stem_10k_genes.py --workdir=runs/genes
  --config.data.records=DIR --config.data.test=SLIDE --config.data.val=SLIDE
  for records of 10,000 genes (`stemjax prepare --n-genes 10000`). Splitting spots is for few spots
  at a time or small memories: where every device can have whole ones (--config.train.batch of at
  least the devices), --config.mesh.genes=1 is faster. Else: a divisor of the panel.
Expected: width 512, depth 12, 8 heads, 66 M weights at a 1536-wide embedding, 5.1 M of them the
  genes' own vectors. Nobody has trained it. The number of genes has to be a multiple of
  config.mesh.genes.
Cost: three quarters of the arithmetic are attention, whose cost goes with the square of the panel:
  9.7 TFLOP a spot and update with each block computed once, 1.2e20 FLOP for 100,000 updates of 128
  (arithmetic). docs/pod.md has what the TPU compiler plans for it, docs/long_panels.md the forms of
  attention for such panels.
"""

from typing import Any

from stemjax import config


def get_config() -> Any:
    c = config.default_config()
    c.name = "stem_10k_genes"
    c.model.width = 512
    c.model.depth = 12
    c.model.heads = 8
    c.model.dtype = "bfloat16"
    c.mesh.genes = 4
    c.optim.learning_rate = 1e-4
    c.optim.weight_decay = 0.0
    c.optim.ema = 0.9999
    c.data.residence = "auto"
    c.data.decks = 32  # a process, and a device, holds a share of the rows and not all
    c.train.batch = 128
    c.train.remat = "blocks"
    c.train.steps = 100_000
    c.train.validate_every = 5000
    c.train.save_every = 5000
    return c
