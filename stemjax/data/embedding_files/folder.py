"""Embeddings made earlier, as an `embeddings.Embedder`: for `prepare` as good as an encoder."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float16

from stemjax import errors
from stemjax.data import embeddings, slides
from stemjax.data.embedding_files import find
from stemjax.data.embedding_files.contract import Settled, contract_for
from stemjax.data.embedding_files.file import Anchor, EmbeddingFile, refused
from stemjax.data.embedding_files.join import TOLERANCE, Joined, Missing, Rows, cut, join
from stemjax.data.embedding_files.wanted import Known, Wanted

HIGHEST = float(np.finfo(np.float16).max)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingFolder:
    """Embedding files of the slides of a run; all of them have one contract.

    Attributes:
      where: the files.
      wanted: what the user says of them.
      contract: what the embeddings are.
      first: the file that the contract was settled on.
      rows: see `join.join`.
      missing: see `join.join`; with "drop" read slides through `covered`.
      tolerance: see `join.join`.
    """

    where: find.Where
    wanted: Wanted
    contract: embeddings.EncoderContract
    first: str
    rows: Rows | None = None
    missing: Missing = "error"
    tolerance: float = TOLERANCE

    def embed(
        self,
        slide: slides.Slide,
        *,
        variants: int = embeddings.N_VARIANTS,
        workers: int = 1,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Float16[np.ndarray, "l v c"]:
        """Embeddings of every spot from the slide's file, rows as ``slide.barcodes``.

        Fewer variants come back where the file has no more.

        Args:
          slide: the slide; where spots without an embedding may be dropped, what `covered` gave.
          variants: 1 to `embeddings.N_VARIANTS`.
          workers: without meaning here.
          progress: called once, when all spots are read.

        Raises:
          EncoderMismatchError: see `reading.read`, `join.join` and `contract.contract_for`; or the
            file's contract is not that of the others.
          PixelSizeError: file and slide disagree about the size of a pixel.
        """
        del workers
        file = self.where.of(slide.id)
        self._settle(file, slide)
        joined = self._join(file, slide)
        if len(joined.spots) != slide.n_spots:
            raise refused(
                file.path,
                f"spots of slide {slide.id} without an embedding are to be dropped, and are there",
                expected="the slide as `covered` gives it",
                found=f"{slide.n_spots - len(joined.spots)} of {slide.n_spots} spots without one",
                fix="Read slides through EmbeddingFolder.covered",
            )
        values = file.values(joined.rows, variants=variants)
        if np.abs(values).max(initial=0) > HIGHEST:
            raise refused(
                file.path,
                f"embeddings of slide {slide.id} do not fit into half precision",
                expected=f"values up to {HIGHEST:,.0f}",
                found=f"{float(np.abs(values).max()):.4g}",
                fix="Scale the encoder's output",
            )
        if progress is not None:
            progress(slide.n_spots, slide.n_spots, f"read the embeddings of {slide.id}")
        return values.astype(np.float16)

    def covered(self, slide: slides.Slide) -> slides.Slide:
        """The slide with the spots that have an embedding, their files as sources, and notes.

        Raises:
          EncoderMismatchError: some have none and may not be dropped, or the file cannot be joined.
          PixelSizeError: file and slide disagree about the size of a pixel.
        """
        file = self.where.of(slide.id)
        joined = self._join(file, slide)
        some = cut(slide, joined)
        assumed = (*file.notes, *self._settle(file, slide).notes)
        notes = tuple(note for note in (*assumed, *joined.notes) if note not in some.notes)
        return dataclasses.replace(
            some,
            sources={**some.sources, **self.sources(slide)},
            notes=(*some.notes, *notes),
        )

    def sources(self, slide: slides.Slide) -> Mapping[str, str]:
        """SHA-256 of each file that the embeddings of a slide come from.

        A zarr store counts as one file: its hash is that of its files' names and hashes.
        """
        file = self.where.of(slide.id)
        if file.path.is_dir() and file.layout == "lazyslide":
            whole = hashlib.sha256()
            for one in file.parts:
                whole.update(f"{one.relative_to(file.path)} {slides.sha256(one)}\n".encode())
            return {f"embeddings/{file.path.name}": whole.hexdigest()}
        return {f"embeddings/{one.name}": slides.sha256(one) for one in file.parts}

    def notes(self, slide: slides.Slide) -> tuple[str, ...]:
        """What is assumed of the slide's file, its contract and its join, in words."""
        file = self.where.of(slide.id)
        return (*file.notes, *self._settle(file, slide).notes, *self._join(file, slide).notes)

    def _settle(self, file: EmbeddingFile, slide: slides.Slide) -> Settled:
        found = contract_for(file, slide, self.wanted)
        theirs, ours = found.contract.fov_um, self.contract.fov_um
        if theirs is not None and ours is not None:
            off = abs(theirs - ours) > embeddings.FOV_TOLERANCE * max(theirs, ours)
            if off and not self.wanted.allow_fov_mismatch:
                raise refused(
                    file.path,
                    f"patches of slide {slide.id} show another piece of tissue than those of "
                    f"{self.first}",
                    expected=f"{ours:.4g} um, {embeddings.FOV_TOLERANCE:.0%} more or less",
                    found=f"{theirs:.4g} um at {slide.mpp:.4g} um a pixel",
                    fix="Magnifications are nominal: state the side, fov_um=...; slides that "
                    "differ from it are taken with allow_fov_mismatch=True",
                )
            same = dataclasses.replace(found.contract, fov_um=ours)
            found = dataclasses.replace(found, contract=same)
        found.contract.require_same(self.contract, where=f"{file.path} and {self.first}")
        return found

    def _join(self, file: EmbeddingFile, slide: slides.Slide) -> Joined:
        return join(file, slide, tolerance=self.tolerance, missing=self.missing, rows=self.rows)


def open_embeddings(
    path: str | os.PathLike[str],
    *,
    encoder: str | embeddings.EncoderContract | None = None,
    known: Known | None = None,
    key: str | None = None,
    rows: Rows | None = None,
    missing: Missing = "error",
    anchor: Anchor | None = None,
    fov_um: float | None = None,
    allow_fov_mismatch: bool = False,
    fields: Mapping[str, object] | None = None,
    tolerance: float = TOLERANCE,
) -> EmbeddingFolder:
    """Embedding files that other tools wrote, for `prepare` and `patches.embed_slide`.

    The contract is that of the first file by name that can be read, before any slide is: its field
    of view is then the file's own, a nominal one where it states a magnification (TRIDENT: 10 um a
    pixel over the magnification), or ``fov_um``. On each slide it is held against the patches'
    side times the slide's pixel size.

    Args:
      path: a folder with a file for each slide, such as TRIDENT's ``features_uni_v1``; Stem's
        ``processed_data``; a path with ``{slide}`` in place of a slide's id; or one slide's file.
      encoder: name of the encoder, or the whole contract; needed where files do not say.
      known: gives the contract of an encoder by any of its names.
      key: which embeddings, where files hold several.
      rows: "as-slide" lets rows without barcode and place be the spots in their order.
      missing: "drop" lets spots without an embedding be left out; see `EmbeddingFolder.covered`.
      anchor: what coordinates are, where the layout says otherwise or nothing.
      fov_um: side of a patch on the tissue.
      allow_fov_mismatch: takes slides whose patches differ from it by more than 5 %.
      fields: other fields of the contract, such as ``{"revision": "a1"}``.
      tolerance: see `join.join`.

    Raises:
      EncoderMismatchError: no file is there or can be read, or the contract cannot be settled.
    """
    wanted = Wanted(
        encoder=encoder,
        known=known,
        fov_um=fov_um,
        allow_fov_mismatch=allow_fov_mismatch,
        fields=fields or {},
    )
    name = encoder.name if isinstance(encoder, embeddings.EncoderContract) else encoder
    where = find.Where(
        path=os.fspath(path),
        key=key,
        anchor=anchor,
        encoders=tuple(name.lower().split("+")) if name else None,
    )
    first = _first(where)
    return EmbeddingFolder(
        where=where,
        wanted=wanted,
        contract=contract_for(first, None, wanted).contract,
        first=str(first.path),
        rows=rows,
        missing=missing,
        tolerance=tolerance,
    )


def _first(where: find.Where) -> EmbeddingFile:
    """The first file by name that can be read; where none can, the error of the first."""
    failed: errors.StemjaxError | None = None
    for slide_id in where.slide_ids():
        try:
            return where.of(slide_id)
        except errors.StemjaxError as error:
            failed = failed or error
    if failed is not None:
        raise failed
    raise refused(
        where.path,
        "there are no embedding files",
        expected=f"files named after slides, with one of {' '.join(find.ENDINGS)}",
        fix="Correct the path; TRIDENT's are in .../features_NAME, Stem's in processed_data",
    )
