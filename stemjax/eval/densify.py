"""Expression between the spots of a slide: points on the array's geometry, embedded and predicted.

The result holds the slide's spots first and the points after them: ``obs["stemjax_measured"]``
tells them apart, and X of a measured spot is what the model makes of its surroundings, not what was
measured (``layers["stemjax_observed"]`` has that, NaN elsewhere).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse

from stemjax import errors, tasks
from stemjax.data import embeddings, no_image, patches, points, records, slides, tissue, windows
from stemjax.eval import labels, predict, recovered
from stemjax.train import checkpoint, origin, spot_inputs

if TYPE_CHECKING:
    import anndata

type Read = Callable[[str], slides.Slide]


def tissue_of(source: records.Records, slide: str) -> tissue.Mask | None:
    """Where the slide's image shows tissue, or None without an image."""
    info = source.require(slide)
    if info.thumbnail_scale is None:
        return None
    pixels, scale = source.thumbnail(slide)
    return tissue.Mask(inside=tissue.tissue_mask(pixels), um_per_px=info.mpp / scale)


def choose_points(
    source: records.Records,
    slide: str,
    *,
    factor: int | None = None,
    pitch_um: float | None = None,
    file: str | None = None,
) -> points.Points:
    """The points asked for: a denser lattice, one of a given pitch, or those of a file.

    Raises:
      ConfigError: not exactly one of the three is given, or it cannot work.
      SlideError: the file is damaged, or the slide's positions do not tell the geometry.
    """
    table = source.load([slide])
    xy, array = windows.positions_um(table, source.slides), np.asarray(table.array_xy, np.float64)
    given = {"factor": factor, "pitch_um": pitch_um, "file": file}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise errors.ConfigError(
            "points to infer",
            expected="a factor, a pitch or a file of points",
            found=" and ".join(named) or "none of them",
        )
    if file is not None:
        mpp = source.require(slide).mpp
        return points.read_points(file, xy_um=xy, array_xy=array, mpp=mpp)
    mask = tissue_of(source, slide)
    if factor is not None:
        return points.denser(xy, array, factor=factor, mask=mask)
    assert pitch_um is not None
    return points.at_pitch(xy, array, pitch_um=pitch_um, mask=mask)


def points_table(
    source: records.Records,
    slide: str,
    chosen: points.Points,
    read: Read | None = None,
    *,
    encoder: embeddings.Encoder | embeddings.Embedder | None = None,
    workers: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
) -> records.Table:
    """Rows for points that were not measured: embedded, with counts and mask 0.

    Points beside the image are left out: they have no patch.

    Args:
      source: records of the slide.
      slide: its id.
      chosen: the points.
      read: reads the slide with its image; not needed where the encoder sees none.
      encoder: that of the records; None is the built-in one of its name.
      workers: processes that embed patches.
      progress: called with points done, points in all, and what is being done.

    Raises:
      ConfigError: the encoder needs the image and there is no way to read it, it is not built in,
        or no point lies in the image.
      SlideError: the slide read is not the one of the records.
      ImageError: it has no image.
    """
    info = source.require(slide)
    pixel = chosen.xy_um / info.mpp
    keep = np.arange(len(pixel))
    if no_image.is_of(source.contract):
        vectors = np.zeros((len(pixel), 1, source.contract.width), np.float16)
    else:
        if read is None:
            raise errors.ConfigError(
                f"points of {slide} need patches of its image",
                expected=f"the slide's files, for the encoder {source.contract.name}",
                found="records alone",
                fix="give --layout and --data, as `stemjax prepare` was given them",
            )
        if encoder is None:
            encoder = embeddings.get_encoder(source.contract.name)
        encoder.contract.require_same(source.contract, where="the encoder and the records")
        found = read(slide)
        _require_same(found, info)
        if found.image is None:
            raise errors.ImageError(
                f"slide {slide} has no image",
                expected=f"one, for the encoder {source.contract.name}",
                fix="give the folder that the records were made from, with its images",
            )
        size = np.array([found.image.width, found.image.height])
        keep = np.flatnonzero(((pixel >= 0) & (pixel < size)).all(axis=1))
        if not keep.size:
            raise errors.ConfigError(
                f"points of {slide}", expected="some inside the image", found="none"
            )
        placed = dataclasses.replace(
            found,
            counts=scipy.sparse.csr_array((len(keep), len(found.genes)), dtype=np.int32),
            barcodes=tuple(chosen.names[i] for i in keep),
            array_xy=chosen.array_xy[keep],
            pixel_xy=pixel[keep],
            labels={},
        )
        vectors = patches.embed_slide(placed, encoder, workers=workers, progress=progress)
    genes = len(source.genes)
    return records.Table(
        embeddings=vectors[:, :1],
        counts=np.zeros((len(keep), genes), np.int32),
        total=np.zeros(len(keep), np.int32),
        mask=np.zeros((len(keep), genes), np.uint8),
        slide_index=np.zeros(len(keep), np.int32),
        slides=(slide,),
        barcodes=tuple(chosen.names[i] for i in keep),
        array_xy=chosen.array_xy[keep].astype(np.float32),
        pixel_xy=pixel[keep].astype(np.float32),
    )


def _require_same(slide: slides.Slide, info: records.SlideInfo) -> None:
    """Raises where a slide is not the one that the records were made of."""
    if not np.isclose(slide.mpp, info.mpp, rtol=1e-6):
        raise errors.SlideError(
            f"slide {info.id} is not the one of the records",
            expected=f"{info.mpp:.6g} um per pixel",
            found=f"{slide.mpp:.6g}",
            fix="give the folder, and the --mpp, that the records were made with",
        )
    changed = [name for name, digest in slide.sources.items() if info.sources.get(name) != digest]
    if changed:
        raise errors.SlideError(
            f"slide {info.id} is not the one of the records",
            expected="the same files",
            found=f"another {', '.join(changed)}",
            fix="prepare the records again from these files",
        )


def predict_points(
    trained: checkpoint.Trained,
    source: records.Records,
    slide: str,
    asked: records.Table,
    sampling: tasks.Sampling,
    **options: Any,
) -> anndata.AnnData:
    """Returns a slide's spots and points as one AnnData, as `predict.predict_slide` writes it.

    Args:
      trained: weights and what they mean.
      source: records of the slide.
      slide: its id.
      asked: the points, from `points_table`.
      sampling: mode, sampler, steps and draws.
      options: ``seed``, ``rows`` and ``progress`` as `predict.predict_slide`.

    Raises:
      ConfigError: a point has the name of a spot; and as `predict.predict_slide`.
    """
    origin.require_fit(trained.card, source)
    spots = source.load([slide])
    if twice := sorted(set(spots.barcodes) & set(asked.barcodes)):
        raise errors.ConfigError(
            "names of points", expected="others than those of spots", found=", ".join(twice[:3])
        )
    own = spot_inputs.measured_spots(trained.card, spots)
    measured = np.concatenate([own, np.zeros(asked.n, bool)])
    table = spot_inputs.joined_tables(spots, asked)
    result = predict.predict_table(trained, source, table, sampling, measured=measured, **options)
    values = np.asarray(trained.card.space.forward(spots.counts, spots.total), np.float32)
    values = np.where((spots.mask != 0) & own[:, None], values, np.float32(np.nan))
    rest = np.full((asked.n, values.shape[1]), np.nan, np.float32)
    result.layers[recovered.OBSERVED] = np.concatenate([values, rest])
    none = ("",) * asked.n
    for name, given in source.labels(slide).items():
        result.obs[name] = labels.categorical(given + none)
    result.uns["stemjax"]["points"] = json.dumps({"spots": spots.n, "points": asked.n})
    return result
