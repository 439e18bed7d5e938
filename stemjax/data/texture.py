"""The built-in encoder: stain and texture of a patch, without weights and without a download.

A patch becomes optical density, then haematoxylin and eosin (Ruifrok and Johnston 2001), at half
resolution. From these come colour statistics, blobs and edges at several scales, local binary
patterns, fibre orientation, nuclei and empty areas. Maps are averaged over a centre disc, a ring
and the corners, which no flip or quarter turn changes, and over quadrants, which those permute: a
patch is measured once and its eight variants follow exactly, by permutation.

Logarithms and square roots keep all features of order one, so that float16 loses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, cast

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8
from scipy import ndimage
from skimage import color

from stemjax import errors
from stemjax.data import embeddings

GROUPS: Final[dict[str, int]] = {
    "mean": 15,  # density of R G B, haematoxylin, eosin; disc, ring, corners of each
    "spread": 15,  # log standard deviation of the same
    "skew": 5,
    "quantiles": 10,  # 5, 25, 50, 75, 95 % of haematoxylin, then of eosin
    "correlation": 4,  # Fisher's z of haematoxylin-eosin, R-G, R-B, G-B
    "detail": 18,  # log mean |difference of Gaussians| of haematoxylin, 6 scales, 3 regions
    "detail_quantiles": 24,  # 5, 50, 95, 99 % of the same six maps
    "fibres": 18,  # coherence of the structure tensor, 6 settings: mean, weighted mean, spread
    "pattern": 30,  # local binary patterns of brightness at half resolution, radii 1 2 4
    "pattern_coarse": 30,  # the same at a quarter
    "cover": 21,  # area of background, lumen, nuclei, stroma, red cells, dark, very dark; 3 regions
    "nuclear_colour": 5,
    "stroma_colour": 5,
    "nuclei": 14,  # number, size, shape and darkness of labelled nuclei
    "blobs": 6,  # peaks of 3 sizes: in the disc, in the patch
    "quadrants": 16,  # haematoxylin, eosin, detail, nuclei; [upper left, upper right, lower ...]
}
"""Feature groups in the order of the columns, and how many columns each has.

Every group but the last, ``quadrants``, is the same for all eight variants.
"""

WIDTH: Final = sum(GROUPS.values())
INPUT_PX: Final = 224

CONTRACT: Final = embeddings.EncoderContract(
    name="texture",
    width=WIDTH,
    input_px=INPUT_PX,
    fov_um=None,
    resize="lanczos",
    mean=(),
    std=(),
    pooling="disc, ring, corners, quadrants",
    projection="none",
    source="stemjax",
    revision="1",  # a test fails if the features change and this does not
)
"""The contract of `TextureEncoder`."""

type Map = Float32[np.ndarray, "s s"]
type Mask = Bool[np.ndarray, "s s"]

_HALF = INPUT_PX // 2
_QUARTER = INPUT_PX // 4
_DISC, _RING = 36.0, 56.0  # radii in half-resolution pixels; a spot of 145 px has radius 36.25
# Densities are whole numbers (1/1024) up to the block sum: then a sum is the same in any order,
# and the masks of a turned patch are exactly the turned masks.
_UNIT = 1024
_DENSITY = np.rint(-np.log10((np.arange(256) + 1) / 256) * _UNIT).astype(np.int16)
_STAINS = np.asarray(color.hed_from_rgb, np.float64)[:, :2] / (4 * _UNIT)
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_DETAIL_QUANTILES = (0.05, 0.5, 0.95, 0.99)
_SCALES = (1.0, 1.6, 2.5, 4.0, 6.4, 10.0)  # standard deviations in half-resolution pixels
_NUCLEUS_RANGE = (0.25, 0.9)  # haematoxylin; Otsu's threshold is not trusted outside
_SMALLEST, _SMALL, _LARGE = 6, 15, 60  # areas of objects in half-resolution pixels

_axis = np.arange(_HALF) - (_HALF - 1) / 2
_ROW, _COLUMN = np.meshgrid(_axis, _axis, indexing="ij")
_REGION = np.digitize(np.hypot(_ROW, _COLUMN), (_DISC, _RING), right=True)
_CELL = (_REGION * 4 + (_ROW > 0) * 2 + (_COLUMN > 0)).ravel()
_ORDER = np.argsort(_CELL, kind="stable")
_SIZES = np.bincount(_CELL).reshape(3, 4)
_STARTS = np.concatenate([[0], np.cumsum(_SIZES)[:-1]])
_IN_DISC = _REGION == 0


class TextureEncoder:
    """Encoder ``texture``: `WIDTH` features a variant, see `GROUPS`; deterministic."""

    @property
    def contract(self) -> embeddings.EncoderContract:
        """What the embeddings are."""
        return CONTRACT

    def encode(self, patches: UInt8[np.ndarray, "n px px 3"]) -> Float32[np.ndarray, "n v c"]:
        """Features of the eight variants of each patch, in the order of `apply_variant`.

        A patch is measured by itself: what others are in the call changes nothing.

        Args:
          patches: RGB of 224 x 224 pixels.

        Returns:
          Finite features with magnitudes below 100.

        Raises:
          ImageError: another shape or type.
        """
        if patches.dtype != np.uint8 or patches.shape[1:] != (INPUT_PX, INPUT_PX, 3):
            raise errors.ImageError(
                "the texture encoder cannot take these patches",
                expected=f"uint8 of shape (n, {INPUT_PX}, {INPUT_PX}, 3)",
                found=f"{patches.dtype} of shape {patches.shape}",
                fix="Read them with stemjax.data.patches.read_patches",
            )
        out = np.empty((len(patches), embeddings.N_VARIANTS, WIDTH), np.float32)
        invariant = WIDTH - GROUPS["quadrants"]
        for row, patch in enumerate(patches):
            groups = measure(patch)
            quadrants = groups.pop("quadrants").reshape(-1, 2, 2).transpose(1, 2, 0)
            out[row, :, :invariant] = np.concatenate(list(groups.values()))
            for variant in range(embeddings.N_VARIANTS):
                turned = embeddings.apply_variant(quadrants, variant)
                out[row, variant, invariant:] = turned.transpose(2, 0, 1).ravel()
        return out


def measure(patch: UInt8[np.ndarray, "px px 3"]) -> dict[str, np.ndarray]:
    """The feature groups of one patch as it lies, in the order of `GROUPS`."""
    channels = np.ascontiguousarray(patch.transpose(2, 0, 1))
    density = _block_sum(_DENSITY.take(channels).astype(np.int32))
    red, green, blue = density
    planes = np.empty((5, _HALF, _HALF), np.float32)
    planes[:3] = density / (4 * _UNIT)
    for stain in range(2):
        weight = _STAINS[:, stain]
        planes[3 + stain] = red * weight[0] + green * weight[1] + blue * weight[2]
    haematoxylin, eosin = planes[3], planes[4]
    brightness = (red + green + blue).astype(np.float32) / (12 * _UNIT)
    blurred = [haematoxylin, *(_blur(haematoxylin, scale) for scale in _SCALES)]
    detail = np.stack([fine - rough for fine, rough in zip(blurred[:-1], blurred[1:])])
    masks = _masks(planes, brightness)
    areas = _sums(np.stack(list(masks.values())).astype(np.float32))
    details = _sums(np.abs(detail))
    grey = _block_sum(channels.sum(0, dtype=np.int32))
    return {
        **_colour(planes),
        "detail": _log(_regions(details), 0.002),
        "detail_quantiles": 10 * np.concatenate([_quantiles(m, _DETAIL_QUANTILES) for m in detail]),
        "fibres": _fibres(_blur(brightness, 1.0), _blur(eosin, 1.5), blurred[2], blurred[3]),
        "pattern": _patterns(grey, 0),
        "pattern_coarse": _patterns(_block_sum(grey), 96),  # 2 grey levels of 48 summed values
        "cover": np.sqrt(_regions(areas)),
        "nuclear_colour": _mean_within(planes, masks["nuclei"]),
        "stroma_colour": _mean_within(planes, ~(masks["nuclei"] | masks["background"])),
        "nuclei": _nuclei(masks["nuclei"], haematoxylin),
        "blobs": _blobs(blurred),
        "quadrants": np.concatenate(
            [
                _quadrants(_sums(planes[3:])),
                _log(_quadrants(details[3:4]), 0.002),
                np.sqrt(_quadrants(areas[2:3])),
            ]
        ),
    }


def _colour(planes: Float32[np.ndarray, "k s s"]) -> dict[str, np.ndarray]:
    """Moments and quantiles of the densities and stains."""
    centred = planes - planes.mean((1, 2), keepdims=True)
    squares = centred * centred
    offset, square = _sums(centred).sum(2) / _SIZES.sum(1), _sums(squares).sum(2) / _SIZES.sum(1)
    variance = squares.mean((1, 2))
    # The floors stand for the noise of a scanner: an empty patch has no shape and no correlation.
    scale = np.sqrt(variance + 1e-4)
    skew = (squares * centred).mean((1, 2)) / scale**3
    pairs = ((3, 4), (0, 1), (0, 2), (1, 2))
    covariance = np.array([(centred[i] * centred[j]).mean() for i, j in pairs])
    return {
        "mean": _regions(_sums(planes)),
        "spread": _log(np.sqrt(np.maximum(square - offset**2, 0.0)).ravel(), 0.01),
        "skew": np.clip(skew, -5.0, 5.0),
        "quantiles": np.concatenate([_quantiles(plane, _QUANTILES) for plane in planes[3:]]),
        # Fisher's z: channels correlate by .98, which float16 would not tell from .9805.
        "correlation": np.arctanh(0.999 * covariance / [scale[i] * scale[j] for i, j in pairs]),
    }


def _masks(planes: Float32[np.ndarray, "k s s"], brightness: Map) -> dict[str, Mask]:
    """What is empty, what is nucleus, what is stroma, from thresholds on density."""
    # Bright and nearly grey: pale stroma is as bright as the glass of a dim scan, but not as grey.
    tint = planes[:3].max(0) - planes[:3].min(0)
    background = (brightness < 0.12) & (tint < 0.08)
    smooth = _smooth_exactly(planes[3])
    # Eosin absorbs green more than red. The unmixed eosin is no guide here: where haematoxylin is
    # bluer than Ruifrok's vector it is negative.
    pink = planes[1] - planes[0]
    tissue = smooth[~background]
    nuclei = smooth > np.clip(_otsu(tissue if tissue.size > 200 else smooth), *_NUCLEUS_RANGE)
    return {
        "background": background,
        # Empty over 9 x 9 pixels: glandular lumen, fat cells and what lies beside the tissue.
        "lumen": ndimage.uniform_filter(background.astype(np.float32), 9) > 0.9,
        "nuclei": nuclei,
        "stroma": (pink > 0.1) & ~nuclei,
        "red_cells": pink > 0.2,
        "dark": smooth > 0.6,
        "very_dark": smooth > 1.2,
    }


def _otsu(values: np.ndarray) -> float:
    """The threshold between two classes of largest variance between them (Otsu 1979, eq. 18)."""
    counts, edges = np.histogram(values, bins=64, range=(-0.1, 2.4))
    below = np.cumsum(counts)
    first = np.cumsum(counts * np.arange(64))
    weight = below * (below[-1] - below)
    # In float64: the square passes 2^63.
    contrast = (first[-1] * below - first * below[-1]).astype(np.float64)
    between = contrast**2 / np.maximum(weight, 1)
    return float(edges[np.argmax(between) + 1])


def _nuclei(mask: Mask, haematoxylin: Map) -> np.ndarray:
    """Statistics of the connected parts of the mask; zeros where there is none of 6 pixels."""
    labels, count = cast("tuple[np.ndarray, int]", ndimage.label(mask))
    label = labels.ravel()

    def total(weights: np.ndarray) -> np.ndarray:
        return np.bincount(label, weights.ravel(), count + 1)[1:]

    area = total(np.ones_like(_ROW))
    keep = area >= _SMALLEST
    if not keep.any():
        return np.zeros(GROUPS["nuclei"])
    row, column = total(_ROW) / area, total(_COLUMN) / area
    # 1/12 is the variance within a pixel.
    rows = total(_ROW**2) / area - row**2 + 1 / 12
    columns = total(_COLUMN**2) / area - column**2 + 1 / 12
    across = total(_ROW * _COLUMN) / area - row * column
    dark = (total(haematoxylin) / area)[keep]
    gap = np.sqrt((rows - columns) ** 2 + 4 * across**2)
    axes = (rows + columns - gap) / (rows + columns + gap)
    roundness = np.sqrt(np.clip(axes, 0.0, 1.0))[keep]
    central = np.hypot(row, column)[keep] < _DISC
    area = area[keep]
    size = np.log(area)
    return np.array(
        [
            np.log1p(len(area)),
            np.log1p(central.sum()),
            size.mean(),
            size.std(),
            *_quantiles(size, (0.1, 0.9)),
            (area * size).sum() / area.sum(),
            (area > _LARGE).mean(),
            (area < _SMALL).mean(),
            roundness.mean(),
            roundness.std(),
            (area * roundness).sum() / area.sum(),
            dark.mean(),
            dark.std(),
        ]
    )


def _blobs(blurred: Sequence[Map]) -> np.ndarray:
    """Square roots of the number of bright peaks of a difference of Gaussians, three sizes."""
    out = []
    for fine, window in ((1, 3), (2, 5), (3, 7)):
        difference = blurred[fine] - blurred[fine + 2]
        peaks = (difference == ndimage.maximum_filter(difference, window)) & (difference > 0.05)
        out += [math.sqrt((peaks & _IN_DISC).sum()), math.sqrt(peaks.sum())]
    return np.array(out)


def _fibres(brightness: Map, eosin: Map, fine: Map, rough: Map) -> np.ndarray:
    """How parallel edges run: coherence of the structure tensor over several windows.

    Coherence is the difference of the tensor's eigenvalues over their sum (Bigun and Granlund
    1987): 1 for parallel fibres, 0 without a direction.
    """
    out = []
    for source, windows in ((brightness, (1, 2, 4)), (eosin, (2,)), (fine, (2,)), (rough, (4,))):
        down, right = _slope(source, 0), _slope(source, 1)
        tensor = _block_sum(np.stack([down * down, right * right, down * right])) / 4
        for window in windows:
            rows, columns, across = ndimage.gaussian_filter(
                tensor, (0, window, window), truncate=3.0
            )
            gap, energy = np.sqrt((rows - columns) ** 2 + 4 * across**2), rows + columns
            coherence = gap / (energy + 1e-5)
            out += [coherence.mean(), gap.mean() / (energy.mean() + 1e-5), coherence.std()]
    return np.array(out)


def _patterns(grey: Int[np.ndarray, "s s"], margin: int) -> np.ndarray:
    """Square roots of the shares of rotation-invariant uniform patterns, radii 1, 2 and 4.

    Local binary patterns of 8 neighbours (Ojala et al. 2002, eq. 9): 0..8 neighbours in one run
    that are at least as bright as the centre plus ``margin``, and the rest. The neighbours are
    pixels, not interpolated, so that a quarter turn changes no bit.
    """
    out = []
    for radius in (1, 2, 4):
        diagonal = max(1, round(radius / math.sqrt(2)))
        inner = slice(radius, grey.shape[0] - radius)
        least = grey[inner, inner] + margin
        code = np.zeros(least.shape, np.uint8)
        for bit, (down, right) in enumerate(_neighbours(radius, diagonal)):
            rows = slice(radius + down, grey.shape[0] - radius + down)
            columns = slice(radius + right, grey.shape[1] - radius + right)
            code |= (grey[rows, columns] >= least).astype(np.uint8) << np.uint8(bit)
        counts = np.bincount(code.ravel(), minlength=256)
        out.append(np.sqrt(np.bincount(_UNIFORM, counts, minlength=10) / code.size))
    return np.concatenate(out)


def _neighbours(radius: int, diagonal: int) -> tuple[tuple[int, int], ...]:
    """The 8 neighbours once around, as (rows down, columns right)."""
    r, d = radius, diagonal
    return ((0, r), (d, d), (r, 0), (d, -d), (0, -r), (-d, -d), (-r, 0), (-d, d))


def _uniform_table() -> np.ndarray:
    """Number of set bits of each 8-bit code with at most one run of them, else 9."""
    bits = (np.arange(256)[:, None] >> np.arange(8)) & 1
    changes = (bits != np.roll(bits, 1, axis=1)).sum(1)
    return np.where(changes <= 2, bits.sum(1), 9)


_UNIFORM = _uniform_table()


def _mean_within(planes: Float32[np.ndarray, "k s s"], mask: Mask) -> np.ndarray:
    """Mean of each plane within the mask, drawn to 0 where that has few pixels."""
    return planes[:, mask].sum(1) / (mask.sum() + 20)


def _smooth_exactly(plane: Map) -> Map:
    """Binomial blur of variance 1 pixel in whole numbers, the same in any order of the axes."""
    whole = np.rint(plane * (4 * _UNIT)).astype(np.int32)
    for axis in range(2):
        whole = ndimage.correlate1d(whole, [1, 4, 6, 4, 1], axis, output=np.int32)
    return whole.astype(np.float32) / (256 * 4 * _UNIT)


def _blur(plane: Map, scale: float) -> Map:
    return ndimage.gaussian_filter(plane, scale, truncate=3.0)


def _slope(plane: Map, axis: int) -> Map:
    return ndimage.correlate1d(plane, [-0.5, 0.0, 0.5], axis)


def _block_sum(planes: np.ndarray) -> np.ndarray:
    """Sums of 2 x 2 blocks of the last two axes."""
    rows = planes[..., ::2, :] + planes[..., 1::2, :]
    return rows[..., ::2] + rows[..., 1::2]


def _sums(maps: Float32[np.ndarray, "k s s"]) -> Float32[np.ndarray, "k 3 4"]:
    """Sums over the cells that three regions and four quadrants cut.

    Not a matrix product: a threaded BLAS rounds by the number of threads, and embeddings are the
    same for any number of workers.
    """
    ordered = maps.reshape(len(maps), -1).take(_ORDER, axis=1)
    return np.add.reduceat(ordered, _STARTS, axis=1).reshape(-1, 3, 4)


def _regions(sums: Float32[np.ndarray, "k 3 4"]) -> np.ndarray:
    """Means over disc, ring and corners, from `_sums`."""
    return (sums.sum(2) / _SIZES.sum(1)).ravel()


def _quadrants(sums: Float32[np.ndarray, "k 3 4"]) -> np.ndarray:
    """Means over the quadrants, from `_sums`."""
    return (sums.sum(1) / _SIZES.sum(0)).ravel()


def _quantiles(values: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Order statistics: the nearest rank, not interpolated."""
    ordered = np.sort(values, axis=None)
    return ordered[[round(share * (ordered.size - 1)) for share in shares]]


def _log(values: np.ndarray, floor: float) -> np.ndarray:
    return np.log(values + floor)
