"""Records of many slides, read as one table or row by row.

`open_records` merges the slides of any number of folders; `Records.load` brings slides into RAM,
`Records.source` reads rows at random. Both go by slides sorted by id and spots in the slide's own
order, so a row number means the same spot wherever and however often it is read.
"""

from __future__ import annotations

import dataclasses
import difflib
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from google.protobuf import message
from tensorflow_datasets.proto import tf_example_pb2

from stemjax import errors
from stemjax.data import builder, raw_rows, record_files
from stemjax.data import embeddings as embeddings_lib
from stemjax.data import genes as genes_lib
from stemjax.data import shards as shards_lib
from stemjax.data import table as table_lib

Table = table_lib.Table
SlideInfo = builder.SlideInfo
write_slide = builder.write_slide
slide_folders = record_files.slide_folders
read_metadata = record_files.read_metadata
slide_info = record_files.slide_info

# Its message classes are made when it is imported: no type checker sees them.
_messages: Any = tf_example_pb2
# Records decoded between two requests to the shards: large enough to be read in parallel.
_CHUNK = 2048


class RowSource:
    """Random access to the rows of some slides; reads from the shards at every request.

    Args:
      slides: where the rows lie, in row order.
      genes: number of genes.
      variants: number of embedding variants.
      width: embedding width.
      fix: what to do about a shard that is damaged later.
    """

    def __init__(
        self,
        slides: Sequence[raw_rows.SlideFiles],
        *,
        genes: int,
        variants: int,
        width: int,
        fix: str,
    ) -> None:
        self._raw = raw_rows.RawRows(slides, fix=fix)
        self._slides = tuple(slide.info.id for slide in slides)
        self._shape = (genes, variants, width)

    def __len__(self) -> int:
        return int(self._raw.ends[-1])

    def gather(self, rows: np.ndarray, *, variants: int | None = None) -> Table:
        """The rows, in the order asked for; a row may be asked for more than once.

        Args:
          rows: row numbers.
          variants: keep the first so many embedding variants of each; None keeps all.

        Raises:
          RecordsError: a shard was damaged since it was checked.
        """
        genes, stored, width = self._shape
        n = len(rows)
        table = Table(
            embeddings=np.empty((n, min(variants or stored, stored), width), np.float16),
            counts=np.empty((n, genes), np.int32),
            total=np.empty(n, np.int32),
            mask=np.empty((n, genes), np.uint8),
            slide_index=np.searchsorted(self._raw.ends, rows, side="right").astype(np.int32),
            slides=self._slides,
            barcodes=(),
            array_xy=np.empty((n, 2), np.float32),
            pixel_xy=np.empty((n, 2), np.float32),
        )
        barcodes: list[str] = []
        for start in range(0, n, _CHUNK):
            wanted = rows[start : start + _CHUNK]
            raw = self._raw.read(wanted)
            try:
                barcodes += [decode_into(table, start + i, record) for i, record in enumerate(raw)]
            # A file that was cut at a multiple of 64 KiB gives empty records and no error.
            except (ValueError, IndexError, message.DecodeError) as error:
                raise self._raw.damaged(wanted, error) from error
        return dataclasses.replace(table, barcodes=tuple(barcodes))


def decode_into(table: Table, row: int, record: bytes) -> str:
    """Decode one serialised spot into `row` of the table's arrays.

    Goes to the protobuf message directly: tfds's own decoder gives the same values at a ninth of
    the speed.

    Returns:
      The barcode.
    """
    field = _messages.Example.FromString(record).features.feature

    def values(name: str, dtype: type) -> np.ndarray:
        return np.frombuffer(field[name].bytes_list.value[0], dtype)

    variants, width = table.embeddings.shape[1:]
    table.embeddings[row] = values("embeddings", np.float16).reshape(-1, width)[:variants]
    table.counts[row] = values("counts", np.int32)
    table.mask[row] = values("mask", np.uint8)
    table.array_xy[row] = values("array_xy", np.float32)
    table.pixel_xy[row] = values("pixel_xy", np.float32)
    table.total[row] = values("total", np.int32)[0]
    return field["barcode"].bytes_list.value[0].decode()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Records:
    """The slides of one or several record folders, of one panel and one encoder.

    Attributes:
      genes: the panel's genes, in column order.
      panel: the panel, its `slides` the union over the folders.
      contract: how the embeddings were made.
      variants: embedding variants of each spot.
      slides: what is known of each slide, sorted by id.
      folders: the version folder of each slide.
      hashed: whether the shards' hashes are compared when their slide is read; else only sizes and
        numbers of records.
      left_out: rows of slides that are left out, since they cannot be read (`leave_out`): rows are
        counted without them, and `slides` too. None where nobody asked for that.
    """

    genes: tuple[str, ...]
    panel: genes_lib.Panel
    contract: embeddings_lib.EncoderContract
    variants: int
    slides: Mapping[str, SlideInfo]
    folders: Mapping[str, pathlib.Path]
    hashed: bool = True
    left_out: Mapping[str, tuple[int, ...]] | None = None
    _checked: set[str] = dataclasses.field(default_factory=set, repr=False, compare=False)

    @property
    def patients(self) -> dict[str, str | None]:
        """Patient of each slide, None where unknown."""
        return {slide: info.patient for slide, info in self.slides.items()}

    def require(self, slide_id: str) -> SlideInfo:
        """What is known of the slide.

        Raises:
          RecordsError: there are no records of it.
        """
        if slide_id not in self.slides:
            near = difflib.get_close_matches(slide_id, self.slides, n=3)
            raise errors.RecordsError(
                f"There are no records of slide {slide_id!r}",
                expected=f"one of {', '.join(self.slides)}",
                fix=f"Did you mean {' or '.join(near)}?" if near else "Prepare the slide first",
            )
        return self.slides[slide_id]

    def count(self, slide_ids: Sequence[str]) -> int:
        """Spots of some slides.

        Raises:
          RecordsError: a slide is unknown.
        """
        return sum(self.require(slide).n_spots for slide in slide_ids)

    def source(self, slide_ids: Sequence[str]) -> RowSource:
        """Random access to the slides' rows, once their shards' hashes are checked.

        Raises:
          RecordsError: a slide is unknown or named twice, none is named, or a shard is damaged.
        """
        chosen = sorted(slide_ids)
        if not chosen or len(set(chosen)) < len(chosen):
            raise errors.RecordsError(
                "Rows are read from a list of slides",
                expected="at least one slide, each once",
                found=", ".join(chosen) or "none",
                fix="Check the split's lists of slides",
            )
        self.verify(chosen)
        return RowSource(
            [self._files(slide) for slide in chosen],
            genes=len(self.genes),
            variants=self.variants,
            width=self.contract.width,
            fix=record_files.MEND if self.left_out is None else record_files.LATER,
        )

    def _files(self, slide: str) -> raw_rows.SlideFiles:
        info, folder = self.require(slide), self.folders[slide]
        left_out = (self.left_out or {}).get(slide, ())
        return raw_rows.SlideFiles(
            info=info,
            folder=folder,
            shards=record_files.read_index(folder, info, info.n_spots + len(left_out)),
            left_out=left_out,
        )

    def load(self, slide_ids: Sequence[str]) -> Table:
        """All rows of the slides in RAM: slides sorted by id, spots in the slide's order.

        Raises:
          RecordsError: a slide is unknown or named twice, none is named, or a shard is damaged.
        """
        source = self.source(slide_ids)
        return source.gather(np.arange(len(source)))

    def tables(self, slide_ids: Sequence[str]) -> Iterator[Table]:
        """The slides' rows a slide at a time, sorted by id: for what would not fit in RAM at once.

        Raises:
          RecordsError: a slide is unknown or a shard is damaged.
        """
        return (self.load([slide]) for slide in sorted(slide_ids))

    def blocks(
        self,
        slide_id: str,
        *,
        rows: int,
        numbers: Iterable[int] | None = None,
        variants: int | None = None,
    ) -> Iterator[Table]:
        """Contiguous rows of one slide, a block at a time: for slides that do not fit in RAM.

        Args:
          slide_id: the slide; its shards' hashes are checked at once.
          rows: rows of a block; the last one has what is left.
          numbers: which blocks, in this order; None for all.
          variants: keep the first so many embedding variants; None keeps all.

        Raises:
          RecordsError: the slide is unknown or a shard is damaged.
        """
        source = self.source([slide_id])
        chosen = range(-(-len(source) // rows)) if numbers is None else numbers
        return (
            source.gather(
                np.arange(number * rows, min((number + 1) * rows, len(source))), variants=variants
            )
            for number in chosen
        )

    def labels(self, slide_id: str) -> dict[str, tuple[str, ...]]:
        """Labels of the slide's spots by name, in row order; "" where a spot has none.

        Raises:
          RecordsError: the slide is unknown, or its metadata are damaged.
        """
        self.require(slide_id)
        metadata = read_metadata(self.folders[slide_id], defer=True)
        return record_files.spot_labels(metadata, (self.left_out or {}).get(slide_id, ()))

    def thumbnail(self, slide_id: str) -> tuple[np.ndarray, float]:
        """The slide's image, uint8 [h w 3] with at most 1500 pixels a side.

        Returns:
          The image, and its pixels per level-0 pixel.

        Raises:
          RecordsError: the slide is unknown or was prepared without an image, or the file is
            damaged.
        """
        info = self.require(slide_id)
        if info.thumbnail_scale is None:
            raise errors.RecordsError(
                f"Slide {slide_id} was prepared without an image",
                fix="Look at `slides[id].thumbnail_scale`, which is None then, before asking",
            )
        return record_files.thumbnail(slide_id, self.folders[slide_id]), info.thumbnail_scale

    def verify(self, slide_ids: Sequence[str] | None = None) -> None:
        """Nothing, if every file of the slides (all by default) has its hash; once a slide.

        Raises:
          RecordsError: names the damaged or missing files, and the records that cannot be read.
        """
        found = self.damage(slide_ids)
        if found:
            raise record_files.of_damage(found, self.folders)

    def damage(self, slide_ids: Sequence[str] | None = None) -> list[shards_lib.Damage]:
        """The slides' shards (of all by default) that are not as written; looked at once a slide.

        Raises:
          RecordsError: another of the slides' files is damaged or missing.
        """
        index = []
        asked = sorted(self.slides if slide_ids is None else slide_ids)
        fresh = [slide for slide in asked if slide not in self._checked]
        for slide in fresh:
            self.require(slide)
            read_metadata(self.folders[slide], defer=True)
            files = self._files(slide)
            index += [(slide, files.folder, shard) for shard in files.shards]
        found = shards_lib.find_damage(index, hashed=self.hashed)
        self._checked.update(set(fresh) - {one.slide for one in found})
        return found

    def leave_out(self, damage: Sequence[shards_lib.Damage]) -> Records:
        """The records without the rows that cannot be read, as if they had never been written.

        Args:
          damage: what `damage` found; its slides are not looked at again.

        Raises:
          RecordsError: nothing is left of a slide.
        """
        rows = shards_lib.unreadable_rows(damage)
        empty = [slide for slide, left in rows.items() if len(left) == self.slides[slide].n_spots]
        if empty:
            raise record_files.of_damage([d for d in damage if d.slide in empty], self.folders)
        fewer = {
            slide: dataclasses.replace(info, n_spots=info.n_spots - len(rows.get(slide, ())))
            for slide, info in self.slides.items()
        }
        seen = self._checked | {one.slide for one in damage}
        return dataclasses.replace(self, slides=fewer, left_out=rows, _checked=seen)


def open_records(
    *folders: str | pathlib.Path,
    damaged: Callable[[pathlib.Path, errors.RecordsError], None] | None = None,
    on_corrupt: Literal["error", "skip"] = "error",
    hashed: bool = True,
) -> Records:
    """One view of the slides of several record folders.

    Sizes of all files, the hashes of the small ones and the numbers of records are checked here;
    the shards' hashes when their slide is read.

    Args:
      folders: what `prepare` wrote, one or several.
      damaged: told of each slide's folder with missing, cut or damaged files, which is then left
        out; None raises the error.
      on_corrupt: "skip" leaves shards that are missing, cut or hold another number of records for
        `Records.damage` to find, so that training can go without their rows.
      hashed: as of `Records`.

    Raises:
      RecordsError: no records, damaged ones, a slide twice, or another list of genes.
      EncoderMismatchError: embeddings of another encoder, geometry or pooling.
    """
    found: dict[str, tuple[pathlib.Path, SlideInfo, dict[str, Any]]] = {}
    left_out: errors.RecordsError | None = None
    for root in map(pathlib.Path, folders):
        for folder in slide_folders(root):
            try:
                metadata = read_metadata(folder, defer=on_corrupt == "skip")
            except errors.RecordsError as error:
                if damaged is None:
                    raise
                damaged(folder, error)
                left_out = error
                continue
            info = slide_info(metadata)
            if info.id in found:
                raise record_files.twice(info.id, found[info.id][0], folder)
            found[info.id] = folder, info, metadata
    if not found and left_out is not None:
        raise left_out
    if not found:
        raise record_files.nothing_in(folders)
    ordered = dict(sorted(found.items()))
    first = next(iter(ordered))
    contract = embeddings_lib.EncoderContract.from_json(ordered[first][2]["contract"])
    for slide, (folder, _, metadata) in ordered.items():
        other = embeddings_lib.EncoderContract.from_json(metadata["contract"])
        other.require_same(contract, where=f"records of slide {slide} in {folder} and of {first}")
        record_files.require_same_shape(ordered[first][2], metadata, first, slide)
    panels = [genes_lib.Panel.from_json(metadata["panel"]) for _, _, metadata in ordered.values()]
    return Records(
        genes=tuple(ordered[first][2]["genes"]),
        panel=dataclasses.replace(
            panels[0], slides=tuple(sorted({slide for panel in panels for slide in panel.slides}))
        ),
        contract=contract,
        variants=int(ordered[first][2]["variants"]),
        slides={slide: info for slide, (_, info, _) in ordered.items()},
        folders={slide: folder for slide, (folder, _, _) in ordered.items()},
        hashed=hashed,
    )
