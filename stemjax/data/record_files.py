"""The files of slides' records: which folders hold slides, what they say, what is wrong."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from stemjax import errors
from stemjax.data import builder, integrity, record_metadata, shards
from stemjax.foreign import json_text, stores

MEND = (
    "Run `stemjax prepare` again with the same options: it writes damaged slides anew and leaves "
    "the others as they are"
)
LEAVE_OUT = (
    "training alone can do without: --config.data.on_corrupt=skip leaves unreadable records out, "
    "up to the share config.data.corrupt_share"
)
LATER = (
    f"{MEND}, and the run goes on where it stopped. Which rows are left out cannot change within a "
    "run: one that begins anew, in another --workdir, leaves these out too"
)
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def slide_folders(root: pathlib.Path) -> list[pathlib.Path]:
    """Version folders of the slides under `root`, sorted; what is still being written is not."""
    found = (root / builder.DATASET).glob(f"*/{builder.VERSION}")
    return sorted(folder for folder in found if not folder.parent.name.startswith("."))


def read_metadata(folder: pathlib.Path, *, defer: bool = False) -> dict[str, Any]:
    """The metadata of a slide's version folder, once its files are checked.

    Checked are all sizes, the hashes of the small files, and that dataset_info.json, the metadata
    and the shards agree on how many records there are, which the end of each shard says.

    Args:
      folder: the version folder.
      defer: leave the shards' own damage to whoever reads them; that the index and the shards there
        are contradict each other is refused in any case.

    Raises:
      RecordsError: files are damaged, missing or too many, or another version of stemjax wrote
        them.
      UnsafeFileError: a link among them leads to another place of this machine.
    """
    stores.require_closed(folder)
    wrong = integrity.damage(folder, unhashed=builder.SHARD_MARK)
    # Shards apart: their damage is told with the records that it hits.
    if any(builder.SHARD_MARK not in line.partition(":")[0] for line in wrong):
        raise damaged(folder.parent.name, folder, wrong)
    metadata, wrong = record_metadata.read(folder)
    if wrong:
        raise damaged(folder.parent.name, folder, wrong)
    if metadata.get("format") != builder.FORMAT:
        raise errors.RecordsError(
            f"The records in {folder} have another format",
            expected=f"format {builder.FORMAT}",
            found=str(metadata.get("format")),
            fix="Prepare the slides again with this version of stemjax, into another folder",
        )
    info = slide_info(metadata)
    index = read_index(folder, info, info.n_spots)
    if not defer:
        require_shards([(info.id, folder, shard) for shard in index], hashed=False)
    return metadata


def read_index(
    folder: pathlib.Path, info: builder.SlideInfo, spots: int
) -> tuple[shards.Shard, ...]:
    """The shards that dataset_info.json says a slide has, in the order of its rows.

    Args:
      folder: the slide's version folder.
      info: what the metadata say of the slide.
      spots: its spots.

    Raises:
      RecordsError: the file contradicts the metadata, the list of hashes or the shards there are.
    """
    index, wrong = _index(folder, info, spots)
    if wrong:
        raise damaged(info.id, folder, wrong)
    return index


def faults(folder: pathlib.Path, *, hashed: bool = True) -> list[str]:
    """What is wrong with a slide's version folder; empty if nothing is, or the format is another.

    Args:
      folder: the version folder.
      hashed: compare the shards' hashes too, which reads them whole.
    """
    wrong = integrity.damage(folder, unhashed=None if hashed else builder.SHARD_MARK)
    if wrong:
        return wrong
    metadata, wrong = record_metadata.read(folder)
    if wrong:
        return wrong
    if metadata.get("format") != builder.FORMAT:
        return []
    info = slide_info(metadata)
    index, wrong = _index(folder, info, info.n_spots)
    return wrong or [
        str(one) for one in shards.find_damage([(info.id, folder, s) for s in index], hashed=False)
    ]


def _index(
    folder: pathlib.Path, info: builder.SlideInfo, spots: int
) -> tuple[tuple[shards.Shard, ...], list[str]]:
    """The shards of a slide, and what contradicts them."""
    try:
        stored = json_text.parse((folder / "dataset_info.json").read_text(encoding="utf-8"))
        (split,) = stored["splits"]
        lengths = [int(n) for n in split["shardLengths"]]
        said = {
            "dataset": (builder.DATASET, stored["name"]),
            "format of its files": ("array_record", stored["fileFormat"]),
            "split": (info.split, split["name"]),
            "template of its file names": (_TEMPLATE, split["filepathTemplate"]),
            "number of records": (spots, sum(lengths)),
            "number of empty shards": (0, sum(n < 1 for n in lengths)),
        }
        size = int(split["numBytes"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        return (), [f"dataset_info.json: unreadable ({type(error).__name__}: {error})"]
    wrong = [
        f"dataset_info.json: {what} is {found}, and {expected} in what was written beside it"
        for what, (expected, found) in said.items()
        if expected != found
    ]
    if size < spots:
        wrong.append(f"dataset_info.json: {size} bytes of {spots} records")
    starts = [0, *itertools.accumulate(lengths)]
    begin = f"{builder.DATASET}-{info.split}{builder.SHARD_MARK}"
    index = tuple(
        shards.Shard(name=f"{begin}{i:05d}-of-{len(lengths):05d}", first=starts[i], n=n)
        for i, n in enumerate(lengths)
    )
    return index, wrong + _strangers(folder, [shard.name for shard in index])


def _strangers(folder: pathlib.Path, names: Sequence[str]) -> list[str]:
    """Shards that are not in all of the index, the list of hashes and, if too many, the folder."""
    listed = integrity.read_manifest(folder)
    known = set(names)
    there = {path.name for path in folder.iterdir() if builder.SHARD_MARK in path.name}
    found = []
    for name in sorted(there - known):
        path = folder / name
        digest = integrity.sha256(path) if path.is_file() else None
        same = [other for other in names if other in listed and listed[other].sha256 == digest]
        if not same:
            found.append(f"{name}: one shard too many, which dataset_info.json does not have")
        elif same[0] in there:
            found.append(f"{name}: one shard too many, a copy of {same[0]}")
        else:
            found.append(f"{name}: it was renamed from {same[0]}")
    of_hashes = {name for name in listed if builder.SHARD_MARK in name}
    found += [f"{name}: not in {integrity.MANIFEST}" for name in names if name not in of_hashes]
    return found + [
        f"{name}: in {integrity.MANIFEST} but not in dataset_info.json"
        for name in sorted(of_hashes - known - there)
    ]


def require_shards(
    index: Sequence[tuple[str, pathlib.Path, shards.Shard]], *, hashed: bool
) -> None:
    """Refuses damaged shards.

    Args:
      index: slide, version folder and shard of each.
      hashed: as `shards.find_damage`.

    Raises:
      RecordsError: names them by slide and record.
    """
    found = shards.find_damage(index, hashed=hashed)
    if found:
        raise of_damage(found, {slide: folder for slide, folder, _ in index})


def of_damage(
    damage: Sequence[shards.Damage], folders: Mapping[str, pathlib.Path]
) -> errors.RecordsError:
    """The error of damaged shards, one slide or several."""
    slides = list(dict.fromkeys(one.slide for one in damage))
    wrong = [str(one) for one in damage if one.slide == slides[0]]
    if len(slides) > 1:
        more = f" and {len(slides) - 6} more" if len(slides) > 6 else ""
        wrong.append(
            f"and shards of {len(slides) - 1} other slides: {', '.join(slides[1:6])}{more}"
        )
    return damaged(slides[0], folders[slides[0]], wrong, fix=f"{MEND}; {LEAVE_OUT}")


def slide_info(metadata: Mapping[str, Any]) -> builder.SlideInfo:
    """The slide part of a directory's metadata."""
    stored = dict(metadata["slide"])
    stored["notes"] = tuple(stored["notes"])
    return builder.SlideInfo(**stored)


def spot_labels(
    metadata: Mapping[str, Any], left_out: Sequence[int] = ()
) -> dict[str, tuple[str, ...]]:
    """Labels of the spots by name, in row order; none in records of slides without any.

    Args:
      metadata: of the slide.
      left_out: rows whose labels are not wanted.
    """
    gone = set(left_out)
    return {
        name: tuple(label for row, label in enumerate(values) if row not in gone)
        for name, values in metadata.get("labels", {}).items()
    }


def thumbnail(slide: str, folder: pathlib.Path) -> np.ndarray:
    """The small image of a slide, uint8 [h w 3].

    Raises:
      RecordsError: it is damaged, or larger than one.
    """
    try:
        with Image.open(folder / builder.THUMBNAIL) as image:
            if max(image.size) > builder.THUMBNAIL_PX:  # told before a pixel is read
                raise ValueError(f"{image.width} x {image.height} pixels")
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow tells damage by all kinds of exceptions
        wrong = [f"{builder.THUMBNAIL}: {type(error).__name__}: {str(error)[:100]}"]
        raise damaged(slide, folder, wrong) from error


def damaged(
    slide: str, folder: pathlib.Path, wrong: Sequence[str], *, fix: str = MEND
) -> errors.RecordsError:
    """The error of a slide whose files are not as they were written."""
    return errors.RecordsError(
        f"The records of slide {slide} in {folder} are damaged: {'; '.join(wrong)}",
        fix=fix,
    )


def require_same_shape(
    first: Mapping[str, Any], other: Mapping[str, Any], first_id: str, other_id: str
) -> None:
    """Refuses two slides' metadata of different gene lists or numbers of embedding variants.

    Raises:
      RecordsError: they differ.
    """
    mine, theirs = first["genes"], other["genes"]
    if mine != theirs:
        pairs = enumerate(zip(mine, theirs))
        at = next((i for i, (a, b) in pairs if a != b), min(len(mine), len(theirs)))
        names = [genes[at] if at < len(genes) else "nothing" for genes in (mine, theirs)]
        raise errors.RecordsError(
            f"Slides {first_id} and {other_id} were prepared with different gene lists "
            f"({len(mine)} and {len(theirs)} genes; the first difference is gene {at + 1})",
            expected=f"{names[0]} as in {first_id}",
            found=f"{names[1]} in {other_id}",
            fix="Prepare both with one list: --genes OUT/genes.txt of the first",
        )
    if first["variants"] != other["variants"]:
        raise errors.RecordsError(
            f"Slides {first_id} and {other_id} have different numbers of embedding variants",
            expected=f"{first['variants']} as in {first_id}",
            found=f"{other['variants']} in {other_id}",
            fix="Prepare both with the same encoder and options",
        )


def nothing_in(folders: Sequence[str | pathlib.Path]) -> errors.RecordsError:
    """The error of folders without records."""
    return errors.RecordsError(
        f"There are no records in {', '.join(map(str, folders)) or 'no folder'}",
        expected=f"{builder.DATASET}/<slide>/{builder.VERSION}/metadata.json",
        fix="Give the folder that `stemjax prepare --out` wrote, or run it first",
    )


def twice(slide: str, one: pathlib.Path, other: pathlib.Path) -> errors.RecordsError:
    """The error of a slide that two folders hold."""
    return errors.RecordsError(
        f"Slide {slide} is in {one} and in {other}",
        expected="each slide once",
        fix="Leave one of the two folders away, or remove one of the two directories",
    )
