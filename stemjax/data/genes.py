"""Which genes, in which space: panels, count transforms, standardisation.

A `Panel` is a list of genes and the rule that chose it. A `Transform` takes raw counts to the value
space and back; a `Standardisation` gives every column zero mean and unit variance over training
spots. All three travel with records, checkpoints and predictions.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
from jaxtyping import Int32, UInt8

from stemjax import errors
from stemjax.data import gene_matching, slide_names, slides
from stemjax.data import orthologues as orthologue_tables
from stemjax.foreign import json_text

N_VARIABLE = 2000
"""Highly variable genes that Stem's rule takes from each slide."""

DROPPED_PREFIXES = ("MT", "mt", "RPS", "RPL")
"""Names that `select_panel` leaves out: mitochondrial and ribosomal genes, and MTOR with them."""


_N_BINS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """An ordered list of genes.

    Attributes:
      genes: the names, unique, in the order of all arrays of this panel.
      rule: how they were chosen, in words.
      slides: ids of the slides that they were chosen on; empty for a given list.

    Raises:
      GenePanelError: there is no gene, one occurs twice, or a name cannot be read.
    """

    genes: tuple[str, ...]
    rule: str
    slides: tuple[str, ...]

    def __post_init__(self) -> None:
        if (doubled := _doubled(self.genes)) or not self.genes:
            raise errors.GenePanelError(
                f"the gene panel ({self.rule}) cannot be used",
                expected="at least one gene, and none twice",
                found=f"{_some(doubled)} twice" if doubled else "no gene",
                fix="Name each gene once",
                case="D20",
            )
        if wrong := slide_names.strange(self.genes):
            raise errors.GenePanelError(
                f"the gene panel ({self.rule}) cannot be used",
                expected=f"names of at most {slide_names.LONGEST} letters that can be seen",
                found=ascii(wrong[0])[:120],
                fix="Give a list of genes, one a line",
                case="D20",
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` takes back."""
        return {"genes": list(self.genes), "rule": self.rule, "slides": list(self.slides)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Panel:
        """The panel that `to_json` wrote; a GenePanelError where a field is missing."""
        try:
            genes, slide_ids, rule = (values[name] for name in ("genes", "slides", "rule"))
            for names in (genes, slide_ids, [rule]):
                if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
                    raise TypeError("names that are no text")
            return cls(genes=tuple(genes), rule=rule, slides=tuple(slide_ids))
        except (KeyError, TypeError, AttributeError) as error:
            raise errors.GenePanelError(
                "a stored gene panel is incomplete",
                expected="genes, rule and slides",
                found=f"{type(error).__name__}: {error}",
                fix="Prepare the records again, or take the file from who made it",
                case="D20",
            ) from error


def read_gene_list(path: str | os.PathLike[str]) -> Panel:
    """A panel from a file: one name a line, or JSON (a list, or ``{"genes": [...]}``).

    Stem's ``selected_gene_list.txt`` and HEST's ``var_50genes.json`` are such files. The order of
    the file is kept; blank lines and lines that start with ``#`` are skipped.

    Raises:
      GenePanelError: the file is missing, no such list, empty, or names a gene twice.
    """
    path = pathlib.Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            values = json_text.parse(text)
            values = values["genes"] if isinstance(values, dict) else values
            if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
                raise ValueError("not a list of names")
        else:
            values = [line.strip() for line in text.splitlines()]
            values = [line for line in values if line and not line.startswith("#")]
    except (OSError, ValueError, KeyError) as error:
        raise errors.GenePanelError(
            f"cannot read the gene list {path}",
            expected='one name a line, or JSON: {"genes": [...]}',
            found=f"{type(error).__name__}: {error}",
            fix="Give such a file, or leave --genes out to have the panel chosen",
            case="D20",
        ) from error
    return Panel(genes=tuple(values), rule=f"list {path.name}", slides=())


def select_panel(
    sections: Iterable[slides.Slide], *, n_genes: int, n_variable: int = N_VARIABLE
) -> Panel:
    """The genes that are both abundant and variable over some slides: Stem's rule.

    1. Per slide: spots and genes without any count are left out, counts scaled to the median total
       of the spots, and the ``n_variable`` genes of highest normalised dispersion taken
       (`variable_genes`; ties with the last are kept; as many as there are genes: no filter).
    2. Their union over the slides, without names in `DROPPED_PREFIXES`.
    3. Those are ranked by the mean and by the standard deviation of the raw counts over all spots
       of all slides; a gene that a slide did not measure counts as 0 there. The panel is what the
       first k of both rankings share, for the smallest k that shares ``n_genes``.

    A gene enters at k = the worse of its two ranks, so two may enter together. Where that is one
    too many, the gene whose better rank is worse stays out (equal there too: the one of lower
    mean). Equal means or deviations are ranked by name. Genes come back sorted by name, for any
    order of the slides.

    Source: Zhu et al., ICLR 2025 (arXiv 2501.15598), where k is set by hand and test slides are
    among the slides; a test is honest when only training slides are.

    The slides are gone through once, and none is kept: an iterator may read each when it is its
    turn.

    Raises:
      GenePanelError: no slides, one twice, or fewer than ``n_genes`` candidates.
    """
    ids, union, sums = [], set(), _Sums()
    for slide in sections:
        ids.append(slide.id)
        if not slide.measured:
            raise errors.GenePanelError(
                f"slide {slide.id} is an image alone: no gene can be chosen on it",
                expected="slides with counts, or a list of genes",
                fix="Give the genes: --genes, or the checkpoint's",
            )
        union.update(variable_genes(slide, n_variable))
        sums.add(slide)
    if not ids or n_genes < 1 or _doubled(ids):
        raise errors.GenePanelError(
            "cannot choose a gene panel",
            expected="at least one gene, one slide, and no slide twice",
            found=f"n_genes {n_genes}, slides {_some(ids) or 'none'}",
        )
    names = sorted(name for name in union if not name.startswith(DROPPED_PREFIXES))
    if len(names) < n_genes:
        raise errors.GenePanelError(
            f"slides {_some(ids)} have too few variable genes",
            expected=f"at least {n_genes}",
            found=f"{len(names)} (without names that start with {', '.join(DROPPED_PREFIXES)})",
            fix="Ask for fewer genes, or choose on more slides",
        )
    mean, std = sums.moments(names)
    by_mean, by_std = _rank(mean), _rank(std)
    enters, better = np.maximum(by_mean, by_std), np.minimum(by_mean, by_std)
    chosen = np.lexsort((by_mean, better, enters))[:n_genes]
    k = int(enters[chosen[-1]]) + 1
    rule = (
        f"{variable_rule(n_variable)}, {len(names)} without {'/'.join(DROPPED_PREFIXES)}; "
        f"{n_genes} in the top k={k} of both "
        "mean and standard deviation of raw counts, 0 where a slide lacks a gene"
    )
    return Panel(
        genes=tuple(names[i] for i in sorted(chosen)), rule=rule, slides=tuple(sorted(ids))
    )


def variable_rule(n_variable: int) -> str:
    """How `Panel.rule` of `select_panel` begins."""
    return f"stem: union of the {n_variable} most variable genes of each slide (seurat)"


def variable_genes(slide: slides.Slide, n: int) -> list[str]:
    """The ``n`` genes of a slide that vary most, given their mean.

    Dispersion is log(variance / mean) of the counts scaled to the spots' median total; genes are
    put into 20 bins of equal width of log(1 + mean), and within each bin the dispersion's mean is
    subtracted and its standard deviation divided out (a gene alone in its bin gets 1). This is the
    "seurat" flavour of Satija et al., Nature Biotechnology 2015, as scanpy's
    ``highly_variable_genes`` defines it after ``filter_cells``, ``filter_genes``,
    ``normalize_total`` and ``log1p`` (whose logarithm it takes back). Genes tied with the n-th are
    all returned; genes that do not vary are not.
    """
    totals = np.asarray(slide.counts.sum(axis=1), np.float64)
    seen = np.flatnonzero(np.asarray(slide.counts.sum(axis=0)) > 0)
    spots = np.flatnonzero(totals > 0)
    if len(spots) < 2:
        return []
    x = scipy.sparse.csc_array(slide.counts[spots][:, seen], dtype=np.float64)
    x.data *= (np.median(totals[spots]) / totals[spots])[x.indices]
    mean = np.asarray(x.sum(axis=0)) / len(spots)
    # Two passes: the zeros, which are not stored, are each mean**2 away.
    column = np.repeat(np.arange(len(seen)), np.diff(x.indptr))
    squares = np.bincount(column, (x.data - mean[column]) ** 2, minlength=len(seen))
    squares += (len(spots) - np.diff(x.indptr)) * mean**2
    variance = squares / (len(spots) - 1)
    # A gene with one value in all spots has only rounding for a variance.
    varies = variance > 1e-12 * mean**2
    dispersion = np.full(len(seen), np.nan)
    dispersion[varies] = np.log(variance[varies] / mean[varies])
    bins = pd.cut(np.log1p(mean), bins=_N_BINS, labels=False)
    grouped = pd.Series(dispersion).groupby(np.asarray(bins))
    centre = grouped.transform("mean").to_numpy(copy=True)
    spread = grouped.transform("std").to_numpy(copy=True)
    alone = np.isnan(spread)
    spread[alone], centre[alone] = centre[alone], 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        score = (dispersion - centre) / spread
    score = np.where(np.isnan(score), -np.inf, score)
    cut = np.sort(score)[-min(n, len(score))]
    return [slide.genes[i] for i in seen[(score >= cut) & (score > -np.inf)]]


def panel_counts(
    slide: slides.Slide,
    genes: Sequence[str],
    *,
    orthologues: orthologue_tables.Orthologues | None = None,
    aliases: orthologue_tables.Aliases | None = None,
) -> tuple[Int32[np.ndarray, "l g"], UInt8[np.ndarray, " g"]]:
    """A slide's raw counts in the order of ``genes``, and a mask of those that it measured.

    Where the slide lacks a gene, its counts and its mask are 0; of an image alone all are.

    Raises:
      GenePanelError: as `match_panel`.
    """
    return _taken(
        slide, match_panel(slide, genes, orthologues=orthologues, aliases=aliases).columns
    )


def match_panel(
    slide: slides.Slide,
    genes: Sequence[str],
    *,
    orthologues: orthologue_tables.Orthologues | None = None,
    aliases: orthologue_tables.Aliases | None = None,
) -> gene_matching.Match:
    """Which columns of a slide are the genes of a panel, how each was found, and notes on it.

    Of an image alone nothing is matched, without a note.

    Raises:
      GenePanelError: the slide has none of the genes, or names those of another species and there
        is no table of orthologues; see `stemjax.data.gene_matching.match`.
    """
    if not slide.measured:
        return gene_matching.Match(
            columns=np.full(len(genes), -1), how=("missing",) * len(genes), notes=()
        )
    return gene_matching.match(
        genes,
        slide.genes,
        slide.gene_ids,
        orthologues=orthologues,
        aliases=aliases,
        where=f"slide {slide.id}",
    )


def named_as_panel(
    slide: slides.Slide,
    genes: Sequence[str],
    *,
    orthologues: orthologue_tables.Orthologues | None = None,
    aliases: orthologue_tables.Aliases | None = None,
) -> slides.Slide:
    """The slide with the panel's names on the columns that are the panel's genes, and notes on it.

    Other columns keep their names and count in the spots' totals. A column that has the name of a
    gene of the panel without being it (of another species, say) is called NAME (not matched).

    Raises:
      GenePanelError: as `match_panel`.
    """
    found = match_panel(slide, genes, orthologues=orthologues, aliases=aliases)
    wanted = set(genes)
    taken = set(found.columns.tolist())
    names = [
        f"{name} (not matched)" if name in wanted and column not in taken else name
        for column, name in enumerate(slide.genes)
    ]
    for gene, column in zip(genes, found.columns.tolist(), strict=True):
        if column >= 0:
            names[column] = gene
    sources = dict(slide.sources)
    for table in (orthologues, aliases):
        if table is not None and slide.measured:
            sources[table.source] = table.sha256
    return dataclasses.replace(
        slide, genes=tuple(names), notes=slide.notes + found.notes, sources=sources
    )


def named_counts(
    slide: slides.Slide, genes: Sequence[str]
) -> tuple[Int32[np.ndarray, "l g"], UInt8[np.ndarray, " g"]]:
    """As `panel_counts`, of a slide that `named_as_panel` gave: by the very names.

    Raises:
      GenePanelError: a measured slide has none of them.
    """
    place = {name: column for column, name in enumerate(slide.genes)}
    columns = np.array([place.get(gene, -1) for gene in genes], int)
    if slide.measured and not (columns >= 0).any():
        return panel_counts(slide, genes)  # says what may be wrong
    return _taken(slide, columns)


def _taken(
    slide: slides.Slide, columns: np.ndarray
) -> tuple[Int32[np.ndarray, "l g"], UInt8[np.ndarray, " g"]]:
    """Counts of those columns, and which of them there are: -1 is none, with counts of 0."""
    measured = columns >= 0
    counts = np.zeros((slide.n_spots, len(columns)), np.int32)
    counts[:, measured] = slide.counts[:, columns[measured]].toarray()
    return counts, measured.astype(np.uint8)


class _Sums:
    """Sums of raw counts and of their squares over spots, of every gene that a slide measured."""

    def __init__(self) -> None:
        self._place: dict[str, int] = {}
        self._spots, self._sums = 0, np.zeros((2, 0))

    def add(self, slide: slides.Slide) -> None:
        columns = [self._place.setdefault(gene, len(self._place)) for gene in slide.genes]
        new = len(self._place) - self._sums.shape[1]
        self._sums = np.pad(self._sums, ((0, 0), (0, new)))
        values = slide.counts.astype(np.float64)
        self._sums[:, columns] += np.stack([values.sum(axis=0), values.power(2).sum(axis=0)])
        self._spots += slide.n_spots

    def moments(self, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation over all spots; 0 where a slide lacks a gene."""
        mean, square = self._sums[:, [self._place[name] for name in names]] / self._spots
        return mean, np.sqrt(np.maximum(square - mean**2, 0.0))


def _rank(values: np.ndarray) -> np.ndarray:
    """Rank, 0 for the highest; equal values in the order given, which is that of the names."""
    ranks = np.empty(len(values), int)
    ranks[np.argsort(-values, kind="stable")] = np.arange(len(values))
    return ranks


def _doubled(names: Sequence[str]) -> list[str]:
    return [name for name, times in collections.Counter(names).items() if times > 1]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
