"""Labels of the spots of a section: joins, missing spots, damaged and mistaken files."""

from __future__ import annotations

import collections
import gzip

import numpy as np
import pandas as pd
import pytest

from stemjax import errors
from stemjax.data import slides
from stemjax.data.layouts import st, st_labels

SPOTS = [(x, y) for x in range(2, 6) for y in range(3, 7)]
NAMES = [f"{x}x{y}" for x, y in SPOTS]
# Adjusted coordinates: up to .29 off the array's in the published sections.
SHIFT = np.random.default_rng(4).uniform(-0.29, 0.29, (16, 2)).round(3)
REGIONS = ["invasive cancer", "adipose tissue", "", "connective tissue"] * 4


def write_cluster(folder, *, rows=None, section="Q1", ids="Q1"):
    """The clusters of spots 0..13, in reverse order; two spots have none."""
    table = pd.DataFrame(
        {
            "patient_id": "Q",
            "ids": ids,
            "label": [i % 3 for i in range(14)],
            "x": [x for x, _ in SPOTS[:14]],
            "y": [y for _, y in SPOTS[:14]],
        },
        index=[f"{i}.5x{i}" for i in range(14)],
    )[::-1]
    path = folder / "ST-cluster" / "lbl" / f"{section}-cluster-annotation.tsv.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    (table if rows is None else rows(table)).to_csv(path, sep="\t")
    return path


def write_regions(folder, *, change=None):
    """The pathologist's labels as published: adjusted coordinates, and a row without any."""
    adjusted = np.array(SPOTS) + SHIFT
    table = pd.DataFrame(
        {
            "Row.names": [f"{40 * x}x{900 - 40 * y}" for x, y in SPOTS],
            "x": adjusted[:, 0],
            "y": adjusted[:, 1],
            "pixel_x": 40 * adjusted[:, 0],
            "pixel_y": 900 - 40 * adjusted[:, 1],
            "label": REGIONS,
        }
    )
    lost = pd.DataFrame({"Row.names": ["2611x27491"], "label": ["adipose tissue"]})
    table = pd.concat([table.iloc[::-1], lost])
    path = folder / "ST-pat" / "lbl" / "Q1_labeled_coordinates.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    (table if change is None else change(table)).to_csv(path, sep="\t", index=False, na_rep="NA")
    return path


@pytest.fixture
def folder(tmp_path):
    """A section without an image and without labels."""
    (tmp_path / "ST-cnts").mkdir()
    (tmp_path / "ST-spotfiles").mkdir()
    counts = np.random.default_rng(1).poisson(2.0, (16, 2))
    table = pd.DataFrame(counts, index=NAMES, columns=["ACTB", "CD3E"])
    table.to_csv(tmp_path / "ST-cnts" / "Q1.tsv.gz", sep="\t")
    array, adjusted = np.array(SPOTS), np.array(SPOTS) + SHIFT
    pd.DataFrame(
        {
            "x": array[:, 0],
            "y": array[:, 1],
            "new_x": adjusted[:, 0].round(3),
            "new_y": adjusted[:, 1].round(3),
            "pixel_x": 80 * adjusted[:, 0],
            "pixel_y": 80 * adjusted[:, 1],
            "selected": 1,
        }
    ).to_csv(tmp_path / "ST-spotfiles" / "Q1_selection.tsv", sep="\t", index=False)
    return tmp_path


def read(folder):
    return st.read_slide(folder, "Q1", need_image=False)


def test_a_section_without_files_of_labels_has_none(folder):
    slide = read(folder)
    assert slide.labels == {}
    assert sorted(slide.sources) == ["Q1.tsv.gz", "Q1_selection.tsv"]


def test_both_labels_join_in_the_slide_s_order(folder):
    paths = [write_cluster(folder), write_regions(folder)]
    slide = read(folder)
    assert slide.barcodes == tuple(NAMES)
    assert slide.labels == {
        "cluster": tuple(str(i % 3) for i in range(14)) + ("", ""),
        "pathologist": tuple(REGIONS),
    }
    assert slide.notes == ("pathologist labels: 1 row has no position",)
    assert len(slide.sources) == 4
    for path in paths:
        assert slide.sources[path.name] == slides.sha256(path)


def test_labels_follow_the_spots_that_are_kept(folder):
    path = folder / "ST-spotfiles" / "Q1_selection.tsv"
    table = pd.read_csv(path, sep="\t")
    table.loc[[0, 5], "selected"] = 0
    table.to_csv(path, sep="\t", index=False)
    write_regions(folder)
    kept = [i for i in range(16) if i not in (0, 5)]
    assert read(folder).labels == {"pathologist": tuple(REGIONS[i] for i in kept)}


def test_text_of_labels_is_kept_as_it_is(folder):
    texts = ["None", "2.10", "NA", " gland ", "null", "007", "nan", "-"] * 2
    write_regions(folder, change=lambda t: t.dropna(subset=["x"]).assign(label=texts[::-1]))
    kept = ["None", "2.10", "", "gland", "null", "007", "nan", "-"] * 2
    assert read(folder).labels["pathologist"] == tuple(kept)


def test_without_adjusted_coordinates_in_the_selection_rounding_joins(folder):
    path = folder / "ST-spotfiles" / "Q1_selection.tsv"
    pd.read_csv(path, sep="\t").drop(columns=["new_x", "new_y"]).to_csv(path, sep="\t", index=False)
    write_regions(folder)
    assert read(folder).labels["pathologist"] == tuple(REGIONS)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        # Another section's file rounds to the same names: only the digits behind tell.
        (lambda t: t.assign(x=t.x.round() - 0.1), "Q1_selection.tsv place .* of 16 .*differently"),
        (lambda t: t.assign(x=t.x + 40), "labels none of the section's spots.*2x3, 2x4.*45x"),
        (lambda t: t.assign(x="lost"), "labels none of the section's spots.*no rows with a pos"),
        (lambda t: t.drop(columns=["x", "label"]), "lacks the columns x, label.*Row.names, y,"),
        (lambda t: pd.concat([t, t.iloc[3:4]]), "more than one label to a spot.*5x3"),
    ],
)
def test_a_file_of_regions_that_cannot_be_joined_is_named(folder, change, text):
    write_regions(folder, change=change)
    with pytest.raises(errors.SlideError, match=rf"Q1_labeled_coordinates\.tsv.*{text}"):
        read(folder)


def test_clusters_of_another_section_are_refused(folder):
    write_cluster(folder, ids="B2")
    with pytest.raises(errors.SlideError, match=r"Q1-cluster.*another section.*ids Q1.*found B2"):
        read(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"\x00" * 40,
        lambda data: gzip.compress(b""),
        lambda data: gzip.compress(b"x\ty\tlabel\n\xff\xfe\t1\t2\n"),
        lambda data: gzip.compress(b"x\ty\tlabel\n1\t2\t3\n1\t2\t3\t4\t5\n"),
    ],
)
def test_damaged_clusters_are_named(folder, damage):
    path = write_cluster(folder)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(errors.SlideError, match=r"Q1-cluster-annotation\.tsv\.gz is damaged"):
        read(folder)


@pytest.mark.her2st
def test_her2st_labels(her2st):
    slide = st.read_slide(her2st, "A1", need_image=False)
    # By the shell (awk, join, uniq): of 348 labelled spots two, both cancer, have no counts.
    assert collections.Counter(slide.labels["pathologist"]) == {
        "invasive cancer": 282,
        "connective tissue": 24,
        "cancer in situ": 21,
        "adipose tissue": 12,
        "undetermined": 5,
        "immune infiltrate": 2,
    }
    clusters = {"0": 129, "1": 85, "2": 46, "3": 58, "4": 17, "5": 10, "": 1}
    assert collections.Counter(slide.labels["cluster"]) == clusters
    # Read from the files by eye: array (9.02, 20.994) and (9.026, 27.045).
    by_spot = dict(zip(slide.barcodes, slide.labels["pathologist"], strict=True))
    assert (by_spot["9x21"], by_spot["9x27"]) == ("invasive cancer", "adipose tissue")


@pytest.mark.her2st
@pytest.mark.parametrize("section", ["F1", "G2"])
def test_every_spot_of_her2st_s_labelled_sections_is_joined(her2st, section):
    labelled = st_labels.read_labels(
        her2st, section, st.read_slide(her2st, section, need_image=False).barcodes
    )
    assert all(labelled.labels[st_labels.PATHOLOGIST])
    assert len(labelled.notes) == 1  # rows "NA" for x and y, in these two sections alone
