"""Official Stem checkpoints: their names, and the way in and out.

An official file is ``{"model", "ema", "opt"}``; sampling uses ``ema``. Names and layout (out, in)
are those of the published code (Zhu et al., ICLR 2025, arXiv 2501.15598). Here weights are
(in, out) and the blocks are stacked along a leading layer axis.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from stemjax import __version__, config, errors
from stemjax.data import embeddings, genes, integrity, space, transforms
from stemjax.export import tensors
from stemjax.foreign import torchfile, torchstream
from stemjax.models import stem
from stemjax.train import checkpoint
from stemjax.typing import Params

WEIGHTS = ("ema", "model")
HEAD_WIDTH = 64
"""Width of an attention head in the published sizes; no tensor's shape tells it."""

UNI_CONCH = embeddings.EncoderContract(
    name="uni+conch",
    width=1536,
    input_px=224,
    fov_um=None,
    resize="lanczos",
    mean=(),
    std=(),
    pooling="UNI's class token, then CONCH's image features",
    projection="none",
    source="stem",
    revision="published",
)
"""What official checkpoints of 1536 inputs were trained on: UNI's 1024 features, CONCH's 512."""

# Published name -> path here, in published order (which numbers the optimiser's parameters); the
# blocks stand between the two groups. A Linear's weight is transposed; the table of names is not.
_NAMES = "gene_joint_embed.gene_name_ebd"
_BEFORE = {
    "gene_joint_embed.gene_count_ebd.0": "tokens/value/fc1",
    "gene_joint_embed.gene_count_ebd.2": "tokens/value/fc2",
    "time_embed.mlp.0": "noise/fc1",
    "time_embed.mlp.2": "noise/fc2",
    "label_embed.0": "condition/fc1",
    "label_embed.2": "condition/fc2",
}
_BLOCK = {
    "attn.qkv": "blocks/attn/qkv",
    "attn.proj": "blocks/attn/proj",
    "mlp.fc1": "blocks/mlp/fc1",
    "mlp.fc2": "blocks/mlp/fc2",
    "adaLN_modulation.1": "blocks/modulation/linear",
}
_AFTER = {
    "final_layer.linear": "head/linear",
    "final_layer.adaLN_modulation.1": "head/modulation/linear",
}


def to_state(params: Params) -> dict[str, np.ndarray]:
    """Returns the published state dict of a network's parameters, float32, in published order.

    Args:
      params: parameters of a `stem.make_stem` network of two channels.
    """
    flat = {name: np.asarray(leaf, np.float32) for name, leaf in tensors.named(params).items()}
    state = {_NAMES: flat["tokens/name"]}

    def add(theirs: str, kernel: np.ndarray, bias: np.ndarray) -> None:
        state[f"{theirs}.weight"] = np.ascontiguousarray(kernel.T)
        state[f"{theirs}.bias"] = np.ascontiguousarray(bias)

    for theirs, ours in _BEFORE.items():
        add(theirs, flat[f"{ours}/kernel"], flat[f"{ours}/bias"])
    for i in range(len(flat["blocks/attn/qkv/bias"])):
        for theirs, ours in _BLOCK.items():
            add(f"blocks.{i}.{theirs}", flat[f"{ours}/kernel"][i], flat[f"{ours}/bias"][i])
    for theirs, ours in _AFTER.items():
        add(theirs, flat[f"{ours}/kernel"], flat[f"{ours}/bias"])
    return state


def to_params(state: Mapping[str, np.ndarray]) -> Params:
    """Returns the parameters of a state dict whose names have been checked (`infer_config`)."""
    params: Params = {"tokens": {"name": np.asarray(state[_NAMES], np.float32)}}

    def read(theirs: str) -> dict[str, np.ndarray]:
        weight = np.asarray(state[f"{theirs}.weight"], np.float32)
        bias = np.asarray(state[f"{theirs}.bias"], np.float32)
        return {"kernel": np.ascontiguousarray(weight.T), "bias": bias}

    def put(ours: str, linear: dict[str, np.ndarray]) -> None:
        *parents, name = ours.split("/")
        inner = params
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = linear

    for theirs, ours in {**_BEFORE, **_AFTER}.items():
        put(ours, read(theirs))
    for theirs, ours in _BLOCK.items():
        layers = [read(f"blocks.{i}.{theirs}") for i in range(_depth(state))]
        put(ours, jax.tree.map(lambda *parts: np.stack(parts), *layers))
    return params


def published_shapes(size: stem.StemConfig) -> dict[str, tuple[int, ...]]:
    """Returns name -> shape of a published network of this size; nothing is allocated."""
    g, d, c = size.genes, size.width, size.condition

    def linear(name: str, out: int, inside: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (out, inside), f"{name}.bias": (out,)}

    shapes: dict[str, tuple[int, ...]] = {_NAMES: (g, d)}
    shapes |= linear("gene_joint_embed.gene_count_ebd.0", d, 1)
    shapes |= linear("gene_joint_embed.gene_count_ebd.2", d, d)
    shapes |= linear("time_embed.mlp.0", d, stem.NOISE_FEATURES)
    shapes |= linear("time_embed.mlp.2", d, d)
    shapes |= linear("label_embed.0", c, c) | linear("label_embed.2", d, c)
    for i in range(size.depth):
        shapes |= linear(f"blocks.{i}.attn.qkv", 3 * d, d) | linear(f"blocks.{i}.attn.proj", d, d)
        shapes |= linear(f"blocks.{i}.mlp.fc1", size.mlp_ratio * d, d)
        shapes |= linear(f"blocks.{i}.mlp.fc2", d, size.mlp_ratio * d)
        shapes |= linear(f"blocks.{i}.adaLN_modulation.1", 6 * d, d)
    shapes |= linear("final_layer.linear", 2, d)
    return shapes | linear("final_layer.adaLN_modulation.1", 2 * d, d)


def infer_config(
    shapes: Mapping[str, tuple[int, ...]], *, heads: int | None, where: str
) -> stem.StemConfig:
    """Returns the size of the network that a state dict is of, every name and shape checked.

    Args:
      shapes: name -> shape of the state dict.
      heads: attention heads; None takes heads of width 64, as published.
      where: the file, for the message.

    Raises:
      TorchFileError: names missing or extra, shapes that do not fit each other, or a width that
        the heads do not divide.
    """
    for name in (_NAMES, "label_embed.0.weight", "blocks.0.mlp.fc1.weight"):
        if len(shapes.get(name, ())) != 2 or not all(shapes[name]):
            raise errors.TorchFileError(
                f"{where} is not a checkpoint of Stem: tensor {name}",
                expected="two axes",
                found=f"shape {shapes[name]}" if name in shapes else "no such tensor",
            )
    n_genes, width = shapes[_NAMES]
    if heads is None and width % HEAD_WIDTH:
        raise errors.TorchFileError(
            f"{where}: the number of attention heads",
            expected=f"a width that is a multiple of {HEAD_WIDTH}, as published",
            found=f"width {width}, which leaves it open",
            fix="give --heads",
        )
    heads = width // HEAD_WIDTH if heads is None else heads
    if heads < 1 or width % heads:
        raise errors.TorchFileError(
            f"{where}: --heads {heads}", expected=f"a divisor of the width {width}"
        )
    size = stem.StemConfig(
        genes=n_genes,
        width=width,
        depth=max(1, _depth(shapes)),
        heads=heads,
        mlp_ratio=max(1, shapes["blocks.0.mlp.fc1.weight"][0] // width),
        condition=shapes["label_embed.0.weight"][1],
        channels=2,
    )
    _require_same(published_shapes(size), shapes, where)
    return size


def read(
    path: str | pathlib.Path,
    panel: genes.Panel,
    *,
    weights: str = "ema",
    heads: int | None = None,
    contract: embeddings.EncoderContract | None = None,
) -> checkpoint.Trained:
    """Returns an official checkpoint as weights that predict; nothing in the file is executed.

    Args:
      path: the ``.pt`` file.
      panel: the genes in the order of the checkpoint's tokens (``selected_gene_list.txt``).
      weights: ``ema``, which published sampling uses, or ``model``.
      heads: attention heads; None takes heads of width 64, as published.
      contract: the encoder of the embeddings that it was trained on; None is UNI and CONCH,
        1536 wide.

    Raises:
      TorchFileError: the file is damaged, holds anything but tensors, or another network.
      GenePanelError: the list has another number of genes than the network.
      EncoderMismatchError: the contract has another width than the network's input.
      ConfigError: ``weights`` is neither of the two.
    """
    path = pathlib.Path(path)
    if weights not in WEIGHTS:
        raise errors.ConfigError("weights", expected=" or ".join(WEIGHTS), found=repr(weights))
    state = _state(torchfile.read(path), weights, path)
    size = infer_config(
        {name: value.shape for name, value in state.items()}, heads=heads, where=str(path)
    )
    if len(panel.genes) != size.genes:
        raise errors.GenePanelError(
            f"the gene list does not fit {path}",
            expected=f"{size.genes} genes, in the order of training",
            found=str(len(panel.genes)),
            fix="give the selected_gene_list.txt of the run that wrote it",
        )
    contract = contract or UNI_CONCH
    if contract.width != size.condition:
        raise errors.EncoderMismatchError(
            f"the encoder of {path}",
            expected=f"{size.condition} features, the width of the network's input",
            found=f"{contract.width} ({contract.name})",
            fix="describe the encoder that the checkpoint was trained on with --encoder FILE",
        )
    arrays = {name: _finite(value.numpy(), name, path) for name, value in state.items()}
    return checkpoint.Trained(
        params=to_params(arrays),
        card=_card(size, panel, contract, path, weights),
        # Official files are named by their step, 0300000.pt.
        step=int(path.stem) if re.fullmatch(r"\d{1,12}", path.stem) else 0,
        weights=weights,
    )


def write(trained: checkpoint.Trained, path: str | pathlib.Path) -> None:
    """Writes a file that the original code loads with ``strict=True``, whole or not at all.

    Both ``model`` and ``ema`` hold the weights given; ``opt`` is a fresh AdamW of the published
    settings, so that training can go on from it.

    Raises:
      TorchFileError: the model is not of the published network, process and space, which alone
        the original code understands; or ``path`` is a folder.
    """
    path, card = pathlib.Path(path), trained.card
    if card.experiment.model.kind != "stem":
        raise errors.TorchFileError(
            "export to the published PyTorch format",
            expected="a network of gene tokens (config.model.kind=stem), the only one it has",
            found=f"config.model.kind={card.experiment.model.kind}",
            fix="export a bundle, or train with configs/stem_published_ddpm.py",
        )
    process, plain = card.experiment.diffusion.process, _is_plain(card.space)
    if process != "ddpm" or card.space.transform != "log2p1" or not plain:
        raise errors.TorchFileError(
            "export to the published PyTorch format",
            expected="a model of the published process, on log2(count + 1) and embeddings as they "
            "are",
            found=f"process {process}, transform {card.space.transform}"
            + ("" if plain else ", standardised"),
            fix="train with configs/stem_published_ddpm.py",
        )
    if path.is_dir():
        raise errors.TorchFileError(
            f"{path} is in the way", expected="a file", found="a folder", fix="name another output"
        )
    state = to_state(trained.params)
    group = {
        "lr": card.experiment.optim.learning_rate,
        "betas": (0.9, 0.999),
        "eps": 1e-08,
        "weight_decay": 0,
        "amsgrad": False,
        "maximize": False,
        "foreach": None,
        "capturable": False,
        "differentiable": False,
        "fused": None,
        "params": list(range(len(state))),
    }
    opt = {"state": {}, "param_groups": [group]}
    path.parent.mkdir(parents=True, exist_ok=True)
    torchfile.write(path, {"model": state, "ema": state, "opt": opt})


def _state(tree: Any, weights: str, path: pathlib.Path) -> dict[str, torchfile.Tensor]:
    """Returns the state dict asked for, tensors only."""
    state = tree.get(weights) if isinstance(tree, dict) else None
    if not isinstance(state, dict):
        found = _some(list(tree)) if isinstance(tree, dict) else type(tree).__name__
        raise errors.TorchFileError(
            f"{path} is not a checkpoint of Stem",
            expected="a dict of model, ema and opt",
            found=found,
        )
    for name, value in state.items():
        if not isinstance(value, torchfile.Tensor) or not isinstance(name, str):
            raise errors.TorchFileError(
                f"{path}: entry {torchstream.quoted(name)} of {weights}",
                expected="a tensor under a name that is text",
                found=f"{type(value).__name__} under {type(name).__name__}",
            )
    return state


def _depth(names: Mapping[str, Any]) -> int:
    found = (re.match(r"blocks\.(\d{1,4})\.", name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _require_same(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str
) -> None:
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    if missing or extra:
        raise errors.TorchFileError(
            f"{where}: names of tensors",
            expected=f"the {len(wanted)} of Stem",
            found=f"missing: {_some(missing)}; extra: {_some(extra)}",
            fix="import a file that the published code wrote",
        )
    for name, shape in wanted.items():
        if tuple(found[name]) != shape:
            raise errors.TorchFileError(
                f"{where}: tensor {name}",
                expected=f"shape {shape}, going by the others",
                found=str(tuple(found[name])),
            )


def _some(names: Sequence[Any]) -> str:
    shown = ", ".join(map(torchstream.quoted, names[:5])) or "none"
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _finite(values: np.ndarray, name: str, path: pathlib.Path) -> np.ndarray:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, which is refused
        values = np.asarray(values, np.float32)
    if bad := int(np.size(values) - np.isfinite(values).sum()):
        raise errors.TorchFileError(
            f"{path}: tensor {name}", expected="finite numbers", found=f"{bad} that are not"
        )
    return values


def _card(
    size: stem.StemConfig,
    panel: genes.Panel,
    contract: embeddings.EncoderContract,
    path: pathlib.Path,
    weights: str,
) -> checkpoint.Card:
    fields = {field.name for field in dataclasses.fields(config.Model)}
    fields &= {field.name for field in dataclasses.fields(size)}
    experiment = config.Experiment(
        name="stem_published_ddpm",
        data=config.Data(standardise_expression=False, standardise_condition=False),
        model=config.Model(**{name: getattr(size, name) for name in fields}),
        diffusion=config.Diffusion(process="ddpm", mean_fraction=0.0),
    )
    return checkpoint.Card(
        experiment=experiment,
        space=space.Space(
            genes=panel.genes,
            transform="log2p1",
            expression=_identity(size.genes),
            condition=_identity(size.condition),
        ),
        contract=contract,
        split={"train": [], "val": [], "test": [], "kind": "unknown"},
        panel=panel.to_json(),
        versions={
            "stemjax": __version__,
            "imported_from": path.name,
            "imported_weights": weights,
            "imported_sha256": integrity.sha256(path),
        },
    )


def _identity(width: int) -> transforms.Standardisation:
    zero = np.zeros(width, np.float32)
    return transforms.Standardisation(mean=zero, std=zero + 1)


def _is_plain(found: space.Space) -> bool:
    parts = (found.expression, found.condition)
    return all(bool((part.mean == 0).all() and (part.std == 1).all()) for part in parts)
