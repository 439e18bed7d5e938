"""What an embedding file of another tool says, and its numbers, which stay on disk until asked for.

A file's claims are held against what it can hold before memory is taken, and its errors name it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from stemjax import errors
from stemjax.data import embeddings

type Anchor = Literal["corner", "centre"]

BLOCK = 4096
"""Rows read at once: 25 MB at 1,536 float32 features."""

MOST_PACKED = 1100
"""Largest ratio of unpacked to packed bytes that is believed; deflate reaches 1,032."""

MOST_ROWS = 2**31

COPY_AGAIN = "Copy or download the file again, or write it anew"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddingFile:
    """One slide's embeddings as another tool wrote them.

    Attributes:
      path: the file, or the folder of a zarr store.
      layout: its name, such as ``trident``.
      shape: rows, variants and features.
      load: rows ``start`` to ``stop`` of the file as floats [n v c].
      source: the tool, for `EncoderContract.source`.
      barcodes: a name for each row; None where the file has none.
      xy: (x, y) of each row's patch in level-0 pixels, float64 [n 2]; None where it has none.
      anchor: what ``xy`` is: the upper left corner of a patch, or its centre.
      patch_px: side of a patch in level-0 pixels; None where the file does not say.
      fov_um: side of a patch on the tissue by the file's own statement, often a nominal one.
      published_rule: patches are squares of max(224, spot diameter) px around the spots.
      mpp: um per level-0 pixel of the image, where the file says so.
      slide_id: the slide that the file says it is of.
      stated: what it says of its encoder: fields of `EncoderContract` by name.
      guess: what the encoder may be called, where only a name in the file hints at it.
      contract: the whole contract, where the file holds one.
      notes: what was assumed in reading it, in words.
      parts: the files that it was read from.
      block: rows to read at once.
    """

    path: pathlib.Path
    layout: str
    shape: tuple[int, int, int]
    load: Callable[[int, int], np.ndarray]
    source: str
    barcodes: tuple[str, ...] | None = None
    xy: Float[np.ndarray, "n 2"] | None = None
    anchor: Anchor = "corner"
    patch_px: float | None = None
    fov_um: float | None = None
    published_rule: bool = False
    mpp: float | None = None
    slide_id: str | None = None
    stated: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    guess: str | None = None
    contract: embeddings.EncoderContract | None = None
    notes: tuple[str, ...] = ()
    parts: tuple[pathlib.Path, ...] = ()
    block: int = BLOCK

    def __post_init__(self) -> None:
        n, variants, width = self.shape
        if not (0 < n < MOST_ROWS and 0 < variants <= embeddings.N_VARIANTS and width > 0):
            raise refused(
                self.path,
                "the shape of the embeddings cannot be right",
                expected=f"rows, 1 to {embeddings.N_VARIANTS} variants, features",
                found=str(self.shape),
                fix=COPY_AGAIN,
            )
        if self.barcodes is not None and len(self.barcodes) != n:
            raise self._unequal("barcodes", len(self.barcodes))
        if self.xy is not None:
            if self.xy.shape != (n, 2):
                raise self._unequal("coordinates", self.xy.shape)
            if not np.isfinite(self.xy).all():
                raise refused(self.path, "coordinates are not finite", fix=COPY_AGAIN)

    def taken_as(self, anchor: Anchor) -> EmbeddingFile:
        """The same file with its coordinates taken for corners, or for centres."""
        if anchor == self.anchor:
            return self
        said = f"coordinates are taken for {anchor}s, as asked"
        return dataclasses.replace(self, anchor=anchor, notes=(*self.notes, said))

    @property
    def n_rows(self) -> int:
        """Rows: patches or spots."""
        return self.shape[0]

    @property
    def width(self) -> int:
        """Features of a row."""
        return self.shape[2]

    def values(
        self,
        rows: Int[np.ndarray, " l"] | None = None,
        *,
        variants: int = embeddings.N_VARIANTS,
    ) -> Float[np.ndarray, "l v c"]:
        """Embeddings of some rows, in their order; float16 or float32 as the file has them.

        Args:
          rows: rows of the file, each as often as wanted; None for all.
          variants: the first so many; fewer come back where the file has no more.

        Raises:
          EncoderMismatchError: the file changed, is damaged there, or holds NaN or infinity.
        """
        wanted = np.arange(self.n_rows) if rows is None else np.asarray(rows, np.int64)
        order = np.argsort(wanted, kind="stable")
        ordered = wanted[order]
        kept = min(variants, self.shape[1])
        out: np.ndarray | None = None
        for start in range(0, self.n_rows, self.block):
            stop = min(start + self.block, self.n_rows)
            low, high = np.searchsorted(ordered, [start, stop])
            if low == high:
                continue
            with naming(self.path):
                block = self.load(start, stop)
            if block.shape != (stop - start, *self.shape[1:]):
                raise refused(self.path, "it changed while it was read", fix=COPY_AGAIN)
            taken = as_float(block[ordered[low:high] - start, :kept])
            self._require_finite(taken, ordered[low:high])
            if out is None:
                out = np.empty((len(wanted), kept, self.width), taken.dtype)
            out[order[low:high]] = taken
        return np.empty((0, kept, self.width), np.float32) if out is None else out

    def _require_finite(self, values: np.ndarray, rows: np.ndarray) -> None:
        bad = np.flatnonzero(~np.isfinite(values).all((1, 2)))
        if bad.size:
            named = [
                str(row) if self.barcodes is None else self.barcodes[row] for row in rows[bad[:3]]
            ]
            raise refused(
                self.path,
                f"embeddings of {bad.size} rows are NaN or infinite",
                expected="finite numbers",
                found=f"first in {', '.join(named)}",
                fix="Embed the slide again; half precision overflows in some encoders",
            )

    def _unequal(self, what: str, found: object) -> errors.EncoderMismatchError:
        return refused(
            self.path,
            f"{what} do not fit the embeddings",
            expected=f"{self.n_rows} of them",
            found=str(found),
            fix="The file is unfinished or of two slides: embed the slide again",
        )


def refused(
    path: pathlib.Path | str, what: str, **parts: str | None
) -> errors.EncoderMismatchError:
    """The error of an embedding file; ``parts`` are those of `errors.StemjaxError`."""
    return errors.EncoderMismatchError(f"{path}: {what}", **parts)


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
    """Turns what readers of damaged files raise, which is anything, into an error that names it."""
    try:
        yield
    except errors.StemjaxError:
        raise
    except Exception as error:
        raise refused(
            path,
            "it is damaged or incomplete",
            found=f"{type(error).__name__}: {shown(error)}",
            fix=COPY_AGAIN,
        ) from error


def shown(value: object) -> str:
    """Text of a file for a message: printable, at most 120 characters."""
    text = ascii(str(value))[1:-1]
    return text if len(text) <= 120 else text[:117] + "..."


def as_float(values: np.ndarray) -> np.ndarray:
    """float16 and float32 as they are, other floats as float32."""
    return values if values.dtype in (np.float16, np.float32) else values.astype(np.float32)


def require_floats(path: pathlib.Path, what: str, dtype: np.dtype) -> None:
    """Refuses anything but floating-point numbers, object arrays above all."""
    if dtype.kind != "f" and dtype.name != "bfloat16":
        kind = "Python objects, which only a pickle can read" if dtype.kind == "O" else str(dtype)
        raise refused(
            path,
            f"{what} holds no floating-point numbers",
            expected="float16, float32 or float64",
            found=kind,
            fix="Name the dataset of the embeddings: key=...",
        )


def require_claim(
    path: pathlib.Path, what: str, shape: Sequence[int], itemsize: int, held: int, *, packed: bool
) -> None:
    """Refuses an array that claims more bytes than its file can hold, before they are allocated."""
    claimed = math.prod(shape) * itemsize
    if claimed > held * (MOST_PACKED if packed else 1):
        raise refused(
            path,
            f"{what} claims more than the file holds",
            expected=f"at most {held:,} bytes{' before packing' if packed else ''}",
            found=f"shape {tuple(shape)}, {claimed:,} bytes",
            fix="It is cut off or was never finished: copy it again, or embed the slide again",
        )


def number(path: pathlib.Path, attrs: Mapping[str, Any], name: str) -> float | None:
    """A positive number among attributes; None where it is absent or stated as none.

    Raises:
      EncoderMismatchError: it is something else.
    """
    value = attrs.get(name)
    if value is None:
        return None
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    if not fits or not math.isfinite(value) or value <= 0:
        raise refused(
            path,
            f"the attribute {name!r} cannot be right",
            expected="a number above 0",
            found=shown(value),
            fix=COPY_AGAIN,
        )
    return float(value)
