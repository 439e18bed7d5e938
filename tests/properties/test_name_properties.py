"""Names: of genes and their copies in a panel, of slides as folders, of flags and lists of them."""

import argparse
import pathlib
import re

import numpy as np
import scipy.sparse
from drawn import TEXT, or_refused
from hypothesis import given
from hypothesis import strategies as st

from stemjax import names, tasks
from stemjax.cli import options
from stemjax.data import builder, gene_matching, gene_names, orthologues, slides

KNOWN = (
    "CD3E,Cd3e,CD3E-1,CD3E.1,TBCE,TBCE-1,ENSG00000198851,ENSG00000198851.12,ENSMUSG00000032093,"
    "MT-CO1,mt-Co1,1-Mar,Mar-01,2.3E+19,C1orf112,H2-K1,NaN,GAPDH,Gapdh,ACTB,NKX2-2,T3E"
)
GENES = st.one_of(
    st.sampled_from(KNOWN.split(",")),
    st.builds(
        "{}{}".format, st.sampled_from(KNOWN.split(",")), st.sampled_from([" ", "\u200b", "-1"])
    ),
    st.text("ABCabc019-._ |\u2010\u200b", min_size=1, max_size=8),
    st.text(max_size=6),
)
FEW = st.sampled_from(["CD3E", "CD3E ", "CD3E-1", "T3E", "ENSG00000198851", "ENSG00000198851.2"])
LISTS = st.lists(GENES | FEW, min_size=1, max_size=12, unique=True)
TABLE = orthologues.Orthologues(
    to_mouse={"CD3E": ("ENSMUSG00000032093", "Cd3e")},
    to_human={"Cd3e": ("ENSG00000198851", "CD3E"), "ENSMUSG00000032093": ("CD3E",)},
    source="table",
    sha256="",
    notes=(),
)
ALIASES = orthologues.Aliases(genes={"T3E": "CD3E", "NaN": "A"}, source="a", sha256="", notes=())


@given(
    LISTS, LISTS, st.booleans(), st.sampled_from([None, TABLE]), st.sampled_from([None, ALIASES])
)
def test_a_gene_has_one_column_whatever_their_order(panel, slide, with_ids, table, aliases):
    ids = [f"ENSG{i:011d}" if i % 2 else "" for i in range(len(slide))] if with_ids else []

    def matched(order):
        return or_refused(
            gene_matching.match,
            panel,
            [slide[i] for i in order],
            [ids[i] for i in order] if with_ids else (),
            orthologues=table,
            aliases=aliases,
        )

    found, turned = matched(range(len(slide))), matched(range(len(slide))[::-1])
    assert (found is None) == (turned is None)
    if found is None or turned is None:
        return
    columns = found.columns[found.columns >= 0].tolist()
    assert len(set(columns)) == len(columns) > 0
    assert [how == "missing" for how in found.how] == (found.columns < 0).tolist()
    assert turned.how == found.how
    back = np.where(turned.columns < 0, -1, len(slide) - 1 - turned.columns)
    assert back.tolist() == found.columns.tolist()
    if set(panel) <= set(slide) and not any(map(gene_names.is_blank, panel)):
        assert [slide[column] for column in found.columns] == panel


@given(st.lists(GENES | st.none() | st.floats(), max_size=12))
def test_any_names_are_of_some_kind(given_names):
    found = gene_names.naming_of(given_names)
    assert 0 <= found.share <= 1
    text = [str(name) for name in given_names]
    changed = gene_names.date_like(text)
    assert set(changed) <= set(text)
    assert gene_names.naming_hint(text or ["A"], ["B"])
    for name in text:
        assert gene_names.clean(gene_names.clean(name)) == gene_names.clean(name)


@st.composite
def named_counts(draw):
    size = {"min_size": (columns := draw(st.integers(1, 8))), "max_size": columns}
    rows = draw(st.lists(st.lists(st.integers(0, 9), **size), max_size=4))
    called = draw(st.lists(GENES, **size))
    ids = draw(st.lists(st.sampled_from(["", "ENSG1", "ENSG2"]), **size))
    return np.array(rows, np.int64).reshape(-1, columns), called, draw(st.sampled_from([(), ids]))


@given(named_counts())
def test_adding_up_keeps_every_count(made):
    counts, called, ids = made
    found = or_refused(gene_names.add_up, scipy.sparse.csr_array(counts), called, ids)
    keys = [
        (ids[i] if ids else "") if gene_names.is_blank(name) else name
        for i, name in enumerate(called)
    ]
    keys = ["" if gene_names.is_blank(key) else key for key in keys]
    if found is None:
        assert not any(keys)
        return
    wanted = {key: counts[:, [i for i, k in enumerate(keys) if k == key]].sum(axis=1)
              for key in keys if key}  # fmt: skip
    dense = found.counts.toarray()
    assert list(found.genes) == list(wanted)
    for column, gene in enumerate(found.genes):
        assert dense[:, column].tolist() == wanted[gene].tolist()


SLIDE_IDS = (
    st.text("abdu_.-x", min_size=1, max_size=6)
    | st.from_regex(r"(x-)?[ab_.du]{1,3}", fullmatch=True)
    | st.text(max_size=6)
)


@given(SLIDE_IDS, SLIDE_IDS)
def test_slides_have_folders_of_their_own(first, second):
    usable = [s for s in (first, second) if or_refused(lambda s: slides.require_id(s) or s, s)]
    for slide in usable:
        folder = builder.split_name(slide)
        assert re.fullmatch(r"[A-Za-z0-9_-]+", folder)
        assert builder.slide_of(pathlib.Path(folder) / builder.VERSION) == slide
    if len(usable) == 2 and first != second:
        assert builder.split_name(first) != builder.split_name(second)


@given(st.text())
def test_a_slide_id_is_a_file_name_and_no_path(text):
    if or_refused(lambda: slides.require_id(text) or True):
        assert 0 < len(text) <= 128
        assert text.isascii()
        assert not set(text) & set("/\\\0: \n")
        assert text.strip(".")


@given(st.lists(st.text(max_size=5)))
def test_a_list_of_names(listed):
    found = names.split_names(",".join(listed))
    assert all(name == name.strip() and name and "," not in name for name in found)
    assert names.split_names(",".join(found)) == found


@given(st.integers(-2, 40), st.integers(-2, 40))
def test_a_share_is_one_of_several(index, count):
    found = or_refused(options.share, f"{index}/{count}")
    assert found == ((index, count) if 0 <= index < count else None)


@given(TEXT | st.from_regex(r"\d*/\d*", fullmatch=True) | st.just("1/" + "9" * 5000))
def test_any_text_is_a_share_or_none(text):
    found = or_refused(options.share, text)
    assert found is None or 0 <= found[0] < found[1]


FLAGS = {
    "--mode": st.sampled_from(names.MODES),
    "--n-draws": st.integers(),
    "--sampler": st.sampled_from(names.SAMPLERS),
    "--steps": st.integers(),
    "--ladder": st.sampled_from(names.LADDERS),
    "--eta": st.floats(),
    "--churn": st.floats(),
    "--sigma-min": st.floats(),
    "--sigma-max": st.floats(),
}


@given(st.fixed_dictionaries({}, optional=FLAGS))
def test_flags_of_sampling_make_a_sampling_or_an_error(chosen):
    parser = argparse.ArgumentParser()
    options.add_sampling(parser)
    args = parser.parse_args([f"{flag}={value}" for flag, value in chosen.items()])
    given_fields = options.sampling(args)
    assert set(given_fields) == {flag.strip("-").replace("-", "_") for flag in chosen}
    found = or_refused(tasks.Sampling, **given_fields)
    if found is not None:
        for name, value in given_fields.items():
            assert getattr(found, name) == value or value != value
