"""What a figure depends on: the device and what its maker says of it, versions, load, settings."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from typing import Any

import jax

from stemjax import __version__

ROOT = pathlib.Path(__file__).resolve().parents[1]
PARTS_ON_RECORD = ("libtpu", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin",
                   "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")  # fmt: skip


def surroundings() -> dict[str, Any]:
    """Returns what a figure depends on: device, versions, commit, load, settings, command."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "threads": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "versions": _versions(),
        "runtime": device.client.platform_version.strip(),
        "stemjax": __version__,
        "commit": _git("rev-parse", "--short", "HEAD"),
        "changed_files": len(_git("status", "--porcelain").splitlines()),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "matmul_precision": str(jax.config.jax_default_matmul_precision),
        "command": shlex.join([pathlib.Path(sys.argv[0]).name, *map(_unplaced, sys.argv[1:])]),
    }


def device_peak_bytes() -> int | None:
    """Returns the most memory the first device held since the process began; None if unknown."""
    stats = jax.local_devices()[0].memory_stats()
    return stats.get("peak_bytes_in_use") if stats else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rating:
    """What a chip's maker says of it: FLOP/s of dense bfloat16 products and byte/s of its memory.

    Tensor cores work on float32 products at half that rate or less (TF32); a share of the rating
    is always one of the bfloat16 figure, whatever the dtype of the row.
    """

    bfloat16: float
    memory: float


RATINGS = {
    "NVIDIA A100-SXM4-40GB": Rating(bfloat16=312e12, memory=1.555e12),
    "NVIDIA A100-SXM4-80GB": Rating(bfloat16=312e12, memory=2.039e12),
    "NVIDIA H100 80GB HBM3": Rating(bfloat16=989e12, memory=3.35e12),
    "NVIDIA H200": Rating(bfloat16=989e12, memory=4.8e12),
    "TPU v5 lite": Rating(bfloat16=197e12, memory=0.819e12),
    "TPU v5e": Rating(bfloat16=197e12, memory=0.819e12),
    "TPU v5": Rating(bfloat16=459e12, memory=2.765e12),
    "TPU v5p": Rating(bfloat16=459e12, memory=2.765e12),
    "TPU v6 lite": Rating(bfloat16=918e12, memory=1.638e12),
    "TPU v6e": Rating(bfloat16=918e12, memory=1.638e12),
}
"""By the exact ``device_kind``: a chip that is not here has no rating, never a neighbour's.

TPU: cloud.google.com's system pages; NVIDIA: the data sheets of the SXM modules, without sparsity.
"""


def rating() -> Rating | None:
    """Returns the rating of the first device; None of one that the table does not know."""
    return RATINGS.get(jax.devices()[0].device_kind)


def _versions() -> dict[str, str]:
    found = {}
    for name in PARTS_ON_RECORD:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    return done.stdout.strip()


def _unplaced(argument: str) -> str:
    """An argument without the folder of an absolute path, which is of this machine alone."""
    return pathlib.Path(argument).name if argument.startswith("/") else argument
