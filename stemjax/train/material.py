"""Data of a run: which slides and spots it trains on, laid out for the loop, and its card."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from stemjax import __version__, config, distributed, errors, mesh
from stemjax.data import corrupt, folds, pipeline, records, space, splits
from stemjax.data.decks import Held
from stemjax.data.hiding import Hiding
from stemjax.data.laid import Laid, lay_windows
from stemjax.data.shown import Shown
from stemjax.names import split_names
from stemjax.train import checkpoint
from stemjax.train import origin as origins

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Material:
    """Data of a run, laid out for it: what `gather` returns.

    ``val`` has this process's share of the ``val_rows`` validation spots
    (`distributed.share_of`), or all of them for models that see a spot's surroundings. ``laid`` are
    the windows that a row of a batch is, where it is not a spot.
    """

    card: checkpoint.Card
    view: pipeline.View
    schedule: pipeline.Schedule
    val: records.Table | None
    val_rows: int
    source: records.Records
    shown: Shown
    laid: Laid | None = None

    def rows(self) -> Iterator[Float[np.ndarray, "n g"]]:
        """The training rows' expression in the model's space, block by block."""
        return self.card.space.expression_blocks(self.shown.tables())


def choose_split(experiment: config.Experiment, patients: Mapping[str, str | None]) -> splits.Split:
    """Returns the slides' roles: by the manifest's fold, or by the lists of test and val slides.

    A patient on both sides is one line in the log at level warning, or with
    ``config.data.leakage=refuse`` an error.

    Args:
      experiment: says which slides are held out.
      patients: patient of each slide there is, None where unknown.

    Raises:
      SplitError: the slides held out do not fit those there are, or a patient is on both sides.
    """
    data = experiment.data
    if data.manifest:
        split = folds.read_fold(data.manifest, data.fold, patients)
    else:
        split = splits.make_split(
            patients,
            test=experiment.test_slides,
            val=experiment.val_slides,
            recover=experiment.recover_slides,
            train=split_names(data.train),
        )
    if data.leakage == "refuse":
        splits.require_apart(split)
    if split.leaks and jax.process_index() == 0:
        _log.warning(
            "LEAK: test slides share a patient with training (%s): every number on them is "
            "interpolation within a patient, not prediction for a new one",
            "; ".join(split.leaks),
        )
    return split


def gather(
    experiment: config.Experiment,
    source: records.Records,
    layout: mesh.Layout | None = None,
    origin: origins.Origin | None = None,
) -> Material:
    """Returns the view, the schedule and the card of an experiment on given records.

    Args:
      experiment: which slides, and how they become arrays.
      source: records of the slides.
      layout: devices for rows that lie there; one of them by default.
      origin: where the weights come from, whose space is then the run's; None is from chance.

    Raises:
      SplitError: slides held out that the records lack, or on which the panel was chosen, or that
        the weights to start from have seen.
      RecordsError: records cannot be read, or with ``config.data.on_corrupt=skip`` too many.
    """
    split = choose_split(experiment, source.patients)
    _require_measured(split, source)
    seen = split.seen_by_panel(source.panel.slides)
    if seen and not experiment.data.allow_seen_panel:
        raise errors.SplitError(
            f"test slide {', '.join(seen)}",
            expected="a gene panel chosen without it",
            found=f"a panel chosen on {', '.join(source.panel.slides)}",
            fix=f"run `stemjax prepare --test {','.join(split.test)}` into another folder, or set "
            "config.data.allow_seen_panel=True and say so beside the result",
        )
    if origin is not None:
        origins.require_unseen(origin.about, split)
    source = _readable(experiment, source, split)
    shown = choose_rows(experiment, source, split)
    if origin is not None:
        fitted = origin.space
    else:
        part, share = _dealt(len(split.fitted))
        fitted = space.Space.fit(
            shown.tables(part),
            genes=source.genes,
            transform=experiment.data.transform,
            standardise_expression=experiment.data.standardise_expression,
            standardise_condition=experiment.data.standardise_condition,
            share=share,
        )
    laid = None
    if experiment.window.kind != "none":
        laid = lay_windows(shown, experiment.window.kind, experiment.window.length)
    card = checkpoint.Card(
        experiment=experiment,
        space=fitted,
        contract=source.contract,
        split={**describe_split(split, source, shown.hiding), **corrupt.about(source)},
        panel=source.panel.to_json(),
        versions={
            "stemjax": __version__,
            **{name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")},
        },
        patch_um=_patch_range(split, source),
        start=None if origin is None else origin.about,
    )
    schedule = pipeline.Schedule(
        n=shown.n if laid is None else laid.windows.n,
        batch=experiment.train.batch,
        seed=experiment.seed,
        variants=source.variants if experiment.data.augment else 1,
        decks=experiment.data.decks,
    )
    return Material(
        card=card,
        view=pipeline.choose_view(
            source,
            split.fitted,
            fitted,
            **_lay_out(experiment, source, split.fitted, schedule, layout),
            shown=shown if split.recover else None,
            windows=laid,
        ),
        schedule=schedule,
        val=_load_share(experiment, source, split.val) if split.val else None,
        val_rows=source.count(split.val),
        source=source,
        shown=shown,
        laid=laid,
    )


def _readable(
    experiment: config.Experiment, source: records.Records, split: splits.Split
) -> records.Records:
    """Returns the records without the rows that cannot be read, where the configuration says so.

    All shards of the slides in use are looked at before anything else is done. A process that finds
    damage ends all, or all leave out the same.
    """
    used = {"training": split.fitted, "validation": split.val}
    slides = [slide for of in used.values() for slide in of]
    if experiment.data.on_corrupt == "error":
        with distributed.together():
            source.verify(slides)
        return source
    with distributed.together():
        mine = source.damage(slides)
    damage = corrupt.agree(distributed.gather_bytes(corrupt.pack(mine)))
    if not damage:
        return source.leave_out(())
    left = corrupt.leave_out(source, damage, used=used, share=experiment.data.corrupt_share)
    if distributed.is_first():
        _log.warning("SKIPPED: %s", corrupt.in_words(source, damage, used=used))
    return left


def _require_measured(split: splits.Split, source: records.Records) -> None:
    """Refuses slides that are an image alone: there is nothing to learn or to test on them."""
    alone = [s for s in (*split.fitted, *split.val) if not source.slides[s].measured]
    if alone:
        raise errors.SplitError(
            f"slide {', '.join(alone[:5])} of these records",
            expected="slides with counts, to train on",
            found="an image alone",
            fix="name the slides to train on: config.data.train, or prepare it into another folder",
        )


def _patch_range(split: splits.Split, source: records.Records) -> tuple[float, float] | None:
    """Returns how large the patches of the training slides are on the tissue."""
    sides = [source.slides[slide].patch_um for slide in split.fitted]
    return (min(sides), max(sides)) if sides and min(sides) > 0 else None


def _lay_out(
    experiment: config.Experiment,
    source: records.Records,
    slides: Sequence[str],
    schedule: pipeline.Schedule,
    layout: mesh.Layout | None,
) -> dict[str, Any]:
    """Returns where the rows lie, as `pipeline.choose_view` takes it; the same on all processes."""
    held = spread = None
    pieces = 1
    if layout is not None and schedule.decks > 1:
        share, shares = layout.share
        held = Held(schedule=schedule, process_index=share, process_count=shares)
        if schedule.decks % layout.pieces == 0:
            spread, pieces = layout.data, layout.pieces
    residence = pipeline.choose_residence(
        source,
        slides,
        residence=experiment.data.residence,
        held=held,
        pieces=pieces,
    )
    # A process with less memory than the others would choose for itself, and another program.
    frugal = distributed.gather(np.array(pipeline.RESIDENCES.index(residence))).max()
    return {
        "residence": pipeline.RESIDENCES[int(frugal)],
        "sharding": None if layout is None else layout.replicated,
        "held": held,
        "spread": spread,
    }


def _dealt(slides: int) -> tuple[tuple[int, int], space.Share | None]:
    """Returns which slides this process measures, and how the moments of all come together."""
    processes = jax.process_count()
    if processes == 1 or slides < processes:
        return (0, 1), None
    return (jax.process_index(), processes), functools.partial(
        distributed.gather_dealt, count=slides
    )


def _load_share(
    experiment: config.Experiment, source: records.Records, slides: Sequence[str]
) -> records.Table:
    if experiment.window.kind != "none":
        return source.load(slides)
    rows = source.source(slides)
    mine = distributed.share_of(len(rows))
    return rows.gather(np.arange(mine.start, mine.stop))


def choose_rows(
    experiment: config.Experiment, source: records.Records, split: splits.Split
) -> Shown:
    """Returns the rows that a run trains on: of slides to recover, those that are not hidden."""
    data = experiment.data
    hidden = Hiding(
        how=data.hide, share=data.hide_share, seed=data.hide_seed, block=data.hide_block
    )
    return Shown(
        records=source,
        slides=split.fitted,
        hiding=hidden if split.recover else None,
        partly=split.recover,
    )


def describe_split(
    split: splits.Split, source: records.Records, hiding: Hiding | None
) -> dict[str, Any]:
    """Returns the split as a card holds it."""
    seen = (*split.fitted, *split.val)
    found: dict[str, Any] = {
        "train": list(split.fitted),
        "val": list(split.val),
        "test": list(split.test),
        "kind": split.kind,
        "digests": {name: source.slides[name].digest for name in seen},
    }
    if hiding is None:
        return found
    return {**found, "recover": list(split.recover), "hiding": hiding.to_json()}
