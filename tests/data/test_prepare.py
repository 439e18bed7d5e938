"""Prepare: who chooses the panel, what a second run does, and what it refuses."""

from __future__ import annotations

import dataclasses
import gc
import gzip
import json
import os
import weakref

import numpy as np
import pytest
import scipy.sparse
import small_slides as made

from stemjax import errors
from stemjax.data import builder, embeddings, genes, integrity, prepare, records
from stemjax.data.layouts import st

IDS = ("A", "B", "C")
NAMES = tuple(f"G{i}" for i in range(30))


class CountingEncoder:
    """Mean colour of a patch in five numbers; remembers how many patches it saw."""

    def __init__(self, contract=made.CONTRACT):
        self.contract, self.patches, self.fail_at = contract, 0, None

    def encode(self, patches):
        self.patches += len(patches)
        if self.fail_at is not None and self.patches >= self.fail_at:
            raise KeyboardInterrupt
        mean = patches.astype(np.float32).mean(axis=(1, 2))[:, None] + np.arange(8)[:, None]
        return np.concatenate([mean, mean[..., :2]], axis=-1)


class Reader:
    """Slides by id; remembers what was read."""

    def __init__(self, **slides):
        self.slides, self.read = slides, []

    def __call__(self, slide_id):
        self.read.append(slide_id)
        return self.slides[slide_id]


@pytest.fixture
def reader():
    """Three slides; gene G29 stands out on slide C only, G28 on A and B only."""
    slides = {}
    for slide_id in IDS:
        slide = made.make_slide(slide_id, n=6, names=NAMES, image=True)
        counts = slide.counts.toarray()
        counts[:, 28:] = 0
        loud = 29 if slide_id == "C" else 28
        counts[:3, loud] = 900
        slides[slide_id] = dataclasses.replace(slide, counts=scipy.sparse.csr_array(counts))
    return Reader(**slides)


@pytest.fixture
def encoder():
    return CountingEncoder()


@pytest.fixture
def run(reader, encoder, tmp_path):
    """Runs prepare with small defaults."""

    def call(ids=IDS, out=tmp_path / "out", **options):
        options = {"n_genes": 4, "encoder": encoder, "test": ("C",)} | options
        return prepare.prepare(reader, ids, out, **options)

    return call


def test_the_panel_does_not_see_the_test_slides(run, tmp_path):
    written = run()
    assert sorted(written.slides) == ["A", "B", "C"]
    assert set(written.panel.slides) == {"A", "B"}
    assert "G28" in written.genes
    assert "G29" not in written.genes
    everything = run(out=tmp_path / "all", panel_slides="all")
    assert set(everything.panel.slides) == {"A", "B", "C"}
    assert "G29" in everything.genes


def test_records_hold_counts_and_embeddings_of_their_slides(run, reader):
    written = run()
    table = written.load(["B"])
    slide = reader.slides["B"]
    columns = [NAMES.index(gene) for gene in written.genes]
    np.testing.assert_array_equal(table.counts, slide.counts.toarray()[:, columns])
    # The encoder's first number is the mean of red over the 224 px square around the spot.
    x, y = slide.pixel_xy[4].astype(int)
    red = slide.image.read(x - 112, y - 112, 224, 224)[..., 0].mean()
    # Lanczos down to 8 px keeps the mean but at the border; float16 steps are 0.125 there.
    assert table.embeddings[4, 0, 0] == pytest.approx(red, abs=1.0)
    assert table.embeddings[4, 3, 0] - table.embeddings[4, 0, 0] == pytest.approx(3, abs=0.13)


def test_the_panel_is_stored_beside_the_slides(run, tmp_path):
    written = run()
    assert (tmp_path / "out" / "genes.txt").read_text().split() == list(written.genes)
    stored = json.loads((tmp_path / "out" / "panel.json").read_text())
    assert genes.Panel.from_json(stored) == written.panel
    assert genes.read_gene_list(tmp_path / "out" / "genes.txt").genes == written.genes


def test_a_second_run_writes_nothing(run, encoder, tmp_path):
    run()
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()}
    encoder.patches, told = 0, []
    run(progress=lambda done, total, what: told.append((done, total, what)))
    assert encoder.patches == 0
    assert files == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert told[0] == (0, 3, "3 of 3 slides done earlier, 0 to do")
    assert (2, 3, "B: done earlier") in told


def test_an_interrupted_run_goes_on(run, encoder, tmp_path):
    encoder.fail_at = 9  # in the second slide
    with pytest.raises(KeyboardInterrupt):
        run()
    out = tmp_path / "out"
    assert [path.name for path in (out / "spots").iterdir()] == ["A"]
    left = out / "spots" / ".B.tmp-0123"  # what a kill would have left
    left.mkdir()
    os.utime(left, (0, 0))
    encoder.fail_at, encoder.patches, told = None, 0, []
    written = run(progress=lambda done, total, what: told.append(what))
    assert encoder.patches == 12
    assert told[0] == "1 of 3 slides done earlier, 2 to do"
    assert told[-1] == "C: written"
    assert sorted(path.name for path in (out / "spots").iterdir()) == ["A", "B", "C"]
    assert written.load(IDS).n == 18


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "remove manifest"])
def test_a_damaged_slide_alone_is_written_again(run, encoder, tmp_path, harm):
    before = run().load(["B"])
    folder = builder.slide_folder(tmp_path / "out", "B") / builder.VERSION
    (shard,) = folder.glob(f"*{builder.SHARD_MARK}*")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    if harm == "flip":
        shard.write_bytes(data)
    elif harm == "truncate":
        shard.write_bytes(data[:1000])
    else:
        (shard if harm == "remove" else folder / integrity.MANIFEST).unlink()
    encoder.patches = 0
    after = run().load(["B"])
    assert encoder.patches == 6
    np.testing.assert_array_equal(after.embeddings, before.embeddings)


def test_a_new_test_slide_is_added_to_the_same_panel(run, encoder, reader):
    first = run(ids=("A", "B"), test=())
    encoder.patches = 0
    second = run(ids=IDS, test=("C",))
    assert second.panel == first.panel
    assert encoder.patches == 6
    assert sorted(second.slides) == ["A", "B", "C"]


OTHER = dataclasses.replace(made.CONTRACT, revision="2")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"test": ("B",)}, "another gene panel.*selected on A, B.*selected on A, C"),
        ({"panel_slides": "all"}, "another gene panel.*selected on A, B.*selected on A, B, C"),
        ({"n_variable": 7}, "another gene panel.*the 2000 most variable.*the 7 most variable"),
        ({"n_genes": 5}, "another gene panel.*expected 4 genes, found 5"),
        ({"ids": ("A",), "test": ()}, "another gene panel.*selected on A, B.*selected on A "),
        (
            {"genes": genes.Panel(genes=("G28", "G1"), rule="list", slides=())},
            "another gene panel.*expected its 4 genes, found 2 genes.*missing",
        ),
        ({"encoder": CountingEncoder(OTHER)}, "another encoder.*revision.*'1'.*'2'"),
    ],
)
def test_a_run_that_asks_for_something_else_is_refused(run, tmp_path, options, text):
    run()
    files = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    with pytest.raises(errors.RecordsError, match=text) as caught:
        run(**options)
    assert "another --out" in str(caught.value.fix)
    assert files == {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}


def test_genes_in_another_order_are_another_panel(run):
    first = run()
    turned = genes.Panel(genes=first.genes[::-1], rule="list", slides=())
    with pytest.raises(errors.RecordsError, match="same genes in another order"):
        run(genes=turned)


def test_the_folder_s_own_gene_list_keeps_the_panel_s_slides(run, tmp_path):
    run()
    listed = genes.read_gene_list(tmp_path / "out" / "genes.txt")
    # The way to add any slide, and for processes to write one slide each.
    again = run(ids=("C",), test=(), genes=listed)
    assert set(again.panel.slides) == {"A", "B"}


def test_a_lost_panel_is_found_in_the_slides(run, tmp_path):
    first = run()
    (tmp_path / "out" / "panel.json").unlink()
    assert run().panel == first.panel
    with pytest.raises(errors.RecordsError, match="another gene panel"):
        run(n_genes=3)


def test_a_broken_panel_file_is_named(run, tmp_path):
    run()
    (tmp_path / "out" / "panel.json").write_text('{"genes": [')
    with pytest.raises(errors.RecordsError, match="panel.json cannot be read"):
        run()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"mpp": 0.6}, "slide B .*mpp was 0.5 and is 0.6"),
        ({"patient": "P9"}, "slide B .*patient was P1 and is P9"),
        ({"sources": {"B.tsv": "0" * 64}}, "slide B .*file B.tsv changed"),
    ],
)
def test_a_slide_that_changed_since_is_refused(run, reader, change, text):
    run()
    reader.slides["B"] = dataclasses.replace(reader.slides["B"], **change)
    with pytest.raises(errors.SlidesFailedError, match=text) as caught:
        run()
    assert list(caught.value.failed) == ["B"]


def test_a_slide_without_the_panel_s_genes_is_refused_before_it_is_embedded(run, reader, encoder):
    strange = tuple(f"ENSG{i}" for i in range(30))
    reader.slides["C"] = dataclasses.replace(reader.slides["C"], genes=strange)
    with pytest.raises(errors.SlidesFailedError, match="slide C has none of the 4 genes"):
        run()
    assert encoder.patches == 12  # A and B are written


@pytest.mark.parametrize(
    ("ids", "test", "error", "text"),
    [
        (IDS, ("D",), errors.SplitError, "test slides name 'D'"),
        (IDS, IDS, errors.SplitError, "No slide is left to choose the gene panel"),
        ((), (), errors.SlideError, "no slides"),
        (("A", "B", "a"), (), errors.SlideError, "A and a cannot both"),
        (("A", "A"), (), errors.SlideError, "A and A cannot both"),
        (("A", "../B"), (), errors.SlideError, "'../B'"),
    ],
)
def test_impossible_lists_of_slides_are_refused(run, reader, ids, test, error, text):
    with pytest.raises(error, match=text):
        run(ids=ids, test=test)
    assert reader.read == []


def test_all_slides_can_be_test_slides_of_a_given_panel(run):
    panel = genes.Panel(genes=("G1", "G2"), rule="list", slides=())
    assert run(genes=panel, test=IDS).panel == panel


def test_one_slide_s_image_is_held_at_a_time(encoder, tmp_path):
    images = []

    def read(slide_id):
        gc.collect()
        assert [image() for image in images if image() is not None] == []
        slide = made.make_slide(slide_id, n=6, names=NAMES, image=True)
        images.append(weakref.ref(slide.image))
        return slide

    prepare.prepare(read, IDS, tmp_path, n_genes=4, encoder=encoder)
    assert len(images) == 6  # each slide once for the panel and once to be written


def test_the_built_in_encoder_is_found_by_name(reader, tmp_path):
    written = prepare.prepare(reader, ("A",), tmp_path, n_genes=4)
    assert written.contract == embeddings.get_encoder("texture").contract
    assert (written.variants, written.slides["A"].n_spots) == (8, 6)


@pytest.mark.her2st
def test_her2st_counts_arrive(her2st, tmp_path):
    written = prepare.prepare(
        lambda slide_id: st.read_slide(her2st, slide_id),
        ("B4", "C2"),
        tmp_path,
        test=("C2",),
        encoder=CountingEncoder(),
    )
    assert len(written.genes) == 200
    assert written.panel.slides == ("B4",)
    assert written.patients == {"B4": "B", "C2": "C"}
    # An independent reading of the published table.
    with gzip.open(her2st / "ST-cnts" / "C2.tsv.gz", "rt") as file:
        header = file.readline().rstrip("\n").split("\t")[1:]
        rows = {key: values for key, *values in (line.split("\t") for line in file)}
    table = written.load(["C2"])
    columns = [header.index(gene) for gene in written.genes]
    for i in (0, table.n // 2, table.n - 1):
        values = np.array([float(v) for v in rows[table.barcodes[i]]])
        np.testing.assert_array_equal(table.counts[i], values[columns])
        assert table.total[i] == values.sum()
    thumbnail, scale = written.thumbnail("C2")
    assert max(thumbnail.shape) == 1500
    # Spots lie on tissue, which is darker than the glass around it.
    x, y = (table.pixel_xy * scale).astype(int).T
    assert thumbnail[y, x].mean() < thumbnail.mean() - 10


def test_a_failed_write_leaves_the_records_readable(run, encoder, tmp_path, monkeypatch):
    run(ids=("A", "B"), test=())

    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(integrity, "write_manifest", full)
    with pytest.raises(errors.ResourceError, match="no space left"):
        run()
    assert sorted(records.open_records(tmp_path / "out").slides) == ["A", "B"]
