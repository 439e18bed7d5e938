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
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from stemjax import errors
from stemjax.data import builder, integrity, record_files
from stemjax.data import embeddings as embeddings_lib
from stemjax.data import genes as genes_lib
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
      slides: the slides with their version folders, in row order.
      genes: number of genes.
      variants: number of embedding variants.
      width: embedding width.
      explain: turns a failed read into the error that names the damaged shard.
    """

    def __init__(
        self,
        slides: Sequence[tuple[SlideInfo, pathlib.Path]],
        *,
        genes: int,
        variants: int,
        width: int,
        explain: Callable[[Exception], errors.RecordsError],
    ) -> None:
        instructions = []
        for info, folder in slides:
            splits = tfds.builder_from_directory(folder).info.splits
            instructions += splits[info.split].file_instructions
        self._raw = array_record_data_source.ArrayRecordDataSource(instructions)
        self._slides = tuple(info.id for info, _ in slides)
        self._ends = np.cumsum([info.n_spots for info, _ in slides])
        self._shape = (genes, variants, width)
        self._explain = explain

    def __len__(self) -> int:
        return int(self._ends[-1])

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
            slide_index=np.searchsorted(self._ends, rows, side="right").astype(np.int32),
            slides=self._slides,
            barcodes=(),
            array_xy=np.empty((n, 2), np.float32),
            pixel_xy=np.empty((n, 2), np.float32),
        )
        barcodes: list[str] = []
        for start in range(0, n, _CHUNK):
            wanted = [int(row) for row in rows[start : start + _CHUNK]]
            try:
                raw = self._raw.__getitems__(wanted)
            except (RuntimeError, ValueError, OSError) as error:
                raise self._explain(error) from error
            barcodes += [decode_into(table, start + i, record) for i, record in enumerate(raw)]
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
    """

    genes: tuple[str, ...]
    panel: genes_lib.Panel
    contract: embeddings_lib.EncoderContract
    variants: int
    slides: Mapping[str, SlideInfo]
    folders: Mapping[str, pathlib.Path]
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
        infos = [self.require(slide) for slide in chosen]
        self.verify(chosen)

        def explain(error: Exception) -> errors.RecordsError:
            for slide in chosen:
                wrong = integrity.damage(self.folders[slide])
                if wrong:
                    return record_files.damaged(slide, self.folders[slide], wrong)
            return errors.RecordsError(
                f"Reading slides {', '.join(chosen)} failed", found=str(error)
            )

        return RowSource(
            [(info, self.folders[info.id]) for info in infos],
            genes=len(self.genes),
            variants=self.variants,
            width=self.contract.width,
            explain=explain,
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
        return record_files.spot_labels(read_metadata(self.folders[slide_id]))

    def thumbnail(self, slide_id: str) -> tuple[np.ndarray, float]:
        """The slide's image, uint8 [h w 3] with at most 1500 pixels a side.

        Returns:
          The image, and its pixels per level-0 pixel.

        Raises:
          RecordsError: the slide is unknown or was prepared without an image.
        """
        info = self.require(slide_id)
        if info.thumbnail_scale is None:
            raise errors.RecordsError(
                f"Slide {slide_id} was prepared without an image",
                fix="Look at `slides[id].thumbnail_scale`, which is None then, before asking",
            )
        with Image.open(self.folders[slide_id] / builder.THUMBNAIL) as image:
            return np.asarray(image.convert("RGB")), info.thumbnail_scale

    def verify(self, slide_ids: Sequence[str] | None = None) -> None:
        """Nothing, if every file of the slides (all by default) has its hash; once a slide.

        Raises:
          RecordsError: names the damaged or missing files.
        """
        for slide in self.slides if slide_ids is None else slide_ids:
            if slide in self._checked:
                continue
            wrong = integrity.damage(self.folders[slide])
            if wrong:
                raise record_files.damaged(slide, self.folders[slide], wrong)
            self._checked.add(slide)


def open_records(
    *folders: str | pathlib.Path,
    damaged: Callable[[pathlib.Path, errors.RecordsError], None] | None = None,
) -> Records:
    """One view of the slides of several record folders.

    Sizes of all files and the hashes of the small ones are checked here; the shards' hashes when
    their slide is read.

    Args:
      folders: what `prepare` wrote, one or several.
      damaged: told of each slide's folder with missing, cut or damaged files, which is then left
        out; None raises the error.

    Raises:
      RecordsError: no records, damaged ones, a slide twice, or another list of genes.
      EncoderMismatchError: embeddings of another encoder, geometry or pooling.
    """
    found: dict[str, tuple[pathlib.Path, SlideInfo, dict[str, Any]]] = {}
    left_out: errors.RecordsError | None = None
    for root in map(pathlib.Path, folders):
        for folder in slide_folders(root):
            try:
                metadata = read_metadata(folder)
            except errors.RecordsError as error:
                if damaged is None:
                    raise
                damaged(folder, error)
                left_out = error
                continue
            info = slide_info(metadata)
            if info.id in found:
                raise errors.RecordsError(
                    f"Slide {info.id} is in {found[info.id][0]} and in {folder}",
                    expected="each slide once",
                    fix="Leave one of the two folders away, or remove one of the two directories",
                )
            found[info.id] = folder, info, metadata
    if not found and left_out is not None:
        raise left_out
    if not found:
        raise errors.RecordsError(
            f"There are no records in {', '.join(map(str, folders)) or 'no folder'}",
            expected=f"{builder.DATASET}/<slide>/{builder.VERSION}/metadata.json",
            fix="Give the folder that `stemjax prepare --out` wrote, or run it first",
        )
    ordered = dict(sorted(found.items()))
    first = next(iter(ordered))
    contract = embeddings_lib.EncoderContract.from_json(ordered[first][2]["contract"])
    for slide, (folder, _, metadata) in ordered.items():
        other = embeddings_lib.EncoderContract.from_json(metadata["contract"])
        other.require_same(contract, where=f"records of slide {slide} in {folder} and of {first}")
        _require_same_shape(ordered[first][2], metadata, first, slide)
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
    )


def _require_same_shape(
    first: Mapping[str, Any], other: Mapping[str, Any], first_id: str, other_id: str
) -> None:
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
