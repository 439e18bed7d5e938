"""Blocks of a slide's rows, and records of which some slides are damaged."""

from __future__ import annotations

import numpy as np
import pytest
import small_slides as made

from stemjax import errors
from stemjax.data import builder, records


@pytest.fixture
def folder(tmp_path):
    for slide, n in (("A", 11), ("B", 4)):
        write(tmp_path, made.make_slide(slide, n=n))
    return tmp_path


def write(out, slide):
    records.write_slide(
        out, slide, made.make_embeddings(slide), panel=made.PANEL, contract=made.CONTRACT, shards=2
    )


def shards(out, slide):
    return sorted(builder.slide_folder(out, slide).glob("*/*.array_record-*"))


@pytest.mark.parametrize("rows", [1, 4, 11, 50])
def test_blocks_are_the_slide_in_its_order(folder, rows):
    opened = records.open_records(folder)
    whole, blocks = opened.load(["A"]), list(opened.blocks("A", rows=rows))
    assert [block.n for block in blocks] == [min(rows, 11 - at) for at in range(0, 11, rows)]
    assert sum((block.barcodes for block in blocks), ()) == whole.barcodes
    for name in ("embeddings", "counts", "total", "mask", "slide_index", "array_xy", "pixel_xy"):
        joined = np.concatenate([getattr(block, name) for block in blocks])
        np.testing.assert_array_equal(joined, getattr(whole, name))


def test_some_blocks_with_the_first_variant_alone(folder):
    opened = records.open_records(folder)
    whole = opened.load(["A"])
    assert whole.embeddings.shape[1] > 1
    last, first = opened.blocks("A", rows=4, numbers=(2, 0), variants=1)
    np.testing.assert_array_equal(last.embeddings, whole.embeddings[8:, :1])
    np.testing.assert_array_equal(first.embeddings, whole.embeddings[:4, :1])
    assert first.barcodes == whole.barcodes[:4]


def test_a_block_is_read_when_it_is_asked_for(folder, monkeypatch):
    read = []
    gather = records.RowSource.gather
    monkeypatch.setattr(
        records.RowSource,
        "gather",
        lambda self, rows, **options: read.append(rows[0]) or gather(self, rows, **options),
    )
    blocks = records.open_records(folder).blocks("A", rows=4)
    assert read == []
    next(blocks)
    assert read == [0]


def test_a_damaged_slide_is_named_before_a_block_is_read(folder):
    victim = shards(folder, "A")[1]
    data = bytearray(victim.read_bytes())
    data[len(data) // 3] ^= 4
    victim.write_bytes(data)
    with pytest.raises(errors.RecordsError, match="slide A "):
        records.open_records(folder).blocks("A", rows=4)


def test_slides_that_are_cut_short_can_be_left_out(folder):
    victim = shards(folder, "A")[0]
    victim.write_bytes(victim.read_bytes()[:100])
    with pytest.raises(errors.RecordsError, match="slide A "):
        records.open_records(folder)
    left_out = {}
    opened = records.open_records(
        folder, damaged=lambda where, error: left_out.update({where: error})
    )
    assert list(opened.slides) == ["B"]
    ((where, error),) = left_out.items()
    assert where == builder.slide_folder(folder, "A") / builder.VERSION
    assert victim.name in str(error)
