"""Names of genes: which kind and species they are, and columns that share one."""

import re

import numpy as np
import pytest
import scipy.sparse

from stemjax import errors
from stemjax.data import gene_names
from stemjax.data.layouts import st

HUMAN = ("ERBB2", "CD3E", "HLA-A", "C1orf112", "LINC00115", "KRT5", "MS4A1", "COL1A1", "CXorf36")
MOUSE = ("Erbb2", "Cd3e", "H2-K1", "1700001P01Rik", "Gm12345", "Krt5", "Ms4a1", "Col1a1", "Mir21a")
BOTH = ("C3", "H19", "F5", "AC010184.1")


@pytest.mark.parametrize(
    ("names", "kind", "species", "share"),
    [
        (HUMAN + BOTH, "symbol", "human", 1.0),
        (MOUSE + BOTH, "symbol", "mouse", 1.0),
        (HUMAN[:5], "symbol", "human", 1.0),
        (HUMAN[:4], "symbol", None, 1.0),  # too few to tell
        (("MT-CO1", "CD3E", "KRT5"), "symbol", "human", 1.0),  # but for genes of every list
        (("mt-Co1", "Cd3e", "Krt5"), "symbol", "mouse", 1.0),
        (("RPS6", "RPLP0", "CD3E"), "symbol", "human", 1.0),
        (("Rps6", "Rplp0", "Gapdh"), "symbol", "mouse", 1.0),
        (HUMAN + MOUSE, "symbol", None, 1.0),  # a graft's reference
        (HUMAN[:8] + MOUSE[:2], "symbol", None, 1.0),
        (tuple(f"C{i}orf{i}" for i in range(1, 20)), "symbol", "human", 1.0),
        (("C3", "H19", "F5", "A", "B", "T"), "symbol", None, 1.0),
        (tuple(n.lower() for n in HUMAN), "symbol", None, 1.0),  # of zebrafish, or folded
        ((), "other", None, 0.0),
        (("", "nan", " ", "NA", "None"), "other", None, 0.0),
        ((*HUMAN, "", float("nan"), None), "symbol", "human", 1.0),
        (("ENSG00000141736", "ENSG00000141736.13"), "ensembl", "human", 1.0),
        (("ENSMUSG00000062312.5",), "ensembl", "mouse", 1.0),
        (("ENSRNOG00000006450",), "ensembl", None, 1.0),
        (("ENSG00000141736", "ENSMUSG00000062312"), "ensembl", None, 1.0),
        (("ENSG00000182378.15_PAR_Y", "\ufeffENSG00000141736 "), "ensembl", "human", 1.0),
        ((*HUMAN, "ENSG", "ENSA"), "symbol", "human", 1.0),
        ((*(HUMAN + BOTH)[:10], "ENSG00000141736"), "symbol", "human", 10 / 11),
        ((*HUMAN[:6], "ENSG00000141736", "ENSG00000000003"), "mixed", "human", 0.25),
        ((*MOUSE[:6], "ENSG00000141736", "ENSG00000000003"), "mixed", None, 0.25),
        (("2064", "915", "3852"), "other", None, 1.0),  # Entrez
        (("chr1:100-200", "chr1-300-400", "ILMN_1651229", "1007_s_at"), "other", None, 1.0),
        (("NM_004448.4", "CD3E", "1-Mar"), "other", None, 2 / 3),
    ],
)
def test_kind_and_species_of_names(names, kind, species, share):
    found = gene_names.naming_of(names)
    assert (found.kind, found.species) == (kind, species)
    assert found.share == pytest.approx(share)


def test_species_does_not_depend_on_order():
    rng = np.random.default_rng(0)
    names = np.array(HUMAN[:8] + MOUSE[:1] + BOTH)
    found = {gene_names.naming_of(rng.permutation(names).tolist()) for _ in range(20)}
    assert {(f.kind, f.species) for f in found} == {("symbol", None)}  # 8 of 9 is below nine tenths
    few = (*names[:8].tolist(), *(f"CD{i}A" for i in range(2)), MOUSE[0])
    assert gene_names.naming_of(few).species == "human"


@pytest.mark.her2st
def test_her2st_sections_are_of_human_symbols(her2st):
    for section in ("A1", "G2"):
        slide = st.read_slide(her2st, section, need_image=False)
        found = gene_names.naming_of(slide.genes)
        assert (found.kind, found.species) == ("symbol", "human")
        assert found.share == 1.0
        assert not gene_names.date_like(slide.genes)
        odd = [gene for gene in slide.genes if any(c.islower() for c in gene)]
        assert len(odd) > 200  # C1orf112 and its kind
        assert gene_names.naming_of(odd).species == "human"
        mouse = [gene.title() for gene in slide.genes if gene.isalnum()]
        assert gene_names.naming_of(mouse).species == "mouse"


@pytest.mark.parametrize(
    ("name", "stable"),
    [
        ("ENSG00000141736", "ENSG00000141736"),
        (" ENSG00000141736.13", "ENSG00000141736"),
        ("ENSMUSG00000062312.5", "ENSMUSG00000062312"),
        ("ENSG00000182378.15_PAR_Y", "ENSG00000182378_PAR_Y"),
        ("ENSG", None),
        ("ENST00000269571.10", None),
        ("ENSG00000141736-1", None),
        ("ENSA", None),
        ("AC010184.1", None),
        ("", None),
    ],
)
def test_ids_without_their_version(name, stable):
    assert gene_names.stable_id(name) == stable


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("ERBB2", "ERBB2"),
        ("\tERBB2 \n", "ERBB2"),
        ("\ufeffERBB2\u00a0", "ERBB2"),
        ("HLA\u2011A", "HLA-A"),
        ("HLA\u2013A", "HLA-A"),
        ("ERB\u200bB2", "ERBB2"),
        ("\uff25\uff32\uff22\uff22\uff12", "ERBB2"),  # full width
        ("Cd3e", "Cd3e"),
    ],
)
def test_plain_spelling(name, plain):
    assert gene_names.clean(name) == plain


def test_names_that_were_made_dates():
    dates = {
        "1-Mar": "MARCH1 or MARC1",
        "01-Mar": "MARCH1 or MARC1",
        "11-MAR": "MARCH11",
        "Mar-03": "MARCH3",
        "2-Sep": "SEPT2",
        "Sept-12": "SEPT12",
        "1-Dec": "DEC1",
        "4-Oct": "OCT4",
        "2023-03-02": "MARCH2 or MARC2",
        "2023-09-07 00:00:00": "SEPT7",
        "2.31E+19": "a RIKEN clone (digits, E, digits)",
    }
    genes = [
        *HUMAN, *MOUSE, *BOTH, "MARCH1", "MARCHF1", "SEPT2", "Sept2", "Sep15", "DEC1", "JUN-1",
        "Jun-1", "NOVA1", "MARCO", "NKX2-1", "1-May", "41-Sep", "2310009E13Rik", "MAR-1", "",
    ]  # fmt: skip
    assert gene_names.date_like([*genes, *dates]) == dates
    assert not gene_names.date_like([])


COUNTS = np.array([[1, 2, 3, 4, 0], [5, 0, 7, 8, 9]])
NAMES = ("TBCE", "ACTB", "TBCE", "", "ACTB")
IDS = ("ENSG01", "ENSG02", "ENSG03", "ENSG04", "ENSG02")


@pytest.mark.parametrize(
    ("duplicates", "counts", "ids", "note"),
    [
        ("sum", [[4, 2, 4], [12, 9, 8]], ("ENSG01|ENSG03", "ENSG02", "ENSG04"), "added up"),
        ("first", [[1, 2, 4], [5, 0, 8]], ("ENSG01", "ENSG02", "ENSG04"), "kept the first"),
    ],
)
def test_columns_of_one_name(duplicates, counts, ids, note):
    table = scipy.sparse.csr_array(COUNTS)
    found = gene_names.add_up(table, NAMES, IDS, duplicates=duplicates)
    np.testing.assert_array_equal(found.counts.toarray(), counts)
    assert found.genes == ("TBCE", "ACTB", "ENSG04")  # without a name it goes by its id
    assert found.gene_ids == ids
    assert len(found.notes) == 1
    assert re.fullmatch(f"{note}.*share a symbol: TBCE x2, ACTB x2", found.notes[0])
    np.testing.assert_array_equal(table.toarray(), COUNTS)


def test_columns_of_one_name_can_be_refused():
    table = scipy.sparse.csr_array(COUNTS)
    with pytest.raises(errors.SlideError, match=r"S1: gene names are not unique.*TBCE x2, ACTB x2"):
        gene_names.add_up(table, NAMES, IDS, duplicates="error", where="S1")
    found = gene_names.add_up(table[:, :2], NAMES[:2], IDS[:2], duplicates="error")
    assert (found.genes, found.gene_ids, found.notes) == (NAMES[:2], IDS[:2], ())


def test_columns_without_a_name_are_left_out():
    table = scipy.sparse.csr_array(COUNTS)
    found = gene_names.add_up(table, ["A", float("nan"), "nan", " ", "B"])
    np.testing.assert_array_equal(found.counts.toarray(), COUNTS[:, [0, 4]])
    assert (found.genes, found.gene_ids) == (("A", "B"), ())
    assert found.notes == ("left out 3 columns without a gene's name",)
    with pytest.raises(errors.SlideError, match="no gene has a name"):
        gene_names.add_up(table, [""] * 5, [None] * 5)
    with pytest.raises(errors.SlideError, match="expected 5 names.*found 4 names, 0 ids"):
        gene_names.add_up(table, NAMES[:4])
    with pytest.raises(errors.SlideError, match="found 5 names, 2 ids"):
        gene_names.add_up(table, NAMES, IDS[:2])


def test_the_sum_does_not_depend_on_the_order_of_columns():
    rng = np.random.default_rng(3)
    counts, names = rng.poisson(2, (6, 40)), rng.choice(list("ABCDEFGHIJKL"), 40)
    first = gene_names.add_up(scipy.sparse.csr_array(counts), names.tolist())
    order = rng.permutation(40)
    second = gene_names.add_up(scipy.sparse.csr_array(counts[:, order]), names[order].tolist())
    place = [second.genes.index(gene) for gene in first.genes]
    np.testing.assert_array_equal(first.counts.toarray(), second.counts.toarray()[:, place])
    assert first.counts.sum() == counts.sum()
