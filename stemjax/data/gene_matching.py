"""Which column of a slide is which gene of a panel.

A gene is matched, in this order, by the same name; by the same Ensembl id without its version; by
the same name in plain spelling; by an alias from a file; and by the name that a tool made unique
(``TBCE-1`` where there is no ``TBCE``). Each step takes only what is unambiguous: a name that two
columns have, or a column that two genes claim, is no match. Case is never ignored: ``CD3E`` of
human and ``Cd3e`` of mouse are two genes, which only a table of orthologues connects. A gene
without a match was not measured, which is not a count of 0.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int

from stemjax import errors
from stemjax.data import gene_names
from stemjax.data import orthologues as tables

type How = Literal["name", "ensembl", "spelling", "alias", "made unique", "orthologue", "missing"]

# The first copy that scanpy, R and pandas make of a name. The second stands beside it in lists that
# are whole, and NKX2-2 is no copy.
_FIRST_COPY = re.compile(r"(.+)[-.]1")
_COPY = re.compile(r"(.+)[-.][0-9]+")

_TOLD: Mapping[str, str] = {
    "ensembl": "by Ensembl id",
    "spelling": "but for white space or unusual signs",
    "alias": "by an alias",
    "made unique": "by a name that a tool made unique",
    "orthologue": "by orthologue",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
    """Where the genes of a panel are among the columns of a slide.

    Attributes:
      columns: the column of each gene, -1 where the slide lacks it; no column twice.
      how: how each was matched.
      notes: what is missing and what was not matched by its name, in words; none where all were.
    """

    columns: Int[np.ndarray, " g"]
    how: tuple[How, ...]
    notes: tuple[str, ...]


def match(
    panel_genes: Sequence[str],
    slide_genes: Sequence[str],
    slide_ids: Sequence[str] = (),
    *,
    orthologues: tables.Orthologues | None = None,
    aliases: tables.Aliases | None = None,
    where: str = "the slide",
) -> Match:
    """Finds the genes of a panel among those of a slide, see the module's docstring.

    The result does not depend on the order of the slide's columns.

    Args:
      panel_genes: names, each once.
      slide_genes: names of the columns, each once.
      slide_ids: Ensembl ids of the columns, "" where unknown, several joined by ``|`` where a
        column adds up their counts; empty where none is known.
      orthologues: connects a panel of one species with a slide of the other. It is used for nothing
        else: between names of one species it changes nothing.
      aliases: other names of genes.
      where: what errors call the slide.

    Raises:
      GenePanelError: no gene is matched, or one list names genes of human, the other of mouse, and
        no table of orthologues is given.
    """
    found = _Found(len(panel_genes))
    columns = _index(
        (name, i) for i, name in enumerate(slide_genes) if not gene_names.is_blank(name)
    )
    found.claim("name", [(name,) for name in panel_genes], columns)
    named = int((found.columns >= 0).sum())
    # Where most names agree, the few that differ do not make it another species.
    crossing = None
    if 2 * named < len(panel_genes):
        crossing = _crossing(panel_genes, slide_genes, slide_ids, orthologues)
    ids = _ids(slide_genes, slide_ids)
    if crossing is not None:
        ours, theirs = crossing
        if orthologues is None:
            raise _other_species(panel_genes, slide_genes, ours, theirs, where)
        found = _Found(len(panel_genes))  # the same name in both species may be two genes
        table = orthologues.to_mouse if theirs == "mouse" else orthologues.to_human
        partners = [table.get(_plain(name), ()) for name in panel_genes]
        found.claim("orthologue", partners, ids)
        found.claim("orthologue", partners, columns)
    elif named < len(panel_genes):
        _look_further(found, panel_genes, slide_genes, ids, aliases)
    if (found.columns < 0).all():
        raise errors.GenePanelError(
            f"{where} has none of the {len(panel_genes)} genes of the panel",
            expected=f"names such as {_some(panel_genes)}",
            found=f"names such as {_some(slide_genes)}",
            fix="Give a table of orthologues with these names"
            if crossing
            else gene_names.naming_hint(slide_genes, panel_genes),
            case="D09",
        )
    return Match(
        columns=found.columns,
        how=tuple(found.how),
        notes=_notes(found, panel_genes, slide_genes, slide_ids, orthologues if crossing else None),
    )


class _Found:
    """The columns found so far."""

    def __init__(self, n_genes: int) -> None:
        self.columns = np.full(n_genes, -1)
        self.how: list[How] = ["missing"] * n_genes
        self.contested: set[int] = set()

    def claim(self, how: How, keys: Sequence[Sequence[str]], place: Mapping[str, int]) -> None:
        """Takes the column that `place` gives for the keys of each gene that has none yet.

        Nothing is taken where a gene's keys give several columns, where several genes claim one,
        or where it was taken before.
        """
        taken = set(self.columns.tolist())
        claims: dict[int, list[int]] = collections.defaultdict(list)
        for gene in np.flatnonzero(self.columns < 0).tolist():
            columns = {place[key] for key in keys[gene] if key in place}
            if len(columns) == 1:
                claims[columns.pop()].append(gene)
        for column, genes in claims.items():
            if column in taken or len(genes) > 1:
                self.contested.update(genes)
            else:
                self.columns[genes[0]], self.how[genes[0]] = column, how


def _look_further(
    found: _Found,
    panel_genes: Sequence[str],
    slide_genes: Sequence[str],
    ids: Mapping[str, int],
    aliases: tables.Aliases | None,
) -> None:
    """All steps after the first, between names of one species."""
    found.claim("ensembl", [(gene_names.stable_id(name) or "",) for name in panel_genes], ids)
    wanted = [_plain(name) for name in panel_genes]
    plain = [_plain(name) for name in slide_genes]
    columns = _index((name, i) for i, name in enumerate(plain) if name)
    found.claim("spelling", [(name,) for name in wanted], columns)
    if aliases is not None:
        genes = aliases.genes
        place = _index((genes.get(name, name), i) for name, i in (*columns.items(), *ids.items()))
        found.claim("alias", [(genes.get(name, name),) for name in wanted], place)
    found.claim("made unique", [(name,) for name in wanted], _copies(plain))


def _copies(names: Sequence[str]) -> dict[str, int]:
    """The column of each name whose one copy is here without it."""
    present = set(names)
    copies = collections.Counter(c[1] for name in names if (c := _COPY.fullmatch(name)))
    return _index(
        (found[1], i)
        for i, name in enumerate(names)
        if (found := _FIRST_COPY.fullmatch(name))
        and found[1] not in present
        and copies[found[1]] == 1
    )


def _ids(slide_genes: Sequence[str], slide_ids: Sequence[str]) -> dict[str, int]:
    """The column of each Ensembl id, without its version; of one that is at two columns none."""
    known = list(enumerate(slide_genes)) + [
        (i, one) for i, given in enumerate(slide_ids) if given for one in given.split("|")
    ]
    return _index({(found, i) for i, name in known if (found := gene_names.stable_id(name))})


def _index(places: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Place by name, without the names that have several."""
    found: dict[str, int] = {}
    twice = set()
    for name, place in places:
        if found.setdefault(name, place) != place:
            twice.add(name)
    return {name: place for name, place in found.items() if name not in twice}


def _plain(name: str) -> str:
    """A name in plain spelling, an Ensembl id without its version; "" for none."""
    if gene_names.is_blank(name):
        return ""
    return gene_names.stable_id(name) or gene_names.clean(name)


def _crossing(
    panel_genes: Sequence[str],
    slide_genes: Sequence[str],
    slide_ids: Sequence[str],
    orthologues: tables.Orthologues | None,
) -> tuple[gene_names.Species, gene_names.Species] | None:
    """The species of the panel and of the slide where they are two; else None."""
    sides = []
    for names, ids in ((panel_genes, ()), (slide_genes, slide_ids)):
        every = [one for given in ids for one in given.split("|")]
        side = gene_names.naming_of(every).species or gene_names.naming_of(names).species
        if side is None and orthologues is not None:
            side = _side(names, orthologues)
        sides.append(side)
    if None in sides or sides[0] == sides[1]:
        return None
    return sides[0], sides[1]


def _side(names: Sequence[str], orthologues: tables.Orthologues) -> gene_names.Species | None:
    """The species that a table says most of these names are of; None where they are as many."""
    plain = [_plain(name) for name in names]
    human = sum(name in orthologues.to_mouse for name in plain)
    mouse = sum(name in orthologues.to_human for name in plain)
    return None if human == mouse else "human" if human > mouse else "mouse"


def _other_species(
    panel_genes: Sequence[str],
    slide_genes: Sequence[str],
    ours: gene_names.Species,
    theirs: gene_names.Species,
    where: str,
) -> errors.GenePanelError:
    return errors.GenePanelError(
        f"{where} names genes as those of {theirs} are, the panel as those of {ours}",
        expected=f"names such as {_some(panel_genes)}",
        found=f"names such as {_some(slide_genes)}",
        fix="Give a table of one-to-one orthologues, `stemjax prepare --orthologues FILE` (in "
        "Python orthologues=), or leave the slide out: names that differ in upper and lower case "
        "are genes of two species",
        case="D09",
    )


def _notes(
    found: _Found,
    panel_genes: Sequence[str],
    slide_genes: Sequence[str],
    slide_ids: Sequence[str],
    orthologues: tables.Orthologues | None,
) -> tuple[str, ...]:
    n, notes = len(panel_genes), []
    columns: list[int] = found.columns.tolist()
    missing = [gene for gene, column in zip(panel_genes, columns, strict=True) if column < 0]
    if missing:
        notes.append(
            f"lacks {len(missing)} of the {n} genes of the panel ({_some(missing)}): masked, not "
            "counted as 0"
        )
    if 2 * len(missing) > n:
        hint = gene_names.naming_hint(slide_genes, missing)
        if orthologues:
            hint = f"{orthologues.source} connects no more of them with this slide"
        notes.append(f"more than half of the panel is missing. {hint}")
    for how, words in _TOLD.items():
        genes = [i for i in range(n) if found.how[i] == how]
        if genes:
            pairs = [f"{panel_genes[i]} is {slide_genes[columns[i]]}" for i in genes]
            source = f" of {orthologues.source}" if orthologues and how == "orthologue" else ""
            notes.append(f"matched {len(genes)} of {n} genes {words}{source}: {_some(pairs)}")
    by_id = [columns[i] for i in range(n) if found.how[i] in ("ensembl", "orthologue")]
    summed = [slide_genes[i] for i in by_id if slide_ids and "|" in slide_ids[i]]
    if summed:
        notes.append(f"counts of several Ensembl ids are added up in {_some(summed)}")
    contested = [panel_genes[i] for i in sorted(found.contested) if columns[i] < 0]
    if contested:
        notes.append(f"not matched, since another gene claims the same column: {_some(contested)}")
    for whose, names in (("panel", panel_genes), ("slide", slide_genes)):
        if dates := gene_names.date_like(names):
            was = [f"{name} was {gene}" for name, gene in dates.items()]
            notes.append(
                f"the {whose} has {len(dates)} names that a spreadsheet has likely changed: "
                f"{_some(was)}"
            )
    return tuple(notes)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
