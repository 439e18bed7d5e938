"""Ensembl ids travel from 10x's files to the slide and to the panel."""

import numpy as np
import pytest
import visium_folders as made

from stemjax import errors
from stemjax.data import genes
from stemjax.data.layouts import feature_matrix, visium


@pytest.mark.parametrize("form", ["h5", "text"])
def test_ids_of_a_feature_matrix_are_kept(tmp_path, form):
    path = tmp_path / "filtered_feature_bc_matrix.h5"
    if form == "h5":
        made.write_h5(path)
    else:
        path = made.write_text(tmp_path / "filtered_feature_bc_matrix")
    matrix = feature_matrix.read_matrix(path)
    assert matrix.genes == made.GENES
    assert matrix.gene_ids == ("ENSG01", "ENSG02|ENSG04", "ENSG03", "ENSG05")
    first = feature_matrix.read_matrix(path, duplicates="first")
    np.testing.assert_array_equal(first.counts.toarray(), made.counts()[:, [0, 1, 3, 6]])
    assert first.gene_ids == ("ENSG01", "ENSG02", "ENSG03", "ENSG05")
    with pytest.raises(errors.SlideError, match="not unique.*TBCE x2"):
        feature_matrix.read_matrix(path, duplicates="error")


def test_a_visium_slide_is_matched_by_its_ids(tmp_path):
    features = [(f"ENSG{i:011d}", name, kind) for i, (_, name, kind) in enumerate(made.FEATURES)]
    made.write_slide(tmp_path / "V1")
    made.write_h5(tmp_path / "V1" / "filtered_feature_bc_matrix.h5", features=tuple(features))
    slide = visium.read_slide(tmp_path, "V1", need_image=False)
    assert slide.gene_ids == (
        "ENSG00000000000",
        "ENSG00000000001|ENSG00000000004",
        "ENSG00000000003",
        "ENSG00000000006",
    )
    panel = ["ENSG00000000003.7", "ENSG00000000099", "ENSG00000000001"]
    counts, mask = genes.panel_counts(slide, panel)
    np.testing.assert_array_equal(mask, [1, 0, 1])
    np.testing.assert_array_equal(counts[:, [0, 2]], slide.counts.toarray()[:, [2, 1]])
    assert not counts[:, 1].any()
    notes = genes.match_panel(slide, panel).notes
    assert notes == (
        "lacks 1 of the 3 genes of the panel (ENSG00000000099): masked, not counted as 0",
        "matched 2 of 3 genes by Ensembl id: ENSG00000000003.7 is ERBB2, ENSG00000000001 is TBCE",
        "counts of several Ensembl ids are added up in TBCE",
    )
