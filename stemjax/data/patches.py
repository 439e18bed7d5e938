"""The patch around each spot, and the embeddings of all patches of a slide.

A patch is a square around the spot's centre: as wide as the contract's field of view, or else
max(224, spot diameter) level-0 pixels, the rule of Stem (Zhu et al., ICLR 2025). It is brought to
the encoder's input size by the contract's filter where the sizes differ. Beyond the image it is
white.

A slide is embedded in chunks, so memory does not grow with its spots. With several workers this
process reads pixels and the others resize and encode: an image is decoded once, not once a worker.
"""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

import joblib
import numpy as np
from jaxtyping import Float16, UInt8
from PIL import Image

from stemjax import errors
from stemjax.data import embeddings, images, no_image, slides

MIN_SIDE_PX = 224
"""Smallest side of a patch in level-0 pixels."""

CHUNK = 64
"""Spots encoded at once: 9.6 MB of pixels at 224 px."""


FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
"""Resampling by the name in a contract; all of them average where they make an image smaller."""


def patch_side_px(slide: slides.Slide, contract: embeddings.EncoderContract | None = None) -> int:
    """Side of the slide's patches in level-0 pixels.

    Args:
      slide: the slide.
      contract: of the encoder; its field of view decides, or without one max(224, spot diameter).
    """
    if contract is not None and contract.fov_um is not None:
        return max(1, round(contract.fov_um / slide.mpp))
    return max(MIN_SIDE_PX, round(slide.spot_diameter_px))


def read_patches(
    slide: slides.Slide,
    rows: Sequence[int] | np.ndarray,
    *,
    side: int,
    out_px: int,
    resize: str = "lanczos",
) -> UInt8[np.ndarray, "n px px 3"]:
    """Patches around the spots of those rows, in their order; white beyond the image.

    The patch starts at the pixel border nearest to the centre minus half a side.

    Args:
      slide: a slide with an image.
      rows: rows of ``slide.barcodes``.
      side: side of the square in level-0 pixels, see `patch_side_px`.
      out_px: side of the result; resampled where it differs from ``side``.
      resize: one of `FILTERS`.

    Raises:
      ImageError: the slide has no image, or it is damaged there.
      EncoderMismatchError: there is no such filter.
    """
    return _resize(_read(_image(slide), slide, rows, side), out_px, resize)


def patch_batches(
    slide: slides.Slide,
    contract: embeddings.EncoderContract,
    *,
    batch: int,
    workers: int = 1,
    ahead: int = 2,
) -> Iterator[tuple[range, UInt8[np.ndarray, "n px px 3"]]]:
    """Patches of all spots at the encoder's input size, read by threads while others are used.

    Args:
      slide: a slide with an image.
      contract: field of view, input size and filter.
      batch: spots in a batch; the last may hold fewer.
      workers: threads that read and resize: both leave the interpreter's lock. Changes no number.
      ahead: batches that wait in memory, besides those being read.

    Yields:
      Rows of the slide, and their patches, in the slide's order.

    Raises:
      ImageError: the slide has no image, or it is damaged.
      EncoderMismatchError: the contract's filter is unknown.
    """
    _image(slide)
    side = patch_side_px(slide, contract)
    chunks = iter(
        range(start, min(start + batch, slide.n_spots)) for start in range(0, slide.n_spots, batch)
    )

    def read(rows: range) -> UInt8[np.ndarray, "n px px 3"]:
        return read_patches(
            slide, rows, side=side, out_px=contract.input_px, resize=contract.resize
        )

    with concurrent.futures.ThreadPoolExecutor(max(1, workers)) as pool:
        waiting: collections.deque[tuple[range, concurrent.futures.Future[np.ndarray]]]
        waiting = collections.deque()
        try:
            for rows in itertools.islice(chunks, max(1, workers) + ahead):
                waiting.append((rows, pool.submit(read, rows)))
            while waiting:
                rows, made = waiting.popleft()
                pixels = made.result()
                for following in itertools.islice(chunks, 1):
                    waiting.append((following, pool.submit(read, following)))
                yield rows, pixels
        finally:
            for _, made in waiting:
                made.cancel()


def embed_slide(
    slide: slides.Slide,
    encoder: embeddings.Encoder | embeddings.Embedder,
    *,
    variants: int = embeddings.N_VARIANTS,
    workers: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
) -> Float16[np.ndarray, "l v c"]:
    """Embeddings of the variants of every spot's patch, rows as in ``slide.barcodes``.

    Args:
      slide: a slide with an image; one without will do for the encoder ``none``.
      encoder: turns patches into embeddings; is sent to the workers if there are several. An
        `embeddings.Embedder` goes its own way.
      variants: the first so many of the eight; fewer where an embedder has no more.
      workers: processes that encode; 1 stays in this one. Changes no number.
      progress: called with spots done, spots in all, and what is being done.

    Raises:
      ImageError: no image, a damaged one, or embeddings that are not finite in float16.
      EncoderMismatchError: the encoder returns another shape than its contract says.
      ConfigError: ``workers`` is below 1, or there are not so many variants.
    """
    embeddings.require_variants(variants)
    if isinstance(encoder, embeddings.Embedder):
        made = encoder.embed(slide, variants=variants, workers=workers, progress=progress)
        _check_finite(made, slide, encoder.contract.name)
        return made
    if no_image.is_of(encoder.contract):
        return np.zeros((slide.n_spots, variants, encoder.contract.width), np.float16)
    image = _image(slide)
    if workers < 1:
        raise errors.ConfigError(
            "the number of workers that embed patches cannot be right",
            expected="at least 1",
            found=str(workers),
            fix="Set workers=1 to embed in this process",
        )
    side = patch_side_px(slide, encoder.contract)
    chunks = [
        range(start, min(start + CHUNK, slide.n_spots)) for start in range(0, slide.n_spots, CHUNK)
    ]
    jobs = ((encoder, _read(image, slide, rows, side)) for rows in chunks)
    width = encoder.contract.width
    out = np.empty((slide.n_spots, variants, width), np.float16)
    for rows, values in zip(chunks, _run(jobs, min(workers, len(chunks)))):
        out[rows.start : rows.stop] = values[:, :variants]
        if progress is not None:
            progress(rows.stop, slide.n_spots, f"embedding the patches of {slide.id}")
    _check_finite(out, slide, encoder.contract.name)
    return out


type _Job = tuple[embeddings.Encoder, UInt8[np.ndarray, "n side side 3"]]


def _run(jobs: Iterable[_Job], workers: int) -> Iterator[Float16[np.ndarray, "n v c"]]:
    """The result of `_encode` for each job, in order."""
    if workers == 1:
        return itertools.starmap(_encode, jobs)
    # Jobs are made when they are asked for: two for each worker wait in memory, no more.
    parallel = joblib.Parallel(n_jobs=workers, backend="loky", return_as="generator")
    results = parallel(joblib.delayed(_encode)(*job) for job in jobs)
    return cast("Iterator[np.ndarray]", results)


def _encode(
    encoder: embeddings.Encoder, crops: UInt8[np.ndarray, "n side side 3"]
) -> Float16[np.ndarray, "n v c"]:
    """Embeddings of those crops; runs in a worker."""
    contract = encoder.contract
    values = encoder.encode(_resize(crops, contract.input_px, contract.resize))
    expected = (len(crops), embeddings.N_VARIANTS, contract.width)
    if values.shape != expected:
        raise errors.EncoderMismatchError(
            f"the encoder {contract.name!r} does not keep its contract",
            expected=f"embeddings of shape {expected}",
            found=str(values.shape),
            fix="Correct the encoder or its contract",
        )
    with np.errstate(over="ignore"):  # what overflows is found by _check_finite
        return values.astype(np.float16)


def _check_finite(values: Float16[np.ndarray, "l v c"], slide: slides.Slide, encoder: str) -> None:
    """Raises ImageError naming the spots whose embeddings are not finite.

    Once for the whole slide, not in the workers: which of two workers fails first is chance.
    """
    bad = np.flatnonzero(~np.isfinite(values).all((1, 2)))
    if bad.size:
        named = ", ".join(slide.barcodes[row] for row in bad[:5])
        raise errors.ImageError(
            f"the encoder {encoder!r} returned NaN, infinity or more than float16's 65,504 for "
            f"slide {slide.id!r}, spots {named}{' and others' if bad.size > 5 else ''}",
            expected="finite numbers",
            found=f"{bad.size} such spots of {slide.n_spots}",
            fix="Look at the image around these spots, and scale the encoder's output",
            case="D18",
        )


def _image(slide: slides.Slide) -> images.SlideImage:
    if slide.image is None:
        raise errors.ImageError(
            f"slide {slide.id!r} has no image, so its patches cannot be embedded",
            expected="an image or embeddings made earlier",
            found="neither",
            fix="Read the slide with its image, or give its embeddings",
        )
    return slide.image


def _read(
    image: images.SlideImage, slide: slides.Slide, rows: Sequence[int] | np.ndarray, side: int
) -> UInt8[np.ndarray, "n side side 3"]:
    """Squares of level-0 pixels around the spots."""
    out = np.empty((len(rows), side, side, 3), np.uint8)
    for place, row in enumerate(rows):
        corner = np.floor(slide.pixel_xy[row].astype(np.float64) - side / 2 + 0.5)
        out[place] = image.read(int(corner[0]), int(corner[1]), side, side)
    return out


def _resize(
    crops: UInt8[np.ndarray, "n side side 3"], out_px: int, resize: str
) -> UInt8[np.ndarray, "n px px 3"]:
    """The crops at another size; the same array where it has that size."""
    if resize not in FILTERS:
        raise errors.EncoderMismatchError(
            "patches cannot be resampled so",
            expected=f"one of {', '.join(FILTERS)}",
            found=repr(resize),
            fix="Correct the field 'resize' of the encoder's contract",
        )
    if crops.shape[1] == out_px:
        return crops
    out = np.empty((len(crops), out_px, out_px, 3), np.uint8)
    for place, crop in enumerate(crops):
        resized = Image.fromarray(crop).resize((out_px, out_px), FILTERS[resize])
        out[place] = np.asarray(resized)
    return out
