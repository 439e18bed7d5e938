"""One slide's records: a tfds directory of array_record shards, written whole or not at all.

    OUT/spots/<split>/1.0.0/spots-<split>.array_record-00000-of-00001   one record a spot
                            dataset_info.json  features.json            tfds's own
                            metadata.json                               genes, panel, slide, labels
                            record_sums.json                            a sum of each record
                            thumbnail.jpg  SHA256SUMS.json

`tfds.builder_from_directory` reads it without any code of this project. Each slide is a directory
and a split of its own, so that independent processes can write slides side by side.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging as absl_logging
from PIL import Image
from tensorflow_datasets.core import example_serializer

from stemjax import errors
from stemjax.data import embeddings as embeddings_lib
from stemjax.data import genes as genes_lib
from stemjax.data import integrity, no_image, patches
from stemjax.data import shards as shards_lib
from stemjax.data import slides as slides_lib

DATASET, VERSION = "spots", "1.0.0"
FORMAT = 1
SHARD_MARK = shards_lib.MARK
_MARK = "x-"  # of slides whose folder is not named by their id
THUMBNAIL, THUMBNAIL_PX = "thumbnail.jpg", 1500
SHARD_BYTES = 128 * 10**6
# Barcodes, coordinates, field names and the record's own framing, generously.
_OTHER_BYTES = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlideInfo:
    """What the records say about one slide.

    Attributes:
      id: the slide's own name.
      split: its split's and folder's name, `split_name(id)`.
      patient: None where unknown.
      n_spots: records.
      mpp: um per level-0 pixel.
      spot_diameter_um: spot diameter in um.
      patch_um: side of the patch that was embedded, in um; 0 where none was (encoder ``none``).
      thumbnail_scale: thumbnail pixels per level-0 pixel; None where there was no image.
      sources: SHA-256 of each file that the slide was read from.
      notes: what the readers noticed.
      measured: False for an image alone, which has no count of any gene.
      digest: SHA-256 over everything that the records depend on; equal digests, equal records.
    """

    id: str
    split: str
    patient: str | None
    n_spots: int
    mpp: float
    spot_diameter_um: float
    patch_um: float
    thumbnail_scale: float | None
    sources: Mapping[str, str]
    notes: tuple[str, ...]
    digest: str
    measured: bool = True


@dataclasses.dataclass
class _SpotsConfig(tfds.core.BuilderConfig):
    """tfds's configuration of one slide; small, since tfds logs it."""

    variants: int = 1
    width: int = 1
    genes: int = 1


class Spots(tfds.core.GeneratorBasedBuilder):
    """tfds builder of one slide's directory: one configuration and one split, of the same name."""

    VERSION = tfds.core.Version(VERSION)
    RELEASE_NOTES = {"1.0.0": "Embedding variants, panel counts and coordinates of each spot."}
    # tfds would look beside a builder's module for checksums of downloads, and needs a package that
    # it does not declare (importlib_resources) to find the module.
    code_path = None

    def __init__(
        self,
        *,
        data_dir: pathlib.Path,
        config: _SpotsConfig,
        rows: Iterable[dict[str, Any]],
        metadata: dict[str, Any],
    ) -> None:
        # Before tfds's own constructor, which calls _info.
        self._config, self._rows, self._metadata = config, rows, metadata
        super().__init__(data_dir=data_dir, config=config, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        config, features = self._config, tfds.features

        def tensor(shape: tuple[int, ...], dtype: Any) -> Any:
            # 'bytes' writes four times as fast as lists of numbers, and float16 stays float16.
            return features.Tensor(shape=shape, dtype=dtype, encoding="bytes")

        spot = {
            "embeddings": tensor((config.variants, config.width), np.float16),
            "counts": tensor((config.genes,), np.int32),
            "mask": tensor((config.genes,), np.uint8),
            "total": tensor((), np.int32),
            "array_xy": tensor((2,), np.float32),
            "pixel_xy": tensor((2,), np.float32),
            "barcode": features.Text(),
            "slide": features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(spot),
            metadata=tfds.core.MetadataDict(self._metadata),
            disable_shuffling=True,  # spots keep their order on the slide
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {self._config.name: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from enumerate(self._rows)


def split_name(slide_id: str) -> str:
    """A tfds split name for a slide, different for different slides.

    tfds writes splits called "a.b" or "all" and then cannot address them. Other names stay as they
    are; those, and names that begin with the mark "x-" themselves, become "x-" and the name with
    "." as "_d" and "_" as "_u".
    """
    plain = re.fullmatch(r"[A-Za-z0-9_-]+", slide_id) and slide_id.lower() != "all"
    if plain and not slide_id.startswith(_MARK):
        return slide_id
    return _MARK + slide_id.replace("_", "_u").replace(".", "_d")


def slide_of(folder: pathlib.Path) -> str:
    """The id of a slide by its version folder, whose metadata may be what is damaged."""
    name = folder.parent.name
    if not name.startswith(_MARK):
        return name
    return name.removeprefix(_MARK).replace("_d", ".").replace("_u", "_")


def slide_folder(out: pathlib.Path, slide_id: str) -> pathlib.Path:
    """Where the slide's record directory is or will be, without the version folder."""
    return out / DATASET / split_name(slide_id)


def slide_digest(
    slide: slides_lib.Slide,
    *,
    panel: genes_lib.Panel,
    contract: embeddings_lib.EncoderContract,
) -> str:
    """SHA-256 over what a slide's records depend on: files, geometry, panel, encoder, format.

    And the labels, of slides that have any: digests of the others are as they were before labels.
    """
    made_from = {
        "format": FORMAT,
        "slide": slide.id,
        "patient": slide.patient,
        "n_spots": slide.n_spots,
        "mpp": slide.mpp,
        "spot_diameter_um": slide.spot_diameter_um,
        "sources": dict(slide.sources),
        "panel": panel.to_json(),
        "contract": contract.to_json(),
    } | _labels(slide)
    if not slide.measured:  # where its spots lie is a choice, and no file says it
        made_from["spots"] = hashlib.sha256(slide.pixel_xy.tobytes()).hexdigest()
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def write_slide(
    out: pathlib.Path,
    slide: slides_lib.Slide,
    embeddings: np.ndarray,
    *,
    panel: genes_lib.Panel,
    contract: embeddings_lib.EncoderContract,
    shards: int | None = None,
) -> SlideInfo:
    """Write one slide's tfds directory under `out`, replacing an older one when it is complete.

    Args:
      out: the folder of all records.
      slide: the slide.
      embeddings: [l v c], row order = `slide.barcodes`, variant 0 the original patch.
      panel: its genes' counts are written.
      contract: how the embeddings were made.
      shards: files to spread the spots over; None for as few as keep each below 128 MB.

    Returns:
      What the records say about the slide.

    Raises:
      EncoderMismatchError: the width is not the contract's.
      RecordsError: the embeddings do not fit the spots or float16; more shards than spots.
      GenePanelError: the slide has no gene of the panel.
    """
    stored = _check_embeddings(slide, embeddings, contract)
    counts, mask = genes_lib.named_counts(slide, panel.genes)
    total = np.asarray(slide.counts.sum(axis=1), np.int64).reshape(-1)
    if total.max() > np.iinfo(np.int32).max:
        raise errors.SlideError(
            f"Slide {slide.id} has a spot with {total.max()} counts",
            expected="raw counts",
            fix="Check that the counts are not scaled",
        )
    shards = _shard_count(slide, stored, len(panel.genes), shards)
    thumbnail, scale = slide.image.thumbnail(THUMBNAIL_PX) if slide.image else (None, None)
    info = SlideInfo(
        id=slide.id,
        split=split_name(slide.id),
        patient=slide.patient,
        n_spots=slide.n_spots,
        mpp=float(slide.mpp),
        spot_diameter_um=float(slide.spot_diameter_um),
        patch_um=_patch_um(slide, contract),
        thumbnail_scale=None if scale is None else float(scale),
        sources=dict(slide.sources),
        notes=slide.notes + (() if no_image.is_of(contract) else _empty_notes(stored)),
        digest=slide_digest(slide, panel=panel, contract=contract),
        measured=slide.measured,
    )
    metadata = {
        "format": FORMAT,
        "genes": list(panel.genes),
        "variants": stored.shape[1],
        "panel": panel.to_json(),
        "contract": contract.to_json(),
        "slide": dataclasses.asdict(info),
    } | _labels(slide)
    rows = (
        {
            "embeddings": stored[i],
            "counts": counts[i],
            "mask": mask,
            "total": total[i],
            "array_xy": np.asarray(slide.array_xy[i], np.float32),
            "pixel_xy": np.asarray(slide.pixel_xy[i], np.float32),
            "barcode": slide.barcodes[i],
            "slide": slide.id,
        }
        for i in range(slide.n_spots)
    )
    config = _SpotsConfig(
        name=info.split, variants=stored.shape[1], width=stored.shape[2], genes=len(panel.genes)
    )
    target = slide_folder(pathlib.Path(out), slide.id)
    with integrity.published_folder(target) as folder:
        _generate(folder, config, rows, metadata, shards)
        if thumbnail is not None:
            path = folder / VERSION / THUMBNAIL
            Image.fromarray(thumbnail).save(path, quality=90, subsampling=0)
        shards_lib.write_sums(folder / VERSION)
        integrity.write_manifest(folder / VERSION)
    return info


def _generate(
    folder: pathlib.Path,
    config: _SpotsConfig,
    rows: Iterable[dict[str, Any]],
    metadata: dict[str, Any],
    shards: int,
) -> None:
    """Let tfds write into `folder`, leaving `folder`/VERSION and nothing else."""
    work = folder / "work"
    with _quiet_tfds(), _fields_in_order():
        builder = Spots(data_dir=work, config=config, rows=rows, metadata=metadata)
        # num_shards is the one option about shards that tfds heeds.
        options = tfds.download.DownloadConfig(try_download_gcs=False, num_shards=shards)
        builder.download_and_prepare(download_config=options)
    (work / DATASET / config.name / VERSION).rename(folder / VERSION)
    for left in sorted(work.rglob("*"), reverse=True):
        left.rmdir() if left.is_dir() else left.unlink()
    work.rmdir()


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Without tfds's prints, bars and its warning that the configuration is not a listed one."""
    verbosity = absl_logging.get_verbosity()
    tfds.disable_progress_bar()
    absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl_logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _fields_in_order() -> Iterator[None]:
    """Records whose fields are sorted: the same bytes in every process, hence the same hashes.

    protobuf writes a map's entries in an order that is another in each process, unless it is asked
    for a deterministic one, which tfds does not ask for.
    """
    usual = example_serializer.ExampleSerializer.serialize_example

    def serialize(self: example_serializer.ExampleSerializer, example: Any) -> bytes:
        return self.get_tf_example(example).SerializeToString(deterministic=True)

    example_serializer.ExampleSerializer.serialize_example = serialize
    try:
        yield
    finally:
        example_serializer.ExampleSerializer.serialize_example = usual


def _check_embeddings(
    slide: slides_lib.Slide, embeddings: np.ndarray, contract: embeddings_lib.EncoderContract
) -> np.ndarray:
    """The embeddings as float16 [l v c]."""
    if embeddings.ndim != 3 or len(embeddings) != slide.n_spots:
        raise errors.RecordsError(
            f"The embeddings of slide {slide.id} do not fit its spots",
            expected=f"({slide.n_spots}, variants, {contract.width})",
            found=str(embeddings.shape),
            fix="Join embeddings to spots by barcode, then pass them in the slide's order",
        )
    if embeddings.shape[2] != contract.width:
        raise errors.EncoderMismatchError(
            f"The embeddings of slide {slide.id} are not those of encoder {contract.name}",
            expected=f"width {contract.width}",
            found=f"width {embeddings.shape[2]}",
            fix="Embed the slide with the encoder that the contract names",
        )
    with np.errstate(over="ignore"):
        stored = embeddings.astype(np.float16)
    bad = ~np.isfinite(stored).all(axis=(1, 2))
    if bad.any():
        raise errors.RecordsError(
            f"{bad.sum()} of {len(stored)} spots of slide {slide.id} have embeddings that float16 "
            f"cannot hold, the first of them {slide.barcodes[int(bad.argmax())]}",
            expected="finite values within +-65504",
            found=f"{embeddings[bad].flat[~np.isfinite(stored[bad]).ravel()][0]}",
            fix="Check the encoder's output at these spots",
        )
    return stored


def _labels(slide: slides_lib.Slide) -> dict[str, dict[str, list[str]]]:
    """The part of the metadata and of what is hashed that holds the labels; empty without any."""
    return {"labels": {k: list(v) for k, v in slide.labels.items()}} if slide.labels else {}


def _patch_um(slide: slides_lib.Slide, contract: embeddings_lib.EncoderContract) -> float:
    if no_image.is_of(contract):
        return 0.0
    return float(contract.fov_um or patches.patch_side_px(slide, contract) * slide.mpp)


def _empty_notes(stored: np.ndarray) -> tuple[str, ...]:
    empty = int((stored[:, 0] == 0).all(axis=1).sum())
    return (f"{empty} spots have an embedding of zeros only: failed patches?",) if empty else ()


def _shard_count(
    slide: slides_lib.Slide, stored: np.ndarray, n_genes: int, shards: int | None
) -> int:
    if shards is None:
        row = stored[0].nbytes + n_genes * 5 + _OTHER_BYTES
        # Whole rows per shard, so that uneven division does not push one above the limit.
        return -(-slide.n_spots // max(1, SHARD_BYTES // row))
    if not 1 <= shards <= slide.n_spots:
        raise errors.RecordsError(
            f"Slide {slide.id} cannot be spread over {shards} shards",
            expected=f"1 to {slide.n_spots}, its number of spots",
            fix="Ask for fewer shards, or leave the option away",
        )
    return shards
