"""The embedding of each spot of a slide: by barcode, or by where it lies; never by row.

Barcodes of Visium are those of the array, the same on every slide of its kind. So where a file has
coordinates too, they have to agree: a file of another slide joins every barcode and no place.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import scipy.sparse
from jaxtyping import Int

from stemjax.data import slides
from stemjax.data.embedding_files import fit as fit_lib
from stemjax.data.embedding_files.file import EmbeddingFile, refused, shown
from stemjax.data.patches import MIN_SIDE_PX

type Missing = Literal["error", "drop"]
type Rows = Literal["as-slide"]

TOLERANCE = 0.5
"""Distance from a spot to the centre of its patch, in sides of a patch: it lies in the patch."""

LEAST_KEPT = 0.5
"""Share of a slide's spots that must have an embedding where the others may be dropped."""

_SUFFIX = "-1"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Joined:
    """Which row of a file is which spot's.

    Attributes:
      rows: rows of the file.
      spots: rows of the slide that they belong to, ascending; all of them, unless some without an
        embedding were to be dropped.
      how: ``barcode``, ``coordinates`` or ``rows``.
      notes: what was assumed and what is left over, in words.
    """

    rows: Int[np.ndarray, " m"]
    spots: Int[np.ndarray, " m"]
    how: str
    notes: tuple[str, ...]


def join(
    file: EmbeddingFile,
    slide: slides.Slide,
    *,
    tolerance: float = TOLERANCE,
    missing: Missing = "error",
    rows: Rows | None = None,
) -> Joined:
    """The row of a file for each spot of a slide.

    Args:
      file: of the slide.
      slide: its spots.
      tolerance: largest distance, the larger of x and y, from a spot to the centre of its patch,
        in sides of a patch.
      missing: what becomes of spots without an embedding: an error that lists them, or they are
        left out.
      rows: "as-slide" takes the rows of a file with neither barcodes nor coordinates for the
        slide's spots in their order, if there are as many.

    Raises:
      EncoderMismatchError: spots have no embedding, names or places are not unique, coordinates are
        swapped, scaled or of another point of the patch, or the file is of another slide.
    """
    joined = _joined(file, slide, tolerance, rows)
    if file.slide_id is not None and file.slide_id != slide.id:
        other = f"{file.path.name} says that it is of {shown(file.slide_id)}, not of {slide.id}"
        joined = dataclasses.replace(joined, notes=(*joined.notes, other))
    return _without_missing(file, slide, joined, missing)


def cut(slide: slides.Slide, joined: Joined) -> slides.Slide:
    """The slide with the spots that have an embedding; itself where all have."""
    if len(joined.spots) == slide.n_spots:
        return slide
    kept = joined.spots
    gone = slides.left_out(slide.n_spots - len(kept), "without an embedding")
    return dataclasses.replace(
        slide,
        counts=scipy.sparse.csr_array(slide.counts[kept]),
        barcodes=tuple(slide.barcodes[row] for row in kept),
        array_xy=slide.array_xy[kept],
        pixel_xy=slide.pixel_xy[kept],
        labels={name: tuple(of[row] for row in kept) for name, of in slide.labels.items()},
        notes=(*slide.notes, *gone),
    )


def side_px(file: EmbeddingFile, slide: slides.Slide) -> tuple[float, tuple[str, ...]]:
    """Side of the file's patches in level-0 pixels of the slide, and a note where it is a guess."""
    if file.patch_px is not None:
        return file.patch_px, ()
    if file.fov_um is not None:
        return file.fov_um / slide.mpp, ()
    if file.published_rule:
        return float(max(MIN_SIDE_PX, round(slide.spot_diameter_px))), ()
    apart = None if file.xy is None else fit_lib.spacing(file.xy)
    side = apart or slide.spot_diameter_px
    return side, (f"the side of patches is taken from their spacing: {side:.6g} px",)


def _joined(
    file: EmbeddingFile, slide: slides.Slide, tolerance: float, rows: Rows | None
) -> Joined:
    """Rows by name, else by place, else as asked; -1 where there is none."""
    if file.barcodes is not None and (joined := _by_barcode(file, slide, tolerance)) is not None:
        return joined
    if file.xy is not None:
        return _by_coordinates(file, slide, tolerance)
    if file.barcodes is not None:
        raise refused(
            file.path,
            f"no barcode is one of slide {slide.id}",
            expected=f"such as {', '.join(slide.barcodes[:3])}",
            found=f"such as {', '.join(map(shown, file.barcodes[:3]))}",
            fix="Give the slide's own file",
        )
    return _by_row(file, slide, rows)


def _by_barcode(file: EmbeddingFile, slide: slides.Slide, tolerance: float) -> Joined | None:
    """Rows by name, -1 where there is none; None where no name is the slide's."""
    assert file.barcodes is not None
    names, notes = file.barcodes, ()
    _require_unique(file, names, slide)
    place = {name: row for row, name in enumerate(names)}
    found = np.array([place.get(name, -1) for name in slide.barcodes], np.int64)
    if not (found >= 0).any():
        bare = [name.removesuffix(_SUFFIX) for name in names]
        ours = [name.removesuffix(_SUFFIX) for name in slide.barcodes]
        unique = len(set(bare)) == len(bare) and len(set(ours)) == len(ours)
        place = {name: row for row, name in enumerate(bare)} if unique else {}
        found = np.array([place.get(name, -1) for name in ours], np.int64)
        notes = (f"barcodes of {file.path.name} and of the slide differ in {_SUFFIX!r} at the end",)
    if not (found >= 0).any():
        return None
    notes += _agreement(file, slide, found, tolerance)
    left = file.n_rows - int((found >= 0).sum())
    if left:
        notes += (f"{left} embeddings of {file.path.name} belong to no spot of the slide",)
    return Joined(rows=found, spots=np.arange(slide.n_spots), how="barcode", notes=notes)


def _agreement(
    file: EmbeddingFile, slide: slides.Slide, found: np.ndarray, tolerance: float
) -> tuple[str, ...]:
    """Whether patches lie on the spots that barcodes give them; a note on how they do not."""
    if file.xy is None or not file.xy[found[found >= 0]].any():  # all zero: none are known
        return ()
    side, guess = side_px(file, slide)
    spots = slide.pixel_xy[found >= 0].astype(np.float64)
    places = fit_lib.Places(
        xy=file.xy,
        corner=file.anchor == "corner",
        side=side,
        spots=spots,
        pairs=found[found >= 0],
        tolerance=max(tolerance, 1.0) if guess else tolerance,
    )
    as_stated = fit_lib.stated(places)
    other = fit_lib.better(places, as_stated)
    if other is not None and other.covered > LEAST_KEPT:
        return (f"joined by barcode, although {other.what}",)
    if as_stated.covered > LEAST_KEPT:
        return ()
    raise refused(
        file.path,
        f"barcodes are those of slide {slide.id}, and places are not",
        expected="patches around the spots that their barcodes name",
        found=f"{as_stated.median * side:,.0f} px apart in the middle, patches of {side:,.0f} px",
        fix="Barcodes are the same on every array: this is the file of another slide, or "
        "coordinates are of another image",
    )


def _by_coordinates(file: EmbeddingFile, slide: slides.Slide, tolerance: float) -> Joined:
    """The patch that each spot's centre lies in, -1 where there is none."""
    assert file.xy is not None
    side, notes = side_px(file, slide)
    places = fit_lib.Places(
        xy=file.xy,
        corner=file.anchor == "corner",
        side=side,
        spots=slide.pixel_xy.astype(np.float64),
        pairs=None,
        tolerance=tolerance,
    )
    as_stated = fit_lib.stated(places)
    other = fit_lib.better(places, as_stated)
    if other is not None:
        raise refused(
            file.path,
            f"{other.what} (slide {slide.id})",
            expected=f"{other.covered:.0%} of the spots in a patch, at a median of "
            f"{other.median:.2f} sides from its centre",
            found=f"{as_stated.covered:.0%}, {as_stated.median:.2f}, as the file states them",
            fix=other.fix,
        )
    rows = np.where(as_stated.distance <= tolerance, as_stated.rows, -1)
    used, times = np.unique(rows[rows >= 0], return_counts=True)
    _require_unique_places(file, used)
    if (shared := int(times[times > 1].sum())) > 0:
        notes += (f"{shared} spots share a patch with another spot",)
    if file.n_rows > len(used):
        notes += (f"{file.n_rows - len(used)} patches of {file.path.name} hold no spot's centre",)
    return Joined(rows=rows, spots=np.arange(slide.n_spots), how="coordinates", notes=notes)


def _by_row(file: EmbeddingFile, slide: slides.Slide, rows: Rows | None) -> Joined:
    if rows != "as-slide":
        raise refused(
            file.path,
            "nothing in it says which row is which spot",
            expected="barcodes or coordinates",
            found=f"{file.n_rows} rows, and slide {slide.id} has {slide.n_spots} spots",
            fix="If its rows are known to be the spots in their order, as in Stem's files: "
            'rows="as-slide"; else embed again with a tool that writes coordinates',
        )
    if file.n_rows != slide.n_spots:
        raise refused(
            file.path,
            f"its rows cannot be the spots of slide {slide.id} in their order",
            expected=f"{slide.n_spots} rows, one for each spot",
            found=str(file.n_rows),
            fix="Read the slide from the file it was embedded from, with no spot left out"
            + (f" ({'; '.join(slide.notes)})" if slide.notes else ""),
        )
    every = np.arange(slide.n_spots)
    note = f"rows of {file.path.name} are taken for the spots in their order, as asked"
    return Joined(rows=every, spots=every, how="rows", notes=(note,))


def _without_missing(
    file: EmbeddingFile, slide: slides.Slide, joined: Joined, missing: Missing
) -> Joined:
    has = joined.rows >= 0
    gone = np.flatnonzero(~has)
    if not len(gone):
        return joined
    if missing != "drop" or has.mean() < LEAST_KEPT:
        named = ", ".join(slide.barcodes[row] for row in gone[:10])
        few = "" if missing != "drop" else f"; fewer than {LEAST_KEPT:.0%} would remain"
        raise refused(
            file.path,
            f"{len(gone)} of {slide.n_spots} spots of slide {slide.id} have no embedding{few}",
            expected="one for every spot",
            found=f"none for {named}{' and others' if len(gone) > 10 else ''}",
            fix="Embed the slide again"
            + (
                ', or leave these spots out: --drop-missing (in Python missing="drop")'
                if missing != "drop"
                else ""
            ),
            case="D17",
        )
    note = f"{len(gone)} of {slide.n_spots} spots have no embedding in {file.path.name}"
    return Joined(
        rows=joined.rows[has],
        spots=joined.spots[has],
        how=joined.how,
        notes=(*joined.notes, note),
    )


def _require_unique(file: EmbeddingFile, names: tuple[str, ...], slide: slides.Slide) -> None:
    if len(set(names)) == len(names):
        return
    values, times = np.unique(np.asarray(names, str), return_counts=True)
    twice = [shown(name) for name in values[times > 1]]
    raise refused(
        file.path,
        f"{len(twice)} barcodes stand for several rows",
        expected=f"one row for each spot of slide {slide.id}",
        found=", ".join(twice[:3]),
        fix="The file is of several slides, or was appended to: embed the slide again",
    )


def _require_unique_places(file: EmbeddingFile, used: np.ndarray) -> None:
    """Refuses two patches at one place, if a spot lies in it: either could be meant."""
    assert file.xy is not None
    _, first, times = np.unique(file.xy, axis=0, return_inverse=True, return_counts=True)
    twice = used[times[first.reshape(-1)[used]] > 1]
    if len(twice):
        raise refused(
            file.path,
            f"several rows are of one place, which {len(twice)} spots lie in",
            expected="each patch once",
            found="first at ({:g}, {:g})".format(*file.xy[twice[0]]),
            fix="The file was appended to, or is of several slides: embed the slide again",
        )
