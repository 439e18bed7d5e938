"""Stricter switches for the mathematics: no silent dtype promotion, no random key used twice."""

from __future__ import annotations

import jax
import pytest


@pytest.fixture(autouse=True)
def _strict_jax():
    with jax.numpy_dtype_promotion("strict"), jax.debug_key_reuse(True):
        yield
