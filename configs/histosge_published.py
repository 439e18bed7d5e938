"""HisToSGE as published (Shi, Xue, Zhu and Min, BIBM 2024, arXiv 2407.20518), for comparison.

Windows of 50 consecutive rows, learned tables of whole array columns and rows, one layer of 4 heads
of 64, every token predicted, ln(1 + counts per 10,000) as it is, Adam at 1e-3. Published features
are UNI's, 1,024 wide: the width is theirs, and other encoders are brought to it by a Linear.
`stemjax recover` also prints the scores on all spots, which is what is published.

Published besides: 1,000 genes by seurat_v3, which `stemjax prepare --genes FILE` takes, and 1,000
epochs, here steps of 8 windows: 1,000 epochs of a Visium section's half.

Command: stemjax recover --records records --slide SLIDE --config configs/histosge_published.py \
  --workdir runs/published -o out.h5ad
Expected: docs/recovery.md.
Cost: about 30 minutes on two CPU cores; `--config.train.steps=600` for a section of HER2ST.
"""

from typing import Any

from stemjax import config


def get_config() -> Any:
    c = config.default_config()
    c.name = "histosge_published"
    c.seed = 1234
    c.model.kind = "histosge_published"
    c.model.width = 1024
    c.model.depth = 1
    c.model.heads = 4
    c.model.head_width = 64
    c.model.mlp_ratio = 1
    c.window.kind = "rows"
    c.window.length = 50
    c.data.transform = "log1p_cp10k"
    c.data.standardise_expression = False
    c.data.standardise_condition = False
    c.data.augment = False
    c.optim.learning_rate = 1e-3
    c.optim.warmup = 0
    c.optim.schedule = "constant"
    c.optim.clip = 1e9
    c.optim.ema = 0.0
    c.train.batch = 8
    c.train.steps = 5000
    c.train.validate_every = 0
    return c
