"""Predictions as pictures: figures of genes over the H&E, or bare pixels, one a spot.

GENE.png     a figure: predicted values and, where there is one, their spread, over the H&E
GENE.png     bare: 8-bit greys from the gene's 1st to 99th percentile, 0 where there is no spot
GENE.tiff    bare: the values themselves, float32, NaN where there is no spot
maps.json    which file is which gene, the units, and the range of the greys
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from stemjax import names
from stemjax.data import integrity
from stemjax.eval import plots
from stemjax.integrations import prediction as predictions
from stemjax.integrations import rasters

INDEX = "maps.json"


def write(
    prediction: predictions.Prediction,
    folder: str | pathlib.Path,
    *,
    genes: Sequence[str] | None = None,
    bare: bool = False,
) -> tuple[pathlib.Path, ...]:
    """Writes the maps into a new folder, whole or not at all; returns the pictures' paths.

    Args:
      prediction: of one slide.
      folder: to write; nothing that stands there is replaced.
      genes: names; None takes 20 of the largest variance.
      bare: pixels without axes, colours and titles, for other programs.

    Raises:
      GenePanelError: a gene was not predicted.
      PredictionError: with ``bare``, the spots lie on no array.
      ConfigError: something is in the way.
    """
    folder = pathlib.Path(folder)
    chosen = prediction.choose(genes)
    predictions.require_absent(folder)
    spots = rasters.array_places(prediction) if bare else None
    files = names.file_names(chosen, ".png")
    made: list[dict[str, Any]] = [
        {"gene": gene, "file": name} for gene, name in zip(chosen, files, strict=True)
    ]
    with integrity.published_folder(folder) as out:
        if spots is None:
            for name, picture in zip(files, _figures(prediction, chosen), strict=True):
                (out / name).write_bytes(picture)
        else:
            values = prediction.values(chosen)
            for column, entry in enumerate(made):
                image = rasters.paint(spots, values[:, column])
                low, high = grey_range(values[:, column])
                name = entry["file"]
                Image.fromarray(greys(image, low, high), "L").save(out / name)
                raw = f"{name.removesuffix('.png')}.tiff"
                Image.fromarray(image, "F").save(out / raw)
                entry |= {"values": raw, "black": low, "white": high}
        about = {
            "slide": prediction.slide,
            "units": prediction.units,
            "value_space": prediction.value_space,
            "pixels": "one a spot" if bare else "figures",
            "maps": made,
        }
        integrity.write_text(out / INDEX, json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    return tuple(folder / name for name in files)


def grey_range(values: np.ndarray) -> tuple[float, float]:
    """Returns the 1st and 99th percentile of finite values, two different numbers in any case."""
    finite = np.asarray(values, np.float64)[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.quantile(finite, [0.01, 0.99]))
    return low, high if high > low else low + 1.0


def greys(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns values as greys from 1 (``low`` and below) to 255; 0 where there is none."""
    finite = np.isfinite(image)
    share = np.clip((np.where(finite, image, low) - low) / (high - low), 0.0, 1.0)
    return np.where(finite, np.rint(1 + 254 * share), 0).astype(np.uint8)


def _figures(prediction: predictions.Prediction, genes: Sequence[str]) -> tuple[bytes, ...]:
    """Figures in um, or in level-0 pixels where the pixel size is unknown."""
    scale = prediction.mpp or 1.0
    image = prediction.image
    tissue = plots.Tissue(
        xy=prediction.xy * scale,
        diameter=prediction.diameter * scale,
        unit="um" if prediction.mpp else "px",
        image=None if image is None else (image[0], image[1] / scale),
    )
    spread = prediction.spread(genes)
    return plots.maps(
        genes, None, prediction.values(genes), tissue, units=prediction.units, spread=spread
    )
