"""Slides in, records out: the panel, the embeddings and one record directory per slide.

    OUT/panel.json genes.txt      the panel, see `stemjax.data.panel_file`
    OUT/spots/<split>/1.0.0/      one slide each, see `stemjax.data.builder`
    OUT/failed/<split>.json       slides that failed, see `stemjax.data.failures`

Running it again writes only what is missing or damaged. A run that asks for another panel, encoder
or test slides than the folder holds is refused: mixed records would train without complaint.

Many slides are dealt to independent processes, on one host or many with one file system: `part`
(i, n) takes every n-th slide. Nothing but the files in OUT passes between them.
"""

from __future__ import annotations

import dataclasses
import errno
import pathlib
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from stemjax import errors
from stemjax.data import (
    builder,
    earlier,
    failures,
    integrity,
    panel_file,
    patches,
    record_files,
    records,
    slides,
    splits,
)
from stemjax.data import embeddings as embeddings_lib
from stemjax.data import genes as genes_lib
from stemjax.data import orthologues as orthologue_tables

type Progress = Callable[[int, int, str], None]
type Read = Callable[[str], slides.Slide]
type Part = tuple[int, int]

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    """How each slide is written; fields as in `prepare`."""

    read: Read
    out: pathlib.Path
    panel: genes_lib.Panel
    orthologues: orthologue_tables.Orthologues | None
    aliases: orthologue_tables.Aliases | None
    encoder: embeddings_lib.Encoder | embeddings_lib.Embedder
    variants: int
    shards: int | None
    workers: int
    progress: Progress | None


def prepare(
    read: Read,
    slide_ids: Sequence[str],
    out: str | pathlib.Path,
    *,
    part: Part | None = None,
    test: Sequence[str] = (),
    genes: genes_lib.Panel | None = None,
    n_genes: int = 200,
    n_variable: int = genes_lib.N_VARIABLE,
    panel_slides: Literal["train", "all"] = "train",
    orthologues: orthologue_tables.Orthologues | None = None,
    aliases: orthologue_tables.Aliases | None = None,
    encoder: str | embeddings_lib.Encoder | embeddings_lib.Embedder = "texture",
    variants: int = embeddings_lib.N_VARIANTS,
    shards: int | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> records.Records:
    """Write the records of some slides, as far as they are not written yet.

    Slides are read one at a time; their images and embeddings are let go before the next. Choosing
    the panel holds the counts of the slides it is chosen on.

    A slide that fails does not stop the others: they are written, why it failed is written under
    OUT/failed, and the error comes at the end. What ends the run at once: a slide that fails while
    the panel is chosen (without it, it would be another panel), a disk that is full or cannot be
    written, memory that runs out, an interruption.

    Args:
      read: reads a slide by its id.
      slide_ids: all slides, the same list in every process.
      out: the folder of the records.
      part: (i, n) writes only this process's share, see `deal`. The panel is that of all slides;
        it is chosen here only if no process did before (`choose_panel`).
      test: slides among them that the panel must not see.
      genes: a panel to use as it is; None selects one by Stem's rule.
      n_genes: genes to select.
      n_variable: the most variable genes of each slide that it selects among.
      panel_slides: "train" selects on the slides not in `test`; "all" on every slide, as Stem is
        published, which lets test counts choose the genes.
      orthologues: connects a panel of human genes with slides of mouse, and the other way.
      aliases: other names of genes.
      encoder: name of a built-in patch encoder, an encoder, or embeddings made earlier; ``none``
        needs no images.
      variants: flips and turns of each patch to embed, 1 to 8: training draws among them,
        predictions use the first. Fewer are written where files of embeddings have no more.
      shards: files that a slide's records are spread over; None for as few as keep each below
        128 MB.
      workers: processes that embed patches.
      progress: called with (slides done, slides in all, what is being done).

    Returns:
      The records in `out`: these slides and any that were there; with `part`, only those of this
      part, which may be none.

    Raises:
      SplitError: a test slide is not among the slides, or no slide is left to choose the panel.
      GenePanelError: a slide that the panel is chosen on cannot be read.
      RecordsError: `out` holds records of another panel or encoder.
      ConfigError: there is no such part.
      SlidesFailedError: some slides failed, and the others are written. Where there is but one
        slide, its own error if that is a `StemjaxError`: `SlideError`, `ImageError`, `RecordsError`
        (it changed since it was written) and others.
    """
    out, ids = pathlib.Path(out), tuple(slide_ids)
    tell: Progress = progress or (lambda done, total, what: None)
    mine = deal(ids, part) if part is not None else ids
    if isinstance(encoder, str):
        encoder = embeddings_lib.get_encoder(encoder)
    panel = choose_panel(
        read,
        ids,
        out,
        test=test,
        genes=genes,
        n_genes=n_genes,
        n_variable=n_variable,
        panel_slides=panel_slides,
        progress=progress,
    )
    integrity.remove_stale(out / builder.DATASET)
    earlier.require_same_making(out, panel, encoder.contract, mine, partly=part is not None)

    present = sum(builder.slide_folder(out, i).is_dir() for i in mine)
    tell(0, len(mine), f"{present} of {len(mine)} slides done earlier, {len(mine) - present} to do")
    job = _Job(
        read=read,
        out=out,
        panel=panel,
        orthologues=orthologues,
        aliases=aliases,
        encoder=encoder,
        variants=variants,
        shards=shards,
        workers=workers,
        progress=progress,
    )
    _write_each(job, mine, tell)
    if part is None:
        return records.open_records(out)
    if mine:
        return open_slides(out, mine)
    return records.Records(
        genes=panel.genes,
        panel=panel,
        contract=encoder.contract,
        variants=variants,
        slides={},
        folders={},
    )


def choose_panel(
    read: Read,
    slide_ids: Sequence[str],
    out: str | pathlib.Path,
    *,
    test: Sequence[str] = (),
    genes: genes_lib.Panel | None = None,
    n_genes: int = 200,
    n_variable: int = genes_lib.N_VARIABLE,
    panel_slides: Literal["train", "all"] = "train",
    progress: Progress | None = None,
) -> genes_lib.Panel:
    """The gene panel of the folder `out`, chosen and written if there is none; arguments as above.

    A job of many processes runs it once before them, so that they need not choose it each. Where
    there is a panel, no slide is read.

    Raises:
      SplitError, GenePanelError, RecordsError: as `prepare`.
    """
    ids = tuple(slide_ids)
    _check_ids(ids, test)
    request = panel_file.Request(
        given=genes,
        chosen_on=ids if panel_slides == "all" else tuple(i for i in ids if i not in test),
        n_genes=n_genes,
        n_variable=n_variable,
    )
    tell: Progress = progress or (lambda done, total, what: None)
    return panel_file.settle(request, read, pathlib.Path(out), tell=tell)


def deal(slide_ids: Sequence[str], part: Part) -> tuple[str, ...]:
    """The slides of part i of n: every n-th of the sorted ids, from the i-th on.

    A function of the ids and n alone, so that any part can be run again; parts differ by one slide
    at most, and may be empty.

    Raises:
      ConfigError: i is not one of 0 to n - 1.
    """
    i, n = part
    if not 0 <= i < n:
        raise errors.ConfigError(
            "The slides cannot be dealt to processes so",
            expected="part i of n, with i from 0 to n - 1",
            found=f"part {i} of {n}",
            fix="Count the parts from 0: 0/8 to 7/8 for 8 processes",
        )
    return tuple(sorted(slide_ids)[i::n])


def open_slides(out: str | pathlib.Path, slide_ids: Sequence[str]) -> records.Records:
    """Some slides of a folder of records; no file of the others is read.

    Raises:
      RecordsError: a slide is not there or damaged, or no slide is named.
    """
    out, ids = pathlib.Path(out), sorted(slide_ids)
    folders = {i: builder.slide_folder(out, i) / builder.VERSION for i in ids}
    found = {i: record_files.read_metadata(folder) for i, folder in folders.items()}
    if not found:
        raise errors.RecordsError("No slide is named", expected="at least one")
    first = found[ids[0]]
    return records.Records(
        genes=tuple(first["genes"]),
        panel=genes_lib.Panel.from_json(first["panel"]),
        contract=embeddings_lib.EncoderContract.from_json(first["contract"]),
        variants=int(first["variants"]),
        slides={i: record_files.slide_info(metadata) for i, metadata in found.items()},
        folders=folders,
    )


def _write_each(job: _Job, ids: Sequence[str], tell: Progress) -> None:
    """Write the slides; what fails is listed, and raised when the others are written."""
    failed: dict[str, str] = {}
    new = 0
    for done, slide_id in enumerate(ids):
        made, writing = None, False
        try:
            made = _embed(job, slide_id, lambda what, at=done: tell(at, len(ids), what))
            writing = True
            if made is not None:
                _write(job, *made)
        except Exception as error:
            if _ends_the_run(error, writing=writing):
                raise
            failure = failures.record(job.out, slide_id, error)
            if len(ids) == 1 and isinstance(error, errors.StemjaxError):
                raise
            failed[slide_id] = str(failure)
            tell(done + 1, len(ids), f"{slide_id}: failed, {failure}")
            continue
        failures.forget(job.out, slide_id)
        new += made is not None
        tell(done + 1, len(ids), f"{slide_id}: {'done earlier' if made is None else 'written'}")
    if failed:
        every = len(failed) == len(ids)
        raise errors.SlidesFailedError(
            f"None of the {len(ids)} slides could be prepared"
            if every
            else f"{len(failed)} of {len(ids)} slides could not be prepared, the others are there",
            failed=failed,
            written=[i for i in ids if i not in failed],
            fix="Mend them and run it again: it writes only what is missing. "
            f"{job.out / failures.FOLDER} holds what went wrong",
        )
    if ids and not new:
        tell(len(ids), len(ids), f"nothing to write: all {len(ids)} slides were done earlier")


def _embed(
    job: _Job, slide_id: str, tell: Callable[[str], None]
) -> tuple[slides.Slide, np.ndarray] | None:
    """The slide and its embeddings; None where its records are there and whole."""
    slide = job.read(slide_id)
    if isinstance(job.encoder, embeddings_lib.Embedder):
        slide = job.encoder.covered(slide)
    # Fails on a slide without any gene of the panel, before the patches are embedded.
    slide = genes_lib.named_as_panel(
        slide, job.panel.genes, orthologues=job.orthologues, aliases=job.aliases
    )
    # Files of embeddings may hold fewer variants than are asked for; an encoder makes them.
    variants = job.variants if hasattr(job.encoder, "encode") else None
    if earlier.is_written(job.out, slide, job.panel, job.encoder.contract, variants):
        return None
    tell(f"{slide_id}: embedding {slide.n_spots} spots")
    vectors = patches.embed_slide(
        slide, job.encoder, variants=job.variants, workers=job.workers, progress=job.progress
    )
    if note := embeddings_lib.constant_note(vectors):
        slide = dataclasses.replace(slide, notes=slide.notes + note)
    return slide, vectors


def _write(job: _Job, slide: slides.Slide, vectors: np.ndarray) -> None:
    builder.write_slide(
        job.out,
        slide,
        vectors,
        panel=job.panel,
        contract=job.encoder.contract,
        shards=job.shards,
    )


def _ends_the_run(error: Exception, *, writing: bool) -> bool:
    """Whether an error is not the slide's own, so that the next would meet it too.

    Readers and encoders may be anyone's: what they raise is the slide's, whatever it is. What
    comes of writing is the disk's, but for what is said of the slide.
    """
    if isinstance(error, errors.StemjaxError):
        return isinstance(error, errors.ResourceError)
    full = isinstance(error, OSError) and error.errno in _DISK_FULL
    return writing or full or isinstance(error, MemoryError)


def _check_ids(ids: Sequence[str], test: Sequence[str]) -> None:
    if not ids:
        raise errors.SlideError(
            "There are no slides to prepare",
            expected="at least one slide",
            found="none",
            fix="Check the data folder",
        )
    for slide_id in test:
        splits.require_known(slide_id, ids, where="The test slides")
    names: dict[str, str] = {}
    for slide_id in ids:
        slides.require_id(slide_id)
        # File systems that ignore case would put "a1" into the folder of "A1".
        twin = names.setdefault(builder.split_name(slide_id).lower(), slide_id)
        if list(ids).count(slide_id) > 1 or twin != slide_id:
            raise errors.SlideError(
                f"Slides {twin} and {slide_id} cannot both be written",
                expected="each slide once, under names that differ in more than case",
                fix="Leave one away, or rename its files",
            )
