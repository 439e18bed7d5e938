"""Where the embeddings of a slide lie: in a folder, by a template, or in one file."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterator

from stemjax.data.embedding_files.file import Anchor, EmbeddingFile, refused
from stemjax.data.embedding_files.layouts import stem_pt, zarr_tables
from stemjax.data.embedding_files.reading import read

ENDINGS = (".h5", ".hdf5", ".h5ad", ".zarr", ".npz", ".npy", ".pt")
PLACE = "{slide}"

_LISTED = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Where:
    """Where embeddings are, and which of them.

    Attributes:
      path: a folder; a path with ``{slide}`` in place of a slide's id; or one slide's file.
      key: see `reading.read`.
      anchor: see `reading.read`.
      encoders: of Stem's folders, those to take, in order; None for all.
    """

    path: str
    key: str | None = None
    anchor: Anchor | None = None
    encoders: tuple[str, ...] | None = None

    def of(self, slide_id: str) -> EmbeddingFile:
        """The embeddings of a slide.

        Raises:
          EncoderMismatchError: there are none, several, or they cannot be read.
        """
        if self._is_stem:
            return self._stem(slide_id)
        return read(self._path_of(slide_id), key=self.key, anchor=self.anchor)

    def slide_ids(self) -> Iterator[str]:
        """Ids of the slides that files are there for, sorted."""
        if self._is_stem:
            folder = pathlib.Path(self.path)
            originals = [
                one for place in folder.glob(stem_pt.FOLDERS) for one in place.glob("*.pt")
            ]
            yield from sorted(
                {
                    one.stem.removesuffix(f"_{stem_pt.encoder_of(one)}")
                    for one in originals
                    if one.stem.endswith(f"_{stem_pt.encoder_of(one)}")
                }
            )
        elif PLACE in self.path:
            yield from sorted({one for _, one in self._matches()})
        elif not self._is_folder:
            yield pathlib.Path(self.path).stem
        else:
            yield from sorted(
                {
                    one.name.removesuffix(end)
                    for one in pathlib.Path(self.path).iterdir()
                    for end in ENDINGS
                    if one.name.endswith(end) and not one.name.startswith(".")
                }
            )

    @property
    def _is_folder(self) -> bool:
        path = pathlib.Path(self.path)
        return PLACE not in self.path and path.is_dir() and not zarr_tables.is_one(path)

    @property
    def _is_stem(self) -> bool:
        return self._is_folder and any(pathlib.Path(self.path).glob(stem_pt.FOLDERS))

    def _matches(self) -> Iterator[tuple[pathlib.Path, str]]:
        """Paths of the template, and the ids in them. Other parts of a path are taken literally."""
        before, _, after = self.path.partition(PLACE)
        head, tail = os.path.split(before)
        name, _, below = after.partition(os.sep)
        folder = pathlib.Path(head or ".")
        for one in sorted(folder.iterdir()) if folder.is_dir() else ():
            middle = one.name[len(tail) : len(one.name) - len(name) or None]
            whole = pathlib.Path(self.path.replace(PLACE, middle)) if middle else None
            fits = one.name.startswith(tail) and one.name.endswith(name)
            if whole is not None and fits and not middle.startswith(".") and whole.exists():
                yield whole, middle

    def _path_of(self, slide_id: str) -> pathlib.Path:
        if PLACE in self.path:
            return pathlib.Path(self.path.replace(PLACE, slide_id))
        path = pathlib.Path(self.path)
        if not self._is_folder:
            return self._only(path, slide_id)
        found = [path / f"{slide_id}{end}" for end in ENDINGS]
        found = [one for one in found if one.exists()]
        if len(found) == 1:
            return found[0]
        if found:
            raise refused(
                path,
                f"several files are of slide {slide_id}",
                found=", ".join(one.name for one in found),
                fix=f"Say which: {path / PLACE}{found[0].suffix}",
            )
        raise self._absent(path, slide_id)

    def _absent(self, path: pathlib.Path, slide_id: str) -> Exception:
        deeper = sorted(
            one.parent
            for end in ENDINGS
            for one in (*path.glob(f"*/{slide_id}{end}"), *path.glob(f"*/*/{slide_id}{end}"))
        )
        there = list(self.slide_ids())
        more = f" and {len(there) - _LISTED} more" if len(there) > _LISTED else ""
        listed = ", ".join(there[:_LISTED]) + more
        return refused(
            path,
            f"there are no embeddings of slide {slide_id}",
            expected=f"{slide_id} with one of {' '.join(ENDINGS)}",
            found=f"those of {listed}" if there else "no embedding file",
            fix=f"Give the folder {' or '.join(map(str, deeper))}"
            if deeper
            else f"Embed it, or give the files' names: {path / ('..._' + PLACE + '.h5')}",
        )

    def _only(self, path: pathlib.Path, slide_id: str) -> pathlib.Path:
        """One file for one slide: it has to carry its name, for barcodes are alike on all."""
        if path.exists() and path.name.partition(".")[0] != slide_id and path.stem != slide_id:
            raise refused(
                path,
                f"one file is given, and it does not bear the name of slide {slide_id}",
                expected=f"{slide_id}{path.suffix}",
                fix=f"Give a folder, or the files' names: {path.parent / PLACE}{path.suffix}",
            )
        return path

    def _stem(self, slide_id: str) -> EmbeddingFile:
        folder = pathlib.Path(self.path)
        parts = stem_pt.parts_of(folder, slide_id)
        wanted = self.encoders or tuple(parts)
        missing = [one for one in wanted if one not in parts]
        if missing or not wanted:
            raise refused(
                folder,
                f"there are no embeddings of slide {slide_id}"
                + (f" by {', '.join(missing)}" if parts else ""),
                expected=f"1spot_*_ebd/{slide_id}_*.pt",
                found=f"those by {', '.join(parts)}" if parts else "none",
                fix="Embed it with Stem's preprocessing, or leave the slide out",
            )
        return stem_pt.read(folder, [parts[one] for one in wanted])
