"""SpatialData stores, as spatialdata and spatialdata-io write them (container formats 0.1 and 0.2).

Layout of a slide's store, with the names that spatialdata-io gives to Visium::

    S1.zarr/tables/table           AnnData; region_key and instance_key say whose spots its rows are
    S1.zarr/shapes/S1              circles: centre and radius, see `stemjax.data.layouts.shapes`
    S1.zarr/images/S1_full_image   [c y x], multiscale, see `stemjax.data.layouts.zarr_image`

Positions are the shapes', taken to the image through a coordinate system that both have. Of the
transformations, identity, scale, translation and sequences of them are known; others are refused.

The store is read with zarr, anndata and pyarrow, which are there anyway: spatialdata itself brings
dask, geopandas and a version of fsspec that the rest of this package's tested versions exclude.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from stemjax import errors
from stemjax.data import gene_names, pixel_size, raw_counts, slides
from stemjax.data.layouts import (
    anndata_table,
    places,
    shapes,
    transformations,
    visium_array,
    zarr_image,
)
from stemjax.foreign import stores

_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.-]+")
_SQUARES = re.compile(r"square_(\d{3})um$")
_COARSE = ("_hires_image", "_lowres_image", "_cytassist_image")
_META = ("zarr.json", ".zattrs", ".zgroup")


def is_store(path: pathlib.Path) -> bool:
    """Whether a folder is a SpatialData store."""
    return any((path / name).is_file() for name in _META) and (
        (path / "tables").is_dir() or (path / "shapes").is_dir() or (path / "images").is_dir()
    )


def list_slides(path: str | os.PathLike[str]) -> list[str]:
    """Ids of the slides: names of the stores in a folder, or of the one store given.

    Raises:
      SlideError: there is none.
    """
    return sorted(_stores(path))


def read_slide(
    path: str | os.PathLike[str],
    slide_id: str,
    *,
    mpp: float | None = None,
    need_image: bool = True,
    image: str | None = None,
    table: str | None = None,
    region: str | None = None,
    duplicate_genes: gene_names.Duplicates = "error",
) -> slides.Slide:
    """One slide: the spots that a table annotates, where the shapes have them.

    The pixel size is the argument, else it follows from the array: of Visium, hexagonal
    ``array_row`` and ``array_col`` 100 um apart; of Visium HD, bins of the size in the region's
    name.

    Args:
      path: a store, or a folder of stores.
      slide_id: the slide: the store's name without ``.zarr``.
      mpp: micrometres per pixel of the image.
      need_image: whether a missing image is an error; otherwise ``image`` is then None, and
        positions are in the shapes' own coordinates.
      image: name of the image; needed where several could be the H&E.
      table: name of the table; needed where there are several.
      region: name of the shapes; needed where the table annotates several.
      duplicate_genes: what becomes of genes that share a name: ``sum``, ``first`` or an ``error``.

    Returns:
      The slide, in the order of the table. ``patient`` is None.

    Raises:
      SlideError: a part is missing or damaged, parts do not fit together, counts are no raw counts,
        a choice is needed, or a transformation is not known.
      ImageError: the image is missing or unreadable, or does not hold the spots.
      PixelSizeError: the pixel size cannot be derived, and ``mpp`` is not given.
    """
    slides.require_id(slide_id)
    store = places.choose(_stores(path), slide_id, path)
    stores.require_harmless_zarr(store)
    rows = _read_rows(store, slide_id, table, region, duplicate_genes)
    element = store / "shapes" / rows.region
    circles = shapes.read_shapes(element)
    spots = _join(rows, circles)
    xy, diameter = circles.xy[spots], circles.diameter[spots]
    picture = _open_image(store, slide_id, image, rows.region, need_image)
    factor = 1.0
    if picture is not None:
        moved = transformations.between(
            transformations.read(element),
            transformations.read(store / "images" / picture[0]),
            (f"shapes {rows.region}", f"image {picture[0]}"),
        )
        xy, factor = moved.apply(xy), moved.factor
    pixels = picture[1] if picture else None
    array_xy, measured, size_um, notes = _array(rows, xy)
    if picture is None:
        notes += ("positions are in the shapes' own coordinates: there is no image",)
    if mpp is None and measured is None:
        raise errors.PixelSizeError(
            f"slide {slide_id}: the pixel size is unknown",
            expected="a Visium array in obs array_row and array_col, or bins of Visium HD",
            fix=pixel_size.ask(xy),
        )
    mpp = measured if mpp is None else mpp
    assert mpp is not None
    keep, stray = slides.inside_or_few(xy, pixels, rows.table.barcodes.tolist())
    counts = rows.table.counts[np.flatnonzero(keep)]
    parts = [f"tables/{rows.name}", f"shapes/{rows.region}"]
    parts += [f"images/{picture[0]}"] if picture else []
    if size_um is None:
        size_um = float(np.median(diameter)) * factor * mpp
    return slides.Slide(
        id=slide_id,
        patient=None,
        counts=counts,
        genes=rows.table.genes,
        gene_ids=rows.table.gene_ids,
        barcodes=tuple(rows.table.barcodes[keep]),
        array_xy=array_xy[keep],
        pixel_xy=xy[keep],
        image=pixels,
        mpp=mpp,
        spot_diameter_um=size_um,
        sources={part: _digest(store / part) for part in parts},
        notes=rows.table.notes + notes + stray + raw_counts.silent_spots(counts),
        labels={
            name: tuple(values[keep])
            for name, values in rows.table.labels.items()
            if name != rows.region_key
        },
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rows:
    """A table, and whose spots its rows are."""

    name: str
    table: anndata_table.Table
    region: str
    region_key: str
    instances: pd.Index


def _stores(path: str | os.PathLike[str]) -> dict[str, pathlib.Path]:
    top = pathlib.Path(os.path.abspath(path))
    found = [top] if is_store(top) else []
    if not found and top.is_dir():
        found = [inner for inner in sorted(top.iterdir()) if is_store(inner)]
    if not found:
        raise errors.SlideError(
            f"{path} is no SpatialData store",
            expected="a zarr folder with tables, shapes and images in it, or a folder of such",
            found="neither" if top.is_dir() else "no folder",
            fix="Give the store that spatialdata wrote",
        )
    return {store.name.removesuffix(".zarr"): store for store in found}


def _elements(store: pathlib.Path, kind: str) -> list[str]:
    """Names of the elements of a kind, looked for as folders: a list in metadata may be stale."""
    folder = store / kind
    inner = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path.name for path in inner if any((path / name).is_file() for name in _META)]


def _one(names: Sequence[str], given: str | None, what: str, slide_id: str) -> str:
    """The name that was asked for, or the only one."""
    if given is not None and given in names:
        return given
    if given is None and len(names) == 1:
        return names[0]
    raise errors.SlideError(
        f"slide {slide_id}: " + (f"which {what}" if given is None else f"no {what} {given!r}"),
        expected=f"{what}=, the name of one",
        found=", ".join(names[:10]) or "none",
        fix="Name one of these" if names else f"Write a store that has a {what}",
    )


def _read_rows(
    store: pathlib.Path,
    slide_id: str,
    table: str | None,
    region: str | None,
    duplicates: gene_names.Duplicates,
) -> _Rows:
    import zarr

    name = _one(_elements(store, "tables"), table, "table", slide_id)
    where = f"{store.name}/tables/{name}"
    try:
        group = zarr.open_group(str(store / "tables" / name), mode="r", use_consolidated=False)
        keys = group.attrs.asdict()
        region_key, instance_key = (str(keys[key]) for key in ("region_key", "instance_key"))
        told: Any = keys["region"]
        regions = [told] if isinstance(told, str) else [str(one) for one in told]
        chosen = _one(regions, region, "region", slide_id)
        read = anndata_table.read_table(
            group,
            where,
            any_layer=True,
            centres=False,
            columns=(region_key, instance_key),
            duplicates=duplicates,
        )
        if missing := [key for key in (region_key, instance_key) if key not in read.obs]:
            raise errors.SlideError(
                f"{where} does not say whose spots its rows are",
                expected=f"obs[{missing[0]!r}]",
                fix="Write it with spatialdata's TableModel",
            )
        mine = (read.obs[region_key].astype(str) == chosen).to_numpy(bool)
        instances = pd.Index(read.obs[instance_key].to_numpy()[mine])
    except errors.StemjaxError:
        raise
    except Exception as error:  # zarr and anndata tell damage by all kinds of exceptions
        raise anndata_table.damaged(where, error) from error
    if not _NAME.fullmatch(chosen) or not mine.any():
        raise errors.SlideError(
            f"{where}: no row is of region {chosen!r}",
            found=", ".join(sorted(set(read.obs[region_key].astype(str)))[:8]) or "no rows",
            fix="Name another region: region=",
        )
    return _Rows(
        name=name,
        table=_only(read, mine),
        region=chosen,
        region_key=region_key,
        instances=instances,
    )


def _only(table: anndata_table.Table, mine: np.ndarray) -> anndata_table.Table:
    """The rows of one region."""
    return dataclasses.replace(
        table,
        counts=table.counts[np.flatnonzero(mine)],
        barcodes=table.barcodes[mine],
        array_xy=None if table.array_xy is None else table.array_xy[mine],
        obs=table.obs.loc[mine],
        labels={name: values[mine] for name, values in table.labels.items()},
    )


def _join(rows: _Rows, circles: shapes.Shapes) -> np.ndarray:
    """Where the shape of each row is."""
    if not circles.index.is_unique:
        raise errors.SlideError(f"{circles.path} names a shape twice", fix="Copy the store again")
    spots = circles.index.get_indexer(rows.instances)
    if (spots < 0).any():
        lost = rows.instances[spots < 0]
        raise errors.SlideError(
            f"{circles.path} lacks {len(lost):,} of the {len(spots):,} spots of table {rows.name}",
            expected=f"shapes such as {', '.join(map(str, lost[:3]))}",
            found=f"shapes such as {', '.join(map(str, circles.index[:3])) or 'none'}",
            fix="Check that table and shapes are whole and of the same slide",
        )
    return spots


def _open_image(
    store: pathlib.Path, slide_id: str, given: str | None, region: str, needed: bool
) -> tuple[str, zarr_image.ZarrImage] | None:
    """The H&E by name: the one asked for, or the one of full resolution."""
    names = _elements(store, "images")
    full = [name for name in names if not name.endswith(_COARSE)]
    if len(full) > 1:  # spatialdata-io names a slide's image after it
        dataset = _SQUARES.sub("", region).rstrip("_")
        full = [name for name in full if name == f"{dataset}_full_image"] or full
    if given is None and not full:
        if not needed:
            return None
        raise errors.ImageError(
            f"slide {slide_id}: there is no image of full resolution",
            expected=f"images/{region}_full_image",
            found=", ".join(names) or "no images",
            fix="Write the store with it (fullres_image_file=), or name a coarse one: --image NAME "
            "(in Python image=)" + places.NO_IMAGE,
            case="D13",
        )
    name = _one(names if given is not None else full, given, "image", slide_id)
    return name, zarr_image.ZarrImage(store / "images" / name, f"{store.name}/images/{name}")


def _array(
    rows: _Rows, xy: np.ndarray
) -> tuple[np.ndarray, float | None, float | None, tuple[str, ...]]:
    """Places on the array, um per pixel and a spot's size in um where the array tells them."""
    array_xy = rows.table.array_xy
    if array_xy is None or not np.isfinite(array_xy).all():
        return xy / anndata_table.spacing(xy), None, None, ()
    squares = _SQUARES.search(rows.region)
    hexagonal = not (array_xy % 1 != 0).any() and not (array_xy.sum(axis=1) % 2 != 0).any()
    if not (squares or hexagonal) or not np.isfinite(xy).all():
        return array_xy, None, None, ()
    positions = visium_array.Positions(
        source=pathlib.Path(f"table {rows.name}"),
        barcodes=tuple(rows.table.barcodes),
        under=np.ones(len(xy), bool),
        array_xy=array_xy,
        pixel_xy=np.asarray(xy, np.float64),
    )
    if squares is None:
        mpp, notes = visium_array.measure_pixels(positions)
        told = () if mpp is None else (f"pixel size {mpp:.4g} um from spots 100 um apart",)
        return array_xy, mpp, mpp and visium_array.SPOT_DIAMETER_UM, notes + told
    side = float(squares[1])
    pitch, notes = visium_array.fit_pitch(
        positions, array_xy, expected=f"bins of {side:g} um", most_off=100 / side
    )
    mpp = None if pitch is None else side / pitch
    told = () if mpp is None else (f"pixel size {mpp:.4g} um from bins of {side:g} um",)
    return array_xy, mpp, side, notes + told


def _digest(folder: pathlib.Path) -> str:
    """One SHA-256 of all files in a folder, by their names and bytes."""
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole.update(f"{path.relative_to(folder).as_posix()} {slides.sha256(path)}\n".encode())
    return whole.hexdigest()
