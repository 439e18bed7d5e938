"""What earlier runs left in a folder of records: to be kept, to be written again, or refused."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from stemjax import errors
from stemjax.data import builder, panel_file, record_files, slides
from stemjax.data import embeddings as embeddings_lib
from stemjax.data import genes as genes_lib


def require_same_making(
    out: pathlib.Path,
    panel: genes_lib.Panel,
    contract: embeddings_lib.EncoderContract,
    mine: Sequence[str],
    *,
    partly: bool,
) -> None:
    """Refuse before anything is written if a slide in the folder has another encoder or panel.

    A part looks at its own slides and at one other: n processes that each looked at all would read
    n times as much. The merged view refuses what they leave.
    """
    own = {builder.slide_folder(out, i) / builder.VERSION for i in mine}
    others = 0
    for folder in record_files.slide_folders(out):
        if partly and folder not in own and others:
            continue
        metadata = _whole_metadata(folder)
        if metadata is None:
            continue
        others += folder not in own
        slide_id = metadata["slide"]["id"]
        try:
            stored = embeddings_lib.EncoderContract.from_json(metadata["contract"])
            contract.require_same(stored, where=f"the encoder asked for and slide {slide_id}")
        except errors.EncoderMismatchError as error:
            raise errors.RecordsError(
                f"{out} holds records of another encoder: {error.what}",
                expected=error.expected,
                found=error.found,
                fix="Give another --out, or the encoder that these records were made with",
            ) from error
        panel_file.require_same_genes(
            metadata["genes"],
            panel.genes,
            f"Slide {slide_id} in {out} was written with another gene panel",
        )


def is_written(
    out: pathlib.Path,
    slide: slides.Slide,
    panel: genes_lib.Panel,
    contract: embeddings_lib.EncoderContract,
    variants: int | None = None,
) -> bool:
    """Whether the slide's records are there, whole, and made from what is asked for now.

    Damaged records count as not written.

    Args:
      out: the folder of the records.
      slide: the slide.
      panel: the gene panel.
      contract: of the embeddings.
      variants: flips and turns asked for; None where only what embeds them knows how many it has.

    Raises:
      RecordsError: they were made from something else.
    """
    folder = builder.slide_folder(out, slide.id) / builder.VERSION
    if not folder.is_dir() or record_files.faults(folder):
        return False
    metadata = record_files.read_metadata(folder)
    info = record_files.slide_info(metadata)
    fewer = variants is not None and metadata["variants"] < variants
    if info.digest == builder.slide_digest(slide, panel=panel, contract=contract) and not fewer:
        return True
    different = _differences(info, slide, metadata)
    if fewer:
        different.append(f"flips and turns were {metadata['variants']} and are {variants}")
    raise errors.RecordsError(
        f"The records of slide {slide.id} in {out} were made from something else",
        found="; ".join(different) or "another panel, encoder or format",
        fix=f"Give another --out, or remove {folder.parent} to have it written anew (and choose "
        "the panel again if its counts changed)",
    )


def _whole_metadata(folder: pathlib.Path) -> dict[str, Any] | None:
    """The metadata of a slide's folder; None of a damaged one, which is written in its turn.

    Another process may put the folder in place of a damaged one between two looks at it, so it is
    looked at twice.
    """
    for last in (False, True):
        if record_files.faults(folder, hashed=False):
            continue
        try:
            return record_files.read_metadata(folder)
        except (errors.RecordsError, OSError):
            if last and not record_files.faults(folder, hashed=False):
                raise
    return None


def _differences(
    info: builder.SlideInfo, slide: slides.Slide, metadata: Mapping[str, Any]
) -> list[str]:
    """What of a slide is not as it was when its records were written, in words."""
    found = [
        f"{name} was {getattr(info, name)} and is {getattr(slide, name)}"
        for name in ("patient", "n_spots", "mpp", "spot_diameter_um")
        if getattr(info, name) != getattr(slide, name)
    ]
    files = sorted(set(info.sources) | set(slide.sources))
    changed = [name for name in files if info.sources.get(name) != slide.sources.get(name)]
    found += [f"file {name} changed" for name in changed]
    stored = record_files.spot_labels(metadata)
    names = sorted(set(stored) | set(slide.labels))
    return found + [
        f"label {name} changed" for name in names if stored.get(name) != slide.labels.get(name)
    ]
