"""The experiment that is disturbed: small and saved often (``stemjax train --config``).

Command: python -m tests.faults, which trains it many times.
Expected: the same arrays however it is interrupted.
Cost: two seconds.
"""

from typing import Any

from stemjax import config


def get_config() -> Any:
    c = config.default_config()
    c.name = "faults"
    c.data.val, c.data.test = "drawn-2", "drawn-3"
    c.model.width, c.model.depth, c.model.heads = 16, 1, 2
    c.diffusion.mean_fraction = 0.25
    c.optim.learning_rate, c.optim.warmup, c.optim.ema = 3e-3, 2, 0.9
    c.train.batch, c.train.steps, c.train.log_every = 16, 24, 1
    c.train.validate_every, c.train.save_every, c.train.keep = 8, 4, 2
    return c
