"""Alignments of an H&E image to the image that an instrument measured in: files of 3 x 3 numbers.

They hold the affine map from (x, y) in pixels of the H&E to (x, y) in pixels of the instrument's
image, as Xenium Explorer exports it; see `stemjax.data.layouts.xenium` for the source.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from stemjax import errors
from stemjax.data import images
from stemjax.data.layouts import visium_array

MOST_STRETCH = 1.2
"""Largest ratio of an alignment's scales in two directions: both images have square pixels."""

_EXPORTED = "matrix.csv"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alignment:
    """An affine map from pixels of the H&E to pixels of the instrument's image.

    Attributes:
      matrix: [2 3]; the first two columns turn, mirror and scale, the last one shifts.
    """

    matrix: Float[np.ndarray, "2 3"]

    @property
    def scale(self) -> float:
        """Pixels of the instrument per pixel of the H&E."""
        return float(abs(np.linalg.det(self.matrix[:, :2])) ** 0.5)

    def to_instrument(self, xy: Float[np.ndarray, "l 2"]) -> Float[np.ndarray, "l 2"]:
        """Pixels of the instrument's image, from those of the H&E."""
        return xy @ self.matrix[:, :2].T + self.matrix[:, 2]

    def to_image(self, xy: Float[np.ndarray, "l 2"]) -> Float[np.ndarray, "l 2"]:
        """Pixels of the H&E, from those of the instrument's image."""
        return np.linalg.solve(self.matrix[:, :2], (xy - self.matrix[:, 2]).T).T


def find(
    folders: Sequence[pathlib.Path], image: pathlib.Path | None, slide_id: str, *, needed: bool
) -> pathlib.Path | None:
    """The file of a slide's alignment: named after its H&E, or the only one there is.

    Raises:
      ImageError: there are several, or there is none and one is needed.
    """
    found = sorted(
        path
        for folder in folders
        for pattern in ("*alignment*.csv", _EXPORTED)
        for path in folder.glob(pattern)
    )
    stem = image.name.split(".")[0] if image else None
    named = [path for path in found if path.name == f"{stem}alignment.csv"]
    found = named or found
    if len(found) == 1:
        return found[0]
    if found or needed:
        raise errors.ImageError(
            f"slide {slide_id}: "
            + ("which alignment of the H&E" if found else "there is no alignment of the H&E"),
            expected=f"{stem or '...he_image'}alignment.csv or {_EXPORTED} in "
            + " or ".join(map(str, folders)),
            found=", ".join(path.name for path in found) or "none",
            fix="Align the H&E in Xenium Explorer and put the file it exports there",
        )
    return None


def read(path: pathlib.Path) -> Alignment:
    """The alignment in a file.

    Raises:
      SlideError: the file is damaged, or holds no map between images of square pixels.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = [line.split(",") for line in text.splitlines() if line.strip()]
        matrix = np.array([[float(field) for field in row] for row in rows], np.float64)
    except (OSError, ValueError) as error:
        raise _no_alignment(path, f"{type(error).__name__}: {str(error)[:200]}") from error
    if matrix.shape != (3, 3) or not (np.abs(matrix) < visium_array.MOST_PX).all():
        raise _no_alignment(path, f"numbers of shape {matrix.shape}")
    if not np.allclose(matrix[2], (0, 0, 1), atol=1e-6):
        raise _no_alignment(path, "a last line of " + ", ".join(f"{v:g}" for v in matrix[2]))
    scales = np.linalg.svd(matrix[:2, :2], compute_uv=False)
    if not 0 < scales[0] < MOST_STRETCH * scales[1]:
        raise _no_alignment(path, f"scales of {scales[0]:.4g} and {scales[1]:.4g}")
    return Alignment(matrix=matrix[:2])


def require_direction(
    placed: Alignment,
    xy: Float[np.ndarray, "l 2"],
    image: images.SlideImage | None,
    path: pathlib.Path | None,
) -> None:
    """Refuses an alignment whose inverse is the one that brings the spots into the image.

    Args:
      placed: the alignment.
      xy: the spots in pixels of the instrument's image.
      image: the H&E.
      path: the alignment's file, for the message.

    Raises:
      ImageError: most spots are outside the image, and inside if the map is turned round.
    """
    if image is None:
        return
    size = np.array([image.width, image.height])
    inside, turned = (
        float(((moved >= 0) & (moved < size)).all(axis=1).mean())
        for moved in (placed.to_image(xy), placed.to_instrument(xy))
    )
    if inside < 0.5 and turned > 0.9:
        raise errors.ImageError(
            f"{path} seems to be the inverse of the alignment",
            expected="a map from pixels of the H&E to pixels of the morphology image",
            found=f"{inside:.0%} of the spots inside {image.source}, and {turned:.0%} if the map "
            "is turned round",
            fix="Export the alignment of the H&E from Xenium Explorer, or invert the matrix",
        )


def _no_alignment(path: pathlib.Path, found: str) -> errors.SlideError:
    return errors.SlideError(
        f"{path} is no alignment",
        expected="3 lines of 3 numbers, the last 0, 0, 1, of equal scale in both directions",
        found=found,
        fix="Export it again from Xenium Explorer",
    )
