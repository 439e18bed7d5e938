"""``stemjax convert``: a prediction in the formats of other tools."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from stemjax import errors, names
from stemjax.cli import options, verify

if TYPE_CHECKING:
    from stemjax.integrations.prediction import Prediction

_OF = {
    "shape": ("qupath",),
    "objects": ("qupath",),
    "bare": ("png",),
    "pixel_um": ("ome-zarr",),
    "measured": ("measured",),
    "key_added": ("measured",),
}
"""Formats that each flag belongs to."""


def add(commands: options.Commands) -> None:
    """Adds the sub-command ``convert``."""
    parser = commands.add_parser(
        "convert", help="write a prediction for QuPath, Loupe, SpatialData and others"
    )
    parser.add_argument(
        "prediction", type=pathlib.Path, metavar="PREDICTION", help=".h5ad of `stemjax predict`"
    )
    parser.add_argument(
        "--to",
        choices=tuple(_WRITERS),
        required=True,
        help="qupath: GeoJSON, an object a spot with measurements; loupe: CSV files of groups and "
        "a projection; png: a figure a gene; ome-zarr: an image with a channel a gene; "
        "spatialdata: a zarr store, needs stemjax[spatialdata]; measured: layers of the measured "
        ".h5ad",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=pathlib.Path,
        required=True,
        metavar="OUT",
        help="a file for qupath and measured, which may replace an older one; else a new folder",
    )
    parser.add_argument(
        "--genes",
        metavar="A,B|FILE",
        help="genes, comma-separated or one a line of a file (default: 20 of the largest variance; "
        "all for spatialdata and measured)",
    )
    parser.add_argument(
        "--measured", type=pathlib.Path, metavar="FILE", help="the .h5ad to add the prediction to"
    )
    parser.add_argument(
        "--key-added", metavar="KEY", help="of measured: name of the layer (default: stemjax)"
    )
    parser.add_argument(
        "--shape", choices=("circle", "square"), help="of qupath's objects (default: circle)"
    )
    parser.add_argument(
        "--objects",
        choices=("detection", "annotation"),
        help="kind of qupath's objects; annotations can be edited (default: detection)",
    )
    parser.add_argument(
        "--bare",
        action="store_true",
        default=None,
        help="of png: pixels alone, one a spot, as grey .png and float32 .tiff",
    )
    parser.add_argument(
        "--pixel-um",
        type=float,
        metavar="UM",
        help="of ome-zarr: size of a pixel (default: an eighth of a spot, larger on huge slides)",
    )
    verify.add_no_verify(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from stemjax.integrations import prediction as predictions

    _require_used(args)
    with verify.as_asked(args):
        prediction = predictions.read(args.prediction)
        print(_WRITERS[args.to](prediction, args))  # noqa: T201


def _require_used(args: argparse.Namespace) -> None:
    """Refuses flags of another format than the one that is written."""
    for name, formats in _OF.items():
        if getattr(args, name) is not None and args.to not in formats:
            flag = f"--{name.replace('_', '-')}"
            raise errors.ConfigError(
                f"{flag} with --to {args.to}", expected=f"--to {' or '.join(formats)}"
            )
    if args.to == "measured" and args.measured is None:
        raise errors.ConfigError(
            "--to measured", expected="--measured FILE, the .h5ad to add the prediction to"
        )


def _genes(text: str | None) -> tuple[str, ...] | None:
    """The genes asked for, or None: names, or a file of them."""
    from stemjax.data import genes

    if text is None:
        return None
    if "," not in text and pathlib.Path(text).is_file():
        return genes.read_gene_list(text).genes
    return names.split_names(text)


def _qupath(prediction: Prediction, args: argparse.Namespace) -> str:
    from stemjax.integrations import qupath

    given: dict[str, Any] = {"shape": args.shape, "object_type": args.objects}
    given = {name: value for name, value in given.items() if value is not None}
    size = qupath.write(prediction, args.output, genes=_genes(args.genes), **given)
    return f"{args.output}: {len(prediction.barcodes)} spots, {size / 1e6:.1f} MB"


def _loupe(prediction: Prediction, args: argparse.Namespace) -> str:
    from stemjax.integrations import loupe

    files = loupe.write(prediction, args.output, genes=_genes(args.genes))
    return "\n".join(f"wrote {path}" for path in files)


def _png(prediction: Prediction, args: argparse.Namespace) -> str:
    from stemjax.integrations import gene_maps

    files = gene_maps.write(prediction, args.output, genes=_genes(args.genes), bare=bool(args.bare))
    return f"{args.output}: {len(files)} maps"


def _ome_zarr(prediction: Prediction, args: argparse.Namespace) -> str:
    from stemjax.integrations import ome_zarr

    channels, height, width = ome_zarr.write(
        prediction, args.output, genes=_genes(args.genes), pixel_um=args.pixel_um
    )
    return f"{args.output}: {channels} genes, {width} x {height} pixels"


def _spatialdata(prediction: Prediction, args: argparse.Namespace) -> str:
    from stemjax.integrations import spatialdata

    spatialdata.write(prediction, args.output, genes=_genes(args.genes))
    return f"{args.output}: {len(prediction.barcodes)} spots, system {prediction.slide}"


def _measured(prediction: Prediction, args: argparse.Namespace) -> str:
    import numpy as np

    from stemjax.eval import joining, predict
    from stemjax.integrations import measured

    key = "stemjax" if args.key_added is None else args.key_added
    data = joining.read(args.measured)
    measured.annotate(data, prediction, key_added=key, genes=_genes(args.genes))
    predict.write(data, args.output)
    about = data.uns[key]
    lines = [
        f"{args.output}: layers {', '.join(about['added_layers'])}; {about['genes_added']} genes "
        f"of {data.n_vars}, {about['spots_added']} spots of {data.n_obs}"
    ]
    if f"{key}_pcc" in data.var:
        pcc = np.asarray(data.var[f"{key}_pcc"], float)
        if np.isfinite(pcc).any():
            lines.append(
                f"  PCC over {about['spots_scored']} spots: {np.nanmean(pcc):.3f}, mean of "
                f"{np.isfinite(pcc).sum()} genes"
            )
    return "\n".join([*lines, *(f"  {note}" for note in about["warnings"])])


_WRITERS: dict[str, Callable[[Prediction, argparse.Namespace], str]] = {
    "qupath": _qupath,
    "loupe": _loupe,
    "png": _png,
    "ome-zarr": _ome_zarr,
    "spatialdata": _spatialdata,
    "measured": _measured,
}
