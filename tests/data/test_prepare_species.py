"""Prepare: panels of one species on slides of the other."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.sparse
import small_slides as made

from stemjax import errors
from stemjax.data import genes, orthologues, prepare


def test_a_panel_of_the_other_species_is_written_by_a_table(tmp_path):
    """Three of eight genes have a partner; the table is a source of the slide's records."""
    mouse = ("Cd3e", "Epcam", "Krt5", "Actb", "mt-Co1", "Rps2", *(f"Gene{i}a" for i in range(40)))
    slide = made.make_slide("M1")
    rng = np.random.default_rng(0)
    slide = dataclasses.replace(
        slide,
        counts=scipy.sparse.csr_array(rng.poisson(3.0, (slide.n_spots, len(mouse)))),
        genes=mouse,
        gene_ids=(),
    )
    human = genes.Panel(
        genes=("CD3E", "EPCAM", "KRT5", "PTPRC", "MS4A1", "CD19", "CD8A", "GAPDH"),
        rule="given",
        slides=(),
    )
    table = tmp_path / "pairs.csv"
    table.write_text("human,mouse\nCD3E,Cd3e\nEPCAM,Epcam\nKRT5,Krt5\nPTPRC,Ptprc\n")
    args = {"genes": human, "encoder": "none"}
    with pytest.raises(errors.GenePanelError, match="mouse"):
        prepare.prepare(lambda _: slide, ("M1",), tmp_path / "a", **args)
    source = prepare.prepare(
        lambda _: slide,
        ("M1",),
        tmp_path / "b",
        orthologues=orthologues.read_orthologues(table),
        **args,
    )
    found = source.load(["M1"])
    np.testing.assert_array_equal(found.mask[0], [1, 1, 1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(found.counts[:, :3], slide.counts[:, :3].toarray())
    np.testing.assert_array_equal(found.total, slide.counts.sum(axis=1))
    assert "pairs.csv" in source.slides["M1"].sources
    assert any("orthologue" in note for note in source.slides["M1"].notes)
