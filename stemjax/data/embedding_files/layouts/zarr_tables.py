"""LazySlide's and wsidata's stores: a SpatialData zarr with a table of features for each encoder.

``tables/{model}_{tiles}`` is an AnnData whose X (n, d) has a row for each tile, named by
``obs["tile_id"]``; ``shapes/{tiles}/shapes.parquet`` holds the tiles as squares in level-0 pixels;
the store's attributes ``tile_spec`` and ``slide_properties`` say how they were cut. It is read with
zarr, anndata and pyarrow, without spatialdata.
"""

from __future__ import annotations

import math
import pathlib
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from stemjax.data.embedding_files import file as file_lib
from stemjax.data.embedding_files.file import COPY_AGAIN, EmbeddingFile, number, refused, shown
from stemjax.foreign import stores

DEPARTURES: Mapping[str, Mapping[str, Any]] = {
    "conch": {"projection": "proj_contrast"},
}
"""Where LazySlide's model of a name gives other vectors than the encoder's usual ones."""

_POLYGON = 3
_SAVE_AGAIN = "Open the store with a current spatialdata and write it again"


def is_one(path: pathlib.Path) -> bool:
    """Whether a folder is a zarr group."""
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zmetadata"))


def read(path: pathlib.Path, key: str | None) -> EmbeddingFile:
    """The features of a store's tiles.

    Args:
      path: the store.
      key: the table, ``{model}_{tiles}``, or the model; needed where there are several.

    Raises:
      EncoderMismatchError: there are none, several and none is named, or tiles do not fit them.
    """
    import zarr

    stores.require_harmless_zarr(path)
    store: Any = zarr.open_group(str(path), mode="r")
    tables = _tables(store)
    name = _choose(path, tables, key)
    table = tables[name]
    values: Any = table["X"] if "X" in table else None  # noqa: SIM401
    if not hasattr(values, "shape") or values.ndim != 2:
        raise refused(path, f"X of the table {shown(name)!r} is no dense table of features")
    file_lib.require_floats(path, f"X of the table {shown(name)!r}", np.dtype(values.dtype))
    parts = tuple(sorted(one for one in path.rglob("*") if one.is_file()))
    _require_held(path, table, sum(one.stat().st_size for one in parts))
    _require_whole(path, name, values)
    tile_ids, tiles = _tile_ids(path, table)
    corners, side = _corners(path, tiles, tile_ids)
    spec, properties = _attributes(store, tiles)
    mpp, px = number(path, spec, "mpp"), number(path, spec, "width")
    model = name.removesuffix(f"_{tiles}")
    return EmbeddingFile(
        path=path,
        layout="lazyslide",
        source="lazyslide",
        shape=(values.shape[0], 1, values.shape[1]),
        load=lambda start, stop: np.asarray(values[start:stop])[:, None],
        xy=corners,
        patch_px=side,
        fov_um=mpp * px if mpp and px else None,
        mpp=number(path, properties, "mpp"),
        stated={"name": model, **DEPARTURES.get(model, {})},
        notes=(f"the encoder is taken from the name of the table {shown(name)!r}",),
        parts=parts,
    )


def _tables(store: Any) -> dict[str, Any]:
    tables: Any = store["tables"] if "tables" in store else None  # noqa: SIM401
    names = tables.group_keys() if hasattr(tables, "group_keys") else ()
    return {name: tables[name] for name in sorted(names)}


def _choose(path: pathlib.Path, tables: Mapping[str, Any], key: str | None) -> str:
    named = [name for name in tables if "obs" in tables[name] and "tile_id" in tables[name]["obs"]]
    if key is not None:
        of_model = [name for name in named if name.startswith(f"{key}_")]
        if key in tables or len(of_model) == 1:
            return key if key in tables else of_model[0]
    elif len(named) == 1:
        return named[0]
    raise refused(
        path,
        "it is not clear which features are meant" if named else "it holds no features of tiles",
        expected=f"a table {shown(key)!r}" if key else "one table with tile_id, {model}_{tiles}",
        found=", ".join(map(shown, named or tables)) or "no table",
        fix="Name the table or the model: key=...",
    )


def _require_held(path: pathlib.Path, table: Any, held: int) -> None:
    """Refuses a table with an array that claims more than the whole store can hold."""
    arrays: Any = [table["X"], *_arrays(table["obs"]), *_arrays(table["uns"])]
    for one in arrays:
        for shape in (one.shape, one.chunks):
            what = f"the array {shown(one.path)!r}"
            file_lib.require_claim(path, what, shape, one.dtype.itemsize, held, packed=True)


def _arrays(group: Any) -> Iterator[Any]:
    for _, one in group.members(max_depth=None):
        if hasattr(one, "shape"):
            yield one


def _require_whole(path: pathlib.Path, name: str, values: Any) -> None:
    """Refuses features of which chunks are missing: they would be read as zeros."""
    if values.nchunks_initialized < values.nchunks:
        raise refused(
            path,
            f"X of the table {shown(name)!r} was not written to its end",
            expected=f"{values.nchunks} chunks",
            found=f"{values.nchunks_initialized}",
            fix=COPY_AGAIN,
        )


def _tile_ids(path: pathlib.Path, table: Any) -> tuple[list[str], str]:
    """The tile of each row, and the name of the shapes that they are among."""
    from anndata.io import read_elem  # imports for a second, so only here

    read: Any = read_elem
    obs = read(table["obs"])
    said = dict(read(table["uns/spatialdata_attrs"])) if "spatialdata_attrs" in table["uns"] else {}
    regions = said.get("region")
    if regions is None and "library_id" in obs:
        regions = obs["library_id"].unique().tolist()
    names = [regions] if isinstance(regions, str) else np.ravel(np.asarray(regions)).tolist()
    if len(names) != 1 or not isinstance(names[0], str) or pathlib.Path(names[0]).name != names[0]:
        raise refused(
            path,
            "the table of features does not name the tiles it is of",
            expected="one region in uns['spatialdata_attrs'], or in obs['library_id']",
            found=shown(regions),
            fix=_SAVE_AGAIN,
        )
    return [str(one) for one in obs["tile_id"]], names[0]


def _attributes(store: Any, tiles: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """How the tiles were cut, and the properties of the slide; empty where they are not stored."""
    attrs = dict(store.attrs)
    specs, properties = attrs.get("tile_spec"), attrs.get("slide_properties")
    spec = specs.get(tiles) if isinstance(specs, Mapping) else None
    return (
        spec if isinstance(spec, Mapping) else {},
        properties if isinstance(properties, Mapping) else {},
    )


def _corners(path: pathlib.Path, tiles: str, tile_ids: list[str]) -> tuple[np.ndarray, float]:
    """The upper left corner of each row's tile, and the side of tiles, in level-0 pixels."""
    boxes = _boxes(path, path / "shapes" / tiles / "shapes.parquet")
    missing = [one for one in tile_ids if one not in boxes]
    if missing:
        raise refused(
            path,
            f"{len(missing)} of {len(tile_ids)} rows of features are of no tile",
            expected=f"every tile_id among the shapes {shown(tiles)!r}",
            found=f"no tile {', '.join(map(shown, missing[:3]))}",
            fix="The slide was tiled again after it was embedded: embed it again",
        )
    taken = np.array([boxes[one] for one in tile_ids])
    sides = np.ravel(taken[:, 2:] - taken[:, :2])
    if not len(sides) or not np.isfinite(taken).all() or np.ptp(sides) > 1 or sides.min() <= 0:
        raise refused(
            path,
            f"the shapes {shown(tiles)!r} are no tiles of one size",
            expected="squares with equal sides",
            found=f"sides of {sides.min():g} to {sides.max():g} px" if len(sides) else "none",
            fix="Give features of square tiles",
        )
    return taken[:, :2], float(np.median(sides))


def _boxes(path: pathlib.Path, parquet: pathlib.Path) -> dict[str, tuple[float, ...]]:
    """(x0, y0, x1, y1) of each tile by its id."""
    if not parquet.is_file():
        raise refused(
            path,
            "the tiles of the features are not there",
            expected=str(parquet.relative_to(path)),
            found="no such file; stores of spatialdata before 0.3 have another form",
            fix=_SAVE_AGAIN,
        )
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise refused(
            path,
            "tiles are stored as parquet, which needs pyarrow",
            fix="pip install pyarrow",
        ) from error
    with pq.ParquetFile(parquet) as opened:
        columns = set(opened.schema_arrow.names)
        if "geometry" not in columns:
            raise refused(path, "the tiles have no geometry", found=", ".join(sorted(columns)))
        wanted = ["geometry", *({"tile_id"} & columns)]
        read: dict[str, list[Any]] = opened.read(columns=wanted).to_pydict()
    shapes = read["geometry"]
    ids: Iterable[Any] = read.get("tile_id", range(len(shapes)))
    boxes = {str(one): _bounds(path, shape) for one, shape in zip(ids, shapes, strict=True)}
    if len(boxes) < len(shapes):
        raise refused(path, "tile_id names two tiles", fix=_SAVE_AGAIN)
    return boxes


def _bounds(path: pathlib.Path, shape: Any) -> tuple[float, ...]:
    """Bounds of a polygon in well-known binary: byte order, type, rings, then points of each."""
    if not isinstance(shape, bytes) or len(shape) < 13 or shape[0] not in (0, 1):
        raise refused(path, "a tile is no polygon in well-known binary", fix=_SAVE_AGAIN)
    order = "<" if shape[0] else ">"
    kind, rings, points = struct.unpack_from(f"{order}III", shape, 1)
    if kind != _POLYGON or rings != 1 or len(shape) != 13 + 16 * points or not points:
        raise refused(
            path,
            "a tile is no square",
            expected="a polygon (well-known binary 3) of one ring",
            found=f"type {kind}, {rings} rings, {points} points, {len(shape)} bytes",
            fix="Give features of square tiles",
        )
    xy = np.frombuffer(shape, f"{order}f8", 2 * points, 13).reshape(points, 2)
    low, high = xy.min(0), xy.max(0)
    values = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
    return values if all(map(math.isfinite, values)) else (math.nan,) * 4
