"""Which column of a slide is which gene of a panel: what is matched, masked and refused."""

import dataclasses
import re

import numpy as np
import pytest
import scipy.sparse

from stemjax import errors
from stemjax.data import gene_matching, genes, orthologues, slides
from stemjax.data.layouts import st

HUMAN = ("ERBB2", "CD3E", "KRT5", "MS4A1", "COL1A1", "C3", "CD8A", "GAPDH")
MOUSE = ("Erbb2", "Cd3e", "Krt5", "Ms4a1", "Col1a1", "C3", "Cd8a", "Gapdh")


def make_slide(counts, names, ids=()):
    n_spots = len(counts)
    xy = np.stack([np.arange(n_spots), np.zeros(n_spots)], axis=1)
    return slides.Slide(
        id="S1",
        patient=None,
        counts=scipy.sparse.csr_array(counts),
        genes=tuple(names),
        gene_ids=tuple(ids),
        barcodes=tuple(f"s{i}" for i in range(n_spots)),
        array_xy=xy,
        pixel_xy=xy * 100,
        image=None,
        mpp=0.5,
        spot_diameter_um=55.0,
        sources={},
    )


def table(tmp_path, text, name="pairs.csv"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


@pytest.fixture
def pairs(tmp_path):
    """Orthologues of all but CD8A; the C3 of each is another gene of the other."""
    lines = [f"{h},{m}" for h, m in zip(HUMAN, MOUSE, strict=True) if h not in ("C3", "CD8A")]
    lines += ["C3,Complement3", "H2,C3"]
    path = table(tmp_path, "human,mouse\n" + "\n".join(lines))
    return orthologues.read_orthologues(path)


@pytest.mark.parametrize(
    ("panel", "names", "ids", "columns", "how"),
    [
        # The same name, whatever else would do.
        (["B", "A"], ["A", "B", " A", "A-1"], (), [1, 0], ["name", "name"]),
        (["C1orf112", "NKX2-1"], ["NKX2-1", "C1orf112"], (), [1, 0], ["name", "name"]),
        # Ids on both sides, on one side beside symbols, with versions.
        (["ENSG01.3", "ENSG02"], ["ENSG02.1", "ENSG01"], (), [1, 0], ["ensembl"] * 2),
        (["ENSG01.3", "A"], ["A", "B"], ["ENSG02.9", "ENSG01.1"], [1, 0], ["ensembl", "name"]),
        (["ENSG01", "A"], ["A", "B"], ["", "ENSG02|ENSG01"], [1, 0], ["ensembl", "name"]),
        (["ENSG01_PAR_Y", "A"], ["A", "B"], ["", "ENSG01"], [-1, 0], ["missing", "name"]),
        (["ENSG01", "A"], ["A", "B", "C"], ["", "ENSG01", "ENSG01.2"], [-1, 0],
         ["missing", "name"]),
        # Both ids of one column: neither is it alone.
        (["ENSG01", "ENSG02", "B"], ["A", "B"], ["ENSG01|ENSG02", ""], [-1, -1, 1],
         ["missing", "missing", "name"]),
        # An id and the symbol of one gene: the symbol has it.
        (["ENSG01", "A"], ["A", "B"], ["ENSG01", "ENSG02"], [-1, 0], ["missing", "name"]),
        # Spelling.
        (["HLA-A", "B "], ["B", "HLA\u2011A\u00a0"], (), [1, 0], ["spelling"] * 2),
        (["A", "B"], ["B", "A ", " A"], (), [-1, 0], ["missing", "name"]),
        # Names that scanpy or R made unique.
        (["TBCE", "B"], ["B", "TBCE-1"], (), [1, 0], ["made unique", "name"]),
        (["ECSCR", "B"], ["B", "ECSCR.1"], (), [1, 0], ["made unique", "name"]),
        (["TBCE", "B"], ["TBCE-1", "TBCE", "B"], (), [1, 2], ["name", "name"]),
        (["TBCE", "B"], ["B", "TBCE-1", "TBCE.1"], (), [-1, 0], ["missing", "name"]),
        (["TBCE", "B"], ["B", "TBCE ", " TBCE", "TBCE-1"], (), [-1, 0], ["missing", "name"]),
        (["NKX2", "B"], ["B", "NKX2-1", "NKX2-2"], (), [-1, 0], ["missing", "name"]),
        (["IGHV1-69", "B"], ["B", "IGHV1-69-2"], (), [-1, 0], ["missing", "name"]),
        (["TBCE", "TBCE-1"], ["B", "TBCE-1"], (), [-1, 1], ["missing", "name"]),
        (["TBCE-1", "B"], ["B", "TBCE"], (), [-1, 0], ["missing", "name"]),
        # What is no name is no gene.
        (["", "nan", "B"], ["B", "nan", ""], (), [-1, -1, 0], ["missing", "missing", "name"]),
        # Case is not ignored.
        (["cd3e", "B"], ["B", "CD3E"], (), [-1, 0], ["missing", "name"]),
    ],
)  # fmt: skip
def test_what_is_matched(panel, names, ids, columns, how):
    for order in (np.arange(len(names)), np.arange(len(names))[::-1]):
        turned = [ids[i] for i in order] if ids else ()
        found = gene_matching.match(panel, [names[i] for i in order], turned)
        back = [int(order[c]) if c >= 0 else -1 for c in found.columns]
        assert (back, list(found.how)) == (columns, how)


@pytest.mark.parametrize(
    ("panel", "names", "notes"),
    [
        (HUMAN, HUMAN[::-1], []),
        (HUMAN, HUMAN[2:], ["lacks 2 of the 8 genes .*ERBB2, CD3E.: masked, not counted as 0"]),
        (HUMAN, ("ACTB", *HUMAN[5:]), ["lacks 5 of .*ERBB2, CD3E, KRT5 and 2 more", "more than h"]),
        (HUMAN, (*HUMAN[:7], "GAPDH-1"), ["1 of 8 genes by a name that a tool .*is GAPDH-1"]),
        (HUMAN, (*HUMAN[:7], "GAPDH "), ["but for white space"]),
        (("MARCH1", *HUMAN), (*HUMAN, "1-Mar"),
         ["lacks 1 of the 9", "slide has 1 names .*spreadsheet .*1-Mar was MARCH1 or MARC1"]),
        ((*HUMAN, "2-Sep"), HUMAN, ["lacks 1", "panel has 1 .*2-Sep was SEPT2"]),
        # Two of a panel that are one gene: neither has its column.
        ((*HUMAN, "ENSG01", "ENSG01.2"), (*HUMAN, "ENSG01.1"),
         ["lacks 2", "another gene claims the same column: ENSG01, ENSG01.2"]),
    ],
)  # fmt: skip
def test_notes_say_what_is_missing_and_how_the_rest_was_found(panel, names, notes):
    found = gene_matching.match(panel, names).notes
    assert len(found) == len(notes)
    for said, expected in zip(found, notes, strict=True):
        assert re.search(expected, said)


def test_half_a_panel_is_not_more_than_half():
    assert len(gene_matching.match(HUMAN, HUMAN[:4]).notes) == 1
    assert "more than half" in gene_matching.match(HUMAN, HUMAN[:3]).notes[1]


@pytest.mark.parametrize(
    ("panel", "names", "ids", "told"),
    [
        (HUMAN, MOUSE, (), "S1 names genes as those of mouse are, the panel as .*human.*Give"),
        (MOUSE, HUMAN, (), "S1 names genes as those of human are, the panel as those of mouse"),
        (("ENSG00000141736", *HUMAN), ("ENSMUSG00000062312",), (), "those of mouse"),
        # Symbols without letters to tell by, but ids that do; C3 would be found by its name.
        (HUMAN, ("C3", "X1", "X2"), ("ENSMUSG00000024164.4", "", ""), "those of mouse"),
        (HUMAN, ("ENSG00000141736", "ENSG00000010610"), (), "none of the 8 genes.*convert one"),
        (("ENSG00000141736",), HUMAN, (), "none of the 1 genes.*give the slide's ids beside"),
        (("ERBB2",), ("GRCh38_ERBB2", "mm10___Erbb2"), (), "prefix such as that of GRCh38_ERBB2"),
        (HUMAN, ("0", "1", "2"), (), "The slide does not name genes"),
        (("0", "1"), HUMAN, (), "The panel does not name genes"),
        (("cd3e",), HUMAN, (), "1 names agree but for upper and lower case"),
        (HUMAN, ("", "nan"), (), "none of the 8 genes"),
    ],
)  # fmt: skip
def test_what_is_refused(panel, names, ids, told):
    with pytest.raises(errors.GenePanelError, match=told):
        gene_matching.match(panel, names, ids, where="slide S1")


def test_a_few_odd_names_are_not_another_species():
    # Mouse genes put into a human slide's reference, and a panel that misses one.
    names = (*HUMAN[:6], *(f"Trans{i}a" for i in range(60)))
    found = gene_matching.match(HUMAN, names)
    assert (found.columns >= 0).sum() == 6
    assert len(found.notes) == 1


def test_orthologues_connect_species_and_nothing_else(pairs):
    found = gene_matching.match(HUMAN, MOUSE[::-1], orthologues=pairs)
    # CD8A has no partner; mouse's C3 is another gene than human C3.
    assert found.columns.tolist() == [7, 6, 5, 4, 3, -1, -1, 0]
    assert [h for h in found.how if h != "orthologue"] == ["missing", "missing"]
    assert found.notes[0].startswith("lacks 2 of the 8 genes of the panel (C3, CD8A)")
    assert "matched 6 of 8 genes by orthologue of pairs.csv: ERBB2 is Erbb2" in found.notes[1]
    back = gene_matching.match(MOUSE, HUMAN, orthologues=pairs)
    assert back.columns.tolist() == [0, 1, 2, 3, 4, -1, -1, 7]
    same = gene_matching.match(HUMAN, HUMAN[::-1], orthologues=pairs)
    assert (set(same.how), same.notes) == ({"name"}, ())
    few = gene_matching.match(HUMAN, MOUSE[:2] + MOUSE[6:] + ("Xbp1",), orthologues=pairs)
    assert few.notes[1].endswith("missing. pairs.csv connects no more of them with this slide")
    with pytest.raises(errors.GenePanelError, match="none of the 5.*orthologues with these names"):
        gene_matching.match(["CD4A", "CD9", "XBP1", "FOX1", "CD44"], MOUSE, orthologues=pairs)


def test_orthologues_by_ids_and_of_few_genes(tmp_path):
    path = table(
        tmp_path,
        "Gene stable ID\tGene name\tMouse gene stable ID\tMouse gene name\n"
        "ENSG00000141736.14\tERBB2\tENSMUSG00000062312\tErbb2\n"
        "ENSG00000198851\tCD3E\tENSMUSG00000032093\tCd3e\n",
    )
    both = orthologues.read_orthologues(path)
    # Too few names to tell the species by: the table tells.
    for panel in (["ERBB2", "CD3E"], ["ENSG00000141736.2", "CD3E"]):
        found = gene_matching.match(panel, ["Cd3e", "Erbb2"], orthologues=both)
        assert found.columns.tolist() == [1, 0]
        ids = ["ENSMUSG00000032093.1", "ENSMUSG00000062312.9"]
        found = gene_matching.match(panel, ["x", "y"], ids, orthologues=both)
        assert found.columns.tolist() == [1, 0]
        assert set(found.how) == {"orthologue"}


def test_an_orthologue_at_two_columns_is_neither(tmp_path):
    path = table(tmp_path, "human,mouse,mouse symbol\nERBB2,Erbb2,Neu\nCD3E,Cd3e,Cd3e\n")
    two = orthologues.read_orthologues(path)
    found = gene_matching.match(["ERBB2", "CD3E"], ["Cd3e", "Neu"], orthologues=two)
    assert found.columns.tolist() == [1, 0]
    found = gene_matching.match(["ERBB2", "CD3E"], ["Cd3e", "Neu", "Erbb2"], orthologues=two)
    assert found.columns.tolist() == [-1, 0]


def test_aliases_come_from_a_file_alone(tmp_path):
    panel, names = ["MARCHF1", "MARCH2", "RNF170", "B"], ["B", "MARCH1", "MARCHF2", "ENSG01.4"]
    assert gene_matching.match(panel, names).columns.tolist() == [-1, -1, -1, 0]
    path = table(
        tmp_path, "gene,alias\nMARCHF1,MARCH1\nMARCHF1,1-Mar\nMARCHF2,MARCH2\nRNF170,ENSG01\n"
    )
    known = orthologues.read_aliases(path)
    found = gene_matching.match(panel, names, aliases=known)
    assert found.columns.tolist() == [1, 2, 3, 0]
    assert list(found.how) == ["alias"] * 3 + ["name"]
    beside = gene_matching.match(panel, ["B", "Q"], ["", "ENSG01.2"], aliases=known)
    assert beside.columns.tolist() == [-1, -1, 1, 0]
    # Two columns of one gene: it is not said which is meant.
    both = gene_matching.match(panel, [*names, "1-Mar"], aliases=known)
    assert both.columns.tolist() == [-1, 2, 3, 0]


def test_panel_counts_are_masked_where_a_gene_is_missing(pairs):
    counts = np.random.default_rng(0).poisson(3, (5, 8)) + 1
    slide = make_slide(counts, MOUSE)
    with pytest.raises(errors.GenePanelError, match="slide S1 names genes as those of mouse"):
        genes.panel_counts(slide, HUMAN)
    found, mask = genes.panel_counts(slide, HUMAN, orthologues=pairs)
    np.testing.assert_array_equal(mask, [1, 1, 1, 1, 1, 0, 0, 1])
    np.testing.assert_array_equal(found, counts * mask[None])


def test_an_image_alone_has_no_gene_and_no_note():
    slide = make_slide(np.zeros((3, 1), int), ["A"])
    bare = dataclasses.replace(
        slide, counts=scipy.sparse.csr_array((3, 0)), genes=(), measured=False
    )
    found = genes.match_panel(bare, HUMAN)
    assert (set(found.how), found.notes) == ({"missing"}, ())
    assert not genes.panel_counts(bare, HUMAN)[1].any()


def test_ids_of_a_slide_fit_its_genes():
    with pytest.raises(errors.SlideError, match="S1: gene_ids does not fit.*expected 2, found 1"):
        make_slide(np.ones((3, 2), int), ["A", "B"], ["ENSG01"])


@pytest.mark.parametrize("seed", range(8))
def test_a_column_is_never_another_gene(seed):
    """Against the truth of made slides, whose columns are written in all the ways above."""
    rng = np.random.default_rng(seed)
    n = 60
    symbols, ids = [f"GN{i}A" for i in range(n)], [f"ENSG{i:011d}" for i in range(n)]
    ways = [
        lambda i: symbols[i],
        lambda i: f" {symbols[i]}",
        lambda i: f"{symbols[i]}-1",
        lambda i: f"{ids[i]}.{rng.integers(1, 9)}",
    ]
    present = rng.choice(n, 40, replace=False)
    way = rng.integers(0, 4, n)
    names = [ways[way[i]](i) for i in present]
    known = [ids[i] if rng.random() < 0.5 else "" for i in present]
    wanted = rng.choice(n, 30, replace=False)
    by_id = rng.random(30) < 0.3
    panel = [ids[i] if b else symbols[i] for i, b in zip(wanted, by_id, strict=True)]
    counts = rng.poisson(4, (7, 40)) + 1
    found, mask = genes.panel_counts(make_slide(counts, names, known), panel)
    column = {gene: c for c, gene in enumerate(present.tolist())}
    for g, gene in enumerate(wanted.tolist()):
        if gene not in column:
            assert mask[g] == 0
            assert not found[:, g].any()
            continue
        c = column[gene]
        # A symbol finds all but a bare id; an id finds ids.
        findable = (way[gene] == 3 or bool(known[c])) if by_id[g] else way[gene] != 3
        assert mask[g] == findable
        np.testing.assert_array_equal(found[:, g], counts[:, c] * findable)
    order = rng.permutation(40)
    turned = make_slide(counts[:, order], [names[i] for i in order], [known[i] for i in order])
    again, same = genes.panel_counts(turned, panel)
    np.testing.assert_array_equal(again, found)
    np.testing.assert_array_equal(same, mask)


@pytest.mark.her2st
def test_her2st_genes_are_matched_by_their_names(her2st):
    slide = st.read_slide(her2st, "B1", need_image=False)
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(slide.genes), 200, replace=False)
    found = gene_matching.match([slide.genes[i] for i in chosen], slide.genes)
    np.testing.assert_array_equal(found.columns, chosen)
    assert found.notes == ()
    # R wrote ECSCR.1 where there is no ECSCR; IGHV1-69-2 is not the gene IGHV1-69.
    panel = ["ERBB2", "ECSCR", "NKX2", "KRTAP5", "erbb2"]
    found = gene_matching.match(panel, slide.genes)
    assert list(found.how) == ["name", "made unique", "missing", "missing", "missing"]
    assert slide.genes[found.columns[1]] == "ECSCR.1"
