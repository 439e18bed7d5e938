"""Slides in, records out: the panel, the embeddings and one record directory per slide.

    OUT/panel.json genes.txt      the panel, and its genes one a line
    OUT/spots/<split>/1.0.0/      one slide each, see `stemjax.data.builder`

Running it again writes only what is missing or damaged. A run that asks for another panel, encoder
or test slides than the folder holds is refused: mixed records would train without complaint.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from stemjax import errors
from stemjax.data import builder, integrity, patches, record_files, records, slides, splits
from stemjax.data import embeddings as embeddings_lib
from stemjax.data import genes as genes_lib

type Progress = Callable[[int, int, str], None]
type Read = Callable[[str], slides.Slide]

_OTHERWISE = "Give another --out, or --genes OUT/genes.txt to keep the panel of this one"


def prepare(
    read: Read,
    slide_ids: Sequence[str],
    out: str | pathlib.Path,
    *,
    test: Sequence[str] = (),
    genes: genes_lib.Panel | None = None,
    n_genes: int = 200,
    n_variable: int = genes_lib.N_VARIABLE,
    panel_slides: Literal["train", "all"] = "train",
    encoder: str | embeddings_lib.Encoder = "texture",
    shards: int | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> records.Records:
    """Write the records of some slides, as far as they are not written yet.

    Slides are read one at a time; their images and embeddings are let go before the next. Choosing
    the panel holds the counts of the slides it is chosen on.

    Args:
      read: reads a slide by its id.
      slide_ids: the slides to write.
      out: the folder of the records.
      test: slides among them that the panel must not see.
      genes: a panel to use as it is; None selects one by Stem's rule.
      n_genes: genes to select.
      n_variable: the most variable genes of each slide that it selects among.
      panel_slides: "train" selects on the slides not in `test`; "all" on every slide, as Stem is
        published, which lets test counts choose the genes.
      encoder: name of the patch encoder, or an encoder; ``none`` needs no images.
      shards: shards a slide; None for as few as keep each below 128 MB.
      workers: processes that embed patches.
      progress: called with (slides done, slides in all, what is being done).

    Returns:
      The records in `out`: these slides and any that were there.

    Raises:
      SplitError: a test slide is not among the slides, or no slide is left to choose the panel.
      GenePanelError: a slide has no gene of the panel.
      RecordsError: `out` holds records of another panel, encoder or version of a slide.
      SlideError, ImageError: a slide cannot be read; slides before it stay written.
    """
    out, ids = pathlib.Path(out), tuple(slide_ids)
    _check_ids(ids, test)
    if isinstance(encoder, str):
        encoder = embeddings_lib.get_encoder(encoder)
    tell: Progress = progress or (lambda done, total, what: None)
    integrity.remove_stale(out / builder.DATASET)
    chosen = ids if panel_slides == "all" else tuple(i for i in ids if i not in test)
    panel = _panel(read, chosen, out, given=genes, size=(n_genes, n_variable), tell=tell)
    _check_folder(out, panel, encoder.contract)
    present = sum(builder.slide_folder(out, i).is_dir() for i in ids)
    tell(0, len(ids), f"{present} of {len(ids)} slides done earlier, {len(ids) - present} to do")
    for done, slide_id in enumerate(ids):
        slide = read(slide_id)
        if _is_written(out, slide, panel, encoder.contract):
            tell(done + 1, len(ids), f"{slide_id}: done earlier")
            continue
        # Fails on a slide without any gene of the panel, before the patches are embedded.
        genes_lib.panel_counts(slide, panel.genes)
        tell(done, len(ids), f"{slide_id}: embedding {slide.n_spots} spots")
        vectors = patches.embed_slide(slide, encoder, workers=workers, progress=progress)
        builder.write_slide(
            out, slide, vectors, panel=panel, contract=encoder.contract, shards=shards
        )
        tell(done + 1, len(ids), f"{slide_id}: written")
        del slide, vectors  # before the next is read: two slides' images need not fit
    return records.open_records(out)


def _check_ids(ids: Sequence[str], test: Sequence[str]) -> None:
    if not ids:
        raise errors.SlideError("There are no slides to prepare", fix="Check the data folder")
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


def _panel(
    read: Read,
    chosen: Sequence[str],
    out: pathlib.Path,
    *,
    given: genes_lib.Panel | None,
    size: tuple[int, int],
    tell: Progress,
) -> genes_lib.Panel:
    """The panel: the folder's if it is the one asked for, else given or selected, and stored."""
    if given is None and not chosen:
        raise errors.SplitError(
            "No slide is left to choose the gene panel on",
            fix="Leave a slide out of test, give a gene list, or say panel_slides='all'",
        )
    stored = _stored_panel(out)
    if stored is not None:
        _check_panel(out, stored, given, chosen, size)
        return stored
    if given is None:
        counted = []
        for done, slide_id in enumerate(chosen):
            tell(done, len(chosen), f"{slide_id}: reading counts for the gene panel")
            # The image can be gigabytes and the panel needs none.
            counted.append(dataclasses.replace(read(slide_id), image=None))
        given = genes_lib.select_panel(counted, n_genes=size[0], n_variable=size[1])
    out.mkdir(parents=True, exist_ok=True)
    integrity.write_text(out / "genes.txt", "".join(f"{gene}\n" for gene in given.genes))
    integrity.write_text(out / "panel.json", json.dumps(given.to_json(), indent=1) + "\n")
    return given


def _stored_panel(out: pathlib.Path) -> genes_lib.Panel | None:
    """The folder's panel: its panel.json, or where that is gone what its slides say."""
    path = out / "panel.json"
    if not path.exists():
        written = records.slide_folders(out)
        if not written:
            return None
        return genes_lib.Panel.from_json(records.read_metadata(written[0])["panel"])
    try:
        return genes_lib.Panel.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, errors.StemjaxError) as error:
        raise errors.RecordsError(
            f"{path} cannot be read: {error}",
            fix="Remove it if the slides beside it are whole: they hold the panel too",
        ) from error


def _check_panel(
    out: pathlib.Path,
    stored: genes_lib.Panel,
    given: genes_lib.Panel | None,
    chosen: Sequence[str],
    size: tuple[int, int],
) -> None:
    """Refuse a panel other than the stored one; size is (n_genes, n_variable)."""
    rule = genes_lib.variable_rule(size[1])
    if given is not None:
        if given.genes == stored.genes:
            return
        expected, found = _list_difference(stored.genes, given.genes)
    elif not stored.slides:
        expected, found = f"the gene list it was given ({stored.rule})", "no gene list"
    elif set(stored.slides) != set(chosen):
        expected = f"a panel selected on {', '.join(sorted(stored.slides))}"
        found = f"one to be selected on {', '.join(sorted(chosen))} (the slides or test differ)"
    elif len(stored.genes) != size[0]:
        expected, found = f"{len(stored.genes)} genes", f"{size[0]} genes asked for"
    elif not stored.rule.startswith(rule):
        expected, found = stored.rule, rule
    else:
        return
    raise errors.RecordsError(
        f"{out} holds records of another gene panel",
        expected=expected,
        found=found,
        fix=_OTHERWISE,
    )


def _list_difference(stored: Sequence[str], given: Sequence[str]) -> tuple[str, str]:
    """Two gene lists as (expected, found) in words."""
    added, gone = sorted(set(given) - set(stored)), sorted(set(stored) - set(given))
    if not added and not gone:
        return f"its {len(stored)} genes in its order", "the same genes in another order"
    new = f", {len(added)} new such as {added[0]}" if added else ""
    old = f", {len(gone)} missing such as {gone[0]}" if gone else ""
    return f"its {len(stored)} genes", f"{len(given)} genes{new}{old}"


def _check_folder(
    out: pathlib.Path, panel: genes_lib.Panel, contract: embeddings_lib.EncoderContract
) -> None:
    """Refuse before anything is written if a slide in the folder has another encoder or panel."""
    for folder in records.slide_folders(out):
        if integrity.damage(folder, unhashed=builder.SHARD_MARK):
            continue  # written again in its turn
        metadata = records.read_metadata(folder)
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
        if tuple(metadata["genes"]) != panel.genes:
            expected, found = _list_difference(metadata["genes"], panel.genes)
            raise errors.RecordsError(
                f"Slide {slide_id} in {out} was written with another gene panel",
                expected=expected,
                found=found,
                fix=_OTHERWISE,
            )


def _is_written(
    out: pathlib.Path,
    slide: slides.Slide,
    panel: genes_lib.Panel,
    contract: embeddings_lib.EncoderContract,
) -> bool:
    """Whether the slide's records are there, whole, and made from what is asked for now.

    Damaged records count as not written.
    """
    folder = builder.slide_folder(out, slide.id) / builder.VERSION
    if not folder.is_dir() or integrity.damage(folder):
        return False
    metadata = records.read_metadata(folder)
    info = records.slide_info(metadata)
    if info.digest == builder.slide_digest(slide, panel=panel, contract=contract):
        return True
    raise errors.RecordsError(
        f"The records of slide {slide.id} in {out} were made from something else",
        found="; ".join(_differences(info, slide, metadata)) or "another panel, encoder or format",
        fix=f"Give another --out, or remove {folder.parent} to have it written anew (and choose "
        "the panel again if its counts changed)",
    )


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
