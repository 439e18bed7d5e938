"""Values that the tests of the metrics share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261120)


@pytest.fixture
def some_pair(rng) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Makes a prediction with some skill and its truth, [l g] each."""

    def make(spots=120, genes=7):
        true = rng.normal(3.0, 1.0, (spots, genes))
        return 0.5 * true + rng.normal(0.0, 0.7, (spots, genes)), true

    return make
