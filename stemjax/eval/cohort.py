"""Prediction of many slides: bounded memory, restarted where it stopped, any number of processes.

    slides -> units (blocks of at most N spots, in order) -> dealt over processes by spots
    unit -> part on disk -> all parts of a slide -> its .h5ad, moved into place -> the index

The dealing is a function of the list of slides, and what is done is what lies in the folder: the
processes never talk to each other. A unit that is there is not predicted again. Randomness is a
function of (seed, slide, barcode), so neither the blocks nor the processes show in the results
beyond the rounding of other matrix shapes.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from stemjax import errors
from stemjax.data import disk, failures, integrity
from stemjax.eval import cohort_plan, draw_files, h5ad, labels, parts, predict, written
from stemjax.train import origin

if TYPE_CHECKING:
    import anndata

BLOCK = cohort_plan.BLOCK
Job = cohort_plan.Job
Unit = cohort_plan.Unit

type Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What has become of the slides that were asked for.

    Attributes:
      earlier: slides that were there before.
      done: slides with units of this process that are there now.
      failed: what went wrong here, by slide.
      waiting: slides of which other processes have units that are not there.
      spots: predicted here.
      seconds: that this took.
    """

    earlier: tuple[str, ...]
    done: tuple[str, ...]
    failed: dict[str, str]
    waiting: tuple[str, ...]
    spots: int
    seconds: float


def predict_cohort(
    job: Job,
    slides: Sequence[str],
    out: str | pathlib.Path,
    *,
    block: int = BLOCK,
    part: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Predicts slides into a folder, an .h5ad each, and returns what has become of them.

    What is there of the same request is kept. A slide that fails is listed, and the others go on.

    Args:
      job: what is asked of every slide.
      slides: their ids.
      out: the folder.
      block: spots of a unit; changes memory, not results.
      part: i and n: do the i-th of n shares, and leave the others to other processes. None takes
        this process's place in the distributed run that it is part of, if any.
      progress: called with spots done, spots of this share, and the slide.

    Raises:
      EncoderMismatchError, GenePanelError: the records do not fit the model.
      RecordsError: there are no records of a slide.
      PredictionError: the folder has predictions of the slides of another request.
      ConfigError: a mode or sampler that the model was not trained for, or no slides.
      ResourceError: the disk is full; the same call goes on from there when it is not.
    """
    origin.require_fit(job.trained.card, job.source)
    if not slides:
        raise errors.ConfigError("slides to predict", expected="at least one", found="none")
    units, out = cohort_plan.plan(job, slides, block), pathlib.Path(out)
    mine = cohort_plan.deal(
        units, (jax.process_index(), jax.process_count()) if part is None else part
    )
    requests = {unit.slide: job.request(unit.slide) for unit in units}
    earlier = tuple(slide for slide in requests if written.is_done(out, slide, requests[slide]))
    left = sum(unit.spots for unit in units if unit.slide not in earlier)
    h5ad.warn_if_short(out, job.trained, job.sampling, spots=left, summary=job.summary)
    out.mkdir(parents=True, exist_ok=True)
    for slide in earlier:  # a process can die between a file's last move and this
        shutil.rmtree(written.workplace(out, slide), ignore_errors=True)
    run = _Run(job, out, requests, block, mine, earlier, progress)
    started = time.monotonic()
    for slide in dict.fromkeys(unit.slide for unit in mine):
        run.attempt(slide, [unit for unit in mine if unit.slide == slide])
    # Slides whose last part came while somebody else, now dead, was putting them together.
    for unit in units:
        if unit.number == 0 and unit.count > 1 and unit.slide not in earlier:
            run.attempt(unit.slide, [], count=unit.count)
    run.write_index()
    return Outcome(
        earlier=earlier,
        done=tuple(
            slide
            for slide in dict.fromkeys(unit.slide for unit in mine)
            if slide not in earlier and written.file_of(out, slide).exists()
        ),
        failed=run.failed,
        waiting=written.waiting(out, [slide for slide in requests if slide not in run.failed]),
        spots=run.spots,
        seconds=time.monotonic() - started,
    )


class _Run:
    """One process's work on a folder."""

    def __init__(
        self,
        job: Job,
        out: pathlib.Path,
        requests: dict[str, dict[str, Any]],
        block: int,
        mine: Sequence[Unit],
        earlier: Sequence[str],
        progress: Progress | None,
    ) -> None:
        self.job, self.out, self.requests, self.block = job, out, requests, block
        self.failed: dict[str, str] = {}
        self.spots = 0
        self._progress, self._seen = progress, {}
        self._total = sum(unit.spots for unit in mine)
        there = [unit for unit in mine if unit.slide in earlier or self._is_there(unit)]
        self._done = sum(unit.spots for unit in there)
        slides = list(dict.fromkeys(unit.slide for unit in mine))
        self._names = {
            slide: f"slide {i} of {len(slides)}, {slide}" for i, slide in enumerate(slides, start=1)
        }
        if mine:
            self._tell(0, self._names[slides[0]])

    def attempt(self, slide: str, units: Sequence[Unit], count: int = 0) -> None:
        """Predicts units of a slide, and finishes it if nothing of it is missing; notes failure."""
        if slide in self.failed or written.is_done(self.out, slide, self.requests[slide]):
            return
        try:
            if units and units[0].count == 1:
                self._predict_at_once(units[0])
            else:
                self._predict_parts(slide, units)
                self._finish(slide, units[0].count if units else count)
        except errors.ConfigError:
            raise  # the same of every slide
        except errors.ResourceError as error:
            if disk.is_full(error):
                raise  # no other slide could be kept either
            self._note(slide, units, error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other slides go on
            self._note(slide, units, error)

    def _note(self, slide: str, units: Sequence[Unit], error: Exception) -> None:
        self.failed[slide] = str(failures.record(self.out, slide, error))
        self._done += sum(unit.spots for unit in units if not self._is_there(unit))

    def write_index(self) -> None:
        """Writes the index of what is in the folder now."""
        written.write_index(self.out, self._seen)

    def _predict_at_once(self, unit: Unit) -> None:
        """Predicts a slide of one unit."""
        job, started = self.job, time.monotonic()
        result = predict.predict_slide(
            job.trained, job.source, unit.slide, job.sampling, seed=job.seed, rows=job.rows,
            summary=job.summary, steer=job.steer, divergence=job.divergence,
            progress=self._watch(unit),
        )  # fmt: skip
        about = self._about(unit.slide)
        if job.draws == "zarr":
            self._take_draws(unit, result)
        result.uns["stemjax"] |= {**about, written.SECONDS: time.monotonic() - started}
        self._count(unit)
        self._publish_draws(unit.slide)
        predict.write(result, written.file_of(self.out, unit.slide))
        self._clear(unit.slide)

    def _predict_parts(self, slide: str, units: Sequence[Unit]) -> None:
        """Predicts those of some units that are not there, a block at a time."""
        job, where = self.job, self._where(slide)
        missing = [unit for unit in units if not self._is_there(unit)]
        if not missing:
            return
        integrity.remove_stale(where)
        tables = job.source.blocks(
            slide, rows=self.block, numbers=[unit.number for unit in missing], variants=1
        )
        for unit in missing:
            started = time.monotonic()
            result = predict.predict_rows(
                job.trained, job.source, next(tables), job.sampling, seed=job.seed, rows=job.rows,
                summary=job.summary, steer=job.steer, progress=self._watch(unit),
            )  # fmt: skip
            if job.draws == "zarr":
                self._take_draws(unit, result)
            parts.write(where, unit.number, result, time.monotonic() - started)
            self._count(unit)

    def _finish(self, slide: str, count: int) -> None:
        """Puts a slide's parts together if all are there and no live process is doing so."""
        where = self._where(slide)
        if not all(parts.is_there(where, number) for number in range(count)):
            return
        with parts.claimed(where) as ours:
            if not ours:
                return
            if wrong := parts.damaged(where, count):
                for number in wrong:
                    shutil.rmtree(where / f"{number:06d}", ignore_errors=True)
                units = [
                    u for u in cohort_plan.plan(self.job, [slide], self.block) if u.number in wrong
                ]
                self._predict_parts(slide, units)
            source, spots = self.job.source, self.job.source.require(slide).n_spots
            unread = ("",) * spots if source.labels(slide) else ()  # barcodes: only counted
            needed = sum(file.stat().st_size for file in where.glob(f"*/{parts.FILE}"))
            target = written.file_of(self.out, slide)
            with integrity.published_file(target, needed=needed) as whole:
                parts.assemble(
                    where,
                    count,
                    whole,
                    spots=spots,
                    labels=labels.label_columns(source, slide, unread),
                    about=self._about(slide),
                )
                self._publish_draws(slide)
            self._clear(slide)

    def _take_draws(self, unit: Unit, result: anndata.AnnData) -> None:
        """Moves the draws of a unit from its prediction to the store of its slide."""
        where, slide = self._where(unit.slide), self.job.source.require(unit.slide)
        store, draws = where / "draws.zarr", np.asarray(result.obsm.pop(predict.DRAWS))
        with disk.writing(store, draws.nbytes, fix=integrity.FREE_SPACE):
            draw_files.create(
                store,
                (slide.n_spots, draws.shape[1], draws.shape[2]),
                block=self.block,
                about={
                    **draw_files.describe(result),
                    written.REQUEST: self.requests[unit.slide],
                },
            )
            draw_files.write(store, unit.number * self.block, draws)

    def _about(self, slide: str) -> dict[str, Any]:
        """Returns what a prediction says beyond what one of a single slide does."""
        about = {written.REQUEST: json.dumps(self.requests[slide], sort_keys=True)}
        if self.job.draws == "zarr":
            about["draws"] = written.draws_of(self.out, slide).name
        return about

    def _publish_draws(self, slide: str) -> None:
        """Moves a slide's draws into their place, before the file, which says that all is done."""
        store = self._where(slide) / "draws.zarr"
        if store.is_dir():
            draw_files.publish(store, written.draws_of(self.out, slide))

    def _clear(self, slide: str) -> None:
        """Removes what a finished slide was put together from."""
        failures.forget(self.out, slide)
        shutil.rmtree(written.workplace(self.out, slide), ignore_errors=True)
        self.write_index()

    def _where(self, slide: str) -> pathlib.Path:
        name = f"{written.digest(self.requests[slide])[:16]}-{self.block}"
        return written.workplace(self.out, slide) / name

    def _is_there(self, unit: Unit) -> bool:
        return unit.count > 1 and parts.is_there(self._where(unit.slide), unit.number)

    def _count(self, unit: Unit) -> None:
        self.spots += unit.spots
        self._done += unit.spots
        self._tell(0, self._names.get(unit.slide, unit.slide))

    def _watch(self, unit: Unit) -> Progress:
        return lambda done, total, what: self._tell(done, self._names.get(unit.slide, unit.slide))

    def _tell(self, more: int, name: str) -> None:
        if self._progress is not None:
            self._progress(min(self._done + more, self._total), self._total, name)
