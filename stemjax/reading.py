"""`stemjax.read_...`: slides on disk as AnnData, one slide each."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import anndata

type Path = str | os.PathLike[str]


def read(
    path: Path,
    *,
    slide: str | None = None,
    layout: str = "auto",
    mpp: float | None = None,
    need_image: bool = False,
    **options: Any,
) -> anndata.AnnData:
    """Returns one slide as AnnData: raw counts, positions, the H&E in small.

    Args:
      path: a folder or file of slides.
      slide: its id; needed where there are several.
      layout: one of ``st``, ``hest``, ``visium``, ``visium-hd``, ``xenium``, ``h5ad``,
        ``spatialdata``, ``image``; ``auto`` looks at what is there.
      mpp: um per full-resolution pixel, where the files do not say it.
      need_image: whether a missing image is an error.
      options: what the layout takes beside that, such as ``pitch_um`` of ``image``; see
        `stemjax.data.layouts`.

    Returns:
      AnnData with X raw counts [l g], ``obsm["spatial"]`` spot centres in full-resolution pixels
      (x, y), ``uns["spatial"]`` as squidpy plots it.

    Raises:
      SlideError, ImageError, PixelSizeError: as the readers of `stemjax.data.layouts`.
      ConfigError: there are several slides and none is named.

    Example:
      >>> import stemjax as sj
      >>> adata = sj.read("V1_Breast/outs")            # doctest: +SKIP
    """
    from stemjax.data import annotated, layouts
    from stemjax.data.layouts import find

    name = find.find_layout(path) if layout == "auto" else layout
    module = layouts.layout(name)
    if slide is None:
        slide = layouts.only_slide(module.list_slides(path), path, say="slide=")
    found = module.read_slide(path, slide, mpp=mpp, need_image=need_image, **options)
    origin = {"layout": name, "path": os.path.abspath(path), "options": options}
    return annotated.to_anndata(found, origin=origin)


def read_visium(path: Path, *, slide: str | None = None, **options: Any) -> anndata.AnnData:
    """Returns a Visium slide, ``outs`` of Space Ranger 1 to 3; see `read`.

    Example:
      >>> adata = sj.read_visium("outs")               # doctest: +SKIP
    """
    return read(path, slide=slide, layout="visium", **options)


def read_visium_hd(
    path: Path, *, slide: str | None = None, bin_um: int = 16, **options: Any
) -> anndata.AnnData:
    """Returns a Visium HD slide in bins of 8 or 16 um; see `read`.

    Example:
      >>> adata = sj.read_visium_hd("outs", bin_um=16)  # doctest: +SKIP
    """
    return read(path, slide=slide, layout="visium-hd", bin_um=bin_um, **options)


def read_xenium(
    path: Path, *, slide: str | None = None, pitch_um: float = 100.0, **options: Any
) -> anndata.AnnData:
    """Returns a Xenium slide as pseudo-spots on its H&E; see `read`.

    Example:
      >>> adata = sj.read_xenium("xenium_out", pitch_um=100)  # doctest: +SKIP
    """
    return read(path, slide=slide, layout="xenium", pitch_um=pitch_um, **options)


def read_hest(path: Path, slide: str, **options: Any) -> anndata.AnnData:
    """Returns a slide of a HEST-1k folder; see `read`.

    Example:
      >>> adata = sj.read_hest("hest_data", "TENX99")  # doctest: +SKIP
    """
    return read(path, slide=slide, layout="hest", **options)


def read_st(path: Path, slide: str, **options: Any) -> anndata.AnnData:
    """Returns a section of Spatial Transcriptomics laid out as HER2ST is; see `read`.

    Example:
      >>> adata = sj.read_st("her2st", "A1")           # doctest: +SKIP
    """
    return read(path, slide=slide, layout="st", **options)


def read_h5ad(path: Path, *, slide: str | None = None, **options: Any) -> anndata.AnnData:
    """Returns a slide of an .h5ad with ``obsm["spatial"]`` and its image beside it; see `read`.

    Example:
      >>> adata = sj.read_h5ad("slides/S1.h5ad", mpp=0.5)  # doctest: +SKIP
    """
    return read(path, slide=slide, layout="h5ad", **options)


def read_spatialdata(path: Path, *, slide: str | None = None, **options: Any) -> anndata.AnnData:
    """Returns a slide of a SpatialData zarr store; see `read`.

    Example:
      >>> adata = sj.read_spatialdata("slide.zarr")    # doctest: +SKIP
    """
    return read(path, slide=slide, layout="spatialdata", **options)


def read_image(
    path: Path, *, pitch_um: float = 100.0, mpp: float | None = None, **options: Any
) -> anndata.AnnData:
    """Returns spots laid over the tissue of an H&E image, with no gene; see `read`.

    Example:
      >>> adata = sj.read_image("slide.svs", pitch_um=100)  # doctest: +SKIP
      >>> adata.shape                                       # doctest: +SKIP
      (2431, 0)
    """
    return read(path, layout="image", pitch_um=pitch_um, mpp=mpp, need_image=True, **options)
