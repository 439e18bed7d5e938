"""Portable programs: sampling as StableHLO, which runs where there is JAX and none of this code.

    program.jaxexport   StableHLO by `jax.export`, for CPU, CUDA and TPU, for any number of spots
    model.safetensors   the weights, which are arguments of the program (`tensors`)
    program.json        inputs, outputs, genes, encoder, sampling, versions
    example.safetensors inputs and what the program made of them where it was written
    run.py              runs it: needs jax, numpy and flatbuffers, which `jax.export` reads with
    SHA256SUMS.json     size and hash of these

The program is (weights by name, embeddings [b c] in the encoder's own units, keys [b 2] uint32) ->
draws [n b g] in the value space: standardisation and its way back are part of it. With an encoder
written in JAX it takes patches in the place of embeddings.

A program is a convenience, the bundle is the archive: JAX promises that later versions of the next
six months read it, and earlier ones need not (docs/exporting.md has what was tried).
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from stemjax import __version__, errors, tasks
from stemjax.data import embeddings, integrity
from stemjax.diffusion import sampler
from stemjax.export import places, tensors
from stemjax.train.trained import Trained

FORMAT = 1
PROGRAM, DESCRIPTION, EXAMPLE = "program.jaxexport", "program.json", "example.safetensors"
RUNNER = pathlib.Path(__file__).with_name("reference") / "run.py"
PLATFORMS = ("cpu", "cuda", "tpu")
SPOTS = 5
"""Of the example: no size that anything was compiled for elsewhere."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoder:
    """A patch encoder in JAX, to be a part of the program.

    Attributes:
      run: patches [b s s 3], 0 to 255 -> embeddings [b c]; JAX can trace it.
      contract: of its embeddings; that of the model, or the program would lie.
      pixels: the side s of a patch.
    """

    run: Callable[[UInt8[Array, "b s s 3"]], Float[Array, "b c"]]
    contract: embeddings.EncoderContract
    pixels: int


def write(
    trained: Trained,
    path: str | pathlib.Path,
    *,
    sampling: tasks.Sampling,
    encoder: Encoder | None = None,
    platforms: Sequence[str] = PLATFORMS,
) -> None:
    """Writes the program of a model, whole or not at all; an older one that stands is replaced.

    Args:
      trained: the model: one that predicts a spot from its patch alone.
      path: the folder to write.
      sampling: what is drawn, and how.
      encoder: makes the program take patches.
      platforms: what it is lowered for.

    Raises:
      BundleError: something else stands there, or the model is one of windows.
      EncoderMismatchError: the encoder is not that of the model.
    """
    path = pathlib.Path(path).resolve()
    kind = trained.card.experiment.window.kind
    if kind != "none":
        raise errors.BundleError(
            f"a portable program of a model of windows (config.window.kind={kind})",
            expected="a model that predicts a spot from its patch alone",
            fix="export a bundle",
        )
    if encoder is not None and encoder.contract != trained.card.contract:
        raise errors.EncoderMismatchError(
            "the encoder of the program",
            expected=f"that of the model, {trained.card.contract.name}",
            found=encoder.contract.name,
        )
    found = places.in_the_way(path, _is_ours, mark=PROGRAM)
    places.require_free(path, found, older="an older program")
    exported = export(trained, sampling=sampling, encoder=encoder, platforms=platforms)
    needed = tensors.bytes_of(trained.params)
    with integrity.published_folder(path, needed=needed) as folder:
        (folder / PROGRAM).write_bytes(exported.serialize())
        tensors.write(tensors.named(trained.params), folder, dtype="float32")
        integrity.write_text(
            folder / DESCRIPTION,
            json.dumps(describe(trained, sampling, encoder, exported), indent=1) + "\n",
        )
        tensors.save(_example(trained, exported, encoder), folder / EXAMPLE)
        integrity.write_text(folder / RUNNER.name, RUNNER.read_text(encoding="utf-8"))
        integrity.write_manifest(folder)


def export(
    trained: Trained,
    *,
    sampling: tasks.Sampling,
    encoder: Encoder | None = None,
    platforms: Sequence[str] = PLATFORMS,
) -> jax.export.Exported:
    """Returns the program for any number of spots; arguments as `write`."""
    card = trained.card
    # Of the forms of attention the one that every platform has.
    task: Any = card.forward_task
    shapes = tensors.named(trained.params)
    tree = jax.tree.structure(trained.params)
    condition, expression = card.space.condition, card.space.expression

    def run(weights: Mapping[str, Array], given: Array, keys: Array) -> Array:
        params = jax.tree.unflatten(tree, [weights[name] for name in shapes])
        found = given if encoder is None else encoder.run(given)
        cond = (found.astype(jnp.float32) - condition.mean[None]) / condition.std[None]
        drawn = task.predict(params, cond, jax.random.wrap_key_data(keys), sampling=sampling)
        return drawn * expression.std[None, None] + expression.mean[None, None]

    (spots,) = jax.export.symbolic_shape("b")
    return jax.export.export(jax.jit(run), platforms=tuple(platforms))(
        {name: jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for name, leaf in shapes.items()},
        _given(spots, card.contract.width, encoder),
        jax.ShapeDtypeStruct((spots, 2), jnp.uint32),
    )


def describe(
    trained: Trained,
    sampling: tasks.Sampling,
    encoder: Encoder | None,
    exported: jax.export.Exported,
) -> dict[str, Any]:
    """Returns what a user of the program has to know, as plain values."""
    card = trained.card
    patches = None if encoder is None else ["b", encoder.pixels, encoder.pixels, 3]
    return {
        "format": FORMAT,
        "notice": "Research use only. Not for clinical or diagnostic use.",
        "inputs": {
            "weights": "the tensors of model*.safetensors by name, float32",
            **(
                {"embeddings": {"shape": ["b", card.contract.width], "dtype": "float32"}}
                if patches is None
                else {"patches": {"shape": patches, "dtype": "uint8"}}
            ),
            "keys": "[b, 2] uint32, of (seed, slide, barcode): see run.py",
        },
        "output": {"shape": [sampling.draws, "b", len(card.space.genes)], "dtype": "float32"},
        "value_space": card.space.transform,
        "genes": list(card.space.genes),
        "encoder": card.contract.to_json(),
        "sampling": dataclasses.asdict(sampling),
        "evaluations_per_spot": trained.card.task.evaluations(sampling),
        "model": {"name": card.experiment.name, **trained.identity},
        "platforms": list(exported.platforms),
        "calling_convention": exported.calling_convention_version,
        "versions": {"stemjax": __version__, "jax": importlib.metadata.version("jax")},
    }


def _given(spots: Any, width: int, encoder: Encoder | None) -> jax.ShapeDtypeStruct:
    if encoder is None:
        return jax.ShapeDtypeStruct((spots, width), jnp.float32)
    return jax.ShapeDtypeStruct((spots, encoder.pixels, encoder.pixels, 3), jnp.uint8)


def _example(
    trained: Trained, exported: jax.export.Exported, encoder: Encoder | None
) -> dict[str, np.ndarray]:
    """Drawn inputs, and what the program makes of them here."""
    card, rng = trained.card, np.random.default_rng(0)
    shape = _given(SPOTS, card.contract.width, encoder).shape
    given = rng.integers(0, 256, shape).astype(np.uint8)
    if encoder is None:
        drawn = rng.standard_normal(shape)
        given = (card.space.condition.mean + card.space.condition.std * drawn).astype(np.float32)
    barcodes = [f"spot{i}" for i in range(SPOTS)]
    keys = jax.random.key_data(sampler.spot_keys(0, "example", barcodes))
    made = jax.jit(exported.call)(tensors.named(trained.params), given, keys)
    found = {"given": given, "keys": keys, "values": made}
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def _is_ours(name: str) -> bool:
    ours = (PROGRAM, DESCRIPTION, EXAMPLE, RUNNER.name, integrity.MANIFEST)
    return name in ours or tensors.is_weights(name)
