"""Slides as AnnData and back: what scanpy users hold in their hands.

X has the raw counts, ``obsm["spatial"]`` spot centres in level-0 pixels (x, y), ``uns["spatial"]``
the H&E in small and its scale, as squidpy plots them, and ``uns["stemjax_slide"]`` what a `Slide`
knows beside that, and where it was read from: so its image can be found again for patches.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse

from stemjax import errors
from stemjax.data import images, layouts, pixel_size, raw_counts, slides
from stemjax.data.layouts import centres
from stemjax.foreign import json_text

if TYPE_CHECKING:
    import anndata

KEY = "stemjax_slide"
IMAGE = "hires"
IMAGE_PX = 1500


def to_anndata(slide: slides.Slide, *, origin: Mapping[str, Any] | None = None) -> anndata.AnnData:
    """Returns a slide as AnnData.

    Args:
      slide: the slide.
      origin: how it was read, in plain values: ``layout``, ``path`` and ``options``; `image_of`
        reads its image from there.
    """
    import anndata
    import pandas as pd

    obs = pd.DataFrame(
        {
            "in_tissue": 1,
            "array_row": slide.array_xy[:, 1],
            "array_col": slide.array_xy[:, 0],
        },
        index=pd.Index(list(slide.barcodes)),
    )
    for name, values in slide.labels.items():
        known = [value or None for value in values]
        obs[name] = pd.Categorical(known)
    var = pd.DataFrame(index=pd.Index(list(slide.genes), dtype=object))
    if slide.gene_ids:
        var["gene_ids"] = list(slide.gene_ids)
    result = anndata.AnnData(X=slide.counts.astype(np.float32), obs=obs, var=var)
    result.obsm["spatial"] = slide.pixel_xy.astype(np.float64)
    factors: dict[str, Any] = {
        "spot_diameter_fullres": slide.spot_diameter_px,
        "microns_per_pixel": float(slide.mpp),
        f"tissue_{IMAGE}_scalef": 1.0,
    }
    pictures = {}
    if slide.image is not None:
        pictures[IMAGE], factors[f"tissue_{IMAGE}_scalef"] = slide.image.thumbnail(IMAGE_PX)
    result.uns["spatial"] = {slide.id: {"images": pictures, "scalefactors": factors}}
    result.uns[KEY] = {
        "id": slide.id,
        "patient": slide.patient or "",
        "mpp": float(slide.mpp),
        "spot_diameter_um": float(slide.spot_diameter_um),
        "sources": json.dumps(dict(slide.sources)),
        "notes": list(slide.notes),
        "origin": json.dumps(dict(origin or {})),
    }
    return result


def from_anndata(
    data: anndata.AnnData,
    *,
    slide: str | None = None,
    image: images.SlideImage | None = None,
    mpp: float | None = None,
    spot_diameter_um: float | None = None,
) -> slides.Slide:
    """Returns the slide that an AnnData holds, in the order of its rows.

    Counts are X where that has whole numbers, else ``layers["counts"]``. An object without genes
    is an image alone.

    Args:
      data: one slide.
      slide: its id; by default that of ``uns["stemjax_slide"]`` or the only one of
        ``uns["spatial"]``.
      image: its image, in the pixels of ``obsm["spatial"]``.
      mpp: um per level-0 pixel; by default as ``uns`` has it.
      spot_diameter_um: by default as ``uns`` has it.

    Raises:
      SlideError: no id, positions or raw counts, or any promise of `slides.Slide` is broken.
      PixelSizeError: the pixel size is unknown.
    """
    about = dict(data.uns.get(KEY, {}))
    name = slide or name_of(data)
    factors = _library(data, name)[1]
    if "spatial" not in data.obsm:
        raise centres.missing(f"slide {name}", list(data.obsm), list(map(str, data.obs)))
    pixel_xy = np.asarray(data.obsm["spatial"], np.float64)
    if pixel_xy.shape != (data.n_obs, 2):
        raise centres.misshapen(f"slide {name}", pixel_xy.shape, data.n_obs, data.n_vars)
    mpp = mpp or about.get("mpp") or factors.get("microns_per_pixel")
    if mpp is None:
        raise errors.PixelSizeError(
            f"slide {name}: the pixel size is unknown",
            expected="microns_per_pixel among the scalefactors of uns['spatial']",
            found="none",
            fix=pixel_size.ask(pixel_xy),
        )
    diameter = spot_diameter_um or about.get("spot_diameter_um")
    if diameter is None and "spot_diameter_fullres" in factors:
        diameter = float(factors["spot_diameter_fullres"]) * float(mpp)
    if diameter is None:
        raise errors.SlideError(
            f"slide {name}: the spot diameter is unknown",
            expected="spot_diameter_fullres (px) among the scalefactors of uns['spatial']",
            found="none",
            fix="give it in um: spot_diameter_um= (55 for Visium)",
        )
    ids: tuple[str, ...] = ()
    if "gene_ids" in data.var:
        ids = tuple(str(one) for one in data.var["gene_ids"])
    counts, notes = counts_of(data, name), tuple(map(str, about.get("notes", ())))
    return slides.Slide(
        id=name,
        patient=str(about.get("patient") or "") or None,
        counts=counts,
        genes=tuple(map(str, data.var_names)),
        gene_ids=ids,
        barcodes=tuple(map(str, data.obs_names)),
        array_xy=_array_xy(data, pixel_xy),
        pixel_xy=pixel_xy,
        image=image,
        mpp=float(mpp),
        spot_diameter_um=float(diameter),
        sources=_told(about, "sources"),
        notes=notes + tuple(n for n in raw_counts.silent_spots(counts) if n not in notes),
        measured=data.n_vars > 0,
    )


def name_of(data: anndata.AnnData) -> str:
    """Returns the id of the slide that an AnnData holds.

    Raises:
      SlideError: it does not say.
    """
    about = dict(data.uns.get(KEY, {}))
    name = str(about.get("id") or _library(data, None)[0] or "")
    if not name:
        raise errors.SlideError(
            "an AnnData without the name of its slide",
            expected="uns['spatial'] with one library, or slide=",
            found=f"libraries {', '.join(map(str, data.uns.get('spatial', {}))) or 'none'}",
            fix="Say which: slide=, or a mapping of names to slides",
        )
    return name


def image_of(data: anndata.AnnData) -> images.SlideImage:
    """Returns the image that a slide was read with, opened again where it lies.

    Raises:
      ImageError: the AnnData does not say where it was read from, or there was no image.
    """
    about = dict(data.uns.get(KEY, {}))
    origin = _told(about, "origin")
    if not origin:
        raise errors.ImageError(
            "an AnnData that does not say where its image lies",
            expected="one of stemjax.read_...",
            found=f"no uns[{KEY!r}] with an origin",
            fix="Give the image: image=PATH",
            case="D13",
        )
    module = layouts.layout(origin["layout"])
    found = module.read_slide(
        origin["path"], about["id"], mpp=about["mpp"], need_image=True, **origin["options"]
    )
    if found.image is None:
        raise errors.ImageError(
            f"slide {found.id} has no image", fix="Give it: image=PATH", case="D13"
        )
    return found.image


def _told(about: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A part of ``uns`` that is JSON; empty where it is not there."""
    try:
        return dict(json_text.parse(about.get(name, "{}")))
    except (ValueError, TypeError) as error:
        raise errors.SlideError(
            f"uns[{KEY!r}][{name!r}] cannot be read",
            expected="what stemjax.read_... wrote there",
            found=f"{type(error).__name__}: {str(error)[:120]}",
            fix="read the slide again",
        ) from error


def _library(data: anndata.AnnData, slide: str | None) -> tuple[str | None, Mapping[str, Any]]:
    """The library of ``uns["spatial"]`` that is the slide, and its scale factors."""
    spatial = data.uns.get("spatial", {})
    if not isinstance(spatial, Mapping):
        return None, {}
    name = slide if slide in spatial else None
    if name is None and len(spatial) == 1:
        name = str(next(iter(spatial)))
    if name is None:
        return None, {}
    held = spatial[name]
    factors = held.get("scalefactors", {}) if isinstance(held, Mapping) else {}
    return name, factors if isinstance(factors, Mapping) else {}


def counts_of(data: anndata.AnnData, name: str) -> scipy.sparse.csr_array:
    """Raw counts of an AnnData: X, or ``layers["counts"]`` where X holds something else.

    Raises:
      SlideError: there are none.
    """
    if data.n_vars == 0:
        return scipy.sparse.csr_array((data.n_obs, 0), dtype=np.int32)
    wrong: errors.SlideError | None = None
    for slot in ("X", "layers['counts']"):
        values: Any = data.X if slot == "X" else data.layers.get("counts")
        if values is None:
            continue
        try:
            counts = raw_counts.as_rows(values)
        except ValueError as error:
            raise errors.SlideError(
                f"slide {name}: {slot} holds no counts",
                expected="a table of numbers",
                found=str(error),
                fix="Store the raw counts in X",
            ) from error
        refused = raw_counts.refusal(
            counts,
            where=f"slide {name}",
            slot=slot,
            spots=list(map(str, data.obs_names)),
            genes=list(map(str, data.var_names)),
            fix="Keep the raw counts before normalising: adata.layers['counts'] = adata.X.copy()",
        )
        if refused is None:
            return counts
        wrong = wrong or refused
    raise wrong or errors.SlideError(
        f"slide {name} has no counts",
        expected="whole numbers from 0 up in X or layers['counts']",
        found="neither",
        fix="Store the raw counts in X",
    )


def _array_xy(data: anndata.AnnData, pixel_xy: np.ndarray) -> np.ndarray:
    """Array positions, or without them pixels in units of the distance between spots."""
    if "array_row" in data.obs and "array_col" in data.obs:
        return np.stack(
            [data.obs[c].to_numpy(np.float64) for c in ("array_col", "array_row")], axis=1
        )
    if len(pixel_xy) < 2:
        return np.zeros_like(pixel_xy)
    import scipy.spatial

    step = np.median(scipy.spatial.KDTree(pixel_xy).query(pixel_xy, k=2)[0][:, 1])
    return pixel_xy / max(float(step), 1e-9)
