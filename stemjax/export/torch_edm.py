"""Models of the EDM process for PyTorch: weights, what they mean, and a module that reads them.

    model.safetensors   the network's parameters under the module's names, weights (out, in)
    config.json         sizes, sigma_data, ladder, genes, transform, standardisations, encoder
    stem_edm.py         the module: one file, torch alone (`stemjax/export/reference/stem_edm.py`)

The module's names are the paths here with the layer axis of the blocks taken apart:
``blocks/attn/qkv/kernel`` is ``blocks.0.attn.qkv.weight`` and so on.
"""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from stemjax import config, errors, tasks
from stemjax.data import integrity
from stemjax.export import places, tensors
from stemjax.models import lite, stem
from stemjax.train.card import Card
from stemjax.train.trained import Trained
from stemjax.typing import Params

FORMAT = "stem-edm-1"
CONFIG, WEIGHTS, MODULE = "config.json", "model.safetensors", "stem_edm.py"
REFERENCE = pathlib.Path(__file__).parent / "reference" / MODULE
RHO = 7.0
"""Curvature of the ladder (EDM, arXiv 2206.00364, eq. 5), as in `tasks.Sampling`."""


def to_state(params: Params) -> dict[str, np.ndarray]:
    """Returns the state dict of the module's network, float32, weights of Linears (out, in).

    Args:
      params: parameters of a `stem.make_stem` or `lite.make_lite` network.
    """
    state = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        value = np.asarray(leaf, np.float32)
        before, stacked, after = name.rpartition("blocks.")
        if not stacked:
            layers = {name: value}
        else:
            layers = {f"{before}blocks.{i}.{after}": layer for i, layer in enumerate(value)}
        for name, layer in layers.items():
            if name.endswith(".kernel"):
                name, layer = name.removesuffix("kernel") + "weight", layer.T
            state[name] = np.ascontiguousarray(layer)
    return state


def describe(card: Card) -> dict[str, Any]:
    """Returns what a program without stemjax needs to know of a denoising model, plain values.

    Args:
      card: card of a model whose task has a denoiser bound to embeddings alone.
    """
    space, task, diffusion = card.space, card.task, card.experiment.diffusion
    low, high = task.levels
    return {
        "process": diffusion.process,
        "residual": diffusion.residual,
        "marginal": diffusion.marginal,
        "has_mean": diffusion.mean_fraction > 0,
        "schedule": {"sigma_min": low, "sigma_max": high, "rho": RHO},
        **space.to_json(),
        "encoder": card.contract.to_json(),
    }


def write(trained: Trained, path: str | pathlib.Path) -> None:
    """Writes a folder that PyTorch users load, whole or not at all; an untouched one is replaced.

    The blocks of a bfloat16 model compute in float32 there: bfloat16 rounds, and means no more.

    Raises:
      ConfigError: the model is none of a denoiser of single spots by the EDM process.
      BundleError: ``path`` is a file, or a folder that holds something else.
    """
    card = trained.card
    require_stem(card)
    size = config.network_shape(
        card.experiment, genes=len(card.space.genes), condition=card.contract.width
    )
    assert isinstance(size, stem.StemConfig | lite.LiteConfig)
    path = pathlib.Path(path).resolve()  # "." has no name that another folder could take
    older = "an export of this format as it was written"
    places.require_free(path, _in_the_way(path), older=older)
    description = {
        "format": FORMAT,
        "name": card.experiment.name,
        "step": trained.step,
        "weights": trained.weights,
        "network": {
            "kind": card.experiment.model.kind,
            "width": size.width,
            "depth": size.depth,
            "heads": size.heads,
            "mlp_ratio": size.mlp_ratio,
            "latents": size.latents if isinstance(size, lite.LiteConfig) else 0,
            "trained_dtype": size.dtype,
        },
        "sigma_data": card.experiment.diffusion.sigma_data,
        **describe(card),
    }
    needed = tensors.bytes_of(trained.params)
    with integrity.published_folder(path, needed=needed) as folder:
        state = to_state(jax.device_get(trained.params))
        tensors.save(state, folder / WEIGHTS, metadata={"format": "pt"})
        integrity.write_text(folder / CONFIG, json.dumps(description, indent=1) + "\n")
        shutil.copyfile(REFERENCE, folder / MODULE)
        integrity.write_manifest(folder)


def require_stem(card: Card) -> None:
    """Returns if the module can express a model.

    Raises:
      ConfigError: it cannot; says what the model is.
    """
    if isinstance(card.task, tasks.StemTask):
        return
    experiment = card.experiment
    fix = "export a bundle, which every model has"
    if experiment.window.kind != "none":
        found = f"config.window.kind={experiment.window.kind}: it predicts from the spots around"
    else:
        process = experiment.diffusion.process
        found = f"config.diffusion.process={process}"
        fix = {
            "ddpm": "use --format torch, which the published code loads",
            "consistency": "export the denoiser that it was tuned from (stemjax train --start)",
        }.get(process, fix)
    raise errors.ConfigError(
        "export to PyTorch (torch-edm)",
        expected="a denoiser of single spots, trained by the EDM process "
        "(config.model.kind=stem or lite, config.diffusion.process=edm)",
        found=found,
        fix=fix,
    )


def _in_the_way(path: pathlib.Path) -> str:
    """What stands at a path besides an older export, which alone may be deleted; "" if nothing."""
    ours = (CONFIG, WEIGHTS, MODULE, integrity.MANIFEST)
    found = places.in_the_way(path, ours.__contains__, mark=None)
    if found or not path.is_dir() or not any(path.iterdir()):
        return found
    try:
        known = json.loads((path / CONFIG).read_text(encoding="utf-8"))["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        return f"a folder whose {CONFIG} is not of format {FORMAT}"
    if (path / MODULE).is_file() and (path / MODULE).read_bytes() != REFERENCE.read_bytes():
        return f"a {MODULE} that was changed, or is another version's"
    return ""
