"""Panels by Stem's rule, count transforms, standardisation."""

import json
import weakref

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from stemjax import errors
from stemjax.data import genes, slides
from stemjax.data.layouts import st


def make_slide(counts, names=None, slide_id="S1"):
    n_spots, n_genes = counts.shape
    xy = np.stack([np.arange(n_spots), np.zeros(n_spots)], axis=1)
    return slides.Slide(
        id=slide_id,
        patient=None,
        counts=scipy.sparse.csr_array(counts),
        genes=tuple(names or [f"G{i:04d}" for i in range(n_genes)]),
        barcodes=tuple(f"s{i}" for i in range(n_spots)),
        array_xy=xy,
        pixel_xy=xy * 100,
        image=None,
        mpp=0.5,
        spot_diameter_um=55.0,
        sources={},
    )


def tissue(seed, n_spots=60, n_genes=900, skip=0):
    """Counts of two regions: genes of different abundance, a third of them differing by region."""
    rng = np.random.default_rng(seed)
    base = np.exp(np.random.default_rng(7).normal(-0.5, 1.6, n_genes))
    region = (np.arange(n_spots) % 2)[:, None]
    fold = np.where(np.arange(n_genes) % 3 == 0, 4.0, 1.0)
    rate = base * np.where(region == 1, fold, 1.0) * rng.gamma(8, 1 / 8, (n_spots, 1))
    counts = rng.poisson(rate)
    names = [f"G{i:04d}" for i in range(n_genes)]
    names[4], names[6], names[9], names[12] = "MT-CO1", "RPL3", "mt-Nd1", "RPS6"
    return make_slide(counts[:, skip:], names[skip:], f"S{seed}")


def scanpy_like(slide, n):
    """The steps of scanpy one by one on a dense float32 table, in pandas; bins as text labels."""
    table = pd.DataFrame(slide.counts.toarray(), columns=list(slide.genes))
    table = table.loc[(table > 0).any(axis=1), (table > 0).any(axis=0)].astype(np.float32)
    totals = table.sum(axis=1)
    table = np.log1p(table.mul(totals.median() / totals, axis=0))
    linear = np.expm1(table).astype(np.float64)
    stats = pd.DataFrame({"mean": linear.mean(), "var": linear.var(ddof=1)})
    stats["dispersion"] = np.log((stats["var"] / stats["mean"]).replace(0.0, np.nan))
    stats["bin"] = pd.cut(np.log1p(stats["mean"]), bins=20).astype(str)
    for _, group in stats.groupby("bin"):
        centre, spread = group["dispersion"].mean(), group["dispersion"].std()
        if np.isnan(spread):
            centre, spread = 0.0, centre
        stats.loc[group.index, "score"] = (group["dispersion"] - centre) / spread
    cut = stats["score"].dropna().nlargest(n).iloc[-1]
    return set(stats.index[stats["score"] >= cut])


def published_panel(sections, k, n_variable):
    """The published preprocessing at a k set by hand, as sets of names."""
    union = set().union(*(scanpy_like(s, n_variable) for s in sections))
    union = sorted(g for g in union if not g.startswith(("MT", "mt", "RPS", "RPL")))
    tables = [pd.DataFrame(s.counts.toarray(), columns=list(s.genes)) for s in sections]
    table = pd.concat([t.reindex(columns=union) for t in tables]).fillna(0)
    by_mean = table.mean().sort_values(ascending=False, kind="stable").index
    by_std = table.std().sort_values(ascending=False, kind="stable").index
    return set(by_mean[:k]) & set(by_std[:k])


@pytest.mark.parametrize("n", [30, 200, 850])
def test_variable_genes_are_those_of_scanpy(n):
    slide = tissue(1)
    found = genes.variable_genes(slide, n)
    assert set(found) == scanpy_like(slide, n)
    assert n <= len(found) <= n + 5  # ties of genes seen once
    assert [g for g in slide.genes if g in set(found)] == found


def test_variable_genes_do_not_depend_on_empty_spots_and_genes():
    slide = tissue(2, n_genes=300)
    counts = slide.counts.toarray()
    padded = np.zeros((64, 310), int)
    padded[2:62, :300] = counts
    names = [*slide.genes, *(f"N{i}" for i in range(10))]
    assert genes.variable_genes(make_slide(padded, names), 50) == genes.variable_genes(slide, 50)


def test_variable_genes_leave_out_what_does_not_vary():
    counts = np.tile([5, 5, 5, 5], (12, 1))
    counts[:, 1:3] = np.random.default_rng(0).permutation(np.arange(12))[:, None] + [0, 1]
    counts[:, 3] = 100 - counts.sum(axis=1)
    # Totals of 100 t: gene 0 is constant when scaled, but for rounding.
    counts = counts * np.array([1, 2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31])[:, None]
    found = genes.variable_genes(make_slide(counts), 4)
    assert "G0000" not in found
    assert len(found) == 3
    assert genes.variable_genes(make_slide(counts[:1]), 4) == []  # one spot: no variance


def test_genes_tied_with_the_last_are_all_kept():
    # Columns 1 and 2 are copies, so their scores are equal.
    counts = tissue(3, n_genes=60).counts.toarray()
    counts[:, 2] = counts[:, 1]
    slide = make_slide(counts)
    both = {"G0001", "G0002"}
    found = {n: genes.variable_genes(slide, n) for n in range(1, 61)}
    assert {len(both & set(names)) for names in found.values()} == {0, 2}
    enter = next(n for n, names in found.items() if both & set(names))
    assert len(found[enter]) > enter
    assert enter < 60


@pytest.mark.parametrize("n_genes", [20, 51, 100])
def test_panel_is_the_published_one(n_genes):
    sections = [tissue(1), tissue(2, skip=20)]  # the second lacks 20 genes
    panel = genes.select_panel(sections, n_genes=n_genes, n_variable=300)
    assert list(panel.genes) == sorted(panel.genes)
    assert len(set(panel.genes)) == n_genes
    assert panel.slides == ("S1", "S2")
    k = int(panel.rule.split("k=")[1].split()[0])
    assert len(published_panel(sections, k - 1, 300)) < n_genes
    whole = published_panel(sections, k, 300)
    assert set(panel.genes) <= whole
    assert len(whole) - n_genes in (0, 1)  # two genes may enter together
    assert genes.select_panel(sections[::-1], n_genes=n_genes, n_variable=300) == panel


def test_as_many_variable_genes_as_there_are_is_no_filter():
    sections = [tissue(1), tissue(2)]
    panel = genes.select_panel(sections, n_genes=10, n_variable=10**6)
    counts = np.concatenate([section.counts.toarray() for section in sections])
    kept = [i for i, gene in enumerate(sections[0].genes) if not gene.startswith(("MT", "RP"))]
    by_mean = sorted(kept, key=lambda i: -counts[:, i].mean())[:10]
    assert {sections[0].genes[i] for i in by_mean} & set(panel.genes)
    k = int(panel.rule.split("k=")[1].split()[0])
    top = [sorted(kept, key=lambda i: -score[i])[:k] for score in (counts.mean(0), counts.std(0))]
    assert set(panel.genes) <= {sections[0].genes[i] for i in set(top[0]) & set(top[1])}


def test_panel_where_two_genes_enter_together():
    # By hand. Spots are pairs; mean and deviation of each gene:
    #   AA 10 +- 1, BB 4 +- 4, CC 9 +- 3: by mean AA CC BB, by deviation BB CC AA.
    # k = 2 shares CC alone, k = 3 all three: AA and BB enter together, and both have a better
    # rank of 1, so AA, of higher mean, goes first.
    table = pd.DataFrame({"AA": [9, 11], "BB": [0, 8], "CC": [6, 12]})
    table["MTOR"] = [50, 0]  # falls to its prefix, though most abundant
    table["RPS6"] = [0, 40]
    counts = table.to_numpy().repeat(3, axis=0)
    slide = make_slide(counts, list(table.columns))
    chosen = {n: genes.select_panel([slide], n_genes=n) for n in (1, 2, 3)}
    assert [chosen[n].genes for n in (1, 2, 3)] == [("CC",), ("AA", "CC"), ("AA", "BB", "CC")]
    assert ["k=2" in chosen[1].rule, "k=3" in chosen[2].rule] == [True, True]
    # And with AA 9 +- 1, BB 4 +- 4, CC 10 +- 3: AA's better rank is 1, BB's is 0, so BB goes first.
    table["AA"], table["CC"] = [8, 10], [7, 13]
    other = make_slide(table.to_numpy().repeat(3, axis=0), list(table.columns))
    assert genes.select_panel([other], n_genes=2).genes == ("BB", "CC")
    with pytest.raises(errors.GenePanelError, match="S1.*at least 4.*found 3.*MT.*fewer genes"):
        genes.select_panel([slide], n_genes=4)


def test_a_panel_of_many_slides_holds_one_at_a_time():
    held, most = weakref.WeakSet(), 0

    def read():
        nonlocal most
        for seed, skip in enumerate((0, 3, 0, 40, 0)):
            slide = tissue(seed, skip=skip)
            held.add(slide)
            most = max(most, len(held))
            yield slide
            del slide

    panel = genes.select_panel(read(), n_genes=50)
    assert most <= 2  # the one before is let go when the next is there
    whole = [tissue(seed, skip=skip) for seed, skip in enumerate((0, 3, 0, 40, 0))]
    assert panel == genes.select_panel(whole[::-1], n_genes=50)


def test_panel_of_nothing():
    slide = tissue(1)
    for sections, n in [([], 10), ([slide, slide], 10), ([slide], 0)]:
        with pytest.raises(errors.GenePanelError, match="no slide twice"):
            genes.select_panel(sections, n_genes=n)


def test_panel_survives_json():
    panel = genes.Panel(genes=("B", "A"), rule="by hand", slides=("S1",))
    assert genes.Panel.from_json(json.loads(json.dumps(panel.to_json()))) == panel
    with pytest.raises(errors.GenePanelError, match="incomplete.*'rule'"):
        genes.Panel.from_json({"genes": ["A"], "slides": []})
    with pytest.raises(errors.GenePanelError, match="none twice, found A, B twice"):
        genes.Panel(genes=("A", "B", "A", "B"), rule="x", slides=())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("selected_gene_list.txt", "ERBB2\n\n# markers\nCD3E\r\nNA\n"),
        ("var_50genes.json", '{"genes": ["ERBB2", "CD3E", "NA"]}'),
        ("list.json", '\ufeff["ERBB2", "CD3E", "NA"]'),
    ],
)
def test_gene_list_of_a_file(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    panel = genes.read_gene_list(tmp_path / name)
    assert panel.genes == ("ERBB2", "CD3E", "NA")
    assert name in panel.rule


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "A\nB\nA\n", "a.txt.*A twice"),
        ("b.txt", "# none\n", "b.txt.*at least one"),
        ("c.json", '{"gene": []}', "c.json.*KeyError.*genes"),
        ("d.json", "[1, 2]", "d.json.*not a list of names"),
        ("e.json", "ERBB2", "e.json.*JSON"),
        ("absent.txt", None, "absent.txt.*FileNotFound"),
    ],
)
def test_gene_list_that_is_none(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(errors.GenePanelError, match=message):
        genes.read_gene_list(tmp_path / name)


def test_panel_counts_follow_the_panel_and_mark_what_is_missing():
    counts = np.array([[1, 2, 3], [4, 5, 6]])
    slide = make_slide(counts, ["A", "B", "C"])
    found, mask = genes.panel_counts(slide, ["C", "X", "A"])
    np.testing.assert_array_equal(found, [[3, 0, 1], [6, 0, 4]])
    np.testing.assert_array_equal(mask, [1, 0, 1])
    assert (found.dtype, mask.dtype) == (np.int32, np.uint8)


@pytest.mark.parametrize(
    ("ours", "wanted", "hint"),
    [
        (["Actb", "Cd3e"], ["ACTB", "KRT5"], "1 names agree but for.*mouse"),
        (["ENSG00000141736", "ENSG1"], ["ERBB2"], "Ensembl"),
        (["ERBB2", "CD3E"], ["ENSG00000141736"], "Ensembl"),
        (["A", "B"], ["C"], "alike"),
    ],
)
def test_slide_without_any_gene_of_the_panel(ours, wanted, hint):
    slide = make_slide(np.ones((3, 2), int), ours)
    with pytest.raises(errors.GenePanelError, match=f"slide S1 has none.*{wanted[0]}.*{hint}"):
        genes.panel_counts(slide, wanted)


@pytest.mark.her2st
def test_her2st_panel(her2st):
    sections = [st.read_slide(her2st, s, need_image=False) for s in ("B4", "C2", "C3", "C4")]
    panel = genes.select_panel(sections, n_genes=200)
    assert "k=224 " in panel.rule
    assert set(panel.genes) == published_panel(sections, 224, 2000)
    assert {"COL1A1", "ERBB2"} & set(panel.genes)
