"""Tables of gene names that a user gives: orthologues of human and mouse, and aliases.

Accepted tables of orthologues, separated by tabs, commas or semicolons, with a header::

    human,mouse                                   symbols or Ensembl ids, one pair a line
    Gene name, Mouse gene name                    Ensembl BioMart, from human or from mouse, with or
                                                  without the columns of stable ids and of the type
    DB Class Key, Common Organism Name, Symbol    MGI's HOM_MouseHumanSequence.rpt, a gene a line

A table of aliases has the columns ``gene`` and ``alias``.

Only one-to-one orthologues are kept. Where a gene has several on the other side, no single one of
them says what the gene's counts would have been.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import hashlib
import io
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

from stemjax import errors
from stemjax.data import gene_names

_CLASS = ("db class key", "homologene id")
_ORGANISM, _SYMBOL = "common organism name", "symbol"
_TYPE = re.compile(r"(homology|orthology) type")
_FORM = (
    "{0}( gene| symbol| gene symbol| gene name| gene stable id| id| ensembl( id)?)?"
    "|{1} symbol|{2} homolog (ensembl gene|associated gene name)"
)
_SPECIES: Mapping[gene_names.Species, re.Pattern[str]] = {
    "human": re.compile(_FORM.format("human", "hgnc", "hsapiens")),
    "mouse": re.compile(_FORM.format("mouse", "mgi", "mmusculus")),
}
# Columns of BioMart's own species, which their names do not tell.
_OWN = ("gene name", "external gene name", "gene stable id", "ensembl gene id")
_HEADERS = (
    'a header "human,mouse"; BioMart\'s "Gene name" and "Mouse gene name" (or "Human gene name"); '
    'or MGI\'s "DB Class Key", "Common Organism Name" and "Symbol"'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Orthologues:
    """One-to-one orthologues of human and mouse.

    Attributes:
      to_mouse: names of the mouse gene (symbol, id or both) by each name of the human one.
      to_human: the other way round.
      source: the file's name.
      sha256: of the file's bytes.
      notes: what was refused, in words.
    """

    to_mouse: Mapping[str, tuple[str, ...]]
    to_human: Mapping[str, tuple[str, ...]]
    source: str
    sha256: str
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aliases:
    """Other names of genes.

    Attributes:
      genes: the gene by each of its other names.
      source, sha256, notes: as of `Orthologues`.
    """

    genes: Mapping[str, str]
    source: str
    sha256: str
    notes: tuple[str, ...]


def read_orthologues(path: str | os.PathLike[str]) -> Orthologues:
    """A table of orthologues, see the module's docstring.

    Pairs that BioMart gives a type other than ``ortholog_one2one`` are refused too, and so are
    names that two genes share; ids lose their version.

    Raises:
      GenePanelError: the file is missing, damaged, no such table, has human and mouse swapped, or
        no pair is one-to-one.
    """
    path = pathlib.Path(path)
    header, rows, digest = _read_table(path, "table of orthologues", _HEADERS)
    if any(name in header for name in _CLASS):
        pairs, refused = _pairs_of_classes(path, header, rows), 0
    else:
        pairs, refused = _pairs_of_columns(path, header, rows)
    _require_sides(path, pairs)
    partners: list[dict[str, set[str]]] = [collections.defaultdict(set) for _ in range(2)]
    for human, mouse in pairs:
        partners[0][_key(human)].add(_key(mouse))
        partners[1][_key(mouse)].add(_key(human))
    single, many = {}, 0
    for human, mouse in sorted(pairs):
        if len(partners[0][_key(human)]) == 1 and len(partners[1][_key(mouse)]) == 1:
            single.setdefault((_key(human), _key(mouse)), (human, mouse))
        else:
            many += 1
    if not single:
        raise errors.GenePanelError(
            f"{path} has no one-to-one orthologues",
            expected="lines that pair one human and one mouse gene",
            found=f"{len(pairs) + refused} pairs, none of them one-to-one",
            fix="Give the whole table",
        )
    to_mouse, dropped_human = _by_name((h, m) for h, m in single.values())
    to_human, dropped_mouse = _by_name((m, h) for h, m in single.values())
    notes = [f"{path.name}: {len(single):,} one-to-one orthologues"]
    if many + refused:
        notes.append(f"refused {many + refused:,} pairs that are not one-to-one")
    if dropped := sorted(dropped_human | dropped_mouse):
        notes.append(f"refused {len(dropped):,} names of several genes: {_some(dropped)}")
    dates = gene_names.date_like([*to_mouse, *to_human])
    if dates:
        notes.append(f"{len(dates):,} names that a spreadsheet has changed: {_some(list(dates))}")
    return Orthologues(
        to_mouse=to_mouse,
        to_human=to_human,
        source=path.name,
        sha256=digest,
        notes=tuple(notes),
    )


def read_aliases(path: str | os.PathLike[str]) -> Aliases:
    """A table of other names of genes, with the columns ``gene`` and ``alias``.

    A gene may have many aliases, such as its earlier symbols or its Ensembl id. An alias that is
    given to two genes, or is itself a gene of the table, is refused: it says nothing.

    Raises:
      GenePanelError: the file is missing, damaged, no such table, or no alias is left.
    """
    path = pathlib.Path(path)
    what = 'a header "gene,alias"'
    header, rows, digest = _read_table(path, "table of aliases", what)
    if not {"gene", "alias"} <= set(header):
        raise _no_such_table(path, "table of aliases", what, header)
    first, second = header.index("gene"), header.index("alias")
    genes: dict[str, set[str]] = collections.defaultdict(set)
    for row in rows:
        gene, alias = _plain(row[first]), _plain(row[second])
        if gene and alias and gene != alias:
            genes[alias].add(gene)
    official = set().union(*genes.values())
    kept = {a: min(g) for a, g in genes.items() if len(g) == 1 and a not in official}
    if not kept:
        raise errors.GenePanelError(
            f"{path} has no alias that can be used",
            expected="names that stand for one gene each",
            found=f"{len(genes)} aliases, each of several genes or itself a gene"
            if genes
            else "no alias",
        )
    refused = sorted(set(genes) - set(kept))
    notes = [f"{path.name}: {len(kept):,} aliases"]
    if refused:
        notes.append(
            f"refused {len(refused):,} aliases of several genes or that are genes themselves: "
            f"{_some(refused)}"
        )
    return Aliases(genes=kept, source=path.name, sha256=digest, notes=tuple(notes))


type _Names = tuple[str, ...]
"""The names of one gene: its id first, where there is one."""


def _read_table(
    path: pathlib.Path, what: str, expected: str
) -> tuple[list[str], list[list[str]], str]:
    """The header in lower case, the rows, and the file's SHA-256."""
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
        separator = max("\t,;", key=text.lstrip().partition("\n")[0].count)
        lines = io.StringIO(text, newline="")
        rows = [row for row in csv.reader(lines, delimiter=separator, strict=True) if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise errors.GenePanelError(
            f"cannot read the {what} {path}",
            expected="text, columns separated by tabs, commas or semicolons",
            found=f"{type(error).__name__}: {error}",
            fix="Copy the file again; save a spreadsheet as CSV",
        ) from error
    if len(rows) < 2:
        raise errors.GenePanelError(
            f"the {what} {path} is empty", expected=f"{expected}, and lines below it"
        )
    header = [re.sub(r"[._\s]+", " ", name).strip().lower() for name in rows[0]]
    for number, row in enumerate(rows[1:], start=2):
        if len(row) < len(header) or any(row[len(header) :]):
            raise errors.GenePanelError(
                f"the {what} {path} is damaged",
                expected=f"{len(header)} columns in every line",
                found=f"{len(row)} in line {number}: {separator.join(row)[:60]!r}",
                fix="Copy or export it again",
            )
    return header, rows[1:], hashlib.sha256(data).hexdigest()


def _no_such_table(
    path: pathlib.Path, what: str, expected: str, header: Sequence[str]
) -> errors.GenePanelError:
    return errors.GenePanelError(
        f"{path} is no {what} that is known",
        expected=expected,
        found=f"columns {', '.join(header[:6])}",
        fix="Name the columns so in its first line",
    )


def _pairs_of_columns(
    path: pathlib.Path, header: list[str], rows: list[list[str]]
) -> tuple[set[tuple[_Names, _Names]], int]:
    """Pairs of a table with a pair a line, and how many its column of types refused."""
    places: dict[str, list[int]] = {species: [] for species in _SPECIES}
    for i, name in enumerate(header):
        for species, form in _SPECIES.items():
            if form.fullmatch(name):
                places[species].append(i)
    own = [i for i, name in enumerate(header) if name in _OWN]
    for species, other in (("human", "mouse"), ("mouse", "human")):
        if own and not places[species] and places[other]:
            places[species] = own
    if not all(places.values()):
        raise _no_such_table(path, "table of orthologues", _HEADERS, header)
    kinds = [i for i, name in enumerate(header) if _TYPE.search(name)]
    pairs, refused = set(), set()
    for row in rows:
        human, mouse = (_names(row[i] for i in places[s]) for s in ("human", "mouse"))
        if human and mouse:
            other = any(row[i].strip() not in ("", "ortholog_one2one") for i in kinds)
            (refused if other else pairs).add((human, mouse))
    return pairs, len(refused)


def _pairs_of_classes(
    path: pathlib.Path, header: list[str], rows: list[list[str]]
) -> set[tuple[_Names, _Names]]:
    """Pairs of a table with a gene a line: each human gene of a class with each mouse gene."""
    if _ORGANISM not in header or _SYMBOL not in header:
        raise _no_such_table(path, "table of orthologues", _HEADERS, header)
    key = next(header.index(name) for name in _CLASS if name in header)
    organism, symbol = header.index(_ORGANISM), header.index(_SYMBOL)
    classes: dict[str, tuple[set[_Names], set[_Names]]] = {}
    for row in rows:
        of, names = row[organism].strip().lower(), _names((row[symbol],))
        side = 0 if of.startswith("human") else 1 if of.startswith("mouse") else None
        if names and side is not None:
            classes.setdefault(row[key], (set(), set()))[side].add(names)
    return {(h, m) for humans, mice in classes.values() for h in humans for m in mice}


def _require_sides(path: pathlib.Path, pairs: set[tuple[_Names, _Names]]) -> None:
    """Refuses a table whose human column holds mouse genes, or the reverse."""
    for side, species in enumerate(("human", "mouse")):
        found = gene_names.naming_of(name for pair in pairs for name in pair[side]).species
        if found not in (species, None):
            example = next(iter(sorted(pairs)))[side][-1]
            raise errors.GenePanelError(
                f"{path}: the names of its {species} genes look like those of {found}",
                expected="human symbols such as CD3E, mouse symbols such as Cd3e",
                found=f"{species} gene {example}",
                fix="Check whether the columns are swapped, or their case was changed",
            )


def _names(cells: Iterable[str]) -> _Names:
    """The names in some cells, ids first; empty where there is none."""
    names = {name for cell in cells if (name := _plain(cell))}
    return tuple(sorted(names, key=lambda name: (gene_names.stable_id(name) is None, name)))


def _plain(cell: str) -> str:
    """A cell's name in plain spelling, an id without its version, "" for none."""
    if gene_names.is_blank(cell):
        return ""
    name = gene_names.clean(cell)
    return gene_names.stable_id(name) or name


def _key(names: _Names) -> str:
    return names[0]


def _by_name(
    pairs: Iterable[tuple[_Names, _Names]],
) -> tuple[dict[str, tuple[str, ...]], set[str]]:
    """The partner by each name of a gene, and the names that several genes have."""
    found: dict[str, set[_Names]] = collections.defaultdict(set)
    for ours, theirs in pairs:
        for name in ours:
            found[name].add(theirs)
    return (
        {name: min(theirs) for name, theirs in found.items() if len(theirs) == 1},
        {name for name, theirs in found.items() if len(theirs) > 1},
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
