"""What genes are called: Ensembl ids or symbols, of human or mouse, and names that are damaged.

Nothing here knows a list of genes. The kind follows from the form of the names; the species from
their case (human symbols are upper case, ``CD3E`` and ``C1orf112``; mouse symbols begin with one
capital, ``Cd3e``, and mitochondrial genes with ``mt-``) or from the ids' prefix. Rat symbols are
written as those of mouse, and those of most other mammals as the human ones: they look like them.
"""

from __future__ import annotations

import collections
import dataclasses
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Literal, cast

import numpy as np
import scipy.sparse

from stemjax import errors

type Species = Literal["human", "mouse"]
type Duplicates = Literal["sum", "first", "error"]

_ENSEMBL = re.compile(r"(ENS([A-Z]{3,4})?G[0-9]+)(?:\.[0-9]+)?(_PAR_Y)?")
_SYMBOL = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9]+(?:[-._/][A-Za-z0-9]+)*@?")
# Peaks, probes and transcripts, which are written as symbols are.
_NO_GENE = re.compile(r"chr[0-9XYMT]+[-_:][0-9]+[-_].*|ILMN_[0-9]+|.+_at|[NX][MR]_[0-9.]+")
_BLANK = frozenset(("", "nan", "NaN", "NA", "N/A", "<NA>", "None", "null"))

_ORF = re.compile(r"C[0-9XY]+orf[0-9]+.*")
_CLONE = re.compile(r"[A-Z]{1,4}[0-9]{5,8}\.[0-9]+")  # of both species' annotations
_TITLE = re.compile(r"[A-Z][^A-Za-z]*[a-z].*|H2-.+|[0-9A-Z]+Rik")
_MARKERS: dict[Species, re.Pattern[str]] = {
    "human": re.compile(r"MT-[A-Z0-9]+|RP[SL]P?[0-9]+[A-Z]*|GAPDH|ACTB|B2M|MALAT1|EEF1A1"),
    "mouse": re.compile(r"mt-[A-Z][a-z0-9]+|Rp[sl]p?[0-9]+[a-z]*|Gapdh|Actb|B2m|Malat1|Eef1a1"),
}
# Enough names to tell the species by their case, and how many of them must agree; fewer where
# genes are among them that nearly every list has.
_FEWEST, _AGREE = 5, 0.9
_FEWEST_MARKED, _AGREE_MARKED = 3, 0.75

# Months that genes are called after; JUN is a gene, and Jun-1 its copy of a name made unique.
_MONTHS = {"feb": 2, "mar": 3, "apr": 4, "sep": 9, "oct": 10, "nov": 11, "dec": 12}
_DAY_MONTH = re.compile(r"([0-9]{1,2})-(feb|mar|apr|sept?|oct|nov|dec)", re.IGNORECASE)
_MONTH_DAY = re.compile(r"(Feb|Mar|Apr|Sept?|Oct|Nov|Dec)-([0-9]{1,2})")
_ISO = re.compile(r"[0-9]{4}-([0-9]{2})-([0-9]{2})(?:[ T]00:00:00)?")
_POWER = re.compile(r"[0-9](?:\.[0-9]+)?E\+[0-9]+")

_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"), "-")
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Naming:
    """How a list of genes is named.

    Attributes:
      kind: ``symbol`` or ``ensembl`` where nine tenths of the names are that, ``mixed`` where the
        two together are at least half of them, else ``other`` (numbers, probes, peaks).
      species: None where the names do not tell, or tell of both.
      share: the share of the names that are of this kind; 0 where there is no name. Of ``mixed``,
        the share of Ensembl ids.
    """

    kind: Literal["symbol", "ensembl", "mixed", "other"]
    species: Species | None
    share: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """Counts with each gene once.

    Attributes:
      counts: [l g].
      genes: their names.
      gene_ids: the ids of each, joined by ``|`` where counts of several were added up; "" where
        unknown. Empty where no ids were given.
      notes: what was added up or left out, in words.
    """

    counts: scipy.sparse.csr_array
    genes: tuple[str, ...]
    gene_ids: tuple[str, ...]
    notes: tuple[str, ...]


def is_blank(name: object) -> bool:
    """Whether a name is none: empty, white space, or how a missing value is written."""
    return str(name).strip() in _BLANK


def stable_id(name: str) -> str | None:
    """An Ensembl gene id without its version: ENSG00000141736.13 is ENSG00000141736.

    The copies of genes on chromosome Y that GENCODE marks with ``_PAR_Y`` stay apart. None for any
    other name.
    """
    found = _ENSEMBL.fullmatch(name.strip())
    return found[1] + (found[3] or "") if found else None


def clean(name: str) -> str:
    """A name in plain spelling: without outer white space, invisible signs and other dashes."""
    if name.isascii():
        return name.strip()
    plain = unicodedata.normalize("NFKC", name.translate(_DASHES)).translate(_INVISIBLE)
    return plain.translate(_DASHES).strip()


def naming_of(names: Iterable[object]) -> Naming:
    """How genes are named; names that are none are passed over."""
    plain = [clean(str(name)) for name in names if not is_blank(name)]
    if not plain:
        return Naming(kind="other", species=None, share=0.0)
    ids = [found for name in plain if (found := _ENSEMBL.fullmatch(name))]
    symbols = [name for name in plain if _is_symbol(name)]
    share_ids, share_symbols = len(ids) / len(plain), len(symbols) / len(plain)
    if share_ids >= _AGREE:
        return Naming(kind="ensembl", species=_species_of_ids(ids), share=share_ids)
    species = _species_of_symbols(symbols)
    if share_symbols >= _AGREE:
        return Naming(kind="symbol", species=species, share=share_symbols)
    if share_ids + share_symbols < 0.5:
        return Naming(kind="other", species=None, share=1 - share_ids - share_symbols)
    if ids:
        told = _species_of_ids(ids)
        species = told if species in (told, None) else None
        return Naming(kind="mixed", species=species, share=share_ids)
    return Naming(kind="mixed", species=species, share=0.0)


def date_like(names: Iterable[str]) -> dict[str, str]:
    """Names that a spreadsheet has turned into dates or powers, and which genes they likely were.

    ``1-Mar`` was MARCH1 or MARC1, ``2-Sep`` SEPT2, ``1-Dec`` DEC1, ``2.31E+19`` a RIKEN clone.
    """
    found = {}
    for name in names:
        # Most names begin with a letter and are longer than Sept-12.
        if not name or (len(name) > 7 and not name[0].isdigit()):
            continue
        if gene := _before_the_spreadsheet(name.strip()):
            found[name] = gene
    return found


def naming_hint(ours: Sequence[str], wanted: Sequence[str]) -> str:
    """What may be wrong where a slide's names, ``ours``, have little of those ``wanted``."""
    kinds = naming_of(ours).kind, naming_of(wanted).kind
    if "ensembl" in kinds and kinds[0] != kinds[1]:
        return (
            "One names genes by Ensembl ids, the other by symbols: convert one of them, or give "
            "the slide's ids beside its symbols"
        )
    folded = {name.upper() for name in ours}
    if shared := sum(name.upper() in folded for name in wanted):
        return f"{shared} names agree but for upper and lower case: is one mouse, one human?"
    bare = {name.rpartition("_")[2] for name in ours if "_" in name}
    if shared := sum(name in bare for name in wanted):
        return (
            f"{shared} names agree but for a prefix such as that of {ours[0]}: a reference of two "
            "species? Cut it off"
        )
    if "other" in kinds:
        return f"{'The slide' if kinds[0] == 'other' else 'The panel'} does not name genes"
    return "Choose a panel on slides that name genes alike"


def add_up(
    counts: scipy.sparse.csr_array,
    names: Sequence[object],
    ids: Sequence[object] = (),
    *,
    duplicates: Duplicates = "sum",
    where: str = "the counts",
) -> Columns:
    """Counts with each gene once, at its first place.

    A column without a name goes by its id, and is left out where that is unknown too.

    Args:
      counts: raw counts, whole numbers, [l g].
      names: of the columns; some may be the same, as TBCE is in 10x's human references.
      ids: Ensembl ids of the columns, where known.
      duplicates: "sum" adds up columns of one name: the sum of all counts stays, and the result is
        the same whatever the order of the columns. "first" keeps the first of them.
      where: what errors call the counts.

    Raises:
      SlideError: names are not unique and ``duplicates`` is "error", no column has a name, or
        names or ids are not as many as columns.
    """
    n_columns = cast(tuple[int, int], counts.shape)[1]
    if len(names) != n_columns or len(ids) not in (0, n_columns):
        raise errors.SlideError(
            f"{where}: names and ids do not fit the columns",
            expected=f"{n_columns} names, and as many ids or none",
            found=f"{len(names)} names, {len(ids)} ids",
        )
    known = ["" if is_blank(i) else str(i) for i in ids] or [""] * len(names)
    called = [i if is_blank(n) else str(n) for n, i in zip(names, known, strict=True)]
    notes: tuple[str, ...] = ()
    if nameless := called.count(""):
        keep = [column for column, name in enumerate(called) if name]
        if not keep:
            raise errors.SlideError(f"{where}: no gene has a name", expected="names of genes")
        counts = scipy.sparse.csr_array(counts[:, keep])
        called, known = [called[c] for c in keep], [known[c] for c in keep]
        notes = (f"left out {nameless:,} columns without a gene's name",)
    times = collections.Counter(called)
    doubled = [f"{name} x{n}" for name, n in times.most_common() if n > 1]
    if not doubled:
        return Columns(
            counts=counts, genes=tuple(called), gene_ids=tuple(known) if ids else (), notes=notes
        )
    told = ", ".join(doubled[:10]) + (f" and {len(doubled) - 10} more" if doubled[10:] else "")
    if duplicates == "error":
        raise errors.SlideError(
            f"{where}: gene names are not unique",
            expected="each gene once",
            found=told,
            fix="Have the counts of columns that share a name added up, --duplicate-genes sum, or "
            "take the first of them, --duplicate-genes first (in Python duplicate_genes=); or "
            "rename the columns in the file",
            case="D08",
        )
    place = {name: i for i, name in enumerate(times)}
    columns = np.array([place[name] for name in called])
    if duplicates == "first":
        first = np.unique(columns, return_index=True)[1]
        kept, joined = scipy.sparse.csr_array(counts[:, first]), [known[i] for i in first]
        notes += (f"kept the first of genes that share a symbol: {told}",)
    else:
        kept, joined = _summed(counts, columns, len(times)), _joined(known, columns, len(times))
        notes += (f"added up the counts of genes that share a symbol: {told}",)
    return Columns(
        counts=kept, genes=tuple(times), gene_ids=tuple(joined) if ids else (), notes=notes
    )


def _is_symbol(name: str) -> bool:
    if not _SYMBOL.fullmatch(name) or _ENSEMBL.fullmatch(name):
        return False
    return not (_NO_GENE.fullmatch(name) or _before_the_spreadsheet(name))


def _species_of_ids(ids: Sequence[re.Match[str]]) -> Species | None:
    prefix, times = collections.Counter(found[2] for found in ids).most_common(1)[0]
    if times < _AGREE * len(ids):
        return None
    return "human" if prefix is None else "mouse" if prefix == "MUS" else None


def _species_of_symbols(symbols: Sequence[str]) -> Species | None:
    votes = [vote for name in symbols if (vote := _vote(name))]
    marked = {s for s, form in _MARKERS.items() if any(map(form.fullmatch, symbols))}
    n, n_human = len(votes), votes.count("human")
    species: Species = "human" if 2 * n_human > n else "mouse"
    agree = max(n_human, n - n_human)
    if marked == {species} and n >= _FEWEST_MARKED and agree >= _AGREE_MARKED * n:
        return species
    return species if n >= _FEWEST and agree >= _AGREE * n else None


def _vote(name: str) -> Species | None:
    """The species whose symbols are written like this one; None where both have such."""
    if _ORF.fullmatch(name):
        return "human"
    if _TITLE.fullmatch(name) or name.startswith("mt-"):
        return "mouse"
    if _CLONE.fullmatch(name) or any(c.islower() for c in name):
        return None
    return "human" if sum(c.isupper() for c in name) > 1 else None  # C3 and H19 are of both


def _before_the_spreadsheet(name: str) -> str | None:
    """The gene that a date or a power of ten was, in words; None for any other name."""
    if _POWER.fullmatch(name):
        return "a RIKEN clone (digits, E, digits)"
    if found := _DAY_MONTH.fullmatch(name):
        day, month = int(found[1]), _MONTHS[found[2].lower()[:3]]
    elif found := _MONTH_DAY.fullmatch(name):
        day, month = int(found[2]), _MONTHS[found[1].lower()[:3]]
    elif found := _ISO.fullmatch(name):
        day, month = int(found[2]), int(found[1])
    else:
        return None
    if month not in _MONTHS.values() or not 1 <= day <= 31:
        return None
    if month == 3:
        return f"MARCH{day}" + (f" or MARC{day}" if day <= 2 else "")
    return {9: f"SEPT{day}", 10: f"OCT{day}", 12: f"DEC{day}"}.get(month, "a gene named as a month")


def _summed(
    counts: scipy.sparse.csr_array, columns: np.ndarray, n_genes: int
) -> scipy.sparse.csr_array:
    # int64: a sum of two counts may be above what the file's type holds.
    parts = (counts.data.astype(np.int64), columns[counts.indices], counts.indptr)
    summed = scipy.sparse.csr_array(parts, shape=(len(counts.indptr) - 1, n_genes))
    summed.sum_duplicates()
    return summed


def _joined(ids: Sequence[str], columns: np.ndarray, n_genes: int) -> list[str]:
    every: list[list[str]] = [[] for _ in range(n_genes)]
    for gene_id, column in zip(ids, columns.tolist(), strict=True):
        if gene_id and gene_id not in every[column]:
            every[column].append(gene_id)
    return ["|".join(found) for found in every]
