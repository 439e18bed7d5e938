"""D8 to D10 and D20: what genes are called, which are there, and which a model has."""

from __future__ import annotations

import dataclasses

import defective
import made_prediction
import numpy as np
import pandas as pd
import pytest
from defective import GENES, IDS, LAYOUTS, MPP
from refusals import command_refuses, python_refuses

from stemjax import cli
from stemjax.data import annotated, records

MOUSE = ["Erbb2", "Krt5", "Cd8a", "Actb", "Col1a1", "H2-K1"]


@pytest.fixture
def prepare(tmp_path):
    """Returns the command that prepares a folder, without an encoder."""
    panel = defective.write_genes(tmp_path / "genes.txt")

    def command(layout, *more):
        return ["prepare", "--layout", layout, "--data", tmp_path / layout, "--out",
                tmp_path / "out", "--genes", panel, "--encoder", "none", "--workers", "1",
                *more]  # fmt: skip

    return command


def run(command):
    assert cli.main([str(word) for word in command]) == 0


def counts_of(tmp_path):
    table = records.open_records(tmp_path / "out").load(["S1"])
    return np.asarray(table.counts), np.asarray(table.mask)


def doubled():
    """Columns 1, 3 and 5 share a name, and columns 0 and 4, which come first and are fewer."""
    return defective.make(genes=["KRT5", "ERBB2", "CD8A", "ERBB2", "KRT5", "ERBB2"])


@pytest.mark.parametrize("layout", ["st", "h5ad", "hest"])
def test_d08_the_most_frequent_doubles_are_named_and_a_choice_given(
    layout, tmp_path, prepare, capsys
):
    made = doubled()
    defective.write(layout, tmp_path / layout, made)
    command_refuses(
        capsys, prepare(layout), "SJ-D01", "D08", "slide S1: gene names are not unique",
        "ERBB2 x3, KRT5 x2", "--duplicate-genes sum", "--duplicate-genes first",
    )  # fmt: skip
    for choice, erbb2 in (("sum", made.counts[:, [1, 3, 5]].sum(1)), ("first", made.counts[:, 1])):
        command = prepare(layout, "--duplicate-genes", choice)
        command[command.index("--out") + 1] = tmp_path / choice / "out"
        run(command)
        counts, mask = counts_of(tmp_path / choice)
        np.testing.assert_array_equal(counts[:, 0], erbb2)
        np.testing.assert_array_equal(mask[0], [1, 1, 1, 0, 0, 0])
        told = "added up the counts" if choice == "sum" else "kept the first"
        assert f"note: {told} of genes that share a symbol: ERBB2 x3, KRT5 x2" in (
            capsys.readouterr().out
        )


def test_d08_visium_adds_up_unless_told_otherwise(tmp_path, prepare, capsys):
    made = doubled()
    defective.write("visium", tmp_path / "visium", made)
    command_refuses(
        capsys, prepare("visium", "--duplicate-genes", "error"), "SJ-D01", "D08", "ERBB2 x3"
    )
    run(prepare("visium"))
    assert "added up the counts of genes that share a symbol: ERBB2 x3" in capsys.readouterr().out
    np.testing.assert_array_equal(counts_of(tmp_path)[0][:, 0], made.counts[:, [1, 3, 5]].sum(1))


@pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning")
def test_d08_in_memory():
    data = defective.table(defective.make())
    data.var.index = pd.Index(doubled().genes, dtype=object)
    python_refuses(
        lambda: annotated.from_anndata(data, mpp=MPP), "SJ-D01", "D08", "ERBB2 x3, KRT5 x2", "S1"
    )


def test_d09_ensembl_ids_without_symbols(tmp_path, prepare, capsys):
    made = defective.make(genes=list(IDS))
    defective.write("st", tmp_path / "st", made)
    command_refuses(
        capsys, prepare("st"), "SJ-D04", "D09", "slide S1 has none of the 6 genes of the panel",
        "such as ERBB2, KRT5, CD8A", "such as ENSG00000000001", "names genes by Ensembl ids",
    )  # fmt: skip


@pytest.mark.parametrize("column", ["feature_name", "gene_symbols"])
def test_d09_symbols_beside_ensembl_ids_are_used_and_told(column, tmp_path, prepare, capsys):
    data = defective.table(defective.make(genes=list(IDS)))
    data.var = data.var.rename(columns={"gene_ids": column})
    data.var[column] = pd.Categorical([*GENES[:5], GENES[0]])  # two share a symbol
    defective.write("h5ad", tmp_path / "h5ad", defective.make(), data=data)
    run(prepare("h5ad"))
    told = capsys.readouterr().out
    assert f"4 of 6 genes go by var['{column}']: their names are Ensembl ids" in told
    counts, mask = counts_of(tmp_path)
    np.testing.assert_array_equal(mask[0], [0, 1, 1, 1, 1, 0])
    np.testing.assert_array_equal(counts[:, 1:5], defective.make().counts[:, 1:5])


def test_d09_a_panel_of_ids_finds_symbols(tmp_path, prepare, capsys):
    for layout in ("visium", "h5ad", "hest"):
        defective.write(layout, tmp_path / layout, defective.make())
        command = prepare(layout)
        panel = defective.write_genes(tmp_path / "ids.txt", IDS)
        command[command.index("--genes") + 1] = panel
        command[command.index("--out") + 1] = tmp_path / layout / "out"
        run(command)
        assert "matched 6 of 6 genes by Ensembl id" in capsys.readouterr().out
        counts = counts_of(tmp_path / layout)[0]
        np.testing.assert_array_equal(counts, defective.make().counts)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_d09_mouse_is_recognised_and_orthologues_cure_it(layout, tmp_path, prepare, capsys):
    made = defective.make(genes=MOUSE, ids=[""] * 6)
    defective.write(layout, tmp_path / layout, made)
    command_refuses(
        capsys, prepare(layout), "SJ-D04", "D09",
        "slide S1 names genes as those of mouse are, the panel as those of human",
        "such as Erbb2, Krt5, Cd8a", "`stemjax prepare --orthologues FILE`",
    )  # fmt: skip
    rows = [f"{human},{mouse}" for human, mouse in zip(GENES, MOUSE, strict=True)]
    (tmp_path / "pairs.csv").write_text("\n".join(["human,mouse", *rows]) + "\n")
    run(prepare(layout, "--orthologues", tmp_path / "pairs.csv"))
    np.testing.assert_array_equal(counts_of(tmp_path)[0], made.counts)


def test_d09_upper_and_lower_case(tmp_path, prepare, capsys):
    made = defective.make(genes=["erbb2", "krt5", "cd8a", "actb", "col1a1", "hla-a"])
    defective.write("st", tmp_path / "st", made)
    command_refuses(
        capsys, prepare("st"), "SJ-D04", "D09", "6 names agree but for upper and lower case"
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_d10_genes_that_a_slide_lacks_are_masked_not_zero(layout, tmp_path, prepare, capsys):
    made = defective.make()
    made = dataclasses.replace(
        made, counts=made.counts[:, :4], genes=made.genes[:4], ids=made.ids[:4]
    )
    defective.write(layout, tmp_path / layout, made)
    run(prepare(layout))
    note = "lacks 2 of the 6 genes of the panel (COL1A1, HLA-A): masked, not counted as 0"
    assert capsys.readouterr().out.count(note) == 1
    assert note in records.open_records(tmp_path / "out").slides["S1"].notes
    np.testing.assert_array_equal(counts_of(tmp_path)[1], np.tile([1, 1, 1, 1, 0, 0], (40, 1)))


def test_d20_a_gene_that_a_prediction_lacks(tmp_path, capsys):
    made_prediction.make().write_h5ad(tmp_path / "p.h5ad")
    command = ["convert", tmp_path / "p.h5ad", "--to", "png", "--genes", "ERBB3", "-o",
               tmp_path / "pngs"]  # fmt: skip
    assert cli.main([str(word) for word in command]) == 1
    said = capsys.readouterr().err
    assert "error [SJ-D04" in said
    assert "gene 'ERBB3' is not among the 6 genes of the prediction" in said
    assert "Did you mean ERBB2" in said


def test_d20_another_panel_than_the_records_have(tmp_path, prepare, capsys):
    defective.write("st", tmp_path / "st", defective.make())
    run(prepare("st"))
    command = prepare("st")
    command[command.index("--genes") + 1] = defective.write_genes(tmp_path / "4.txt", GENES[:4])
    capsys.readouterr()
    assert cli.main([str(word) for word in command]) == 1
    said = capsys.readouterr().err
    assert "error [SJ-D06" in said
    assert "--out" in said


def test_d20_a_list_that_names_a_gene_twice(tmp_path, prepare, capsys):
    defective.write("st", tmp_path / "st", defective.make())
    command = prepare("st")
    panel = defective.write_genes(tmp_path / "twice.txt", (*GENES, "KRT5"))
    command[command.index("--genes") + 1] = panel
    command_refuses(capsys, command, "SJ-D04", "D20", "twice.txt", "KRT5 twice", "none twice")
