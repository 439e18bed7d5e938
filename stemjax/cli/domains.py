"""``stemjax domains``: spatial domains of a slide, scored against labels, with a map."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stemjax import names
from stemjax.cli import options, verify

if TYPE_CHECKING:
    import anndata

    from stemjax.eval import domains


def add(commands: options.Commands) -> None:
    """Adds the sub-command ``domains``."""
    parser = commands.add_parser(
        "domains", help="cluster a slide's spots into domains; score them against labels; draw them"
    )
    parser.add_argument(
        "prediction",
        type=pathlib.Path,
        metavar="FILE",
        help=".h5ad of `stemjax predict`, or any with X and obsm['spatial']",
    )
    parser.add_argument(
        "--use",
        default="X",
        metavar="X|KEY|measured|smoothed",
        help="what is clustered: predicted profiles, features in obsm such as X_stemjax, measured "
        "expression, or that averaged over neighbours (default: %(default)s)",
    )
    parser.add_argument(
        "--method",
        choices=names.DOMAIN_METHODS,
        default="kmeans",
        help="gmm: mixture of Gaussians; leiden: communities of a neighbour graph, needs "
        "stemjax[leiden] (default: %(default)s)",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--k",
        type=int,
        metavar="N",
        help="number of domains (default: that of the labels; without labels by silhouette, BIC "
        "or resolution 1)",
    )
    group.add_argument("--resolution", type=float, help="of leiden, in place of --k")
    _add_scoring(parser)
    parser.add_argument("--seed", type=int, default=0, help="of clustering and resamples")
    parser.add_argument(
        "-o",
        "--output",
        type=pathlib.Path,
        metavar="FILE",
        help=".h5ad to write, with obs['stemjax_domain']",
    )
    parser.add_argument(
        "--map", type=pathlib.Path, metavar="FILE", help=".png, .pdf or .svg of the domains"
    )
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="the numbers")
    verify.add_no_verify(parser)
    parser.set_defaults(run=_run)


def _add_scoring(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("scoring")
    group.add_argument("--label", metavar="NAME", help="column of obs to score against")
    group.add_argument(
        "--ignore",
        default="",
        metavar="NAMES",
        help="labels that do not count, comma-separated, such as undetermined",
    )
    group.add_argument(
        "--truth",
        metavar="DIRS|FILE",
        help="what was measured: record folders, comma-separated, or one .h5ad of raw counts "
        "(default: layers['counts'] of the file)",
    )
    group.add_argument(
        "--space",
        choices=names.VALUE_SPACES,
        help="value space of measured expression; the comparison adds log1p_cp10k, which takes the "
        "spots' depth out that otherwise decides much of a clustering (default: the prediction's)",
    )
    group.add_argument(
        "--resamples",
        type=int,
        default=500,
        metavar="N",
        help="for the intervals; 0 for none (default: %(default)s)",
    )


def _run(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from stemjax import errors
    from stemjax.eval import domain_features, domains, joining, plain, predict, truth

    ignore = names.split_names(args.ignore)
    if args.label is None and ignore:
        raise errors.ConfigError("--ignore", expected="--label beside it")
    with verify.as_asked(args):
        data, name = joining.read(args.prediction), str(args.prediction)
    measured = None
    if args.truth is not None:
        measured = domain_features.truth_of(data, truth.open_truth(args.truth), name=name)
    asked = {
        "use": args.use,
        "method": args.method,
        "k": args.k,
        "resolution": args.resolution,
        "ignore": ignore,
        "truth": measured,
        "space": args.space,
        "seed": args.seed,
        "name": name,
    }
    found = domains.find_domains(data, label=args.label, **asked)
    scored = None
    if args.label is not None:
        scored = domains.compare_domains(
            data, args.label, resamples=args.resamples, first=found, **asked
        )
    print(found.sentence)  # noqa: T201
    for domain, spots in enumerate(found.sizes):
        print(f"  domain {domain}: {spots} spots")  # noqa: T201
    if scored is not None:
        print("\n" + domains.table(scored), end="")  # noqa: T201
    domains.write_domains(data, found)
    if args.json:
        plain.write_json(domains.describe(found) | {"scored": scored}, args.json)
        print(f"wrote {args.json}")  # noqa: T201
    if args.map:
        _draw(data, found, args, ignore)
        print(f"wrote {args.map}")  # noqa: T201
    if args.output:
        predict.write(data, args.output)
        print(f"wrote {args.output}")  # noqa: T201


def _draw(
    data: anndata.AnnData, found: domains.Domains, args: argparse.Namespace, ignore: Sequence[str]
) -> None:
    """The labels, where there are some, and the domains."""
    from stemjax.eval import domain_features, plots, truth
    from stemjax.eval.plots import domains as domain_plots

    place = truth.of_positions(data, where=str(args.prediction))
    panels = {}
    if args.label is not None:
        classes, codes = domain_features.labels(data, args.label, ignore=ignore)
        panels[args.label] = [None if code < 0 else classes[code] for code in codes]
    made = f"domains: {found.clustering.method} of {found.features.use}"
    panels[made] = [None if code < 0 else str(code) for code in found.labels]
    args.map.parent.mkdir(parents=True, exist_ok=True)
    domain_plots.write_domain_maps(
        panels,
        plots.Tissue(xy=place.xy, diameter=place.diameter, unit=place.unit, image=place.image),
        args.map,
        title=str(dict(data.uns.get("stemjax", {})).get("slide", args.prediction.stem)),
    )
