"""Stem at a billion weights, for many slides on several accelerators: weights split over eight.

Command: stemjax train --config=configs/stem_large.py --workdir=runs/large
  --config.data.records=DIR --config.data.test=SLIDE --config.data.val=SLIDE
  On fewer or more devices: --config.mesh.fsdp=N, a divisor of the devices of a slice.
Expected: width 1536, depth 24, 12 heads of 128, 1.03e9 weights at 200 genes and a 1536-wide
  embedding. Nobody has trained it: whether more weights help is a question of how many slides there
  are, and on a few the published size is no worse.
Cost: 0.84 TFLOP a spot and update with each block computed once, 8.6e19 FLOP for 100,000 updates of
  1024 (arithmetic). 16 bytes a weight for weights, average and moments are 16.5 GB, so a TPU v5e
  (16 GB) needs fsdp of at least 4; docs/pod.md has what the TPU compiler plans for it on each chip.
"""

from typing import Any

from stemjax import config


def get_config() -> Any:
    c = config.default_config()
    c.name = "stem_large"
    c.model.width = 1536
    c.model.depth = 24
    c.model.heads = 12
    c.model.dtype = "bfloat16"
    c.mesh.fsdp = 8
    c.optim.learning_rate = 1e-4
    c.optim.weight_decay = 0.0
    c.optim.warmup = 2000
    c.optim.ema = 0.9999
    c.data.residence = "auto"
    c.data.decks = 64  # a process, and a device, holds a share of the rows and not all
    c.train.batch = 1024  # 128 for each of eight devices
    c.train.remat = "blocks"  # a quarter of the memory for a third more arithmetic
    c.train.steps = 100_000
    c.train.validate_every = 5000
    c.train.save_every = 5000
    return c
