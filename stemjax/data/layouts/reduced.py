"""Positions in pixels of a reduced image, such as ``tissue_hires``: a corner full of spots.

They are refused where it can be known, and noted where the spots merely lie as if it were so.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from stemjax import errors
from stemjax.data import hiding, images

_OVERLAP = 0.7
"""Neighbouring spots that are closer than this, in widths of a spot, cannot be apart on the array:
of Visium's own files it is 100/65."""

_CORNER, _SMALL_CORNER = 0.5, 1 / 3
"""Shares of an image's width and height that all spots are within: with spots that overlap it is
known that positions are reduced, without it may be so."""


def require_full(
    where: str,
    pixel_xy: Float[np.ndarray, "l 2"],
    image: images.SlideImage | None,
    *,
    scale: float | None = None,
    width_px: float | None = None,
    fix: str = "adata.obsm['spatial']",
) -> tuple[str, ...]:
    """Returns a note where positions may be in pixels of a reduced image.

    Args:
      where: the file that holds them.
      pixel_xy: centres of the spots.
      image: of full resolution, where there is one.
      scale: pixels of the reduced image per pixel of the full one, where the files say it.
      width_px: diameter of a spot in pixels of the full image, where that is known apart from the
        positions.
      fix: what has to be divided by the scale.

    Raises:
      SlideError: they are (case D04): all spots are in the upper left corner of the image, and
        closer to each other than they are wide; or in the very corner of the reduced image's size.
    """
    if len(pixel_xy) < 2 or not np.isfinite(pixel_xy).all() or (pixel_xy < 0).any():
        return ()
    extent, size = pixel_xy.max(axis=0), None
    if image is not None:
        size = np.array([image.width, image.height])
    reduced = scale is not None and scale < 1
    corner = size is not None and bool((extent < _CORNER * size).all())
    if reduced and size is not None:
        corner = bool((extent <= scale * size + 1).all())
    if size is not None and not corner:
        return ()
    near = hiding.spot_distance(pixel_xy)
    overlap = width_px is not None and near < _OVERLAP * width_px
    known = overlap if width_px is not None else corner
    if known and (reduced or (overlap and size is not None)):
        raise _refused(where, near, extent, size, scale if reduced else None, width_px, fix)
    if size is None or (extent >= _SMALL_CORNER * size).any() or width_px is not None:
        return ()
    factor = float((size / np.maximum(extent, 1)).min())
    return (
        f"all spots lie in the upper left corner of the image, {_spans(extent, size)}: if their "
        f"positions are in pixels of a reduced image, divide them by its scale, {1 / factor:.2g} "
        "or more",
    )


def _refused(
    where: str,
    near: float,
    extent: np.ndarray,
    size: np.ndarray | None,
    scale: float | None,
    width_px: float | None,
    fix: str,
) -> errors.SlideError:
    why = [f"positions that span {_spans(extent, size)}"]
    if size is not None:
        why.append("all spots are in the upper left corner of the image")
    if width_px is not None:
        why.append(f"spots {width_px:.4g} px wide are {near:.4g} px apart")
    if scale is not None:
        why.append(f"tissue_hires_scalef is {scale:.4g}")
    told = f"{scale:.4g}" if scale is not None else "its width over the full image's"
    return errors.SlideError(
        f"{where}: positions seem to be in pixels of the hires image, or of another reduced one",
        expected="spot centres in pixels of the full-resolution image",
        found="; ".join(why),
        fix=f"Divide {fix} by the scale of that image, {told}",
        case="D04",
    )


def _spans(extent: np.ndarray, size: np.ndarray | None) -> str:
    spans = f"{extent[0]:,.0f} x {extent[1]:,.0f} px"
    return spans if size is None else f"{spans} of {size[0]:,} x {size[1]:,}"
