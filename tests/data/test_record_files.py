"""Labels of spots in the records' files, and records written before there were any."""

from __future__ import annotations

import dataclasses
import json

import pytest
import small_slides as made

from stemjax import errors
from stemjax.data import builder, prepare, record_files, records

LABELS = {
    "cluster": tuple("0120120120") + ("", ""),
    "pathologist": ("invasive cancer", "", 'Ödem, "α"\t') + ("adipose tissue",) * 9,
}
# Of the slide below by the code before slides had labels (commit 6a539cd).
OLD_DIGEST = "bb0a1eeadf63cd5fae2da500a0b1c1cdca793c78b5e424162323605bf4fd3bb1"


def labelled(slide_id="A1", labels=LABELS, **options):
    return dataclasses.replace(made.make_slide(slide_id, **options), labels=labels)


def write(out, slide):
    vectors = made.make_embeddings(slide)
    return records.write_slide(out, slide, vectors, panel=made.PANEL, contract=made.CONTRACT)


def digest(slide):
    return builder.slide_digest(slide, panel=made.PANEL, contract=made.CONTRACT)


def stored(out, slide_id):
    path = builder.slide_folder(out, slide_id) / builder.VERSION / "metadata.json"
    return json.loads(path.read_text())


def test_labels_come_back(tmp_path):
    write(tmp_path, labelled())
    write(tmp_path, made.make_slide("B1"))
    opened = records.open_records(tmp_path)
    assert opened.labels("A1") == LABELS
    assert opened.labels("B1") == {}
    with pytest.raises(errors.RecordsError, match="no records of slide 'C1'"):
        opened.labels("C1")


def test_a_slide_without_labels_is_written_as_before_there_were_any(tmp_path):
    assert write(tmp_path, made.make_slide("A1")).digest == OLD_DIGEST
    metadata = stored(tmp_path, "A1")
    assert sorted(metadata) == ["contract", "format", "genes", "panel", "slide", "variants"]
    assert record_files.spot_labels(metadata) == {}
    assert write(tmp_path, labelled("B1")).digest == digest(labelled("B1"))
    assert sorted(set(stored(tmp_path, "B1")) - set(metadata)) == ["labels"]


def test_the_digest_covers_the_labels_where_there_are_any():
    none = ("",) * 12
    found = {
        digest(labelled(labels=labels))
        for labels in (
            {},
            LABELS,
            {"cluster": LABELS["cluster"]},
            {"leiden": LABELS["cluster"]},
            {"cluster": LABELS["cluster"][::-1]},
            {"cluster": none},
        )
    }
    assert len(found) == 6
    assert OLD_DIGEST in found
    turned = dict(reversed(LABELS.items()))
    assert digest(labelled(labels=turned)) == digest(labelled())


def test_labels_that_changed_since_are_told(tmp_path):
    slide = labelled(image=True)

    def run(slide):
        return prepare.prepare(lambda _: slide, ("A1",), tmp_path, genes=made.PANEL, encoder="none")

    assert run(slide).labels("A1") == LABELS
    assert run(slide).labels("A1") == LABELS
    changed = {"cluster": LABELS["cluster"], "pathologist": LABELS["pathologist"][::-1]}
    with pytest.raises(errors.RecordsError, match="found label pathologist changed"):
        run(labelled(labels=changed, image=True))
    with pytest.raises(errors.RecordsError, match="label cluster changed; label pathologist ch"):
        run(labelled(labels={}, image=True))


def test_damaged_metadata_are_named(tmp_path):
    write(tmp_path, labelled())
    opened = records.open_records(tmp_path)
    path = builder.slide_folder(tmp_path, "A1") / builder.VERSION / "metadata.json"
    path.write_text(path.read_text().replace("invasive", "suspected"))
    with pytest.raises(errors.RecordsError, match=r"slide A1.*damaged.*metadata\.json"):
        opened.labels("A1")
