"""One slide: raw counts of spots, where they lie, and the image they lie on.

Every reader (`stemjax.data.layouts`) returns a `Slide`, and what a slide promises
is checked once, when it is made: counts are non-negative whole numbers (all of them are looked at,
not a sample), names are unique, and every spot's centre is inside the image. The rest of the
system relies on it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import scipy.sparse
import scipy.spatial
from jaxtyping import Bool, Float

from stemjax import errors
from stemjax.data import images, slide_names

STRAY_SHARE = 0.05
"""Largest share of a slide's spots that a reader leaves out for lying outside the image."""

UNREADABLE = (OSError, EOFError, zlib.error, UnicodeDecodeError, ValueError)
"""What the readers of tables raise on damaged files."""

_LABEL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
require_id = slide_names.require_id

# Columns of a prediction's obs, where labels stand beside them.
_TAKEN = ("in_tissue", "array_row", "array_col")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Slide:
    """The spots of one slide, all genes measured.

    Attributes:
      id: name of the slide, see `require_id`.
      patient: whose tissue it is; None when unknown.
      counts: raw counts, int32 [l g]. Any sparse or dense array of whole numbers may be given.
      genes: names of the columns of ``counts``.
      barcodes: names of its rows.
      array_xy: (column, row) of each spot on the array, float32 [l 2].
      pixel_xy: (x=column, y=row) of each spot's centre in level-0 pixels, float32 [l 2].
      image: the H&E image; None where only embeddings are needed.
      mpp: micrometres per level-0 pixel.
      spot_diameter_um: diameter of a spot in micrometres.
      sources: SHA-256 of each file read, by file name.
      notes: what a reader left out, in words.
      measured: False for an image alone: then there is no gene, and ``counts`` has no column.
      labels: what is known of each spot beside its counts, such as a pathologist's region or an
        expression cluster: one string a spot by the label's name, "" where a spot has none. A name
        is of letters, digits, ``_ -``, and no column that predictions have of their own.
      gene_ids: the Ensembl ids of ``genes``, with or without version: "" where unknown, joined by
        ``|`` where a column adds up the counts of several. Empty where none is known.

    Raises:
      SlideError: a promise of the module's docstring is broken; the message names the slide.
      ImageError: spots lie outside the image.
      PixelSizeError: ``mpp`` is no positive number.
    """

    id: str
    patient: str | None
    counts: scipy.sparse.csr_array
    genes: tuple[str, ...]
    barcodes: tuple[str, ...]
    array_xy: Float[np.ndarray, "l 2"]
    pixel_xy: Float[np.ndarray, "l 2"]
    image: images.SlideImage | None
    mpp: float
    spot_diameter_um: float
    sources: Mapping[str, str]
    notes: tuple[str, ...] = ()
    measured: bool = True
    labels: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    gene_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_id(self.id)
        object.__setattr__(self, "counts", _whole_counts(self))
        for field in ("array_xy", "pixel_xy"):
            object.__setattr__(self, field, np.asarray(getattr(self, field), np.float32))
        _check_shapes(self)
        slide_names.require_names(self.genes, "gene", self.id)
        slide_names.require_names(self.barcodes, "barcode", self.id)
        _check_coordinates(self)
        _check_scale(self)
        _check_inside(self)
        object.__setattr__(self, "labels", _checked_labels(self))

    @property
    def n_spots(self) -> int:
        """Number of spots."""
        return len(self.barcodes)

    @property
    def spot_diameter_px(self) -> float:
        """Diameter of a spot in level-0 pixels."""
        return self.spot_diameter_um / self.mpp


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with pathlib.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pixel_size_from_pitch(
    array_xy: Float[np.ndarray, "l 2"],
    pixel_xy: Float[np.ndarray, "l 2"],
    pitch_um: float,
    *,
    where: str = "",
) -> float:
    """Micrometres per pixel, from the known distance between the centres of neighbouring spots.

    Neighbours are the pairs of spots as close on the array as its closest ones (the four sides of
    a square array, the diagonals of a hexagonal one); the median of their distances in pixels is
    taken to be ``pitch_um``.

    Args:
      array_xy: positions on the array, in any unit.
      pixel_xy: positions in level-0 pixels.
      pitch_um: distance between neighbouring spots in micrometres.
      where: the slide, for the message.

    Raises:
      PixelSizeError: no two spots are neighbours, or their distance is 0 px.
    """
    array_xy, pixel_xy = np.asarray(array_xy, float), np.asarray(pixel_xy, float)
    finite = np.isfinite(array_xy).all(axis=1) & np.isfinite(pixel_xy).all(axis=1)
    array_xy, pixel_xy = array_xy[finite], pixel_xy[finite]
    distance = 0.0
    if len(array_xy) > 1:
        tree = scipy.spatial.KDTree(array_xy)
        # The median over spots: a stray spot has no neighbour, and a few may share a position.
        step = float(np.median(tree.query(array_xy, k=2)[0][:, 1]))
        pairs = tree.query_pairs(1.05 * step, output_type="ndarray")
        pairs = pairs[_lengths(array_xy, pairs) > 0.95 * step]
        if len(pairs):
            distance = float(np.median(_lengths(pixel_xy, pairs)))
    if not distance > 0:
        raise errors.PixelSizeError(
            f"{where}{': ' if where else ''}the pixel size cannot be derived from the positions of "
            f"{len(array_xy)} spots",
            expected="neighbouring spots at different pixels",
            found="none, or all at one pixel",
            fix="Give the pixel size in um per pixel: --mpp (in Python mpp=)",
        )
    return pitch_um / distance


def inside_or_few(
    pixel_xy: Float[np.ndarray, "l 2"],
    image: images.SlideImage | None,
    barcodes: Sequence[str] = (),
) -> tuple[Bool[np.ndarray, " l"], tuple[str, ...]]:
    """Which spots to keep, and a note when a few lie outside the image.

    Stray spots beyond the edge are common where an image was cropped: up to `STRAY_SHARE` of the
    spots are left out. Where more are outside, all are kept, so that `Slide` refuses them: then
    the positions are wrong, not the spots.

    Args:
      pixel_xy: centres of the spots in level-0 pixels.
      image: the slide's; None keeps all.
      barcodes: names of the spots, which the note then lists.
    """
    keep = np.ones(len(pixel_xy), bool)
    if image is None:
        return keep, ()
    outside = _outside(np.asarray(pixel_xy), np.array([image.width, image.height]))
    if not outside.any() or outside.mean() > STRAY_SHARE:
        return keep, ()
    rows = np.flatnonzero(outside)
    named = ", ".join(str(barcodes[row]) for row in rows[:10]) if len(barcodes) else ""
    more = f" and {len(rows) - 10} more" if named and len(rows) > 10 else ""
    of = f", of {len(outside):,}: {named}{more}" if named else ""
    return ~outside, left_out(len(rows), f"outside the image{of}")


def left_out(n: int, which: str) -> tuple[str, ...]:
    """The note that ``n`` spots were left out; none where ``n`` is 0."""
    return (f"left out {n} {'spot' if n == 1 else 'spots'} {which}",) if n else ()


def unreadable(path: pathlib.Path, error: Exception) -> errors.SlideError:
    """The error of a table that cannot be read, to be raised from one of `UNREADABLE`."""
    return errors.SlideError(
        f"{path.name} is damaged or no table of tab-separated columns",
        found=f"{type(error).__name__}: {error}",
        fix="Copy or download the file again",
    )


def _lengths(points: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)


def _whole_counts(slide: Slide) -> scipy.sparse.csr_array:
    """The counts as canonical int32, each value checked; the argument is left as it is."""
    counts = slide.counts
    if counts.ndim != 2:
        raise errors.SlideError(
            f"slide {slide.id}: counts are not a table of spots and genes",
            expected="two dimensions",
            found=f"shape {counts.shape}",
        )
    counts = scipy.sparse.csr_array(counts)
    data = counts.data
    high = np.iinfo(np.int32).max
    if np.issubdtype(data.dtype, np.floating):
        finite = np.isfinite(data)
        if not finite.all():
            _refuse_counts(slide, counts, ~finite, "not finite", "D06")
        if not (whole := data == np.floor(data)).all():
            _refuse_counts(slide, counts, ~whole, "no whole numbers", "D07")
    elif not (np.issubdtype(data.dtype, np.integer) or data.dtype == bool):
        raise errors.SlideError(
            f"slide {slide.id}: counts are not numbers", found=f"dtype {data.dtype}"
        )
    if (negative := data < 0).any():
        _refuse_counts(slide, counts, negative, "negative", "D05")
    if (large := data > high).any():
        _refuse_counts(slide, counts, large, f"above {high:,}", None)
    result = scipy.sparse.csr_array(counts.astype(np.int32))  # astype copies
    result.sum_duplicates()
    result.eliminate_zeros()
    return result


def _refuse_counts(
    slide: Slide, counts: scipy.sparse.csr_array, bad: np.ndarray, how: str, case: str | None
) -> None:
    """Raises, with the first bad entry by barcode and gene."""
    first = int(np.flatnonzero(bad)[0])
    row = int(np.searchsorted(counts.indptr, first, side="right")) - 1
    column = int(counts.indices[first])
    inside = row < len(slide.barcodes) and column < len(slide.genes)
    where = f"spot {slide.barcodes[row]}, gene {slide.genes[column]}" if inside else f"row {row}"
    raise errors.SlideError(
        f"slide {slide.id}: {int(bad.sum()):,} counts are {how}",
        expected="raw counts: whole numbers from 0 up",
        found=f"{counts.data[first]} ({where})",
        fix="Give the raw counts, neither normalised nor log-transformed nor scaled",
        case=case,
    )


def _check_shapes(slide: Slide) -> None:
    n_spots, n_genes = cast(tuple[int, int], slide.counts.shape)
    if not slide.measured and n_genes:
        raise errors.SlideError(
            f"slide {slide.id} is an image alone, but has counts",
            expected="no gene, or measured=True",
            found=f"{n_genes} genes",
        )
    if n_spots == 0 or (n_genes == 0 and slide.measured):
        raise errors.SlideError(
            f"slide {slide.id} is empty",
            expected="at least one spot and one gene",
            found=f"{n_spots} spots, {n_genes} genes",
            fix="Check that counts and positions are of the same slide, or leave the slide out",
            case="D11",
        )
    wanted = {
        "genes": (len(slide.genes), n_genes),
        "barcodes": (len(slide.barcodes), n_spots),
        "array_xy": (slide.array_xy.shape, (n_spots, 2)),
        "pixel_xy": (slide.pixel_xy.shape, (n_spots, 2)),
        "gene_ids": (len(slide.gene_ids), n_genes if slide.gene_ids else 0),
    }
    for field, (found, expected) in wanted.items():
        if found != expected:
            raise errors.SlideError(
                f"slide {slide.id}: {field} does not fit counts of {n_spots} spots x "
                f"{n_genes} genes",
                expected=str(expected),
                found=str(found),
                fix="Give one entry for each spot or gene, in the order of the counts",
                case="D02" if field.endswith("_xy") else None,
            )


def _check_coordinates(slide: Slide) -> None:
    for field in ("array_xy", "pixel_xy"):
        bad = ~np.isfinite(getattr(slide, field)).all(axis=1)
        if bad.any():
            raise errors.SlideError(
                f"slide {slide.id}: {field} of {int(bad.sum())} spots is not finite",
                expected="a place for every spot",
                found=f"first at spot {slide.barcodes[int(np.flatnonzero(bad)[0])]}",
                fix="Leave these spots out, or mend their positions",
                case="D02",
            )


def _check_scale(slide: Slide) -> None:
    if not (np.isfinite(slide.mpp) and slide.mpp > 0):
        raise errors.PixelSizeError(
            f"slide {slide.id}: the pixel size cannot be used",
            expected="um per level-0 pixel above 0",
            found=str(slide.mpp),
            fix="Give the pixel size: --mpp (in Python mpp=)",
        )
    if not (np.isfinite(slide.spot_diameter_um) and slide.spot_diameter_um > 0):
        raise errors.SlideError(
            f"slide {slide.id}: the spot diameter cannot be used",
            expected="um above 0",
            found=str(slide.spot_diameter_um),
        )


def _check_inside(slide: Slide) -> None:
    if slide.image is None:
        return
    size = np.array([slide.image.width, slide.image.height])
    outside = _outside(slide.pixel_xy, size)
    if not outside.any():
        return
    swapped = _outside(slide.pixel_xy[:, ::-1], size)
    fix, case = "Check that positions and image are of the same slide and of full resolution", "D03"
    if swapped.mean() < 0.5 * outside.mean():
        fix = (
            f"{outside.mean():.0%} of the spots are outside, and if x and y were swapped, only "
            f"{int(swapped.sum())} would be outside: "
            "swap the columns of the positions (x is the image's column, y its row)"
        )
        case = "D02"
    raise errors.ImageError(
        f"slide {slide.id}: {int(outside.sum())} of {slide.n_spots} spots lie outside the image "
        f"{slide.image.source}",
        expected=f"x below {size[0]:,} and y below {size[1]:,} px",
        found=f"spot {slide.barcodes[int(np.flatnonzero(outside)[0])]} at "
        + "({:.0f}, {:.0f})".format(*slide.pixel_xy[outside][0]),
        fix=fix,
        case=case,
    )


def _checked_labels(slide: Slide) -> dict[str, tuple[str, ...]]:
    for name, values in slide.labels.items():
        if not _LABEL_NAME.fullmatch(name) or name in _TAKEN or name.startswith("stemjax"):
            raise errors.SlideError(
                f"slide {slide.id}: a label's name cannot be used",
                expected="1 to 64 of A-Z a-z 0-9 _ -, none of "
                + ", ".join(_TAKEN)
                + " and stemjax...",
                found=repr(name),
                fix="Rename the label",
            )
        if isinstance(values, str) or len(values) != slide.n_spots:
            raise errors.SlideError(
                f"slide {slide.id}: label {name} does not fit {slide.n_spots} spots",
                expected=f"{slide.n_spots} strings, '' where a spot has none",
                found=f"one string, {values!r}" if isinstance(values, str) else str(len(values)),
            )
        if strange := [value for value in values if not isinstance(value, str)]:
            raise errors.SlideError(
                f"slide {slide.id}: label {name} has values that are no text",
                expected="strings, '' where a spot has none",
                found=f"{strange[0]!r}",
            )
    return {name: tuple(map(str, values)) for name, values in slide.labels.items()}


def _outside(xy: np.ndarray, size: np.ndarray) -> np.ndarray:
    return ((xy < 0) | (xy >= size)).any(axis=1)
