"""Tables of orthologues and aliases: their forms, what they refuse, damage."""

import hashlib

import pytest

from stemjax import errors
from stemjax.data import orthologues

FORMS = {
    "plain.csv": "human,mouse\nERBB2,Erbb2\nCD3E,Cd3e\nKRT5,Krt5\n",
    "bom.csv": "\ufeffHuman;Mouse\r\nERBB2;Erbb2\r\nCD3E; Cd3e\u00a0\r\nKRT5;Krt5\r\n\r\n",
    "quoted.csv": '"mouse","note","human"\n"Erbb2","a, b","ERBB2"\n"Cd3e","",CD3E\nKrt5,,KRT5\n',
    "biomart.txt": "Gene name\tMouse gene name\nERBB2\tErbb2\nCD3E\tCd3e\nCD3E\tCd3e\nKRT5\tKrt5\n"
    "LINC00115\t\n\tGm1\n",
    "from_mouse.txt": "Gene name\tHuman gene name\nErbb2\tERBB2\nCd3e\tCD3E\nKrt5\tKRT5\n",
    "biomart_r.csv": "external_gene_name,mmusculus_homolog_associated_gene_name\n"
    "ERBB2,Erbb2\nCD3E,Cd3e\nKRT5,Krt5\n",
    "linked.csv": "HGNC.symbol,MGI.symbol\nERBB2,Erbb2\nCD3E,Cd3e\nKRT5,Krt5\n",
    "HOM_MouseHumanSequence.rpt":
    "DB Class Key\tCommon Organism Name\tNCBI Taxon ID\tSymbol\tHGNC\n"
    "1\tmouse, laboratory\t10090\tErbb2\t\n1\thuman\t9606\tERBB2\tHGNC:3430\n"
    "2\thuman\t9606\tCD3E\t\n3\thuman\t9606\tLINC1\t\n2\tmouse, laboratory\t10090\tCd3e\t\n"
    "4\tmouse, laboratory\t10090\tKrt5\t\n4\thuman\t9606\tKRT5\t\n4\trat\t10116\tKrt5\t\t\n",
    "homologene.rpt": "HomoloGene ID\tCommon Organism Name\tSymbol\n1\thuman\tERBB2\n"
    "1\tmouse\tErbb2\n2\thuman\tCD3E\n2\tmouse\tCd3e\n3\thuman\tKRT5\n3\tmouse\tKrt5\n",
}  # fmt: skip


def write(tmp_path, text, name="pairs.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_orthologues(tmp_path, name):
    path = write(tmp_path, FORMS[name], name)
    found = orthologues.read_orthologues(path)
    assert found.to_mouse == {"ERBB2": ("Erbb2",), "CD3E": ("Cd3e",), "KRT5": ("Krt5",)}
    assert found.to_human == {"Erbb2": ("ERBB2",), "Cd3e": ("CD3E",), "Krt5": ("KRT5",)}
    assert (found.source, found.notes) == (name, (f"{name}: 3 one-to-one orthologues",))
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_only_one_to_one_is_kept(tmp_path):
    text = "human,mouse\nERBB2,Erbb2\nCD8A,Cd8a1\nCD8A,Cd8a2\nKRT5,Krt\nKRT6,Krt\n"
    text += "A1B,Aa\nA2B,Aa\nA2B,Ab\n"
    found = orthologues.read_orthologues(write(tmp_path, text))
    assert found.to_mouse == {"ERBB2": ("Erbb2",)}
    assert found.to_human == {"Erbb2": ("ERBB2",)}
    assert found.notes[1] == "refused 7 pairs that are not one-to-one"


def test_types_that_biomart_gives_are_believed(tmp_path):
    text = (
        "Gene stable ID,Gene name,Mouse gene stable ID,Mouse gene name,Mouse homology type\n"
        "ENSG00000141736.14,ERBB2,ENSMUSG00000062312.3,Erbb2,ortholog_one2one\n"
        "ENSG00000153563,CD8A,ENSMUSG00000053977,Cd8a,ortholog_one2many\n"
        "ENSG00000285053,TBCE,ENSMUSG00000039233,Tbce,ortholog_one2one\n"
        "ENSG00000284770,TBCE,ENSMUSG00000039234,Tbce2,ortholog_one2one\n"
        "ENSG00000000457,,ENSMUSG00000026584,Scyl3,\n"
    )
    found = orthologues.read_orthologues(write(tmp_path, text))
    erbb2 = ("ENSMUSG00000062312", "Erbb2")
    assert found.to_mouse == {
        "ERBB2": erbb2,
        "ENSG00000141736": erbb2,
        "ENSG00000285053": ("ENSMUSG00000039233", "Tbce"),
        "ENSG00000284770": ("ENSMUSG00000039234", "Tbce2"),
        "ENSG00000000457": ("ENSMUSG00000026584", "Scyl3"),
    }
    assert found.to_human["Scyl3"] == ("ENSG00000000457",)
    assert found.to_human["Tbce2"] == ("ENSG00000284770", "TBCE")
    assert found.notes[1:] == (
        "refused 1 pairs that are not one-to-one",
        "refused 1 names of several genes: TBCE",
    )


def test_dates_in_a_table_are_told(tmp_path):
    found = orthologues.read_orthologues(write(tmp_path, "human,mouse\n1-Mar,March1\nCD3E,Cd3e\n"))
    assert found.notes[1] == "1 names that a spreadsheet has changed: 1-Mar"


SIDES = "".join(f"{h},{h.title()}\n" for h in ("ERBB2", "CD3E", "KRT5", "GAPDH", "MS4A1"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "cannot read the table.*FileNotFound"),
        (b"PK\x03\x04\xff\xfe\x00", "cannot read the table.*UnicodeDecodeError.*as CSV"),
        (b"\xff\xfeh\x00u\x00", "cannot read the table.*UnicodeDecodeError"),
        ("", "is empty"),
        ("human,mouse\n", "is empty.*lines below"),
        ('human,mouse\n"ERBB2,Erbb2\n', "cannot read the table.*Error"),
        ("human,mouse\nERBB2,Erbb2\nCD3E\n", "damaged.*2 columns.*found 1 in line 3: 'CD3E'"),
        ("human,mouse\nERBB2,Erbb2,x\n", "damaged.*2 columns.*found 3 in line 2"),
        ("ERBB2,Erbb2\nCD3E,Cd3e\n", "no table of orthologues.*found columns erbb2, erbb2"),
        ("gene,ortholog\nERBB2,Erbb2\n", "no table of orth.*Gene name.*found columns gene, or"),
        ("human,rat\nERBB2,Erbb2\n", "no table of orthologues"),
        ("Gene name,Gene stable ID\nERBB2,ENSG00000141736\n", "no table of orthologues"),
        ("DB Class Key\tSymbol\n1\tERBB2\n", "no table of orthologues.*db class key, symbol"),
        ("human,mouse\nERBB2,\nnan,Cd3e\n", "has no one-to-one.*found 0 pairs"),
        ("human,mouse\nERBB2,Erbb2\nERBB2,Erbb3\n", "has no one-to-one.*found 2 pairs"),
        ("mouse,human\n" + SIDES, "names of its human genes look like those of mouse.*swapped"),
        ("human,mouse\n" + SIDES.upper(), "mouse genes look like those of human.*case was changed"),
    ],
)  # fmt: skip
def test_what_is_no_table_of_orthologues(tmp_path, text, told):
    path = tmp_path / "pairs.csv" if text is None else write(tmp_path, text)
    with pytest.raises(errors.GenePanelError, match=rf"(?=.*pairs\.csv).*{told}"):
        orthologues.read_orthologues(path)


def test_aliases_that_say_one_thing(tmp_path):
    text = (
        "gene\tstatus\talias\nMARCHF1\tx\tMARCH1\nMARCHF1\tx\tENSG00000145416.14\nDELEC1\tx\tDEC1\n"
        "BHLHE40\tx\tDEC1\nERBB2\tx\tMARCHF1\nCD3E\tx\t\nCD3E\tx\tCD3E\n"
    )
    found = orthologues.read_aliases(write(tmp_path, text, "aliases.tsv"))
    assert found.genes == {"MARCH1": "MARCHF1", "ENSG00000145416": "MARCHF1"}
    assert found.notes == (
        "aliases.tsv: 2 aliases",
        "refused 2 aliases of several genes or that are genes themselves: DEC1, MARCHF1",
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name,other\nA,B\n", "no table of aliases.*gene,alias.*found columns name, other"),
        ("gene,alias\nA,X\nB,X\n", "no alias that can be used.*found 1 aliases"),
        ("gene,alias\nA,\n", "no alias that can be used.*found no alias"),
        ("gene,alias\n", "is empty"),
    ],
)
def test_what_is_no_table_of_aliases(tmp_path, text, told):
    with pytest.raises(errors.GenePanelError, match=told):
        orthologues.read_aliases(write(tmp_path, text))
