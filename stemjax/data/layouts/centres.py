"""Where an AnnData without ``obsm["spatial"]`` may have its spots' centres, and how to mend it."""

from __future__ import annotations

from collections.abc import Collection

from stemjax import errors

_PAIRS = (
    ("pxl_col_in_fullres", "pxl_row_in_fullres"),
    ("pixel_x", "pixel_y"),
    ("imagecol", "imagerow"),
    ("x_pixel", "y_pixel"),
    ("x_centroid", "y_centroid"),
    ("x", "y"),
    ("X", "Y"),
)
"""Columns of obs that tools keep centres in, (x, y); the surest first."""

EXPECTED = "obsm['spatial']: spot centres in level-0 pixels, (x, y)"


def missing(
    where: str,
    obsm: Collection[str],
    obs: Collection[str],
    *,
    error: type[errors.StemjaxError] = errors.SlideError,
) -> errors.StemjaxError:
    """Returns the error of a table without spot centres (case D01).

    Args:
      where: the file or slide.
      obsm: names that are there.
      obs: names of its columns.
      error: class of the error.
    """
    pairs = [f"['{x}', '{y}']" for x, y in _PAIRS if x in obs and y in obs]
    near = [name for name in obsm if "spatial" in name.lower() or "coord" in name.lower()]
    found = f"obsm: {', '.join(sorted(obsm)) or 'empty'}"
    if pairs:
        found += f"; obs has {' and '.join(pairs)}"
        fix = f"If these are the pixels: adata.obsm['spatial'] = adata.obs[{pairs[0]}].to_numpy()"
    elif near:
        fix = f"If these are the pixels: adata.obsm['spatial'] = adata.obsm['{near[0]}']"
    else:
        fix = "Store the centres there: adata.obsm['spatial'] = xy, a row for each spot"
    return error(
        f"{where} has no spot coordinates", expected=EXPECTED, found=found, fix=fix, case="D01"
    )


def misshapen(
    where: str,
    shape: tuple[int, ...],
    n_spots: int,
    n_genes: int,
    *,
    error: type[errors.StemjaxError] = errors.SlideError,
) -> errors.StemjaxError:
    """Returns the error of ``obsm["spatial"]`` of another shape than (spots, 2) (case D02)."""
    deep = len(shape) == 2 and shape[0] == n_spots and shape[1] > 2
    return error(
        f"{where}: the parts do not fit {n_spots} spots and {n_genes} genes",
        expected=f"obsm['spatial'] ({n_spots}, 2), columns x and y",
        found=f"obsm['spatial'] {shape}",
        fix="If the first two columns are x and y: adata.obsm['spatial'] = "
        "adata.obsm['spatial'][:, :2]"
        if deep
        else "Store one (x, y) for each spot, in the order of obs",
        case="D02",
    )
