"""The small members of the golden files: their specs, their checkpoints, and files of them."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import made_weights
import numpy as np
import safetensors.numpy

from stemjax.encoders import registry
from stemjax.encoders.specs import SPECS
from stemjax.models.vit.spec import AttentionPool

GOLDEN = pathlib.Path(__file__).resolve().parent / "golden"
SHAPES = json.loads((GOLDEN / "members.json").read_text())
MEMBERS = tuple(SHAPES)
SIDE = 24

# timm's and transformers' rules, by hand: SwiGLU of timm halves int(24 ratio), that of transformers
# rounds int(24 * 4 * 2 / 3) up to eight.
_HIDDEN = {
    "uni2": 64, "virchow": 64, "virchow2": 64, "h_optimus_0": 64, "midnight": 64, "hibou_b": 64,
}  # fmt: skip


def spec(name, pooling="cls+mean"):
    """The published encoder, with the sizes of the small one."""
    full = SPECS[name]
    small = {"image": SIDE, "patch": 8, "width": 24, "depth": 2, "heads": 2}
    small["hidden"] = _HIDDEN.get(name, 96)
    if full.pool is not None:
        pooling = "attention"
        small["pool"] = AttentionPool(width=16, heads=8, eps=full.pool.eps)
    return dataclasses.replace(full, **small, pooling=pooling)


def state(name):
    """Name -> tensor, as timm or transformers name them."""
    return {key: made_weights.tensor(key, tuple(shape)) for key, shape in SHAPES[name].items()}


def save(tensors, path):
    """Writes a file of safetensors; returns its path."""
    arrays = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    safetensors.numpy.save_file(arrays, path)
    return path


def naming(name):
    """Whose names a member's tensors bear."""
    return registry.resolve(name).naming
