"""Predictions as objects of QuPath: a GeoJSON file to drop on the open slide.

QuPath (from 0.4) reads a FeatureCollection whose coordinates are level-0 pixels. A feature's
``properties`` hold ``objectType``, ``name``, ``classification`` (name and colour) and
``measurements``, an object of numbers, which show under "Measurement maps". Its ``id`` is a UUID:
here a function of slide and barcode, so that the same spot is the same object in every file.
"""

from __future__ import annotations

import json
import pathlib
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from stemjax import __version__
from stemjax.data import integrity
from stemjax.integrations import prediction as predictions

CORNERS = 16
"""Of the polygon that stands for a circle: the area is 2.6 % less than the circle's."""

# Okabe and Ito's colours, which colour-blind readers tell apart.
_COLOURS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
    (0, 114, 178), (213, 94, 0), (204, 121, 167), (90, 90, 90),
)  # fmt: skip

_NAMESPACE = uuid.UUID("5b0f6f5e-3d6c-5c8e-9a55-7a4c2d9f5f10")


def write(
    prediction: predictions.Prediction,
    path: str | pathlib.Path,
    *,
    genes: Sequence[str] | None = None,
    shape: Literal["circle", "square"] = "circle",
    object_type: Literal["detection", "annotation"] = "detection",
) -> int:
    """Writes a feature a spot, whole or not at all; returns the number of bytes.

    Measurements are ``GENE mean`` and, where the mode has a spread, ``GENE std``, in the units of
    the value space. One that is not finite is left out: JSON has no such number. Spots with a
    domain are classified by it. Features are written one by one: memory holds the chosen genes.

    Args:
      prediction: of one slide.
      path: the .geojson to write; an older one is replaced.
      genes: names; None takes 20 of the largest variance.
      shape: a circle of the spot's diameter, or the square around it.
      object_type: detections are fast in any number; annotations can be edited.

    Raises:
      GenePanelError: a gene was not predicted.
      ResourceError: the disk is full.
    """
    path = pathlib.Path(path)
    chosen = prediction.choose(genes)
    with integrity.published_file(path) as partial:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            head = json.dumps(_about(prediction), ensure_ascii=False)
            file.write(f'{{"type": "FeatureCollection", "stemjax": {head}, "features": [\n')
            separator = ""
            for line in _features(prediction, chosen, shape, object_type):
                file.write(separator + line)
                separator = ",\n"
            file.write("\n]}\n")
        return partial.stat().st_size


def _about(prediction: predictions.Prediction) -> dict[str, Any]:
    """What the numbers are; a member that QuPath does not read."""
    return {
        "slide": prediction.slide,
        "value_space": prediction.value_space,
        "units": prediction.units,
        "coordinates": "level-0 pixels",
        "mode": str(prediction.about.get("mode", "")),
        "stemjax_version": str(prediction.about.get("stemjax_version", __version__)),
        "notice": "Research use only. Not for clinical or diagnostic use.",
    }


def _features(
    prediction: predictions.Prediction, genes: Sequence[str], shape: str, object_type: str
) -> Iterator[str]:
    """Yields each spot's feature as JSON, without spaces that would be a tenth of the file."""
    mean, std = prediction.values(genes), prediction.spread(genes)
    columns = [(f"{gene} mean", mean, k) for k, gene in enumerate(genes)]
    if std is not None:
        columns += [(f"{gene} std", std, k) for k, gene in enumerate(genes)]
    named = [(json.dumps(name, ensure_ascii=False), values, k) for name, values, k in columns]
    outline = _outline(shape, prediction.diameter / 2)
    classes = _classes(prediction.domains() or [""] * len(prediction.barcodes))
    for row, barcode in enumerate(prediction.barcodes):
        corners = prediction.xy[row][None] + outline
        ring = ",".join(f"[{x:.2f},{y:.2f}]" for x, y in corners)
        numbers = ",".join(
            f"{name}:{values[row, k]:.6g}"
            for name, values, k in named
            if np.isfinite(values[row, k])
        )
        made = uuid.uuid5(_NAMESPACE, f"{prediction.slide}\0{barcode}")
        yield (
            f'{{"type":"Feature","id":"{made}",'
            f'"geometry":{{"type":"Polygon","coordinates":[[{ring}]]}},'
            f'"properties":{{"objectType":"{object_type}",'
            f'"name":{json.dumps(barcode, ensure_ascii=False)},'
            f'{classes[row]}"measurements":{{{numbers}}}}}}}'
        )


def _outline(shape: str, radius: float) -> np.ndarray:
    """The closed ring around a spot at the origin, [corners + 1, 2]."""
    if shape == "square":
        ring = radius * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float)
    else:
        angle = 2 * np.pi * np.arange(CORNERS) / CORNERS
        ring = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.concatenate([ring, ring[:1]])


def _classes(domains: Sequence[str]) -> list[str]:
    """The entry ``classification`` of each row, "" where it has no domain."""
    names = sorted(set(domains) - {""}, key=lambda name: (len(name), name))
    entries = {"": ""}
    for number, name in enumerate(names):
        value = {"name": f"domain {name}", "color": list(_COLOURS[number % len(_COLOURS)])}
        entries[name] = f'"classification":{json.dumps(value, ensure_ascii=False)},'
    return [entries[name] for name in domains]
