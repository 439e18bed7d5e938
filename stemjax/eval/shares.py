"""Evaluation of many slides by several processes, each of its share of them.

    files -> dealt one by one over the processes -> each evaluates its slides, one after another
          -> their results, as bytes, to the first process -> one table, in the order of the files

A process reads the predictions of its own share, and holds one at a time. What goes between the
processes is little: `slide_results`. One process is the run of one, and goes the same way.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from stemjax import distributed
from stemjax.eval import evaluate, joining, plots, regression, slide_results
from stemjax.eval import truth as truths
from stemjax.foreign import json_text
from stemjax.train import writers

if TYPE_CHECKING:
    import anndata


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What is evaluated, the same on all processes.

    Attributes:
      files: predictions, one a slide.
      source: as `evaluate.evaluate`, and so are the others.
      compare: files of further predictions of the same slides, by row name.
      resamples: for the intervals.
      seed: of resamples and baselines.
      foreign: what predictions of other tools do not say of themselves.
      leave_out: names of baselines not to fit.
      regression: as ``choice`` of `regression.backbone_rows`.
      workdir: where a regression that has to be trained is put.
    """

    files: Sequence[pathlib.Path]
    source: truths.Source
    compare: Mapping[str, Sequence[pathlib.Path]]
    resamples: int
    seed: int
    foreign: joining.Foreign
    leave_out: Sequence[str]
    regression: str
    workdir: pathlib.Path

    @property
    def mine(self) -> range:
        """Numbers of the files of this process's share."""
        return distributed.dealt(len(self.files))


def require_files(
    files: Sequence[pathlib.Path], compare: Mapping[str, Sequence[pathlib.Path]]
) -> None:
    """Checks that all files are there before the first is evaluated.

    Args:
      files: as `Job`.
      compare: as `Job`.

    Raises:
      PredictionError: one is not, or a row to compare has not one for each slide.
    """
    for row, given in compare.items():
        evaluate.require_one_each(row, given, len(files))
    for path in (*files, *(path for given in compare.values() for path in given)):
        if not path.is_file():
            joining.read(path)  # which says so


def evaluate_share(
    job: Job, *, line: Callable[[int], writers.Writer] | None = None
) -> list[slide_results.SlideResult]:
    """Returns the results of this process's share of the slides, in the order of their files.

    Args:
      job: what is evaluated.
      line: shows the training of a regression, given its number of steps.

    Raises:
      StemjaxError: as `evaluate.evaluate` and `regression.backbone_rows`; on all processes.
    """
    backbone = _backbone_rows(job, line)
    found = []
    with distributed.together():
        for number in job.mine:
            path = job.files[number]
            try:
                found.append(_evaluate(job, number, backbone.pop(number, None)))
            except Exception as error:
                if str(path) not in str(error):
                    error.add_note(f"while evaluating {path}")
                raise
    return found


def _backbone_rows(
    job: Job, line: Callable[[int], writers.Writer] | None
) -> dict[int, anndata.AnnData]:
    """The rows of the regression backbone of this process's share, by number."""
    if job.regression == "none" or job.source.records is None:
        return {}
    with distributed.together():
        origins = [regression.read_origin(path) for path in job.files]
    made = [origin for origin in origins if origin is not None]
    if len(made) < len(origins):
        return {}
    return regression.backbone_rows(
        made,
        job.source.records,
        job.regression,
        mine=job.mine,
        default_workdir=job.workdir,
        line=line if distributed.is_first() else None,
    )


def _evaluate(job: Job, number: int, backbone: anndata.AnnData | None) -> slide_results.SlideResult:
    """The result of one slide, of whose predictions nothing stays."""
    path = job.files[number]
    compare = {row: joining.read(files[number]) for row, files in job.compare.items()}
    if backbone is not None:
        compare[regression.ROW] = backbone
    ((prediction, one),) = evaluate.evaluate_all(
        joining.read(path),
        job.source,
        compare=compare,
        resamples=job.resamples,
        seed=job.seed,
        foreign=job.foreign,
        leave_out=job.leave_out,
        name=f"prediction {path}",
    )
    return slide_results.of_slide(prediction, one, resamples=job.resamples, seed=job.seed)


def gather(job: Job, mine: Sequence[slide_results.SlideResult]) -> list[slide_results.SlideResult]:
    """Returns the results of all processes in the order of the files; on the first process alone.

    Args:
      job: what was evaluated.
      mine: results of this process's share.
    """
    given = distributed.gather_dealt_bytes((one.to_bytes() for one in mine), len(job.files))
    # The others only pass on what they get.
    return [slide_results.from_bytes(one) for one in given if distributed.is_first()]


def draw_figures(job: Job, folder: pathlib.Path, *, gene: str | None) -> list[pathlib.Path]:
    """Writes the figures of this process's share, and returns those of all processes in order.

    Args:
      job: what was evaluated.
      folder: for a single slide; several have a folder each in it.
      gene: as `plots.write_figures`.

    Raises:
      GenePanelError: as `plots.write_figures`.
    """
    made = []
    with distributed.together():
        for number in job.mine:
            path = job.files[number]
            joined = joining.join(
                joining.read(path), job.source, name=f"prediction {path}", foreign=job.foreign
            )
            own = folder if len(job.files) == 1 else folder / joined.slide
            paths = plots.write_figures(joined, own, gene=gene)
            made.append(json.dumps([str(file) for file in paths]).encode())
    every = distributed.gather_dealt_bytes(made, len(job.files))
    return [pathlib.Path(file) for one in every for file in json_text.parse(one)]
