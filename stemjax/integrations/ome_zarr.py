"""Predictions as OME-Zarr (NGFF 0.5): a multiscale image with a channel a gene.

    OUT.ome.zarr/zarr.json    multiscales (axes c, y, x; um), omero (names, windows), stemjax
    OUT.ome.zarr/0, 1, ...    float32 [c y x], each level half of the one before

Spots are discs of their true diameter; pixels between them are NaN, and a pixel of a smaller level
is the mean of those that are not. Positions are those of pixel centres, in um from the upper left
corner of the slide's image, so that the maps lie over the H&E in a viewer that shows both in um.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from stemjax import __version__
from stemjax.data import integrity
from stemjax.integrations import gene_maps, rasters
from stemjax.integrations import prediction as predictions

SMALLEST = 256
"""The last level is the first that is no longer than this."""

_CHUNK = 512


def write(
    prediction: predictions.Prediction,
    path: str | pathlib.Path,
    *,
    genes: Sequence[str] | None = None,
    pixel_um: float | None = None,
    radius_um: float | None = None,
) -> tuple[int, ...]:
    """Writes the image, whole or not at all; returns the shape of its largest level.

    Memory holds one channel at a time. Where the slide's pixel size is unknown, lengths are in
    level-0 pixels, and so is the image's scale, without a unit.

    Args:
      prediction: of one slide.
      path: the folder to write, usually ``*.ome.zarr``; nothing that stands there is replaced.
      genes: names; None takes 20 of the largest variance.
      pixel_um: size of a pixel; None chooses (`rasters.discs`).
      radius_um: of the discs; None takes the spots' own, more closes the gaps between them.

    Raises:
      GenePanelError: a gene was not predicted.
      ConfigError: something is in the way, or a size that cannot be.
    """
    import zarr

    path = pathlib.Path(path)
    chosen = prediction.choose(genes)
    predictions.require_absent(path)
    unit = prediction.mpp or 1.0
    grid = rasters.discs(
        prediction,
        step=None if pixel_um is None else pixel_um / unit,
        radius=None if radius_um is None else radius_um / unit,
    )
    shapes = _level_shapes(grid.spots.shape)
    values = prediction.values(chosen)
    with integrity.published_folder(path) as folder:
        root = zarr.create_group(store=str(folder), zarr_format=3)
        levels = [
            root.create_array(
                str(number),
                shape=(len(chosen), *shape),
                chunks=(1, min(_CHUNK, shape[0]), min(_CHUNK, shape[1])),
                dtype="float32",
                fill_value=float("nan"),
                dimension_names=("c", "y", "x"),
            )
            for number, shape in enumerate(shapes)
        ]
        for channel in range(len(chosen)):
            image = rasters.paint(grid.spots, values[:, channel])
            for level in levels:
                level[channel] = image
                image = halved(image)
        root.attrs.update(_attributes(prediction, chosen, values, grid, len(levels)))
    return (len(chosen), *shapes[0])


def halved(image: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h2 w2"]:
    """Returns the means of blocks of 2 x 2 pixels, NaN ones left out; NaN where all are.

    Odd sides are rounded up: the last pixel then is the mean of what there is.
    """
    height, width = image.shape
    padded = np.pad(image, ((0, height % 2), (0, width % 2)), constant_values=np.nan)
    blocks = padded.reshape((height + 1) // 2, 2, (width + 1) // 2, 2)
    finite = np.isfinite(blocks)
    n = finite.sum(axis=(1, 3))
    total = np.where(finite, blocks, 0).sum(axis=(1, 3), dtype=np.float32)
    return np.where(n > 0, total / np.maximum(n, 1), np.nan).astype(np.float32)


def _level_shapes(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Shapes of the levels, the largest first, at least two where there are two pixels."""
    found = [(int(shape[0]), int(shape[1]))]
    while max(found[-1]) > SMALLEST or (len(found) == 1 and max(found[-1]) > 1):
        height, width = found[-1]
        found.append(((height + 1) // 2, (width + 1) // 2))
    return found


def _attributes(
    prediction: predictions.Prediction,
    genes: Sequence[str],
    values: np.ndarray,
    grid: rasters.Grid,
    levels: int,
) -> dict[str, Any]:
    """The group's attributes: what NGFF asks for, and what the values are."""
    mpp = prediction.mpp
    unit = {} if mpp is None else {"unit": "micrometer"}
    scale = mpp or 1.0
    datasets = []
    for number in range(levels):
        step = grid.step * 2**number
        # The centre of a larger pixel lies further in.
        first = [at + grid.step * (2**number - 1) / 2 for at in reversed(grid.origin)]
        datasets.append(
            {
                "path": str(number),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [1.0, step * scale, step * scale]},
                    {"type": "translation", "translation": [0.0, *(at * scale for at in first)]},
                ],
            }
        )
    space = [{"name": axis, "type": "space", **unit} for axis in "yx"]
    channels = []
    for column, gene in enumerate(genes):
        low, high = gene_maps.grey_range(values[:, column])
        window = {"start": low, "end": high, "min": low, "max": high}
        channels.append({"label": gene, "color": "FFFFFF", "active": column == 0, "window": window})
    return {
        "ome": {
            "version": "0.5",
            "multiscales": [
                {
                    "name": prediction.slide,
                    "axes": [{"name": "c", "type": "channel"}, *space],
                    "datasets": datasets,
                    "type": "mean",
                }
            ],
            "omero": {"name": prediction.slide, "channels": channels},
        },
        "stemjax": {
            "slide": prediction.slide,
            "value_space": prediction.value_space,
            "units": prediction.units,
            "mode": str(prediction.about.get("mode", "")),
            "stemjax_version": str(prediction.about.get("stemjax_version", __version__)),
            "notice": "Research use only. Not for clinical or diagnostic use.",
        },
    }
