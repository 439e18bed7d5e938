"""Reading sections of the ST layout: a miniature, its faults, and the real ones."""

import gzip

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stemjax import errors
from stemjax.data import slides
from stemjax.data.layouts import st

GENES = ("ACTB", "ERBB2", "NA", "CD3E")  # NA: a name that readers of tables take for nothing
SPOTS = [(x, y) for x in range(2, 7) for y in range(3, 8)]
PITCH_PX = 80.0


def counts_table(seed=0):
    return np.random.default_rng(seed).poisson(1.5, (len(SPOTS), len(GENES)))


def write_counts(path, values, *, names=None, genes=GENES, corner=""):
    names = [f"{x}x{y}" for x, y in SPOTS] if names is None else names
    lines = ["\t".join([corner, *genes] if corner is not None else genes)]
    lines += ["\t".join([n, *map(str, v)]) for n, v in zip(names, values, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as file:
        file.write("\n".join(lines) + "\n")


def write_section(folder, section="Q1", *, image=True):
    """A whole, sound section; rows of the position file are in another order."""
    write_counts(folder / "ST-cnts" / f"{section}.tsv.gz", counts_table())
    rows = [(x, y, x + 0.1, y - 0.1, 80 * x + 5, 80 * y + 9, 1) for x, y in SPOTS[::-1]]
    columns = ["x", "y", "new_x", "new_y", "pixel_x", "pixel_y", "selected"]
    (folder / "ST-spotfiles").mkdir(exist_ok=True)
    pd.DataFrame(rows, columns=columns).to_csv(positions(folder, section), sep="\t", index=False)
    if image:
        pictures = folder / "ST-imgs" / section.rstrip("0123456789") / section
        pictures.mkdir(parents=True)
        Image.new("RGB", (700, 800), (200, 150, 180)).save(pictures / "HE_scan.jpg")


def positions(folder, section="Q1"):
    return folder / "ST-spotfiles" / f"{section}_selection.tsv"


def change_positions(folder, change):
    table = pd.read_csv(positions(folder), sep="\t")
    change(table).to_csv(positions(folder), sep="\t", index=False)


@pytest.fixture
def folder(tmp_path):
    write_section(tmp_path)
    return tmp_path


def test_section_is_read_whole(folder):
    slide = st.read_slide(folder, "Q1")
    assert (slide.id, slide.patient, slide.genes) == ("Q1", "Q", GENES)
    assert slide.barcodes == tuple(f"{x}x{y}" for x, y in SPOTS)  # the order of the counts
    np.testing.assert_array_equal(slide.counts.toarray(), counts_table())
    np.testing.assert_array_equal(slide.array_xy, SPOTS)
    np.testing.assert_array_equal(slide.pixel_xy, np.array(SPOTS) * 80 + (5, 9))
    assert slide.mpp == pytest.approx(200 / PITCH_PX)
    assert slide.spot_diameter_px == pytest.approx(40)  # half the pitch
    assert (slide.image.width, slide.image.height, slide.image.source) == (700, 800, "HE_scan.jpg")
    assert slide.notes == ()
    assert slide.sources == {
        path.name: slides.sha256(path)
        for path in [*folder.rglob("*.gz"), *folder.rglob("*.tsv"), *folder.rglob("*.jpg")]
    }


def test_pixel_size_may_be_given(folder):
    slide = st.read_slide(folder, "Q1", mpp=0.5)
    assert (slide.mpp, slide.spot_diameter_um) == (0.5, 100.0)


@pytest.mark.parametrize("suffix", [".tsv.gz", ".tsv"])
@pytest.mark.parametrize("corner", ["", "spot", None])
def test_headers_of_several_writers(folder, suffix, corner):
    (folder / "ST-cnts" / "Q1.tsv.gz").unlink()
    write_counts(folder / "ST-cnts" / f"Q1{suffix}", counts_table(), corner=corner)
    slide = st.read_slide(folder, "Q1")
    assert slide.genes == GENES
    np.testing.assert_array_equal(slide.counts.toarray(), counts_table())


def test_spots_in_one_file_only_are_left_out_and_noted(folder):
    names = [f"{x}x{y}" for x, y in SPOTS]
    names[3] = "40x40"
    write_counts(folder / "ST-cnts" / "Q1.tsv.gz", counts_table(), names=names)

    def change(table):
        table.loc[(table.x == 6) & (table.y == 7), "selected"] = 0
        table["pixel_x"] = table["pixel_x"].astype(object)
        table.loc[(table.x == 2) & (table.y == 3), "pixel_x"] = "lost"
        return table

    change_positions(folder, change)
    slide = st.read_slide(folder, "Q1")
    kept = [i for i in range(25) if i not in (0, 3, 24)]
    assert slide.barcodes == tuple(names[i] for i in kept)
    np.testing.assert_array_equal(slide.counts.toarray(), counts_table()[kept])
    np.testing.assert_array_equal(slide.pixel_xy[0], (2 * 80 + 5, 4 * 80 + 9))
    assert slide.notes == (
        "left out 1 spot not under tissue (selected is not 1)",
        "left out 1 spot with a position that is no number",
        "left out 3 spots with counts but no position",
        "left out 1 spot with a position but no counts",
    )


def test_stray_spot_outside_the_image(folder):
    change_positions(folder, lambda t: t.assign(pixel_x=t.pixel_x.where(t.index != 4, 5000)))
    slide = st.read_slide(folder, "Q1")
    kept = [i for i in range(25) if i != 20]  # row 4 of the positions, which are reversed
    assert slide.barcodes == tuple(f"{x}x{y}" for x, y in np.array(SPOTS)[kept])
    np.testing.assert_array_equal(slide.counts.toarray(), counts_table()[kept])
    assert slide.notes == ("left out 1 spot outside the image, of 25: 6x3",)
    change_positions(folder, lambda t: t.assign(pixel_x=t.pixel_x * 7))
    with pytest.raises(errors.ImageError, match=r"Q1: \d+ of 25 spots lie outside.*HE_scan\.jpg"):
        st.read_slide(folder, "Q1")


def test_missing_image_is_an_error_unless_not_needed(folder):
    picture = folder / "ST-imgs" / "Q" / "Q1" / "HE_scan.jpg"
    picture.with_name("copy.jpg").write_bytes(picture.read_bytes())
    with pytest.raises(errors.ImageError, match=r"Q1: which image.*HE_scan\.jpg, copy\.jpg"):
        st.read_slide(folder, "Q1", need_image=False)
    for path in picture.parent.iterdir():
        path.unlink()
    with pytest.raises(errors.ImageError, match=r"Q1 has no image.*ST-imgs/Q/Q1"):
        st.read_slide(folder, "Q1")
    slide = st.read_slide(folder, "Q1", need_image=False)
    assert slide.image is None
    assert len(slide.sources) == 2


@pytest.mark.parametrize("value", ["-1", "0.5", "nan", "", "inf", "1e-3", "many"])
def test_what_is_no_count_is_named(folder, value):
    values = counts_table().astype(str)
    values[6, 1] = value
    write_counts(folder / "ST-cnts" / "Q1.tsv.gz", values)
    with pytest.raises(errors.SlideError, match=r"Q1\.tsv\.gz: 1 values.*3x4, gene ERBB2.*raw"):
        st.read_slide(folder, "Q1")


def test_float_notation_of_whole_numbers_is_a_count(folder):
    write_counts(folder / "ST-cnts" / "Q1.tsv.gz", counts_table().astype(float))
    np.testing.assert_array_equal(st.read_slide(folder, "Q1").counts.toarray(), counts_table())


def test_names_that_occur_twice(folder):
    path = folder / "ST-cnts" / "Q1.tsv.gz"
    write_counts(path, counts_table(), genes=("ACTB", "TBCE", "TBCE", "CD3E"))
    with pytest.raises(errors.SlideError, match="Q1: gene names are not unique.*TBCE x2"):
        st.read_slide(folder, "Q1")
    write_counts(path, counts_table(), names=["2x3", "2x3"] + [f"{x}x{y}" for x, y in SPOTS[2:]])
    with pytest.raises(errors.SlideError, match="barcode names are not unique.*2x3 x2"):
        st.read_slide(folder, "Q1")
    write_section(folder, "Q2")
    change_positions(folder, lambda t: pd.concat([t, t.iloc[:1]]))
    with pytest.raises(errors.SlideError, match=r"Q1_selection\.tsv.*more than one.*6x7"):
        st.read_slide(folder, "Q1")


def test_files_that_do_not_go_together(folder):
    with pytest.raises(errors.SlideError, match=r"no counts of section Q9.*sections Q1"):
        st.read_slide(folder, "Q9")
    with pytest.raises(errors.SlideError, match="slide id"):
        st.read_slide(folder, "../Q1")
    write_counts(
        folder / "ST-cnts" / "Q1.tsv.gz", counts_table(), names=[f"s{i}" for i in range(25)]
    )
    with pytest.raises(errors.SlideError, match=r"no spot of Q1\.tsv\.gz.*6x7.*s0, s1, s2"):
        st.read_slide(folder, "Q1")
    write_counts(folder / "ST-cnts" / "Q1.tsv.gz", counts_table(), genes=GENES[:2])
    with pytest.raises(errors.SlideError, match=r"Q1\.tsv\.gz: header and rows.*4 genes.*3"):
        st.read_slide(folder, "Q1")
    change_positions(folder, lambda t: t.drop(columns=["pixel_x", "y"]))
    write_counts(folder / "ST-cnts" / "Q1.tsv.gz", counts_table())
    with pytest.raises(errors.SlideError, match=r"Q1_selection\.tsv lacks the columns y, pixel_x"):
        st.read_slide(folder, "Q1")
    positions(folder).unlink()
    with pytest.raises(errors.SlideError, match=r"there is no .*Q1_selection\.tsv"):
        st.read_slide(folder, "Q1")


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"\x00" * 40, lambda b: b""]
)
def test_damaged_counts_are_named(folder, damage):
    path = folder / "ST-cnts" / "Q1.tsv.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(errors.SlideError, match=r"Q1\.tsv\.gz is damaged.*again"):
        st.read_slide(folder, "Q1")


def test_sections_listed_are_those_with_counts(folder, tmp_path):
    write_section(folder, "B12")
    write_counts(folder / "ST-cnts" / "A2.tsv", counts_table())
    (folder / "ST-cnts" / "notes.txt").write_text("none")
    assert st.list_slides(folder) == ["A2", "B12", "Q1"]
    assert st.read_slide(folder, "B12").patient == "B"
    with pytest.raises(errors.SlideError, match=r"no folder of ST sections.*ST-cnts"):
        st.list_slides(tmp_path / "ST-cnts")


@pytest.mark.her2st
def test_her2st_section(her2st):
    # By the shell (zcat, wc): B4 has 283 spots with counts, of 284 selected.
    slide = st.read_slide(her2st, "B4")
    assert (slide.patient, slide.n_spots, len(slide.genes)) == ("B", 283, 15289)
    assert slide.notes == ("left out 1 spot with a position but no counts",)
    assert 0.67 < slide.mpp < 0.70
    assert slide.image.width == 9272
    frame = pd.read_csv(her2st / "ST-cnts" / "B4.tsv.gz", sep="\t", index_col=0)
    for spot, gene in [("10x14", "ACTB"), ("20x20", "ERBB2"), ("15x25", "COL1A1")]:
        row, column = slide.barcodes.index(spot), slide.genes.index(gene)
        assert slide.counts[row, column] == frame.loc[spot, gene]
    assert slide.counts.sum() == frame.to_numpy().sum()
