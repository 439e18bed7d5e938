"""Bundles: a model as one directory of plain files, without the run that made it.

    bundle.json           card (configuration, genes, space, encoder, split), step, weights, by what
                          it was trained, errors on its validation slides
    genes.txt             the genes in the order of its columns, one a line
    model.safetensors     the parameters, named by their path: ``blocks/attn/qkv/kernel``; large
                          models in several files (`tensors`)
    golden.safetensors    inputs and what the model made of them, checked when it is opened
    calibration.json      calibrations of intervals, where the model has any
    metrics.json          what `stemjax evaluate` said of it, where that is given
    README.md             the model card (`model_card`), which the hub shows
    SHA256SUMS.json       size and hash of these, checked before anything is used

Only arrays and JSON: opening a bundle executes nothing that is in it, and needs no orbax.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

import stemjax
from stemjax import errors
from stemjax.data import integrity
from stemjax.export import golden, model_card, places, tensors
from stemjax.foreign import json_text, stores
from stemjax.train import calibration
from stemjax.train.card import Card
from stemjax.train.trained import Trained

FORMAT = 2
DESCRIPTION, GENES, GOLDEN, SCORES = (
    "bundle.json",
    "genes.txt",
    "golden.safetensors",
    "metrics.json",
)

SHIPPED = ("demo",)
"""Bundles that come with the package, by name."""

_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, OSError)


def is_bundle(path: str | pathlib.Path) -> bool:
    """Whether a folder says that it is a bundle."""
    return (pathlib.Path(path) / DESCRIPTION).is_file()


def write(
    trained: Trained,
    path: str | pathlib.Path,
    *,
    dtype: str = "float32",
    largest_file: int = tensors.LARGEST_FILE,
) -> None:
    """Writes a bundle, whole or not at all; one that stands is replaced.

    Args:
      trained: the model.
      path: the folder to write.
      dtype: ``float32``, or ``bfloat16`` for half the size and weights rounded to 8 bits.
      largest_file: bytes of a file of weights, beyond which there are several.

    Raises:
      BundleError: ``path`` is a file, or a folder that holds something else; or the model computes
        no finite numbers.
      ConfigError: the type is neither.
    """
    path = pathlib.Path(path).resolve()  # "." has no name that another folder could take
    if dtype not in tensors.DTYPES:
        raise errors.ConfigError(f"weights of type {dtype!r}", expected=" or ".join(tensors.DTYPES))
    found = places.in_the_way(path, is_ours, mark=DESCRIPTION)
    places.require_free(path, found, older="an older bundle")
    description = {
        "format": FORMAT,
        "step": trained.step,
        "weights": trained.weights,
        "dtype": dtype,
        "card": trained.card.to_json(),
        "validation": trained.validation,
        "runs": list(trained.runs),
    }
    if dtype != "float32":
        trained = dataclasses.replace(trained, params=_rounded(trained.params, dtype))
    needed = tensors.bytes_of(trained.params, dtype)
    with integrity.published_folder(path, needed=needed) as folder:
        tensors.write(tensors.named(trained.params), folder, dtype=dtype, largest=largest_file)
        tensors.save(golden.make(trained), folder / GOLDEN)
        integrity.write_text(folder / DESCRIPTION, json.dumps(description, indent=1) + "\n")
        integrity.write_text(
            folder / GENES, "".join(f"{gene}\n" for gene in trained.card.space.genes)
        )
        if trained.calibrations:
            calibration.write(trained.calibrations, folder / calibration.FILE)
        if trained.scores is not None:
            text = json.dumps(trained.scores, indent=1, allow_nan=False)
            integrity.write_text(folder / SCORES, text + "\n")
        integrity.write_text(folder / model_card.FILE, model_card.make(trained))
        integrity.write_manifest(folder)


def load(path: str | pathlib.Path, *, verify: bool = True) -> Trained:
    """Returns the model of a bundle, every parameter's name and shape checked.

    Args:
      path: the bundle.
      verify: compute its example and compare, which compiles the network (a second or so); hashes,
        names and shapes are checked in any case.

    Raises:
      BundleError: it is missing, incomplete or damaged, of another format, or computes something
        else than where it was written.
      CalibrationError: its calibrations cannot be used, or are of other weights.
      CheckpointMismatchError: the weights are of another network than the card says.
      UnsafeFileError: a link in it leads to another place of this machine.
    """
    path = pathlib.Path(path)
    if not is_bundle(path):
        raise errors.BundleError(f"no bundle at {path}", expected=f"a folder with {DESCRIPTION}")
    stores.require_closed(path)
    if wrong := [*integrity.damage(path), *_strangers(path)]:
        raise errors.BundleError(
            f"bundle {path} is damaged", found="; ".join(wrong[:3]), fix="copy it again"
        )
    try:
        description = json_text.parse((path / DESCRIPTION).read_text(encoding="utf-8"))
        found = description["format"]
        if found != FORMAT:
            raise errors.BundleError(
                f"bundle {path}: format",
                expected=str(FORMAT),
                found=repr(found),
                fix="export the model again, or use the stemjax version that wrote it",
            )
        card = Card.from_json(dict(description["card"]))
        genes = tuple((path / GENES).read_text(encoding="utf-8").splitlines())
        if genes != card.space.genes:
            raise errors.BundleError(
                f"bundle {path}: {GENES}",
                expected=f"the {len(card.space.genes)} genes of {DESCRIPTION} in their order",
                found=_first_difference(genes, card.space.genes),
                fix="copy it again: columns of predictions would get other names",
            )
        scores = None
        if (path / SCORES).is_file():
            scores = dict(json_text.parse((path / SCORES).read_text(encoding="utf-8")))
        dtype = description["dtype"]
        if dtype not in tensors.DTYPES:
            raise ValueError(f"dtype {dtype!r}")
        trained = Trained(
            params=_fitted(path, card, dtype),
            card=card,
            step=int(description["step"]),
            weights=str(description["weights"]),
            validation=_mapping(description["validation"]),
            runs=tuple(dict(run) for run in description["runs"]),
            scores=scores,
        )
        example = tensors.load(path / GOLDEN)
    except _UNREADABLE as error:
        raise errors.BundleError(
            f"bundle {path} cannot be read ({type(error).__name__}: {error})", fix="copy it again"
        ) from error
    if verify:
        golden.require_same(trained, example, f"bundle {path}")
    stored = calibration.read(path / calibration.FILE)
    found = trained.with_calibrations(stored)
    if len(found.calibrations) < len(stored):
        raise errors.CalibrationError(
            f"{path / calibration.FILE}",
            expected=f"calibrations of the bundle's weights, {trained.identity}",
            found=f"{len(stored) - len(found.calibrations)} of others",
            fix="export the model again, and calibrate that bundle",
        )
    return found


def open_model(
    path: str | pathlib.Path, *, weights: str = "auto", verify: bool = True, hashed: bool = True
) -> Trained:
    """Returns the model of a bundle or of a run's workdir.

    Args:
      path: a bundle, a folder that `stemjax train` wrote, or the name of a model that comes with
        the package (`SHIPPED`).
      weights: ``best``, ``last`` or ``auto``, for a workdir; a bundle has one set.
      verify: as `load`.
      hashed: compare the files of a workdir's step with their hashes, which a bundle's always are.

    Raises:
      BundleError, CheckpointError: there is none, or it is damaged.
      CalibrationError: its calibrations are damaged.
    """
    if str(path) in SHIPPED and not pathlib.Path(path).exists():
        path = pathlib.Path(stemjax.__file__).parent / "pretrained" / str(path)
    if is_bundle(path):
        return load(path, verify=verify)
    from stemjax.train import checkpoint  # orbax, which a bundle does without

    return checkpoint.load(path, weights=weights, verify=hashed)


def add_calibration(
    trained: Trained, new: calibration.Calibration, path: str | pathlib.Path
) -> pathlib.Path:
    """Stores a calibration with the model that `open_model` read there; returns the file.

    It replaces one of the same sampling. A bundle is written anew as a whole, so that its list of
    hashes fits at every moment; a workdir keeps the calibrations of its other weights.

    Raises:
      CalibrationError: what stands in a workdir cannot be read.
    """
    path = pathlib.Path(path)
    file = path / calibration.FILE
    if is_bundle(path):
        kept = calibration.replace(trained.calibrations, new)
        dtype = json_text.parse((path / DESCRIPTION).read_text(encoding="utf-8"))["dtype"]
        write(dataclasses.replace(trained, calibrations=kept), path, dtype=dtype)
    else:
        calibration.write(calibration.replace(calibration.read(file), new), file)
    return file


def with_scores(trained: Trained, scores: Mapping[str, Any], where: str) -> Trained:
    """Returns the model with what `stemjax evaluate` said of it.

    Args:
      trained: the model.
      scores: what ``metrics.json`` holds.
      where: the file, for the message.

    Raises:
      BundleError: they are of other weights, or of slides that are no test of these.
    """
    said = {name: scores.get(name) for name in ("checkpoint_step", "weights")}
    ours = {"checkpoint_step": trained.step, "weights": trained.weights}
    if said != ours:
        raise errors.BundleError(
            f"{where}", expected=f"scores of these weights, {ours}", found=str(said),
            fix="evaluate predictions of this model",
        )  # fmt: skip
    kept = ("slides", "rows", "intervals", "notes", "mode", "value_space", "sampler", "steps",
            "n_draws", "checkpoint_step", "weights", "stemjax_version")  # fmt: skip
    found = {name: scores[name] for name in kept if name in scores}
    found["slides"] = [
        {name: slide.get(name) for name in ("slide", "patient", "split_kind", "split", "spots")}
        for slide in scores.get("slides", ())
    ]
    return dataclasses.replace(trained, scores=found)


def is_ours(name: str) -> bool:
    """Whether a file of this name is one that a bundle may have."""
    files = (DESCRIPTION, GENES, GOLDEN, SCORES, model_card.FILE)
    files += (calibration.FILE, integrity.MANIFEST)
    return name in files or tensors.is_weights(name)


def _strangers(path: pathlib.Path) -> list[str]:
    """Files that no bundle has, or that its list of hashes lacks: "NAME: what"."""
    names = sorted(file.name for file in path.iterdir())
    wrong = [f"{name}: no file of a bundle" for name in names if not is_ours(name)]
    with contextlib.suppress(OSError, ValueError):  # a damaged list is named as such
        listed = {
            *json_text.parse((path / integrity.MANIFEST).read_text("utf-8")),
            integrity.MANIFEST,
        }
        wrong += [
            f"{name}: not in {integrity.MANIFEST}"
            for name in names
            if is_ours(name) and name not in listed
        ]
    return wrong


def _first_difference(found: tuple[str, ...], wanted: tuple[str, ...]) -> str:
    if len(found) != len(wanted):
        return f"{len(found)} genes"
    at = next(i for i, (ours, theirs) in enumerate(zip(found, wanted)) if ours != theirs)
    return f"{found[at]!r} where {wanted[at]!r} is, number {at + 1}"


def _mapping(found: Any) -> dict[str, Any] | None:
    return None if found is None else dict(found)


def _rounded(params: Any, dtype: str) -> Any:
    kind = tensors.DTYPES[dtype]
    return jax.tree.map(lambda leaf: leaf.astype(kind).astype(leaf.dtype), params)


def _fitted(path: pathlib.Path, card: Card, dtype: str) -> Any:
    """Returns the weights as the tree that the card's network wants."""
    wanted = jax.eval_shape(card.task.init, jax.random.key(0))
    names = tensors.named(wanted)
    arrays = tensors.read(path, {name: leaf.shape for name, leaf in names.items()}, dtype=dtype)
    leaves = [jax.numpy.asarray(arrays[name]) for name in names]
    return jax.tree.unflatten(jax.tree.structure(wanted), leaves)
