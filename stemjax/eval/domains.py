"""Spatial domains: spots clustered, scored against labels beside what needs no model.

The rows of a comparison are the features asked for, measured expression as it is and averaged over
neighbours, both with and without the spots' depth, and the positions alone: regions of a section
are compact, so any compact partition agrees with them a little, and a score says nothing without
that floor.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from stemjax import errors
from stemjax.eval import clustering, combine, domain_features, joining, metrics, tables
from stemjax.eval import truth as truths
from stemjax.eval.metrics import partitions

if TYPE_CHECKING:
    import anndata

COLUMN = "stemjax_domain"
"""Column of ``obs`` that domains are written to."""

SCORES = {
    "ari": ("ARI", partitions.adjusted_rand),
    "nmi": ("NMI", partitions.normalised_mutual_information),
    "ami": ("AMI", partitions.adjusted_mutual_information),
}
"""Title and function of each score; all have 1 as their best value."""

# A mixture estimates a variance of each component in each cluster: of 30, most would be noise.
# (HER2ST, 8 sections, measured expression: ARI with expression clusters .23 of 10, .19 of 30.)
_COMPONENTS = {"kmeans": 30, "gmm": 10, "leiden": 30}

_ROW_NAMES = {
    "X": "predicted expression",
    domain_features.MEASURED: "measured",
    domain_features.SMOOTHED: "smoothed",
    domain_features.POSITION: "position alone",
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Domains:
    """The domains of a slide.

    Attributes:
      labels: domain of each point of the AnnData, -1 where it has no features, [n].
      clustering: how they were found.
      features: what of.
      seed: of the clustering.
    """

    labels: Int[np.ndarray, " n"]
    clustering: clustering.Clustering
    features: domain_features.Features
    seed: int

    @property
    def sizes(self) -> list[int]:
        """Spots of each domain, the largest first."""
        return [int(n) for n in np.bincount(self.clustering.labels)]

    @property
    def sentence(self) -> str:
        """What was clustered, how, and into how many domains."""
        settings = self.clustering.settings
        about = self.features.about
        kept = f", {about['components']} principal components" if "components" in about else ""
        space = self.features.space
        kept = (f" in {joining.VALUE_SPACES[space]}" if space else "") + kept
        how = {
            "gmm": f", {settings.get('covariance')} covariance",
            "leiden": f", resolution {settings.get('resolution', 0):.3g}",
        }.get(self.clustering.method, "")
        return (
            f"{self.clustering.k} domains of {len(self.features.values)} spots: "
            f"{self.clustering.method}{how} of {self.features.use}{kept}; number of domains: "
            f"{self.clustering.chosen}."
        )


def find_domains(
    data: anndata.AnnData,
    use: str = "X",
    *,
    method: str = "kmeans",
    k: int | None = None,
    resolution: float | None = None,
    label: str | None = None,
    ignore: Collection[str] = (),
    truth: truths.Truth | None = None,
    space: str | None = None,
    seed: int = 0,
    name: str = "the prediction",
) -> Domains:
    """Clusters the points of a slide; the order of its rows does not matter.

    Args:
      data: a prediction, or any AnnData with the features.
      use: what is clustered; see `domain_features.features`.
      method: see `clustering.cluster`.
      k: number of domains; None takes as many as ``label`` has classes, and without a label what
        the method chooses.
      resolution: of ``leiden``, in place of both.
      label: a column of ``obs``.
      ignore: classes of the label that do not count.
      truth: what was measured, for ``measured`` and ``smoothed``.
      space: their value space; None takes the prediction's.
      seed: of the clustering.
      name: what errors call ``data``.

    Raises:
      PredictionError: features or labels are missing or cannot be used.
      ConfigError: a method, number or resolution that cannot be, or libraries are missing.
    """
    of_label = False
    if k is None and label is not None and resolution is None:
        k, of_label = len(domain_features.labels(data, label, ignore=ignore, name=name)[0]), True
    found = domain_features.features(
        data, use, truth=truth, space=space, components=_COMPONENTS.get(method, 30), name=name
    )
    # Methods draw their starts from rows: in the order of barcodes these are always the same.
    order = np.argsort(np.asarray(data.obs_names, str)[found.rows], kind="stable")
    made = clustering.cluster(found.values[order], method, k=k, resolution=resolution, seed=seed)
    made = dataclasses.replace(
        made,
        labels=made.labels[np.argsort(order)],
        chosen=f"as many as {label} has labels"
        if of_label and made.chosen == "given"
        else made.chosen,
    )
    labels = np.full(data.n_obs, -1, np.int64)
    labels[found.rows] = made.labels
    return Domains(labels=labels, clustering=made, features=found, seed=seed)


def write_domains(data: anndata.AnnData, found: Domains) -> None:
    """Adds ``obs["stemjax_domain"]``, categories "0", "1" and so on, missing where there is none.

    ``uns["stemjax_domains"]`` says how they were found.
    """
    names = [str(i) for i in range(found.clustering.k)]
    data.obs[COLUMN] = pd.Categorical.from_codes(found.labels, categories=names)
    about = describe(found)
    data.uns["stemjax_domains"] = about | {"settings": json.dumps(about["settings"])}


def describe(found: Domains) -> dict[str, Any]:
    """How domains were found and how large they are, in plain values."""
    return {
        "use": found.features.use,
        "method": found.clustering.method,
        "k": found.clustering.k,
        "chosen": found.clustering.chosen,
        "seed": found.seed,
        "sizes": found.sizes,
        "settings": {**found.features.about, **found.clustering.settings},
    }


def compare_domains(
    data: anndata.AnnData,
    label: str,
    *,
    use: str = "X",
    beside: Sequence[str] = (),
    method: str = "kmeans",
    k: int | None = None,
    resolution: float | None = None,
    ignore: Collection[str] = (),
    truth: truths.Truth | None = None,
    space: str | None = None,
    seed: int = 0,
    resamples: int = combine.RESAMPLES,
    first: Domains | None = None,
    name: str = "the prediction",
) -> dict[str, Any]:
    """Domains of ``use`` beside those of measured expression, smoothed or not, and of positions.

    Measured expression has a row in each of `domain_features.value_spaces`, so that nothing wins by
    the choice of the weaker one. All rows have one method and one number of domains, and are scored
    on the spots that have a label and a domain in each row. Intervals are of blocks of spots, the
    same in each row, so the differences are paired.

    Args:
      data: as `find_domains` takes it, with positions.
      label: column of ``obs`` that the domains are scored against.
      use: features of the first row.
      beside: features of further rows, such as other slots of the prediction.
      method: of all rows.
      k: of all rows; None takes the number of labels.
      resolution: of ``leiden`` in the first row; the others take its number of domains.
      ignore: classes of the label that do not count.
      truth: what was measured; without it ``layers["counts"]`` is taken, where there is one.
      space: first value space of measured expression; None takes the prediction's.
      seed: of clusterings and resamples.
      resamples: of blocks; 0 for no intervals.
      first: the first row's domains, where they are known already.
      name: what errors call ``data``.

    Returns:
      Plain values: ``rows`` with name, ``use``, ``space``, ``k`` and ``scores`` (``ari``, ``nmi``,
      ``ami``: value and interval), below the first ``first_minus_row`` (difference, interval,
      verdict);
      ``classes`` with the spots of each label, ``spots``, ``intervals`` and ``notes``.

    Raises:
      PredictionError, ConfigError: as `find_domains`; positions are missing.
    """
    shared: dict[str, Any] = {"method": method, "truth": truth, "seed": seed, "name": name}
    classes, codes = domain_features.labels(data, label, ignore=ignore, name=name)
    if first is None:
        first = find_domains(
            data, use, k=k, resolution=resolution, label=label, ignore=ignore, space=space, **shared
        )
    found, notes = [first], []
    others: list[tuple[str, str | None]] = [(other, None) for other in beside]
    if truth is not None or "counts" in data.layers:
        spaces = domain_features.value_spaces(data, space)
        measured = (domain_features.MEASURED, domain_features.SMOOTHED)
        others += itertools.product(measured, spaces)
    else:
        notes.append("no measured expression was given: its rows are left out")
    for other in (*others, (domain_features.POSITION, None)):
        if other != (first.features.use, first.features.space):
            found.append(
                find_domains(data, other[0], k=first.clustering.k, space=other[1], **shared)
            )
    scored = (codes >= 0) & np.all([one.labels >= 0 for one in found], axis=0)
    if len(np.unique(codes[scored])) < 2:
        raise errors.PredictionError(
            f"{name}: spots with a label {label!r} and features in every row",
            expected="some of two labels or more",
            found=f"{int(scored.sum())} spots",
        )
    array_xy = domain_features.array_positions(data, scored, name=name)
    drawn = metrics.resample(metrics.spatial_blocks(array_xy), count=resamples, seed=seed)
    unit = combine.choose_unit((None,), (drawn.times.shape[1],), resamples=drawn.count, seed=seed)
    values = [score(one.labels[scored], codes[scored], drawn) for one in found]
    rows = []
    for one, of_row in zip(found, values, strict=True):
        row: dict[str, Any] = {
            "name": _row_name(one.features),
            "use": one.features.use,
            "space": one.features.space,
            "features": dict(one.features.about),
            "k": one.clustering.k,
            "scores": {
                key: {"value": v[0], "interval": metrics.interval(v[1:], level=combine.LEVEL)}
                for key, v in of_row.items()
            },
        }
        if rows:
            row["first_minus_row"] = {
                key: difference(values[0][key], of_row[key]) for key in SCORES
            }
        rows.append(row)
    counts = np.bincount(codes[scored], minlength=len(classes))
    return {
        "label": label,
        "classes": {entry: int(n) for entry, n in zip(classes, counts, strict=True)},
        "left_out": sorted(ignore),
        "spots": int(scored.sum()),
        "method": method,
        "seed": seed,
        "domains": first.sentence,
        "rows": rows,
        "intervals": {
            "of": unit.name,
            "count": unit.count,
            "resamples": unit.resamples,
            "sentence": unit.sentence,
        },
        "notes": notes,
    }


def _row_name(features: domain_features.Features) -> str:
    """What a row clusters, in words: measured expression by its value space."""
    name = _ROW_NAMES.get(features.use, f"features {features.use}")
    return name if features.space is None else f"{name}, {joining.VALUE_SPACES[features.space]}"


def score(
    domains: Int[np.ndarray, " l"], codes: Int[np.ndarray, " l"], resamples: metrics.Resamples
) -> dict[str, Float[np.ndarray, " r"]]:
    """Each of `SCORES` on the slide (row 0) and on its resamples, centred on the slide's.

    A block that is drawn twice is beside its own copy, which agrees with it in both partitions, so
    resamples score higher than the slide: by .03 ARI for unrelated maps of 18 x 18 spots. Their
    mean is brought back to the slide's score, or intervals would flatter, and flatter compact
    partitions more.
    """
    table = partitions.contingency(codes, domains, resamples)
    found = {}
    for key, (_, function) in SCORES.items():
        values = function(table)
        if resamples.count:
            values[1:] = np.minimum(values[1:] - values[1:].mean() + values[0], 1.0)
        found[key] = values
    return found


def difference(ours: Float[np.ndarray, " r"], theirs: Float[np.ndarray, " r"]) -> dict[str, object]:
    """Ours minus theirs on the same resamples, of scores that are better when higher.

    Returns:
      ``difference``, ``interval`` and ``verdict``, in the words of `combine.difference`.
    """
    bounds = metrics.interval(ours[1:] - theirs[1:], level=combine.LEVEL)
    verdict = "unknown"
    if bounds is not None:
        low, high = bounds
        verdict = "better" if low > 0 else "worse" if high < 0 else "not distinguishable"
    return {"difference": float(ours[0] - theirs[0]), "interval": bounds, "verdict": verdict}


def table(found: Mapping[str, Any]) -> str:
    """The result of `compare_domains` for a terminal, with the verdicts in words."""
    titles = {key: title for key, (title, _) in SCORES.items()}
    cells = [
        [
            row["name"],
            str(row["k"]),
            *(
                tables.number(row["scores"][key]["value"], 3, row["scores"][key]["interval"])
                for key in titles
            ),
        ]
        for row in found["rows"]
    ]
    head = ["", "domains", *(f"{title} [95 %]" for title in titles.values())]
    classes = ", ".join(f"{entry} {n}" for entry, n in found["classes"].items())
    left_out = f" (left out: {', '.join(found['left_out'])})" if found["left_out"] else ""
    lines = [
        f"Against {found['label']}, {found['spots']} spots: {classes}{left_out}.",
        "",
        tables.markdown(head, cells),
        "",
    ]
    lines += [_differences(found), ""]
    if any(row["use"] == domain_features.SMOOTHED for row in found["rows"]):
        lines.append("Smoothed: measured values averaged over each spot and its neighbours.")
    notes = [note[0].upper() + note[1:] + "." for note in found["notes"]]
    return "\n".join([*lines, *notes, found["intervals"]["sentence"]]) + "\n"


def _differences(found: Mapping[str, Any]) -> str:
    """The first row less each other; a verdict stands where the interval leaves out 0."""
    rows = []
    for row in found["rows"][1:]:
        cells = []
        for key in SCORES:
            less = row["first_minus_row"][key]
            bounds, said = less["interval"], less["verdict"]
            span = f" [{bounds[0]:+.3f}, {bounds[1]:+.3f}]" if bounds else ""
            said = f" {said}" if said in ("better", "worse") else ""
            cells.append(f"{less['difference']:+.3f}{span}{said}")
        rows.append([row["name"], *cells])
    titles = (f"{title} [95 %]" for title, _ in SCORES.values())
    return tables.markdown([f"{found['rows'][0]['name']} less", *titles], rows)
