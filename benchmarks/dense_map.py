"""A densified map beside the measured one and beside an interpolation, as one picture.

    uv run python benchmarks/dense_map.py DENSE.h5ad --gene KRT8 --png OUT.png

DENSE is what `stemjax densify` wrote. The interpolation is kriging of the measured spots, which
sees no image. All panels share one colour scale. The picture holds research data where the slide
is HER2ST's: look at it, do not commit it.
"""

from __future__ import annotations

import argparse
import pathlib

import anndata
import matplotlib
import matplotlib.cm
import matplotlib.colors

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from stemjax.eval import baselines, recovered
from stemjax.eval import truth as truths


def values_of(data: anndata.AnnData, gene: str) -> dict[str, np.ndarray]:
    """Returns the gene at every place: measured (NaN between spots), interpolated, predicted."""
    column = list(data.var_names).index(gene)
    observed = np.asarray(data.layers[recovered.OBSERVED])[:, column].astype(np.float64)
    place = truths.of_positions(data, where="the densified slide")
    known = np.isfinite(observed)
    kriged = baselines.kriging(place.xy[known], observed[known, None], place.xy, groups=1)
    return {
        "measured": observed,
        "kriging of the measured spots": kriged.mean[:, 0],
        "HisToSGE": np.asarray(data.X)[:, column],
    }


def main() -> None:
    """Draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dense", type=pathlib.Path, metavar="DENSE.h5ad")
    parser.add_argument("--gene", required=True)
    parser.add_argument("--png", type=pathlib.Path, required=True)
    args = parser.parse_args()
    data = anndata.read_h5ad(args.dense)
    if args.gene not in data.var_names:
        parser.error(f"no gene {args.gene}; there are {', '.join(data.var_names[:8])} ...")
    place = truths.of_positions(data, where=str(args.dense))
    panels = values_of(data, args.gene)
    finite = np.concatenate([v[np.isfinite(v)] for v in panels.values()])
    low, high = np.quantile(finite, [0.01, 0.99])
    figure, axes = plt.subplots(1, 3, figsize=(15, 5.2), layout="constrained")
    scale_of = matplotlib.cm.ScalarMappable(norm=matplotlib.colors.Normalize(low, high))
    for axis, (name, values) in zip(axes, panels.items(), strict=True):
        if place.image is not None:
            pixels, scale = place.image
            height, width = pixels.shape[:2]
            axis.imshow(pixels, extent=(0, width / scale, height / scale, 0), alpha=0.45)
        at = np.isfinite(values)
        size = 26 if at.all() else 60
        axis.scatter(
            *place.xy[at].T, c=values[at], s=size, norm=scale_of.norm, cmap=scale_of.cmap, lw=0
        )
        axis.set(title=f"{name}, {int(at.sum())} places", xticks=[], yticks=[], aspect="equal")
        margin = 150
        axis.set_xlim(place.xy[:, 0].min() - margin, place.xy[:, 0].max() + margin)
        axis.set_ylim(place.xy[:, 1].max() + margin, place.xy[:, 1].min() - margin)
    figure.colorbar(scale_of, ax=axes, shrink=0.8, label="log2(count + 1)")
    figure.suptitle(args.gene)
    figure.savefig(args.png, dpi=110)
    print(f"wrote {args.png}")


if __name__ == "__main__":
    main()
