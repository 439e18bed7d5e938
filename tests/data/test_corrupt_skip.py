"""Records that cannot be read and are left out: as if they had never been written."""

from __future__ import annotations

import dataclasses
import json

import damaged_slides as harm
import jax
import numpy as np
import pytest
import scattered_slides as made
import small_slides as small

from stemjax import errors
from stemjax.data import builder, corrupt, laid, pipeline, records, resident, shards, shown

# Of 30 spots in 3 shards of 10 each: rows of the slide that are spoiled.
LOST = {"A": (2, 3, 29), "B": (10,)}
ALL = ("A", "B", "C")


def slides():
    for slide_id in ALL:
        slide = made.make_slide(slide_id, lacking=("G2", "G5") if slide_id == "B" else ())
        spots = tuple(f"spot {row}" for row in range(slide.n_spots))
        yield dataclasses.replace(slide, labels={"spot": spots}), small.make_embeddings(slide)


def write(out, slide, vectors):
    records.write_slide(out, slide, vectors, panel=small.PANEL, contract=small.CONTRACT, shards=3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Records of A, B and C of which some are spoiled, and records without those."""
    spoiled, clean = tmp_path_factory.mktemp("spoiled"), tmp_path_factory.mktemp("clean")
    for slide, vectors in slides():
        lost = LOST.get(slide.id, ())
        write(spoiled, slide, vectors)
        write(clean, *harm.without(slide, vectors, lost))
        for row in lost:
            harm.spoil(harm.shard_paths(spoiled, slide.id)[row // 10], row % 10)
    return spoiled, clean


def left_of(folder):
    opened = records.open_records(folder, on_corrupt="skip")
    return opened.leave_out(opened.damage())


@pytest.fixture(scope="module")
def pair(folders):
    return left_of(folders[0]), records.open_records(folders[1])


def assert_same_rows(one, two):
    for field in dataclasses.fields(one):
        found, wanted = getattr(one, field.name), getattr(two, field.name)
        if isinstance(found, np.ndarray):
            assert found.dtype == wanted.dtype
            np.testing.assert_array_equal(found, wanted)
        else:
            assert found == wanted


def test_the_rows_left_are_those_of_records_without_the_others(pair):
    left, clean = pair
    assert left.left_out == LOST
    assert {i: info.n_spots for i, info in left.slides.items()} == {"A": 27, "B": 29, "C": 30}
    assert left.count(ALL) == clean.count(ALL) == 86
    assert_same_rows(left.load(ALL), clean.load(ALL))
    for one, two in zip(left.tables(ALL), clean.tables(ALL), strict=True):
        assert_same_rows(one, two)
    for one, two in zip(left.blocks("A", rows=8), clean.blocks("A", rows=8), strict=True):
        assert_same_rows(one, two)
    rows = np.random.default_rng(0).integers(0, 86, 50)
    assert_same_rows(left.source(ALL).gather(rows), clean.source(ALL).gather(rows))
    for slide in ALL:
        assert left.labels(slide) == clean.labels(slide)
        assert len(left.labels(slide)["spot"]) == left.slides[slide].n_spots


@pytest.mark.parametrize("partly", [(), ("A", "C")])
@pytest.mark.parametrize("kind", [None, "neighbours", "rows"])
@pytest.mark.parametrize("residence", ["ram", "stream", "device"])
def test_batches_are_those_of_records_without_the_rows(pair, partly, kind, residence):
    found = []
    for source in pair:
        given = shown.Shown(
            records=source, slides=ALL, hiding=made.HIDING if partly else None, partly=partly
        )
        space = made.fitted_space(given)
        windows = None if kind is None else laid.lay_windows(given, kind, 7)
        view = pipeline.choose_view(
            source, ALL, space, residence=residence, shown=given, windows=windows
        )
        schedule = pipeline.Schedule(n=view.n, batch=8, seed=5, variants=view.variants)
        show = jax.jit(view.show)
        batches = [
            jax.device_get(show(view.table, handed)) for handed in view.batches(schedule, 0, 14)
        ]
        found.append((space.to_json(), batches))
    (one, mine), (two, theirs) = found
    assert one == two
    for ours, other in zip(mine, theirs, strict=True):
        assert set(ours) == set(other)
        for name in ours:
            np.testing.assert_array_equal(ours[name], other[name])


def test_what_fits_where_counts_the_rows_left(pair):
    left, clean = pair
    assert pipeline.resident_bytes(left, ALL) == pipeline.resident_bytes(clean, ALL)
    assert resident.table_bytes(left, ALL) == resident.table_bytes(clean, ALL)


def test_undamaged_records_are_as_they_were(folders):
    opened = records.open_records(folders[1], on_corrupt="skip")
    assert opened.damage() == []
    left = opened.leave_out(())
    assert left.slides == opened.slides
    assert corrupt.about(left) == corrupt.about(opened) == {}


def test_a_missing_shard_s_rows_are_left_out(folders, tmp_path):
    out = harm.copy_of(folders[1], tmp_path)
    harm.shard_paths(out, "C")[1].unlink()
    left = left_of(out)
    assert left.left_out == {"C": tuple(range(10, 20))}
    whole = records.open_records(folders[1]).load(["C"])
    kept = [*range(10), *range(20, 30)]
    assert_same_rows(left.load(["C"]), shown.take_rows(whole, np.array(kept)))


def test_a_slide_of_which_nothing_is_left_is_refused(folders, tmp_path):
    out = harm.copy_of(folders[1], tmp_path)
    for path in harm.shard_paths(out, "C"):
        path.write_bytes(b"")
    opened = records.open_records(out, on_corrupt="skip")
    with pytest.raises(errors.RecordsError, match="slide C .*none of its 10 records"):
        opened.leave_out(opened.damage())


def test_damage_while_rows_stream_ends_the_run_and_says_how_to_go_on(folders, tmp_path):
    out = harm.copy_of(folders[0], tmp_path)
    left = left_of(out)
    given = shown.Shown(records=left, slides=ALL)
    view = pipeline.choose_view(
        left, ALL, made.fitted_space(given), residence="stream", shown=given
    )
    schedule = pipeline.Schedule(n=view.n, batch=86, seed=5, variants=view.variants)
    next(iter(view.batches(schedule, 0, 2)))
    path = harm.shard_paths(out, "A")[1]
    harm.spoil(path, 7)
    with pytest.raises(errors.RecordsError) as caught:
        list(view.batches(schedule, 0, 2))
    assert "slide A" in caught.value.what
    assert f"{path.name}: record 7 of 0-9 cannot be read any more" in caught.value.what
    assert "goes on where it stopped" in str(caught.value.fix)
    assert "another --workdir, leaves these out too" in str(caught.value.fix)
    assert left_of(out).left_out == {**LOST, "A": (2, 3, 17, 29)}


USED = {"training": ("A", "B"), "validation": ("C",)}


def test_more_than_the_share_is_refused(folders):
    opened = records.open_records(folders[0], on_corrupt="skip")
    damage = opened.damage()
    # 4 of 60 training rows.
    assert corrupt.leave_out(opened, damage, used=USED, share=4 / 60).left_out == LOST
    with pytest.raises(errors.RecordsError) as caught:
        corrupt.leave_out(opened, damage, used=USED, share=0.066)
    text = str(caught.value)
    assert "4 of 60 training rows cannot be read: slide A, shard spots-A" in text
    assert "records 2-3 of 0-9" in text
    assert "config.data.corrupt_share=0.066" in text
    assert "slide B, shard spots-B.array_record-00001-of-00003" in text


def test_the_share_holds_of_the_validation_rows_too(folders):
    opened = records.open_records(folders[0], on_corrupt="skip")
    used = {"training": ("A", "C"), "validation": ("B",)}
    # 3 of 60, and 1 of 30.
    with pytest.raises(errors.RecordsError, match="3 of 60 training rows"):
        corrupt.leave_out(opened, opened.damage(), used=used, share=0.04)
    used = {"training": ("C",), "validation": ("B",)}
    with pytest.raises(errors.RecordsError, match="1 of 30 validation rows"):
        corrupt.leave_out(opened, opened.damage(["B", "C"]), used=used, share=0.03)


def test_damage_that_hits_no_record_is_within_any_share(folders, tmp_path):
    out = harm.copy_of(folders[1], tmp_path)
    path = harm.shard_paths(out, "A")[0]
    harm.flip(path, path.stat().st_size - 100)
    opened = records.open_records(out, on_corrupt="skip")
    damage = opened.damage()
    left = corrupt.leave_out(opened, damage, used=USED, share=0.0)
    assert left.load(["A"]).n == 27
    assert corrupt.about(left) == {}
    said = corrupt.in_words(opened, damage, used=USED)
    assert said.startswith(f"damaged records, no row left out: slide A, shard {path.name}: ")
    assert "all 9 records are as written" in said


def test_the_log_says_what_is_left_out(folders):
    opened = records.open_records(folders[0], on_corrupt="skip")
    said = corrupt.in_words(opened, opened.damage(), used=USED)
    assert "4 of 60 training rows left out: slide A" in said
    for place in ("records 2-3 of 0-9", "record 9 of 0-9", "record 0 of 0-9"):
        assert place in said
    assert "validation" not in said


def test_the_card_tells_numbers_and_another_set_from_this(folders, tmp_path):
    left = left_of(folders[0])
    about = json.loads(json.dumps(corrupt.about(left)))
    assert about["skipped"] == {"A": 3, "B": 1}
    out = harm.copy_of(folders[1], tmp_path)
    for row in (2, 4, 26):
        harm.spoil(harm.shard_paths(out, "A")[row // 9], row % 9)
    harm.spoil(harm.shard_paths(out, "B")[1], 0)
    other = corrupt.about(left_of(out))
    assert other["skipped"] == about["skipped"]
    assert other["skipped_rows"] != about["skipped_rows"]


def test_processes_leave_out_what_any_of_them_cannot_read(folders, tmp_path):
    # Each has a copy of its own: damaged in one row, in another, and not at all.
    parts, opened = [], []
    for number, row in enumerate((4, 25, None)):
        out = harm.copy_of(folders[1], tmp_path / str(number))
        if row is not None:
            harm.spoil(harm.shard_paths(out, "C")[row // 10], row % 10)
        opened.append(records.open_records(out, on_corrupt="skip"))
        parts.append(corrupt.pack(opened[-1].damage()))
    agreed = [corrupt.agree(order) for order in (parts, parts[::-1], [*parts, *parts])]
    assert agreed[0] == agreed[1] == agreed[2]
    left = [corrupt.leave_out(one, agreed[0], used=USED, share=0.1) for one in opened]
    assert [one.left_out for one in left] == [{"C": (4, 25)}] * 3
    for one in left[1:]:
        assert_same_rows(one.load(ALL), left[0].load(ALL))
    assert len({corrupt.in_words(one, agreed[0], used=USED) for one in opened}) == 1


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([412], "412"),
        ([3, 5, 6, 7, 9, 10], "3, 5-7, 9-10"),
        (range(0, 40, 2), "0, 2, 4, 6, 8, 10, 12, 14 and 12 more"),
    ],
)
def test_many_records_are_named_in_ranges(numbers, text):
    assert shards.in_ranges(list(numbers)) == text


def test_slides_prepared_as_one_shard_are_checked_too(tmp_path):
    slide = small.make_slide("A", 50)
    vectors = small.make_embeddings(slide)
    records.write_slide(tmp_path, slide, vectors, panel=small.PANEL, contract=small.CONTRACT)
    (path,) = harm.shard_paths(tmp_path, "A")
    harm.spoil(path, 0, 49)
    assert left_of(tmp_path).left_out == {"A": (0, 49)}
    assert builder.SHARD_MARK in path.name
