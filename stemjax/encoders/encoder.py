"""Embedding patches with a published encoder, on whatever devices this process has.

One program a number of variants is compiled, for a fixed number of patches: the last batch is
filled up. Pixels go to the devices as bytes and once; flips, turns and normalisation happen there.
Threads read patches while the devices work, and the next batch is under way before the result of
the last is fetched.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float16, Float32, UInt8

from stemjax import errors, mesh
from stemjax.data import embeddings, patches, slides
from stemjax.encoders import registry
from stemjax.encoders import weights as weights_lib
from stemjax.models import attention
from stemjax.models.vit import network
from stemjax.models.vit.spec import ViTSpec
from stemjax.typing import Params

SOURCE = "stemjax"
BATCH = {"cpu": 8}
"""Patches on a device at once, by platform: memory for activations, and no more than a device
needs to be busy."""
BATCH_ELSEWHERE = 64
UNDER_WAY = 2
"""Batches whose results are not fetched yet."""

DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}


def make_encoder(
    name: str,
    *,
    weights: str | pathlib.Path | None,
    dtype: str | None = None,
    batch: int | None = None,
    fov_um: float | None | Literal["default"] = "default",
    pooling: str | None = None,
    projection: str | None = None,
    layout: mesh.Layout | None = None,
) -> JaxEncoder:
    """Returns a published encoder with the weights of a file on this machine.

    Args:
      name: any spelling, see `registry.resolve`.
      weights: safetensors or a torch file, or a folder of them; nothing is downloaded.
      dtype: ``float32``, or ``bfloat16`` for the inputs of matrix products; None is the latter on
        accelerators and the former on a CPU.
      batch: patches on a device at once; None is `BATCH`. Changes results by rounding at most.
      fov_um: side of a patch on the tissue in um; ``default`` is what TRIDENT cuts for this
        encoder, None is Stem's published rule.
      pooling: None is the encoder's usual one.
      projection: None is the encoder's usual one.
      layout: devices that share a batch; None is all of this process's.

    Raises:
      ConfigError: no such encoder, pooling, projection or dtype; the encoder does not run here; or
        no weights are given: says where they are had.
      CheckpointError, TorchFileError: the file is missing, damaged or of another format.
      EncoderMismatchError: the weights are not this encoder's.
    """
    entry = registry.resolve(name)
    if entry.spec is None:
        raise errors.ConfigError(
            f"the encoder {entry.name!r}",
            expected="one that runs here",
            found="one that is known by the embeddings of other tools",
            fix="Embed with TRIDENT or LazySlide and give their files: --embeddings PATH",
        )
    fov = entry.default_fov_um if fov_um == "default" else fov_um
    if fov is not None and not 0 < fov < float("inf"):
        raise errors.ConfigError(
            "the field of view of a patch", expected="um above 0", found=str(fov)
        )
    contract = entry.contract(
        fov_um=fov, pooling=pooling, projection=projection, source=SOURCE, revision="unknown"
    )
    layout = layout or mesh.local_layout()
    platform = np.asarray(cast("Mesh", layout.mesh).devices).flat[0].platform
    dtype = dtype or ("float32" if platform == "cpu" else "bfloat16")
    if dtype not in DTYPES:
        raise errors.ConfigError(
            "the arithmetic of an encoder", expected=" or ".join(DTYPES), found=repr(dtype)
        )
    if batch is not None and batch < 1:
        raise errors.ConfigError("the batch of an encoder", expected="at least 1", found=str(batch))
    if weights is None:
        raise errors.ConfigError(
            f"the encoder {entry.name!r} has no weights here",
            expected="a file of them: --encoder-weights FILE, or weights=PATH",
            fix=entry.how_to_get,
        )
    spec = specialise(entry.spec, contract)
    path = pathlib.Path(weights)
    hashes = weights_lib.digests(path)
    params = weights_lib.load(path, spec, naming=entry.naming, dtype=DTYPES[dtype])
    return JaxEncoder(
        spec,
        params,
        contract=dataclasses.replace(contract, revision=weights_lib.revision(hashes)),
        files=hashes,
        dtype=dtype,
        batch=BATCH.get(platform, BATCH_ELSEWHERE) if batch is None else batch,
        layout=layout,
    )


class JaxEncoder:
    """An encoder of patches (`embeddings.Encoder`) and of whole slides (`embeddings.Embedder`).

    Args:
      spec: of the network.
      params: its parameters.
      contract: of the embeddings.
      files: SHA-256 of the files that the parameters come from, by name.
      dtype: one of `DTYPES`.
      batch: patches on a device at once.
      layout: devices that share a batch; each holds all parameters.
    """

    def __init__(
        self,
        spec: ViTSpec,
        params: Params,
        *,
        contract: embeddings.EncoderContract,
        files: Mapping[str, str],
        dtype: str,
        batch: int,
        layout: mesh.Layout,
    ) -> None:
        self.spec, self.dtype = spec, dtype
        self._contract, self._files = contract, dict(files)
        self._layout, self._rows = layout, batch * layout.pieces
        self._params = jax.device_put(params, layout.replicated)
        apply = network.make_vit(spec, dtype=DTYPES[dtype]).apply
        self._run: Any = jax.jit(
            functools.partial(_embed, apply, contract, dtype),
            static_argnames="variants",
            out_shardings=layout.data,
        )

    @property
    def contract(self) -> embeddings.EncoderContract:
        """What the embeddings are."""
        return self._contract

    @property
    def params(self) -> Params:
        """The parameters, as they lie on the devices."""
        return self._params

    @property
    def programs(self) -> int:
        """How many programs were compiled: one a number of variants."""
        return self._run._cache_size()

    def encode(self, patches: UInt8[np.ndarray, "n px px 3"]) -> Float32[np.ndarray, "n v c"]:
        """Embeddings of the eight variants of each patch, in the order of `apply_variant`.

        Args:
          patches: RGB, ``px`` = ``contract.input_px``.

        Raises:
          ImageError: another shape or type.
        """
        px = self._contract.input_px
        if patches.dtype != np.uint8 or patches.shape[1:] != (px, px, 3):
            raise errors.ImageError(
                f"the encoder {self._contract.name!r} cannot take these patches",
                expected=f"uint8 of shape (n, {px}, {px}, 3)",
                found=f"{patches.dtype} of shape {patches.shape}",
                fix="Read them with stemjax.data.patches.read_patches",
            )
        starts = range(0, len(patches), self._rows)
        parts = ((range(at, at + self._rows), patches[at : at + self._rows]) for at in starts)
        made = [values for _, values in self._stream(parts, embeddings.N_VARIANTS)]
        empty = np.empty((0, embeddings.N_VARIANTS, self._contract.width), np.float32)
        return np.concatenate([empty, *made])

    def embed(
        self,
        slide: slides.Slide,
        *,
        variants: int = embeddings.N_VARIANTS,
        workers: int = 1,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Float16[np.ndarray, "l v c"]:
        """Embeddings of the first ``variants`` variants of every spot, rows as ``slide.barcodes``.

        Args:
          slide: a slide with an image.
          variants: 1 to `embeddings.N_VARIANTS`, in the order of `embeddings.apply_variant`.
          workers: threads that read patches; changes no number.
          progress: called with spots done, spots in all, and what is being done.

        Raises:
          ConfigError: there are not so many variants.
          ImageError: the slide has no image, or it is damaged.
        """
        embeddings.require_variants(variants)
        out = np.empty((slide.n_spots, variants, self._contract.width), np.float16)
        batches = patches.patch_batches(slide, self._contract, batch=self._rows, workers=workers)
        with contextlib.closing(batches):  # type: ignore[type-var]
            for rows, values in self._stream(batches, variants):
                with np.errstate(over="ignore"):  # what overflows is found by the caller
                    out[rows.start : rows.stop] = values
                if progress is not None:
                    progress(rows.stop, slide.n_spots, f"embedding the patches of {slide.id}")
        return out

    def covered(self, slide: slides.Slide) -> slides.Slide:
        """The slide with the weights' files among its sources."""
        return dataclasses.replace(slide, sources={**slide.sources, **self.sources(slide)})

    def sources(self, slide: slides.Slide) -> Mapping[str, str]:
        """SHA-256 of each file of the weights; the same for every slide."""
        return {f"{self._contract.name}/{name}": found for name, found in self._files.items()}

    def _stream(
        self, batches: Iterable[tuple[range, np.ndarray]], variants: int
    ) -> Iterator[tuple[range, np.ndarray]]:
        """Embeddings of batches, fetched while later ones are computed."""
        waiting: collections.deque[tuple[range, int, jax.Array]] = collections.deque()
        for rows, pixels in batches:
            waiting.append((rows, len(pixels), self._dispatch(pixels, variants)))
            if len(waiting) == UNDER_WAY:
                yield _fetched(*waiting.popleft())
        while waiting:
            yield _fetched(*waiting.popleft())

    def _dispatch(self, pixels: np.ndarray, variants: int) -> jax.Array:
        """Hands a batch to the devices; does not wait."""
        if len(pixels) < self._rows:
            filled = np.zeros((self._rows, *pixels.shape[1:]), np.uint8)
            filled[: len(pixels)] = pixels
            pixels = filled
        placed = self._layout.put({"pixels": pixels})["pixels"]
        with self._layout.in_force():
            return self._run(self._params, placed, variants=variants)


def as_program(encoder: JaxEncoder) -> tuple[Callable[[Array], Array], int]:
    """Returns what `stemjax.export.program.Encoder` needs of an encoder, besides its contract.

    Returns:
      (run, pixels): patches [b s s 3], 0 to 255 -> embeddings [b c], for any platform, with the
      weights inside; and the side s.
    """
    form = attention.portable(encoder.spec.tokens)
    apply = network.make_vit(encoder.spec, dtype=DTYPES[encoder.dtype], form=form).apply

    def run(pixels: Array) -> Array:
        made = _embed(apply, encoder.contract, encoder.dtype, encoder.params, pixels, variants=1)
        return made[:, 0]

    return run, encoder.contract.input_px


def specialise(spec: ViTSpec, contract: embeddings.EncoderContract) -> ViTSpec:
    """Returns the network with the pooling and projection of a contract."""
    pool = spec.pool
    if pool is not None:
        pool = dataclasses.replace(pool, projected=contract.projection != "none")
    return dataclasses.replace(spec, pooling=contract.pooling, pool=pool)


def turned(pixels: UInt8[Array, "n s s 3"], variants: int) -> UInt8[Array, "v n s s 3"]:
    """The first variants of each patch, in the order of `embeddings.apply_variant`."""
    mirrored = jnp.flip(pixels, axis=2)
    return jnp.stack(
        [
            jnp.rot90(mirrored if variant >= 4 else pixels, variant % 4, axes=(1, 2))
            for variant in range(variants)
        ]
    )


def _embed(
    apply: Callable[..., Array],
    contract: embeddings.EncoderContract,
    dtype: str,
    params: Params,
    pixels: UInt8[Array, "n s s 3"],
    *,
    variants: int,
) -> Float[Array, "n v c"]:
    """Embeddings of patches; one variant of all of them at a time, so memory does not grow."""

    def embed(some: UInt8[Array, "n s s 3"]) -> Float[Array, "n c"]:
        values = some.astype(jnp.float32) / 255.0
        if contract.mean:
            values = values - jnp.asarray(contract.mean, jnp.float32)[None, None, None]
        if contract.std:
            values = values / jnp.asarray(contract.std, jnp.float32)[None, None, None]
        return apply(params, values)

    # Elsewhere than on a CPU, products of float32 would be rounded unless this is said.
    with jax.default_matmul_precision("float32" if dtype == "float32" else "default"):
        if variants == 1:
            return embed(pixels)[:, None]
        return jnp.swapaxes(jax.lax.map(embed, turned(pixels, variants)), 0, 1)


def _fetched(rows: range, kept: int, values: jax.Array) -> tuple[range, np.ndarray]:
    return rows, np.asarray(values)[:kept]
