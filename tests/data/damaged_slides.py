"""Ways to damage records, and records written without some of their rows."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np

from stemjax.data import builder, integrity, shards


def folder_of(out, slide_id):
    """Version folder of a slide."""
    return builder.slide_folder(out, slide_id) / builder.VERSION


def shard_paths(out, slide_id):
    """Its shards, in the order of the rows."""
    return sorted(folder_of(out, slide_id).glob(f"*{shards.MARK}*"))


def chunk_places(path):
    """Where in a shard's file each record's chunk begins."""
    data, places, at = path.read_bytes(), [], 64
    # riegeli: 40 bytes of header, of which bytes 8 to 16 say how long the data are.
    while data[at + 24 : at + 25] == b"r":
        places.append(at)
        at += 40 + int.from_bytes(data[at + 8 : at + 16], "little")
    return places


def flip(path, at):
    """Turn one bit of a byte."""
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def spoil(path, *numbers):
    """Damage the data of some records of a shard, which are then unreadable."""
    places = chunk_places(path)
    for number in numbers:
        flip(path, places[number] + 60)


def seal(folder):
    """Make the list of hashes agree with the files that are there."""
    (folder / integrity.MANIFEST).unlink()
    integrity.write_manifest(folder)


def rewrite_index(folder, change):
    """Change dataset_info.json, and the hashes with it."""
    path = folder / "dataset_info.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    seal(folder)


def swap(one, other):
    """Give each of two files the other's name."""
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def copy_of(out, tmp_path):
    """A copy of a folder of records."""
    return shutil.copytree(out, tmp_path / "copy")


def without(slide, vectors, rows):
    """The slide and its embeddings, had these rows never been measured."""
    kept = np.delete(np.arange(slide.n_spots), rows)
    return dataclasses.replace(
        slide,
        counts=slide.counts[kept],
        barcodes=tuple(slide.barcodes[row] for row in kept),
        array_xy=slide.array_xy[kept],
        pixel_xy=slide.pixel_xy[kept],
        labels={name: tuple(values[row] for row in kept) for name, values in slide.labels.items()},
    ), vectors[kept]
