"""What was measured on a slide, from record folders or from an AnnData file, in one form.

A prediction is scored against a `Truth`: raw counts, where the spots lie, and the image if there
is one. Records hold the embeddings too, which the rivals of a model are fitted on; a plain h5ad of
counts does not, and its scores stand beside the floors that need none.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from stemjax import errors
from stemjax.data import gene_matching, gene_names, hiding, raw_counts, transforms
from stemjax.data import records as spot_records
from stemjax.data.hdf5 import soundness
from stemjax.data.layouts import centres

if TYPE_CHECKING:
    import anndata


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """One slide's measurements.

    Attributes:
      slide: its id.
      patient: None where unknown.
      barcodes, genes: names of rows and columns.
      counts: raw counts, [l g].
      total: counts of each spot over all genes of the slide, [l].
      measured: genes that the slide measured at every spot, [g].
      array_xy: (column, row) on the array, [l 2].
      xy: spot centres, [l 2], in ``unit``.
      unit: ``um``, or ``px`` where the pixel size is unknown.
      diameter: of a spot, in ``unit``.
      image: uint8 [h w 3] and its pixels per ``unit``, or None.
      table: the slide's records, with embeddings; None for a file of counts.
      gene_ids: Ensembl ids of the genes, "" where unknown; empty where none is known.
    """

    slide: str
    patient: str | None
    barcodes: tuple[str, ...]
    genes: tuple[str, ...]
    counts: Int[np.ndarray, "l g"]
    total: Int[np.ndarray, " l"]
    measured: Bool[np.ndarray, " g"]
    array_xy: Float[np.ndarray, "l 2"]
    xy: Float[np.ndarray, "l 2"]
    unit: str
    diameter: float
    image: tuple[np.ndarray, float] | None
    table: spot_records.Table | None
    gene_ids: tuple[str, ...] = ()

    def named(self, genes: Sequence[str]) -> list[str]:
        """Names of genes as this slide has them: found by Ensembl id too, or in plain spelling.

        What is not found keeps its name. Nothing is renamed across species.
        """
        names = list(genes)
        if set(names) <= set(self.genes) or len(set(names)) < len(names):
            return names
        try:
            found = gene_matching.match(names, self.genes, self.gene_ids, where=self.slide)
        except errors.GenePanelError:
            return names
        pairs = zip(names, found.columns.tolist(), strict=True)
        return [self.genes[column] if column >= 0 else name for name, column in pairs]

    def values(self, space: str) -> Float[np.ndarray, "l g"]:
        """The counts in a value space, float64."""
        forward = transforms.get_transform(space).forward
        return np.asarray(forward(self.counts, self.total), np.float64)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Where truths come from: record folders, or one file of counts.

    Attributes:
      slides: ids of the slides.
      records: the record folders, or None for a file.
    """

    slides: tuple[str, ...]
    records: spot_records.Records | None
    _file: Truth | None = None

    def load(self, slide: str) -> Truth:
        """The truth of a slide.

        Raises:
          RecordsError: there is none of that id, or its records are damaged.
        """
        if self._file is not None:
            if slide != self._file.slide:
                raise errors.RecordsError(f"no truth of slide {slide!r}", expected=self._file.slide)
            return self._file
        assert self.records is not None
        return _of_records(self.records, slide)


def of_records(records: spot_records.Records) -> Source:
    """Record folders as the source of truths."""
    return Source(slides=tuple(records.slides), records=records)


def open_truth(text: str) -> Source:
    """Opens what ``--truth`` names: record folders, comma-separated, or one .h5ad of raw counts.

    Raises:
      RecordsError: there is nothing to read, or it is damaged.
      PredictionError: the .h5ad holds no raw counts or no coordinates.
    """
    if text.lower().endswith(".h5ad"):
        truth = read_counts(pathlib.Path(text))
        return Source(slides=(truth.slide,), records=None, _file=truth)
    from stemjax import names

    return of_records(spot_records.open_records(*names.split_names(text)))


def _of_records(records: spot_records.Records, slide: str) -> Truth:
    info = records.require(slide)
    if not info.measured:
        raise errors.PredictionError(
            f"slide {slide} was not measured: its records are of an image alone",
            expected="counts to compare with",
            fix="evaluate on slides with counts",
        )
    table = records.load([slide])
    image = None
    if info.thumbnail_scale is not None:
        pixels, scale = records.thumbnail(slide)
        image = pixels, scale / info.mpp
    return Truth(
        slide=slide,
        patient=info.patient,
        barcodes=table.barcodes,
        genes=tuple(records.genes),
        counts=np.asarray(table.counts),
        total=np.asarray(table.total),
        measured=np.asarray(table.mask != 0).all(axis=0),
        array_xy=np.asarray(table.array_xy, np.float64),
        xy=np.asarray(table.pixel_xy, np.float64) * info.mpp,
        unit="um",
        diameter=info.spot_diameter_um,
        image=image,
        table=table,
    )


def read_counts(path: pathlib.Path) -> Truth:
    """The truth in an AnnData file: raw counts in ``layers["counts"]``, ``raw`` or X.

    Coordinates are ``obsm["spatial"]`` (pixels), array positions ``obs`` array_row and array_col
    (without them the pixel positions in units of the spots' distance); pixel size, spot diameter
    and image come from ``uns["spatial"]`` as Space Ranger, scanpy and HEST write it. The slide's
    id is ``uns["spatial"]``'s key where that is one, else the file's name.

    Raises:
      PredictionError: the file cannot be read, or lacks counts or coordinates.
    """
    import anndata

    soundness.require_sound(path, errors.PredictionError)
    try:
        data = anndata.read_h5ad(path)
    except Exception as error:
        raise errors.PredictionError(
            f"{path} cannot be read ({type(error).__name__}: {error})", fix="copy the file again"
        ) from error
    try:
        return of_anndata(data, name=path.stem, where=str(path))
    except (LookupError, TypeError, ValueError, AttributeError) as error:  # of damaged parts
        raise errors.PredictionError(
            f"{path} has a part that cannot be used ({type(error).__name__}: {str(error)[:200]})",
            fix="copy the file again",
        ) from error


def of_anndata(data: anndata.AnnData, *, name: str, where: str) -> Truth:
    """The truth in an AnnData; as `read_counts`.

    Args:
      data: spots x genes.
      name: the slide's id where the data name none.
      where: what errors call it.
    """
    counts, names = _counts(data, where)
    _require_unique(list(data.obs_names), "spot", where)
    _require_unique(names, "gene", where)
    place = of_positions(data, where=where)
    genes, ids = _named_genes(data, names)
    return Truth(
        slide=place.library or name,
        patient=None,
        barcodes=tuple(map(str, data.obs_names)),
        genes=genes,
        counts=counts,
        total=counts.sum(axis=1),
        measured=np.ones(len(names), bool),
        array_xy=place.array_xy,
        xy=place.xy,
        unit=place.unit,
        diameter=place.diameter,
        image=place.image,
        table=None,
        gene_ids=ids,
    )


def _named_genes(
    data: anndata.AnnData, names: list[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Symbols and Ensembl ids of the genes, whichever of them the columns are called by.

    Ids are empty where none is known; symbols are taken from ``var`` where the names are ids, if
    every gene has one of its own.
    """

    def beside(columns: Sequence[str]) -> tuple[str, ...]:
        if list(map(str, data.var_names)) != names:
            return ()  # the genes are those of raw
        for column in columns:
            if column in data.var:
                return tuple("" if v != v or v is None else str(v) for v in data.var[column])
        return ()

    if gene_names.naming_of(names).kind != "ensembl":
        return tuple(names), beside(("gene_ids", "gene_id", "ensembl_id", "feature_id"))
    symbols = beside(("gene_name", "gene_symbols", "gene_symbol", "feature_name", "symbol"))
    if symbols and all(symbols) and len(set(symbols)) == len(symbols):
        return symbols, tuple(names)
    return tuple(names), tuple(names)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Positions:
    """Where the spots of an AnnData lie; fields as `Truth`'s, ``library`` None where unnamed."""

    library: str | None
    array_xy: Float[np.ndarray, "l 2"]
    xy: Float[np.ndarray, "l 2"]
    unit: str
    diameter: float
    image: tuple[np.ndarray, float] | None


def of_positions(data: anndata.AnnData, *, where: str) -> Positions:
    """The positions and the image in an AnnData; see `read_counts`.

    Raises:
      PredictionError: there are no coordinates, or one is not finite.
    """
    if "spatial" not in data.obsm:
        raise centres.missing(
            where, list(data.obsm), list(map(str, data.obs)), error=errors.PredictionError
        )
    pixel = np.asarray(data.obsm["spatial"], np.float64)
    if pixel.shape != (data.n_obs, 2) or not np.isfinite(pixel).all():
        raise errors.PredictionError(
            f'{where}: obsm["spatial"]',
            expected=f"finite numbers, {data.n_obs} x 2",
            found=f"shape {pixel.shape}, {int((~np.isfinite(pixel)).sum())} values not finite",
            fix="Store one finite (x, y) for each spot",
            case="D02",
        )
    spatial = data.uns.get("spatial", {})
    library = next(iter(spatial)) if isinstance(spatial, Mapping) and len(spatial) == 1 else None
    held: Mapping[str, Any] = spatial[library] if library is not None else {}
    factors = held.get("scalefactors", {})
    pitch = hiding.spot_distance(pixel)
    mpp = float(factors.get("microns_per_pixel", 0.0))
    unit, factor = ("um", mpp) if mpp > 0 else ("px", 1.0)
    if {"array_row", "array_col"} <= set(data.obs.columns):
        array = np.stack([data.obs["array_col"], data.obs["array_row"]], axis=1).astype(np.float64)
    else:
        array = pixel / pitch
    return Positions(
        library=None if library is None else str(library),
        array_xy=array,
        xy=pixel * factor,
        unit=unit,
        # Unknown diameters: discs that leave a gap between neighbours.
        diameter=float(factors.get("spot_diameter_fullres", 0.6 * pitch)) * factor,
        image=_image(held, factor),
    )


def _counts(data: anndata.AnnData, where: str) -> tuple[np.ndarray, list[str]]:
    """The first of layers["counts"], raw and X that holds whole numbers, and its genes."""
    candidates: list[tuple[str, Any, Sequence[str]]] = []
    if "counts" in data.layers:
        candidates.append(('layers["counts"]', data.layers["counts"], list(data.var_names)))
    if data.raw is not None:
        candidates.append(("raw.X", data.raw.X, list(data.raw.var_names)))
    if data.X is not None:
        candidates.append(("X", data.X, list(data.var_names)))
    seen, wrong = [], None
    spots = list(map(str, data.obs_names))
    for what, values, names in candidates:
        seen.append(what)
        try:
            counts = raw_counts.as_rows(values)
        except ValueError:  # no table, or none of numbers
            continue
        names = [str(name) for name in names]
        found = raw_counts.diagnose(counts, spots=spots, genes=names)
        if found is None:
            return counts.toarray().astype(np.int64), names
        wrong = found
    raise errors.PredictionError(
        f"{where} holds no raw counts",
        expected='whole numbers from 0 up in layers["counts"], raw.X or X',
        found=(f"other values in {', '.join(seen)}" if seen else "none of the three")
        + (f", {wrong.kind}, looks {wrong.looks}; first {wrong.found}" if wrong else ""),
        fix="give the file that holds the counts as measured",
        case=wrong.case if wrong else None,
    )


def _require_unique(found: Sequence[str], what: str, where: str) -> None:
    seen: set[str] = set()
    twice = sorted({n for n in found if n in seen or seen.add(n)})
    if twice:
        raise errors.PredictionError(
            f"{where} names {len(twice)} {what}{'s' * (len(twice) > 1)} more than once",
            expected=f"each {what} once",
            found=", ".join(map(repr, twice[:3])),
            fix=f"Rename them, or cut the file to one row or column for each {what}",
            case="D08" if what == "gene" else None,
        )


def _image(held: Mapping[str, Any], factor: float) -> tuple[np.ndarray, float] | None:
    """The image with the most pixels whose scale is known, and its pixels per unit."""
    images, factors = held.get("images", {}), held.get("scalefactors", {})
    best = None
    for name, pixels in images.items():
        scale, pixels = factors.get(f"tissue_{name}_scalef"), np.asarray(pixels)
        if scale is None or pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
            continue
        if best is None or pixels.size > best[0].size:
            best = pixels, float(scale) / factor
    if best is None:
        return None
    pixels = best[0][..., :3]
    if pixels.dtype.kind == "f":  # scanpy reads images as 0..1
        pixels = np.clip(pixels, 0, 1) * 255
    return pixels.astype(np.uint8), best[1]
