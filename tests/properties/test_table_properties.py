"""Tables of text that people keep: each is read as what it says, or refused with a typed error."""

import gzip

import numpy as np
import pytest
from drawn import CELLS, JSON, as_text, changed, damaged_bytes, damaged_text, encoded, or_refused
from hypothesis import given
from hypothesis import strategies as st

from stemjax import errors
from stemjax.data import folds, genes, orthologues, slide_names, splits
from stemjax.data.layouts import feature_matrix, places, st_labels, visium_array
from stemjax.data.layouts import st as st_layout

NAMES = st.text("ABC012_-. ,\"'é", min_size=1, max_size=5).map(str.strip).filter(bool)


@st.composite
def made_folds(draw):
    slides = draw(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    patients = {slide: draw(st.none() | NAMES) for slide in slides}
    found = {}
    for name in draw(st.lists(NAMES, min_size=1, max_size=3, unique=True)):
        roles = {slide: draw(st.sampled_from(["", *splits.ROLES])) for slide in slides}
        given_roles = {slide: role for slide, role in roles.items() if role}
        one = or_refused(splits.split_by_role, given_roles, patients)
        if one is not None:
            found[name] = one
    return found


@pytest.mark.parametrize("ending", [".csv", ".json"])
@given(made=made_folds())
def test_folds_come_back_from_a_file(folder, ending, made):
    path = folder / f"folds{ending}"
    folds.write_manifest(made, path)
    found = or_refused(folds.read_manifest, path)
    assert found == (made or None)


@given(made_folds())
def test_a_split_has_each_slide_once_and_tells_its_leaks(made):
    for split in made.values():
        every = [*split.train, *split.val, *split.test]
        assert sorted(every) == sorted(split.patients)
        sides = {p: {r for r in splits.ROLES for s in getattr(split, r) if split.patients[s] == p}
                 for p in split.patients.values() if p}  # fmt: skip
        shared = {p for p, roles in sides.items() if "test" in roles and len(roles) > 1}
        assert set(split.shared_patients) == shared
        assert len(split.leaks) == len(shared)
        assert (split.kind == "interpolation within a patient") == bool(shared)


@given(st.dictionaries(NAMES, st.none() | st.sampled_from("PQRS")), st.integers(-1, 6))
def test_folds_test_every_slide_once_and_part_no_patient(patients, k):
    for made in (
        or_refused(folds.leave_one_out, patients),
        or_refused(folds.k_fold, patients, k),
    ):
        if made is None:
            assert k < 2 or None in patients.values() or len(set(patients.values())) < max(k, 2)
            continue
        tests = [slide for split in made.values() for slide in split.test]
        assert sorted(tests) == sorted(patients)
        assert all(not split.shared_patients for split in made.values())


FOLDS = "fold,slide,patient,role\nA,S1,P,test\nA,S2,,train\nB,S1,P,train\nB,S2,,val\n"


@given(damaged_text(FOLDS))
def test_a_damaged_manifest_is_read_or_refused(folder, text):
    path = folder / "folds.csv"
    path.write_bytes(encoded(text))
    or_refused(folds.read_manifest, path)


ROWS = [{"fold": "A", "slide": "S1", "patient": None, "role": "train"}]


@given(changed(ROWS) | JSON)
def test_a_damaged_manifest_in_json_is_read_or_refused(folder, values):
    path = folder / "folds.json"
    path.write_text(as_text(values))
    found = or_refused(folds.read_manifest, path)
    for fold, split in (found or {}).items():
        assert isinstance(fold, str)
        assert split.train


ORTHOLOGUES = "human,mouse\nCD3E,Cd3e\nENSG00000141736.13,ENSMUSG00000062312\nTP53,Trp53\n"
BIOMART = "Gene name\tMouse gene name\tMouse homology type\nERBB2\tErbb2\tortholog_one2one\n"
MGI = (
    "DB Class Key\tCommon Organism Name\tSymbol\n1\thuman\tCD4\n"
    "1\tmouse, laboratory\tCd4\n2\thuman\tKIT\n2\tmouse, laboratory\tKit\n"
)


@given(st.one_of(*map(damaged_text, (ORTHOLOGUES, BIOMART, MGI))) | st.text())
def test_a_table_of_orthologues_goes_both_ways(folder, text):
    path = folder / "orthologues.csv"
    path.write_bytes(encoded(text))
    found = or_refused(orthologues.read_orthologues, path)
    if found is None:
        return
    assert found.to_mouse
    for human, mice in found.to_mouse.items():
        assert human
        # One gene has one partner: all its names say the same, and the partner's say it back.
        back = {found.to_human[name] for name in mice if name in found.to_human}
        assert len(back) <= 1
        assert all(human in names for names in back)


@given(damaged_text("gene,alias\nERBB2,HER2\nERBB2,NEU\nKIT,CD117\n") | st.text())
def test_an_alias_stands_for_one_gene(folder, text):
    path = folder / "aliases.csv"
    path.write_bytes(encoded(text))
    found = or_refused(orthologues.read_aliases, path)
    if found is not None:
        assert found.genes
        assert not set(found.genes) & set(found.genes.values())


COUNTS = "\tA\tB\n1x1\t0\t3\n1x2\t5\t0\n"


@given(damaged_text(COUNTS) | st.lists(st.lists(CELLS)).map(
    lambda rows: "\n".join("\t".join(row) for row in rows)))  # fmt: skip
def test_counts_of_spots(folder, text):
    path = folder / "S1.tsv"
    path.write_bytes(encoded(text))
    found = or_refused(st_layout._read_counts, path)
    if found is not None:
        spots, names, values = found[:3]
        assert values.shape == (len(spots), len(names))
        assert (values >= 0).all()
        assert (values == np.floor(values)).all()


@given(damaged_bytes(gzip.compress(COUNTS.encode(), mtime=0)))
def test_packed_counts(folder, raw):
    path = folder / "S1.tsv.gz"
    path.write_bytes(raw)
    or_refused(st_layout._read_counts, path)


POSITIONS = (
    "x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected\n1\t1\t1\t1\t50\t60\t1\n2\t1\t2\t1\t9\t9\t0\n"
)


@given(damaged_text(POSITIONS))
def test_positions_of_spots(folder, text):
    path = folder / "S1_selection.tsv"
    path.write_bytes(encoded(text))
    found = or_refused(st_layout._read_positions, path)
    if found is not None:
        rows, xy = found[:2]
        assert sorted(rows.values()) == list(range(len(xy)))
        assert np.isfinite(xy).all()


LABELS = "ids\tx\ty\tlabel\nS1\t1\t1\ttumour\nS1\t2\t1\tNone\n"


@given(damaged_text(LABELS))
def test_labels_of_spots(folder, text):
    path = folder / "ST-cluster" / "lbl" / "S1-cluster-annotation.tsv.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(encoded(text), mtime=0))
    found = or_refused(st_labels.read_labels, folder, "S1", ("1x1", "2x1"))
    if found is not None:
        assert len(found.labels["cluster"]) == 2


VISIUM = (
    "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres\n"
    "AAAC-1,1,0,0,100,200\nAAAG-1,0,0,2,100,300\nAAAT-1,1,1,1,186,250\n"
)


@given(damaged_text(VISIUM) | damaged_text(VISIUM.partition("\n")[2]) | st.text())
def test_positions_of_a_visium_array(folder, text):
    path = folder / "tissue_positions.csv"
    path.write_bytes(encoded(text))
    found = or_refused(visium_array.read_positions, path)
    if found is not None:
        assert len(set(found.barcodes)) == len(found.barcodes) == len(found.pixel_xy)
        assert np.isfinite(found.pixel_xy).all()
        assert (found.array_xy.sum(axis=1) % 2 == 0).all()
        size = or_refused(visium_array.measure_pixels, found)
        assert size is None or size[0] is None or 0 < size[0] < np.inf


MATRIX = "%%MatrixMarket matrix coordinate integer general\n%\n2 3 3\n1 1 4\n2 1 1\n1 3 7\n"
BARCODES, FEATURES = (
    "AAAC-1\nAAAG-1\nAAAT-1\n",
    ("ENSG1\tA\tGene Expression\nENSG2\tB\tGene Expression\n"),
)


@given(st.sampled_from(["matrix.mtx", "barcodes.tsv", "features.tsv"]), st.data())
def test_matrices_in_text(folder, damaged, data):
    place = folder / "filtered_feature_bc_matrix"
    place.mkdir(exist_ok=True)
    texts = {"matrix.mtx": MATRIX, "barcodes.tsv": BARCODES, "features.tsv": FEATURES}
    for name, text in texts.items():
        raw = encoded(data.draw(damaged_text(text)) if name == damaged else text)
        (place / name).write_bytes(raw)
    found = or_refused(feature_matrix.read_matrix, place)
    if found is not None:
        assert found.counts.shape == (len(found.barcodes), len(found.genes))
        assert len(set(found.genes)) == len(found.genes)
        assert (found.counts.data >= 0).all()
        assert found.counts.nnz == 0 or found.counts.indices.max() < len(found.genes)


@given(JSON | st.text() | st.integers(0, 2))
def test_scale_factors(folder, values):
    path = folder / "scalefactors_json.json"
    text = values if isinstance(values, str) else as_text(values)
    path.write_bytes(encoded("[" * 90_000 if values == 2 else text))
    found = or_refused(places.read_json, path, "scale factors")
    for name in found or {}:
        number = places.positive(found, name)
        assert number is None or 0 < number < np.inf


@given(st.lists(st.text(max_size=3), min_size=1, max_size=5), st.data())
def test_a_panel_is_written_and_read(names, data):
    try:
        panel = genes.Panel(genes=tuple(names), rule="made", slides=())
    except errors.GenePanelError:
        assert len(set(names)) < len(names) or slide_names.strange(names)
        return
    assert genes.Panel.from_json(panel.to_json()) == panel
