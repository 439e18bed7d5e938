"""Slides as AnnData files, each with its image beside it: what scanpy and squidpy users keep.

Layout, for a slide such as ``S1``::

    S1.h5ad     X raw counts, else layers["counts"] or raw.X; obsm["spatial"] spot centres in pixels
                of the full-resolution image (x, y); obs in_tissue, array_row, array_col and labels,
                where there; uns["spatial"][library] with scalefactors, metadata and images
    S1.tif      the image: named after the file, or as metadata["source_image_path"] is (only its
                last part is used, and only beside the h5ad: a path in a file is not followed)

The reduced image inside the file (``images["hires"]``) is taken on request only: its patches are of
hires pixels, often 2 um and more, which few encoders have seen.
"""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from stemjax import errors
from stemjax.data import gene_names, images, pixel_size, raw_counts, slides, wsi
from stemjax.data.hdf5 import soundness
from stemjax.data.layouts import anndata_table, places, reduced, visium_array

HIRES = "hires"
"""The value of ``image`` that asks for the reduced image inside the file."""

SUFFIXES = (
    *(".tif", ".tiff", ".ome.tif", ".ome.tiff", ".btf", ".svs", ".jpg", ".jpeg", ".png"),
    *wsi.BY_OPENSLIDE,
)
"""What an image beside the h5ad may end in, in lower case."""

MOST_OFF = 0.05
"""How far two statements of the pixel size may be apart, as a share."""


def list_slides(path: str | os.PathLike[str]) -> list[str]:
    """Ids of the slides: the names of the h5ad files in a folder, or of the one file given.

    Raises:
      SlideError: there is none.
    """
    return sorted(_files(path))


def read_slide(
    path: str | os.PathLike[str],
    slide_id: str,
    *,
    mpp: float | None = None,
    need_image: bool = True,
    image: str | os.PathLike[str] | None = None,
    duplicate_genes: gene_names.Duplicates = "error",
) -> slides.Slide:
    """One slide: its spots under tissue.

    The pixel size is the argument, else ``microns_per_pixel`` of the scale factors, else it follows
    from the pitch of 100 um of a Visium array (hexagonal ``array_row`` and ``array_col``, and
    ``spot_diameter_fullres``).

    Args:
      path: an h5ad, or a folder of them.
      slide_id: the slide: the file's name without ``.h5ad``.
      mpp: micrometres per pixel of the full-resolution image.
      need_image: whether a missing image is an error; otherwise ``image`` is then None.
      image: the file of the image, or ``hires`` for the reduced image inside the h5ad; by default
        the one beside it.
      duplicate_genes: what becomes of genes that share a name: ``sum``, ``first`` or an ``error``.

    Returns:
      The slide, in the order of the h5ad. Of the hires image, ``pixel_xy`` and ``mpp`` are in its
      pixels. Without ``array_row`` and ``array_col``, ``array_xy`` is ``pixel_xy`` in units of the
      distance between neighbouring spots. ``patient`` is None.

    Raises:
      SlideError: a file is missing or damaged, there are no raw counts or positions, the spots are
        of several slides, or their positions are in pixels of the hires image.
      ImageError: the image is missing or unreadable, or does not hold the spots.
      PixelSizeError: the pixel size is unknown or contradictory, and ``mpp`` is not given.
    """
    slides.require_id(slide_id)
    file = places.choose(_files(path), slide_id, path)
    table = anndata_table.read_h5ad(file, any_layer=True, duplicates=duplicate_genes)
    library, factors, metadata = _library(table, file)
    scale = places.positive(factors, "tissue_hires_scalef")
    inside, image_path = image == HIRES, None
    if not inside:
        image_path = _image_path(file, metadata, image, slide_id, need_image, library)
    picture = images.open_image(image_path) if image_path else None
    pixel_xy, notes = table.pixel_xy, table.notes
    assert pixel_xy is not None
    if not len(pixel_xy):
        raise errors.SlideError(
            f"{file.name} has no spot under tissue",
            expected="in_tissue 1 at some of the rows of obs",
            found="; ".join(notes) or "no rows",
            fix="Leave the slide out, or mend obs['in_tissue']",
            case="D11",
        )
    width = places.positive(factors, "spot_diameter_fullres")
    notes += reduced.require_full(file.name, pixel_xy, picture, scale=scale, width_px=width)
    mpp, visium, how = _pixel_size(slide_id, table, factors, mpp)
    diameter_um = _diameter(file.name, factors, visium, mpp)
    if inside:
        if scale is None:
            raise errors.ImageError(
                f"{file.name}: the scale of the hires image is unknown",
                expected=f"tissue_hires_scalef in uns['spatial'][{library!r}]['scalefactors']",
                fix="Put the image of full resolution beside the file",
            )
        picture = _hires(file, library)
        pixel_xy, mpp = pixel_xy * scale, mpp / scale
        how += (f"the image is the hires one inside the file, of {mpp:.3g} um per pixel",)
    array_xy = table.array_xy
    if array_xy is None or not np.isfinite(array_xy).all():
        array_xy = pixel_xy / anndata_table.spacing(pixel_xy)
    keep, stray = slides.inside_or_few(pixel_xy, picture, table.barcodes.tolist())
    counts = table.counts[np.flatnonzero(keep)]
    return slides.Slide(
        id=slide_id,
        patient=None,
        counts=counts,
        genes=table.genes,
        barcodes=tuple(table.barcodes[keep]),
        array_xy=array_xy[keep],
        pixel_xy=pixel_xy[keep],
        image=picture,
        mpp=mpp,
        spot_diameter_um=diameter_um,
        sources={p.name: slides.sha256(p) for p in (file, image_path) if p},
        notes=notes + how + stray + raw_counts.silent_spots(counts),
        gene_ids=table.gene_ids,
        labels={name: tuple(values[keep]) for name, values in table.labels.items()},
    )


def _files(path: str | os.PathLike[str]) -> dict[str, pathlib.Path]:
    """The h5ad files by id."""
    path = pathlib.Path(path)
    found = [path] if path.is_file() else sorted(path.glob("*.h5ad")) if path.is_dir() else []
    found = [file for file in found if file.suffix == ".h5ad"]
    if not found:
        raise errors.SlideError(
            f"{path} is no AnnData file",
            expected="a file .h5ad, or a folder with such files",
            found="a file of another name" if path.is_file() else "none",
            fix="Give the file, or the folder that holds them",
        )
    return {file.stem: file for file in found}


def _library(
    table: anndata_table.Table, file: pathlib.Path
) -> tuple[str | None, Mapping[str, Any], Mapping[str, Any]]:
    """The one library of the file, its scale factors and its metadata."""
    if len(table.libraries) > 1:
        raise errors.SlideError(
            f"{file.name} holds several slides",
            expected="one library in uns['spatial']",
            found=", ".join(list(table.libraries)[:10]),
            fix="Write a file for each: adata[adata.obs['library_id'] == name], with only that "
            "library left in uns['spatial']",
        )
    for library, parts in table.libraries.items():
        return library, parts.get("scalefactors", {}), parts.get("metadata", {})
    return None, {}, {}


def _image_path(
    file: pathlib.Path,
    metadata: Mapping[str, Any],
    given: str | os.PathLike[str] | None,
    slide_id: str,
    needed: bool,
    library: str | None,
) -> pathlib.Path | None:
    """The image: as given, else of the name in the metadata, else named after the file."""
    if given is not None:
        return pathlib.Path(given)
    told = str(metadata.get("source_image_path", "")).replace("\\", "/").rsplit("/", 1)[-1]
    if told not in ("", ".", "..") and (file.parent / told).is_file():
        return file.parent / told
    wanted = {f"{file.stem}{suffix}".lower() for suffix in SUFFIXES}
    found = sorted(p for p in file.parent.iterdir() if p.name.lower() in wanted and p.is_file())
    if len(found) == 1:
        return found[0]
    if found or needed:
        names = [f"{file.stem}{SUFFIXES[0]}", *([told] if told else [])]
        raise errors.ImageError(
            f"slide {slide_id}: "
            + ("which image" if found else "there is no full-resolution image"),
            expected=f"{' or '.join(names)} beside {file.name}",
            found=", ".join(p.name for p in found) or "none",
            fix="Put it there or name it, --image FILE (in Python image=)"
            + (f"; --image {HIRES} (image={HIRES!r}) is the reduced one inside" if library else "")
            + ("" if found else places.NO_IMAGE),
            case="D13",
        )
    return None


def _pixel_size(
    slide_id: str, table: anndata_table.Table, factors: Mapping[str, Any], given: float | None
) -> tuple[float, bool, tuple[str, ...]]:
    """Micrometres per pixel, whether the array is Visium's, and notes."""
    measured, notes = _visium_pixels(slide_id, table, factors)
    visium = measured is not None
    told = places.positive(factors, "microns_per_pixel")
    if given is not None:
        if measured is not None and not _agree(given, measured):
            notes += (f"pixel size {given:g} um as given; the array tells {measured:.4g}",)
        return given, visium, notes
    if told is not None and measured is not None and not _agree(told, measured):
        raise errors.PixelSizeError(
            f"slide {slide_id}: scale factors and array give contradictory pixel sizes",
            expected=f"sizes that differ by less than {MOST_OFF:.0%}",
            found=f"microns_per_pixel {told:g}; {measured:.4g} from spots 100 um apart",
            fix="Say which is right, in um per pixel of the full-resolution image: --mpp (in "
            "Python mpp=)",
        )
    if told is not None:
        return told, visium, notes
    if measured is not None:
        return measured, visium, (*notes, f"pixel size {measured:.4g} um from spots 100 um apart")
    raise errors.PixelSizeError(
        f"slide {slide_id}: the pixel size is unknown",
        expected="microns_per_pixel among the scale factors; or spot_diameter_fullres there and a "
        "Visium array in obs array_row and array_col",
        found=", ".join(sorted(factors)[:8]) or "no scale factors",
        fix=pixel_size.ask(table.pixel_xy),
    )


def _visium_pixels(
    slide_id: str, table: anndata_table.Table, factors: Mapping[str, Any]
) -> tuple[float | None, tuple[str, ...]]:
    """Micrometres per pixel of a Visium array, None where it is none."""
    array_xy, pixel_xy = table.array_xy, table.pixel_xy
    if array_xy is None or pixel_xy is None or "spot_diameter_fullres" not in factors:
        return None, ()
    if not (np.isfinite(array_xy).all() and np.isfinite(pixel_xy).all()):
        return None, ()
    if (array_xy % 1 != 0).any() or (array_xy.sum(axis=1) % 2 != 0).any():
        return None, ()  # a square array
    return visium_array.measure_pixels(
        visium_array.Positions(
            source=pathlib.Path(f"{slide_id}.h5ad"),
            barcodes=tuple(table.barcodes),
            under=np.ones(len(array_xy), bool),
            array_xy=array_xy,
            pixel_xy=pixel_xy,
        )
    )


def _diameter(name: str, factors: Mapping[str, Any], visium: bool, mpp: float) -> float:
    """Diameter of a spot in um."""
    if visium:
        return visium_array.SPOT_DIAMETER_UM
    side = places.positive(factors, "bin_size_um")
    width = places.positive(factors, "spot_diameter_fullres")
    if side is not None:
        return side
    if width is not None:
        return width * mpp
    raise errors.SlideError(
        f"{name}: the spot diameter is unknown",
        expected="spot_diameter_fullres (px) in uns['spatial'][library]['scalefactors']",
        found=", ".join(sorted(factors)[:8]) or "no scale factors",
        fix="Add it (of Visium: 55 um / mpp)",
    )


def _hires(file: pathlib.Path, library: str | None) -> images.ArrayImage:
    """The reduced image inside the file, as 8-bit RGB."""
    soundness.require_sound(file, errors.ImageError)
    try:
        with h5py.File(file) as opened:
            stored: Any = opened[f"uns/spatial/{library}/images/{HIRES}"]
            shape = tuple(stored.shape)
            if len(shape) != 3 or shape[2] not in (3, 4) or math.prod(shape[:2]) < 1:
                raise ValueError(f"an array of shape {shape}")
            images.check_region(shape[1], shape[0], file.name)
            pixels = np.asarray(stored[:, :, :3])
        if pixels.dtype.kind == "f":
            if not ((pixels >= 0) & (pixels <= 1)).all():
                raise ValueError("fractions beyond 0 to 1")
            pixels = np.round(255 * pixels).astype(np.uint8)
        return images.ArrayImage(pixels, f"{file.name} ({HIRES})")
    except errors.StemjaxError:
        raise
    except Exception as error:  # h5py tells damage by all kinds of exceptions
        raise errors.ImageError(
            f"{file.name} has no hires image that can be used",
            expected=f"uns['spatial'][{library!r}]['images']['{HIRES}'], RGB as 8 bits or as "
            "fractions from 0 to 1",
            found=f"{type(error).__name__}: {str(error)[:200]}",
            fix="Put the image of full resolution beside the file",
        ) from error


def _agree(a: float, b: float) -> bool:
    return abs(a / b - 1) <= MOST_OFF
