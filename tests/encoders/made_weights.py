"""Numbers that a formula gives for every tensor by its name: golden files need not hold weights."""

from __future__ import annotations

import zlib

import numpy as np


def uniform(seed, shape):
    """Numbers in (-1, 1), the same on every machine: a hash of their place."""
    i = np.arange(int(np.prod(shape)), dtype=np.uint64)
    x = (i + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(zlib.crc32(seed.encode()))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    x = (x ^ (x >> np.uint64(31))) >> np.uint64(40)
    return (x.astype(np.float64) / 2**23 - 1 + 2**-24).reshape(shape).astype(np.float32)


def tensor(name, shape):
    """A tensor of a checkpoint, float32 of few bits, so that float16 holds it.

    Tokens start small, with a variance near 1e-4: there LayerNorm's epsilon is seen. Factors lie
    around 1 and are seen, too, where they are left out.
    """
    values = uniform(name, shape)
    last = name.rsplit(".", 1)[-1]
    tokens = ("cls_token", "reg_token", "register_tokens", "pos_embed", "position_embeddings",
              "query", "mask_token")  # fmt: skip
    if last in tokens or "patch_embed" in name:
        values = 0.02 * values
    elif len(shape) > 1:
        values = values * (3 / shape[-1]) ** 0.5
    elif last in ("gamma", "lambda1") or ("weight" in last and len(shape) == 1):
        values = 1 + 0.5 * values
    else:
        values = 0.3 * values
    return values.astype(np.float16).astype(np.float32)


def pixels(n, side):
    """Patches [n s s 3], uint8."""
    return ((uniform("pixels", (n, side, side, 3)) + 1) * 127.5).astype(np.uint8)


def scaled(patches):
    """What the networks of the golden files were given."""
    return (patches.astype(np.float32) / 255 - 0.5) / 0.5
