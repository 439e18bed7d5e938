"""Recovery on an exactly known field, where the best possible error is computed.

    uv run python benchmarks/field.py --json OUT

Sections of a hexagonal array are drawn from a Gaussian law of known covariance
(`stemjax.data.known_field`), half of the spots are hidden, and everything is scored on them. Two
bounds are computed from the law: the best prediction from the spot's own gene at the measured spots
(kriging with the true covariance), and the best from all genes. No prediction can be better, but by
the chance of one section's noise; the bounds' own errors on that noise stand in the table too.
docs/recovery.md quotes the run.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import harness
import numpy as np
import samplers

from stemjax import compilation, config, configfile, tasks
from stemjax.data import genes as gene_panels
from stemjax.data import known_field, prepare
from stemjax.eval import baselines, metrics, predict
from stemjax.train import loop

ROOT = pathlib.Path(__file__).resolve().parents[1]


def section_rows(
    law: known_field.KnownField, seed: int, side: int, folder: pathlib.Path
) -> dict[str, float]:
    """Returns the squared errors of one section's hidden spots, by row."""
    slide = law.make_slide(seed, rows=side, columns=side)
    source = prepare.prepare(
        lambda _: slide,
        [slide.id],
        folder / f"records_{seed}",
        genes=gene_panels.Panel(genes=law.genes, rule="the law's", slides=()),
        encoder="none",
    )
    values = configfile.load(
        str(ROOT / "configs" / "histosge.py"), [f"--config.data.recover={slide.id}"]
    )
    trained = loop.train_shown(config.resolve(values), source, folder / f"run_{seed}", None)
    made = predict.predict_slide(trained, source, slide.id, tasks.Sampling())
    measured = np.asarray(made.obs[predict.MEASURED], bool)
    xy, hidden = np.asarray(slide.pixel_xy, np.float64), ~measured
    y = law.sample(seed, slide.pixel_xy)
    near, true = y[measured], y[hidden]
    own = law.best(xy[measured], near, xy[hidden])[0]
    fitted = baselines.recovery_rows(
        measured, xy, y, None, leave_out=("ridge", "embedding kNN", "MLP", "ridge + neighbours")
    )
    each = {
        "best possible, all genes": own,
        **fitted.rows,
        "HisToSGE": np.asarray(made.X, np.float64)[hidden],
    }
    errors = {name: metrics.mse(pred, true) for name, pred in each.items()}
    return errors | {
        "expected: best possible, all genes": law.best_mse(xy[measured], xy[hidden]),
        "expected: best possible, each gene alone": law.kriging_mse(xy[measured], xy[hidden]),
    }


def tables(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    names = list(result["sections"][0])
    values = np.array([[section[name] for name in names] for section in result["sections"]])
    best = values[:, names.index("best possible, all genes")]
    rows = []
    for column, name in enumerate(names):
        own = values[:, column]
        error = own.std(ddof=1) / np.sqrt(len(own))
        above = own / best - 1
        rows.append([name, f"{own.mean():.4f} ± {error:.4f}", f"{above.mean():+.1%}"])
    head = ["row", "MSE", "above the best possible"]
    title = (
        f"{len(values)} sections of {result['spots']} spots, {result['genes']} genes, half hidden; "
        "standard error over sections"
    )
    return f"{title}\n\n{samplers.markdown(head, rows)}"


def main() -> None:
    """Draws, trains, scores; prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sections", type=int, default=3)
    parser.add_argument("--side", type=int, default=24, help="spots along each side")
    parser.add_argument("--genes", type=int, default=50)
    parser.add_argument("--json", type=pathlib.Path, help="default: in benchmarks/results")
    args = parser.parse_args()
    compilation.enable_cache()
    law = known_field.draw_field(0, n_genes=args.genes)
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        found = [section_rows(law, seed, args.side, folder) for seed in range(args.sections)]
    result = {
        **harness.surroundings(),
        "benchmark": "field",
        "spots": args.side**2,
        "genes": args.genes,
        "sections": found,
    }
    path = args.json or samplers.RESULTS / "field.json"
    harness.save(path, result)
    print(tables(result))
    print(f"\nwrote {path}")


if __name__ == "__main__":
    main()
