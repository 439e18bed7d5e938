"""The whole way through, offline, on drawn sections whose law is known.

Sections are drawn, embedded, trained on, sampled and scored. Since the law that the counts follow
is known, the scores stand beside the exact conditional mean: the best that any model can do.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from stemjax import config, errors, tasks
from stemjax.data import drawing as draw
from stemjax.data import genes, prepare, records, slides, synthetic
from stemjax.train import loop, writers

if TYPE_CHECKING:
    import anndata

TRAIN, VAL, TEST = tuple(f"drawn-{number}" for number in range(1, 6)), "drawn-6", "drawn-7"
SPOTS = 600
LAW = synthetic.Law(seed=7)

type Progress = Callable[[int, int, str], None]


def default_config() -> Any:
    """Returns the demo's experiment, sized for two CPU cores (also ``configs/stem_demo.py``)."""
    c = config.default_config()
    c.name = "stem_demo"
    c.data.test, c.data.val = TEST, VAL
    c.model.width, c.model.depth, c.model.heads = 48, 3, 2
    c.diffusion.noise_mean, c.diffusion.noise_std = 0.0, 1.4
    c.diffusion.mean_fraction, c.diffusion.condition_noise = 0.25, 1.0
    c.optim.learning_rate, c.optim.schedule, c.optim.warmup = 3e-3, "cosine", 100
    c.optim.ema = 0.995
    c.train.batch, c.train.accumulate, c.train.steps = 128, 8, 1000
    c.train.validate_every = c.train.save_every = 200
    return c


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sections:
    """Drawn sections and what is known about them.

    Attributes:
      slides: the sections by id.
      states: the tissue state of each spot, [l k], by id.
    """

    slides: dict[str, slides.Slide]
    states: dict[str, np.ndarray]


def draw_sections(progress: Progress | None = None) -> Sections:
    """Returns the demo's seven sections, each of a patient of its own."""
    made, states, names = {}, {}, (*TRAIN, VAL, TEST)
    for number, name in enumerate(names):
        if progress:
            progress(number, len(names), "drawing sections")
        made[name], states[name] = draw.draw_section(
            LAW, seed=100 + number, id=name, patient=f"P{number + 1}", n_spots=SPOTS
        )
    return Sections(slides=made, states=states)


def run(
    out: pathlib.Path,
    *,
    progress: Progress | None = None,
    outputs: Callable[[int], writers.Writer] | None = None,
    experiment: config.Experiment | None = None,
    workers: int = 2,
) -> str:
    """Runs the demo into ``out`` and returns the text that the command prints.

    Writes ``prediction.h5ad``, ``metrics.json``, ``report.html`` and ``figures/*.png``, beside the
    records and the run they came from.

    Args:
      out: folder; a run that was cut short goes on where it stopped.
      progress: called with (done, total, what).
      outputs: makes a metrics writer for the training, given its number of steps.
      experiment: another experiment than `default_config`.
      workers: processes that embed patches.

    Raises:
      RecordsError, CheckpointMismatchError: ``out`` holds something else.
    """
    from stemjax.eval import predict

    if out.exists() and not out.is_dir():
        raise errors.RecordsError(f"{out} is a file", expected="a folder", fix="use another --out")
    experiment = experiment or config.resolve(default_config())
    sections = draw_sections(progress)
    source = prepare.prepare(
        sections.slides.__getitem__,
        tuple(sections.slides),
        out / "records",
        test=(TEST,),
        genes=genes.Panel(genes=LAW.genes, rule="all genes of the drawn law", slides=()),
        workers=workers,
        progress=progress,
    )
    trained = loop.train_shown(experiment, source, out / "run", outputs)
    draws = predict.predict_slide(
        trained, source, TEST, tasks.Sampling(mode="draws"), progress=progress
    )
    mean = predict.predict_slide(trained, source, TEST, tasks.Sampling(mode="mean"))
    predict.write(draws, out / "prediction.h5ad")
    return _score(out, sections, source, draws, mean)


def _score(
    out: pathlib.Path,
    sections: Sections,
    source: records.Records,
    draws: anndata.AnnData,
    mean: anndata.AnnData,
) -> str:
    """Writes scores and figures, and returns the text that shows them."""
    from stemjax.eval import combine, evaluate, plain, plots, report, tables

    exact = mean.copy()
    exact.X = _exact_mean(sections, source).astype(np.float32)
    done = evaluate.evaluate_all(
        draws, source, compare={"one evaluation": mean, "known law": exact}
    )
    found = evaluate.summarise(done, resamples=combine.RESAMPLES, seed=0)
    plain.write_json(found, out / "metrics.json")
    page = out / "report.html"
    plain.write_text(page, report.render(done, found, genes=("SYNM01", "SYNM02")))
    made = plots.write_figures(done[0][1].joined, out / "figures", gene="SYNM01")
    modes = out / "figures" / "modes.png"
    plots.density_figure(
        _mode_scores(sections, source, draws, mean),
        modes,
        title="Hidden modes: draws have both, a mean has neither",
        xlabel="mode score (-1 and +1 are the two modes of the law)",
    )
    written = (out / "prediction.h5ad", out / "metrics.json", page, *made, modes)
    return "\n".join(
        [
            tables.table(found),
            f"known law: the exact conditional mean on {TEST}, the best that any model can do.",
            "",
            *(f"wrote {path}" for path in written),
        ]
    )


def _mode_scores(
    sections: Sections,
    source: records.Records,
    drawn: anndata.AnnData,
    mean: anndata.AnnData,
) -> dict[str, np.ndarray]:
    """Returns the mode score of the truth, the draws and the mean of every spot."""
    names = source.genes
    true = np.log2(source.load((TEST,)).counts + 1.0)
    draws = np.asarray(drawn.obsm["stemjax_draws"])
    return {
        "measured": LAW.mode_contrast(true, genes=names),
        f"draws, {draws.shape[1]} a spot": LAW.mode_contrast(draws, genes=names),
        "mean, 1 evaluation": LAW.mode_contrast(np.asarray(mean.X), genes=names),
        "exact conditional mean": LAW.mode_contrast(_exact_mean(sections, source), genes=names),
    }


def _exact_mean(sections: Sections, source: records.Records) -> np.ndarray:
    """Returns E[log2(count + 1) | state] of the test section, rows and columns as the records'."""
    table = source.load((TEST,))
    place = {barcode: row for row, barcode in enumerate(sections.slides[TEST].barcodes)}
    rows = [place[barcode] for barcode in table.barcodes]
    return LAW.conditional_mean(sections.states[TEST])[np.ix_(rows, LAW.columns(source.genes))]
