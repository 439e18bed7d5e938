"""Slides in the layout of HEST-1k, which Stem's own data folders share.

Layout, for a slide such as ``MEND145``::

    st/MEND145.h5ad         X raw counts; obsm["spatial"] spot centres in level-0 pixels (x, y);
                            obs in_tissue, array_row, array_col (where there), and labels of
                            spots under one of the names in `LABELS`
    wsis/MEND145.tif        pyramidal TIFF
    metadata/MEND145.json   patient, pixel_size_um_embedded, pixel_size_um_estimated,
                            inter_spot_dist and spot_diameter in um (optional)

Only the parts needed are read from the h5ad, and no pickle that such folders may hold. Source:
Jaume et al., NeurIPS 2024 (arXiv 2406.16192).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse
import scipy.spatial
from jaxtyping import Float

from stemjax import errors
from stemjax.data import images, slides

_SAME = 1.1
"""Pixel sizes that differ by less than this factor count as one."""

LABELS = (
    "annotation",
    "pathologist_annotation",
    "cell_type",
    "region",
    "layer",
    "spatialLIBD",
    "ground_truth",
    "cluster",
    "leiden",
    "label",
)
"""Columns of obs that are kept as labels of the spots where they hold text or categories."""


def list_slides(folder: str | os.PathLike[str]) -> list[str]:
    """Ids of the slides whose counts are in ``folder``, sorted.

    Raises:
      SlideError: there is no ``st`` in the folder.
    """
    counts = pathlib.Path(folder) / "st"
    if not counts.is_dir():
        raise errors.SlideError(
            f"{folder} is no folder of HEST slides",
            expected="the folders st, wsis and metadata in it",
            found=f"no {counts}",
            fix="Give the folder that holds st",
        )
    return sorted(path.stem for path in counts.glob("*.h5ad"))


def read_slide(
    folder: str | os.PathLike[str],
    slide_id: str,
    *,
    mpp: float | None = None,
    need_image: bool = True,
) -> slides.Slide:
    """One slide: its spots under tissue.

    The pixel size is the argument, else the one embedded in the image, else the estimated one
    (both from the metadata), else it follows from the known distance between spots. Where the
    first two contradict each other, as they do in many slides of HEST-1k, the distance between
    spots decides.

    Args:
      folder: the folder that holds ``st``.
      slide_id: the slide, such as ``MEND145``.
      mpp: micrometres per level-0 pixel.
      need_image: whether a missing image is an error; otherwise ``image`` is then None.

    Returns:
      The slide, in the order of the h5ad. Without ``array_row`` and ``array_col``, ``array_xy`` is
      ``pixel_xy`` in units of the distance between neighbouring spots.

    Raises:
      SlideError: a file is missing or damaged, the counts are no raw counts, or positions or the
        spot diameter are missing.
      ImageError: the image is missing or unreadable, or does not hold the spots.
      PixelSizeError: the pixel size is unknown or contradictory, and ``mpp`` is not given.
    """
    slides.require_id(slide_id)
    folder = pathlib.Path(folder)
    path, metadata_path = (
        folder / "st" / f"{slide_id}.h5ad",
        folder / "metadata" / f"{slide_id}.json",
    )
    if not path.is_file():
        raise errors.SlideError(
            f"there are no counts of slide {slide_id}",
            expected=str(path),
            found=f"slides {', '.join(list_slides(folder)[:10]) or 'none'}",
            fix="Ask for one of these, or copy the file there",
        )
    image_path = _image_path(folder / "wsis", slide_id, need_image)
    image = images.open_image(image_path) if image_path else None
    table = _read_table(path)
    metadata = _read_metadata(metadata_path)
    pixel_xy, array_xy, notes = table.pixel_xy, table.array_xy, table.notes
    if array_xy is None:
        array_xy = pixel_xy / _nearest(pixel_xy)
    if mpp is None:
        mpp, how = _pixel_size(slide_id, metadata, array_xy, pixel_xy)
        notes += how
    diameter = _number(metadata, "spot_diameter")
    if diameter is None and table.diameter_px is not None:
        diameter = table.diameter_px * mpp
    if diameter is None:
        raise errors.SlideError(
            f"slide {slide_id}: the spot diameter is unknown",
            expected=f"spot_diameter (um) in {metadata_path.name}, or spot_diameter_fullres (px) "
            f"among the scalefactors of {path.name}",
            fix="Add it to the metadata (55 for Visium)",
        )
    keep, stray = slides.inside_or_few(pixel_xy, image)
    paths = [p for p in (path, metadata_path, image_path) if p and p.is_file()]
    return slides.Slide(
        id=slide_id,
        patient=_patient(metadata),
        counts=table.counts[np.flatnonzero(keep)],
        genes=table.genes,
        barcodes=tuple(table.barcodes[keep]),
        array_xy=array_xy[keep],
        pixel_xy=pixel_xy[keep],
        image=image,
        mpp=mpp,
        spot_diameter_um=diameter,
        sources={p.name: slides.sha256(p) for p in paths},
        notes=notes + stray,
        labels={name: tuple(values[keep]) for name, values in table.labels.items()},
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Table:
    """What is needed from an h5ad, for the spots under tissue."""

    counts: scipy.sparse.csr_array
    genes: tuple[str, ...]
    barcodes: np.ndarray
    pixel_xy: np.ndarray
    array_xy: np.ndarray | None
    diameter_px: float | None
    labels: Mapping[str, np.ndarray]
    notes: tuple[str, ...]


def _read_table(path: pathlib.Path) -> _Table:
    from anndata.io import read_elem  # imports for seconds, so only here

    read: Any = read_elem
    try:
        with h5py.File(path) as opened:
            file: Any = opened
            _require_spatial(path, file)
            counts = scipy.sparse.csr_array(read(file["X"]))
            obs, var, pixel_xy = read(file["obs"]), read(file["var"]), read(file["obsm/spatial"])
            uns = read(file["uns/spatial"]) if "uns/spatial" in file else {}
            layers = sorted(file["layers"]) if "layers" in file else []
    except errors.StemjaxError:
        raise
    except Exception as error:  # h5py and anndata tell damage by all kinds of exceptions
        raise errors.SlideError(
            f"{path.name} is damaged, incomplete or no AnnData file",
            found=f"{type(error).__name__}: {error}",
            fix="Copy or download the file again",
        ) from error
    pixel_xy = np.asarray(pixel_xy, np.float64)
    if pixel_xy.shape != (len(obs), 2) or counts.shape != (len(obs), len(var)):
        raise errors.SlideError(
            f"{path.name}: the parts do not fit {len(obs)} spots and {len(var)} genes",
            expected=f"X ({len(obs)}, {len(var)}) and obsm['spatial'] ({len(obs)}, 2)",
            found=f"X {counts.shape} and obsm['spatial'] {pixel_xy.shape}",
        )
    _require_raw(path, counts, layers)
    under = np.ones(len(obs), bool)
    if "in_tissue" in obs:
        under = obs["in_tissue"].astype(str).isin(("1", "1.0", "True", "true")).to_numpy(bool)
    array_xy = None
    if "array_row" in obs and "array_col" in obs:
        columns = [obs[c].astype(str) for c in ("array_col", "array_row")]
        numbers = [np.array(pd.to_numeric(c, errors="coerce"), float) for c in columns]
        array_xy = np.stack(numbers, axis=1)[under]
    return _Table(
        counts=counts[np.flatnonzero(under)],
        genes=tuple(str(name) for name in var.index),
        barcodes=np.array([str(name) for name in obs.index], object)[under],
        pixel_xy=pixel_xy[under],
        array_xy=array_xy,
        diameter_px=_diameter_px(uns),
        labels={name: values[under] for name, values in _labels(obs).items()},
        notes=slides.left_out(int((~under).sum()), "not under tissue (in_tissue is not 1)"),
    )


def _require_spatial(path: pathlib.Path, file: Any) -> None:
    found = sorted(file["obsm"]) if "obsm" in file else []
    if "spatial" not in found:
        raise errors.SlideError(
            f"{path.name} has no spot coordinates",
            expected="obsm['spatial']: spot centres in level-0 pixels, (x, y)",
            found=f"obsm: {', '.join(found) or 'empty'}",
            fix="Store the centres there",
        )


def _require_raw(path: pathlib.Path, counts: scipy.sparse.csr_array, layers: list[str]) -> None:
    values = counts.data
    bad = ~np.isfinite(values) | (values != np.floor(values)) | (values < 0)
    if not bad.any():
        return
    first = int(np.flatnonzero(bad)[0])
    row = int(np.searchsorted(counts.indptr, first, side="right")) - 1
    fix = "Store the raw counts in X"
    if "counts" in layers:
        fix += ": layers['counts'] may be them (adata.X = adata.layers['counts'])"
    raise errors.SlideError(
        f"{path.name}: X holds {int(bad.sum()):,} values that are no counts",
        expected="raw counts: whole numbers from 0 up",
        found=f"{values[first]} at row {row}, column {counts.indices[first]}; "
        f"the largest is {np.nanmax(values):g}",
        fix=fix,
    )


def _labels(obs: pd.DataFrame) -> dict[str, np.ndarray]:
    """Text of the columns of `LABELS` by name, "" where a spot has none.

    Numbers are no labels: a column called "label" may be a score.
    """
    found = {}
    for name in LABELS:
        if name not in obs:
            continue
        column: Any = obs[name]
        text = pd.api.types.infer_dtype(column, skipna=True) == "string"
        if not (text or isinstance(column.dtype, pd.CategoricalDtype)):
            continue
        known = column.notna().to_numpy(bool)
        values = np.where(known, column.astype(str).to_numpy(object), "")
        if (values != "").any():
            found[name] = values
    return found


def _diameter_px(spatial: Any) -> float | None:
    """The spot diameter among the scale factors of the first library that has one."""
    for library in spatial.values() if isinstance(spatial, Mapping) else ():
        factors = library.get("scalefactors") if isinstance(library, Mapping) else None
        if isinstance(factors, Mapping) and "spot_diameter_fullres" in factors:
            return _number(factors, "spot_diameter_fullres")
    return None


def _read_metadata(path: pathlib.Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise errors.SlideError(
            f"metadata {path.name} is no JSON", found=str(error), fix="Copy the file again"
        ) from error
    if not isinstance(values, dict):
        raise errors.SlideError(
            f"metadata {path.name} is no table", expected="a JSON object of fields"
        )
    return values


def _number(values: Mapping[str, Any], field: str) -> float | None:
    """A positive, finite number, or None: metadata mark the unknown by null, NaN, 0 or ''."""
    try:
        number = float(values.get(field, math.nan))
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def _patient(metadata: Mapping[str, Any]) -> str | None:
    value = metadata.get("patient")
    text = "" if value is None or value != value else str(value).strip()  # NaN is not itself
    return text or None


def _nearest(xy: np.ndarray) -> float:
    """Median distance to the nearest other spot; 1 where there is none."""
    if len(xy) < 2 or not np.isfinite(xy).all():
        return 1.0
    return float(np.median(scipy.spatial.KDTree(xy).query(xy, k=2)[0][:, 1])) or 1.0


def _pixel_size(
    slide_id: str,
    metadata: Mapping[str, Any],
    array_xy: Float[np.ndarray, "l 2"],
    pixel_xy: Float[np.ndarray, "l 2"],
) -> tuple[float, tuple[str, ...]]:
    """Micrometres per pixel from the metadata, and a note where that took a choice."""
    pitch, measured = _number(metadata, "inter_spot_dist"), None
    if pitch:
        with contextlib.suppress(errors.PixelSizeError):  # of a spot alone, say: then it is unknown
            measured = slides.pixel_size_from_pitch(array_xy, pixel_xy, pitch)
    fields = ("pixel_size_um_embedded", "pixel_size_um_estimated")
    known = {f: v for f in fields if (v := _number(metadata, f)) is not None}
    if not known and measured is None:
        raise errors.PixelSizeError(
            f"slide {slide_id}: the pixel size is unknown",
            expected=f"{', '.join(fields)} or inter_spot_dist in metadata/{slide_id}.json",
            found=", ".join(sorted(metadata)[:8]) or "no metadata",
            fix="Give it in um per level-0 pixel: mpp=",
        )
    if not known:
        assert measured is not None
        return measured, (f"pixel size {measured:.4g} um from the spot pitch of {pitch:g} um",)
    values = list(known.values())
    if max(values) < _SAME * min(values):
        return values[0], ()
    told = " and ".join(f"{field} {value:g}" for field, value in known.items())
    agree = [v for v in values if measured and max(v, measured) < _SAME * min(v, measured)]
    if len(agree) != 1:
        raise errors.PixelSizeError(
            f"slide {slide_id}: metadata give contradictory pixel sizes",
            found=told + (f"; {measured:.4g} from the spot pitch" if measured else ""),
            fix="Say which is right, in um per level-0 pixel: mpp=",
        )
    return agree[0], (f"pixel size {agree[0]:g} um: of {told}, it agrees with the spot pitch",)


def _image_path(folder: pathlib.Path, slide_id: str, needed: bool) -> pathlib.Path | None:
    paths = [folder / f"{slide_id}{suffix}" for suffix in (".tif", ".tiff")]
    for path in paths:
        if path.is_file():
            return path
    if needed:
        raise errors.ImageError(
            f"there is no image of slide {slide_id}",
            expected=" or ".join(map(str, paths)),
            fix="Copy the image there",
        )
    return None
