"""Hidden spots: the share asked for, chosen by seed, slide and barcode and by nothing else."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from stemjax import errors
from stemjax.data import hiding

PITCH = 20.0


def array(columns, rows):
    """Barcodes and places of a square array, in pixels."""
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(columns), np.arange(rows)))
    return [f"{a}x{b}" for a, b in zip(x, y, strict=True)], 100.0 + PITCH * np.stack([x, y], axis=1)


def names(rule, slide, barcodes, places, pitch=PITCH):
    found = rule.hidden(slide, barcodes, places, pitch)
    assert found.dtype == bool
    return {barcode for barcode, hidden in zip(barcodes, found, strict=True) if hidden}


@pytest.mark.parametrize(
    ("spots", "share", "wanted"),
    [(10, 0.5, 5), (7, 0.3, 2), (200, 0.25, 50), (300, 1 / 3, 100), (9, 0.9, 8),
     # One spot at least is hidden, and one is not.
     (2, 0.01, 1), (2, 0.99, 1), (50, 0.001, 1), (50, 0.999, 49)],
)  # fmt: skip
def test_the_share_is_exact(spots, share, wanted):
    barcodes, places = array(spots, 1)
    for seed in range(3):
        rule = hiding.Hiding(share=share, seed=seed)
        assert len(names(rule, "S", barcodes, places)) == wanted


def test_single_spots_are_the_first_by_hash():
    # A card names the rule alone: a later version has to find the same spots by it.
    barcodes, places = array(9, 7)
    ordered = sorted(barcodes, key=lambda b: hashlib.sha256(f"3/S1/{b}".encode()).hexdigest())
    rule = hiding.Hiding(share=0.3, seed=3)
    assert names(rule, "S1", barcodes, places) == set(ordered[:19])
    # So a larger share hides the same spots and more.
    assert names(hiding.Hiding(share=0.2, seed=3), "S1", barcodes, places) == set(ordered[:13])


def test_blocks_are_the_first_by_hash():
    barcodes, places = array(15, 15)
    found = names(hiding.Hiding(how="blocks", share=0.3, seed=3), "S1", barcodes, places)
    blocks = sorted(
        ((i, j) for i in range(3) for j in range(3)),
        key=lambda b: hashlib.sha256(f"3/S1/block {b[0]} {b[1]}".encode()).hexdigest(),
    )
    # 0.3 of 225 spots takes three blocks of 25.
    expected = {
        f"{5 * i + a}x{5 * j + b}" for i, j in blocks[:3] for a in range(5) for b in range(5)
    }
    assert found == expected


def test_what_is_printed_how_hides_nothing_else():
    # Twelve blocks a side: numbers of one digit and of two.
    barcodes, places = array(36, 36)
    rule = hiding.Hiding(how="blocks", block=3.0)
    before = names(rule, "S", barcodes, places)
    with np.printoptions(formatter={"int": lambda value: f"<{value}>"}):
        assert names(rule, "S", barcodes, places) == before


@pytest.mark.parametrize("how", ["spots", "blocks"])
def test_neither_order_nor_unit_matters(how):
    barcodes, places = array(20, 13)
    rule = hiding.Hiding(how=how, share=0.4, seed=5, block=4.0)
    before = names(rule, "S", barcodes, places)
    order = np.random.default_rng(0).permutation(len(barcodes))
    shuffled = [barcodes[i] for i in order]
    assert names(rule, "S", shuffled, places[order]) == before
    # In um, and the array lying elsewhere on the image.
    assert names(rule, "S", barcodes, 0.65 * places + 4000.0, 0.65 * PITCH) == before


@pytest.mark.parametrize("how", ["spots", "blocks"])
def test_seeds_and_slides_hide_other_spots(how):
    barcodes, places = array(30, 30)
    rules = [hiding.Hiding(how=how, seed=seed) for seed in range(5)]
    found = {frozenset(names(rule, slide, barcodes, places)) for rule in rules for slide in "ABC"}
    assert len(found) == 15
    again = hiding.Hiding(how=how, seed=2)
    assert names(again, "B", barcodes, places) in found


def test_every_spot_is_hidden_equally_often():
    barcodes, places = array(8, 5)
    counts = np.zeros(40)
    for seed in range(500):
        counts += hiding.Hiding(share=0.25, seed=seed).hidden("S", barcodes, places, PITCH)
    # Each is hidden in 125 of 500; draws without replacement, so the variance of the sum of 40
    # is that of 39 free cells: chi-square of 39 degrees, 99.9 % quantile.
    assert (((counts - 125) ** 2) / (500 * 0.25 * 0.75) * 39 / 40).sum() < 72.1


@pytest.mark.parametrize(("share", "block"), [(0.5, 5.0), (0.2, 3.0), (0.8, 4.0), (0.05, 2.0)])
def test_blocks_are_whole_and_about_the_share(share, block):
    barcodes, places = array(24, 18)
    # Spots that stray from the array by up to 0.2 of a distance are still in their block.
    places = places + PITCH * np.random.default_rng(1).uniform(-0.2, 0.2, places.shape)
    x, y = np.array([list(map(int, barcode.split("x"))) for barcode in barcodes]).T
    cell = (x // int(block)) * 1000 + y // int(block)
    for seed in range(5):
        rule = hiding.Hiding(how="blocks", share=share, seed=seed, block=block)
        found = rule.hidden("S", barcodes, places, PITCH)
        for number in np.unique(cell):
            assert len(set(found[cell == number])) == 1
        wanted = round(share * len(barcodes))
        assert wanted <= found.sum() < wanted + block**2
        assert not found.all()


def test_one_block_is_left_whatever_the_share():
    barcodes, places = array(6, 3)
    found = hiding.Hiding(how="blocks", share=0.99, block=3.0).hidden("S", barcodes, places, PITCH)
    assert found.sum() == 9


def test_neighbours_of_a_block_s_spots_are_hidden_too():
    barcodes, places = array(30, 30)
    alone, whole = (
        hiding.Hiding(how=how, share=0.3).hidden("S", barcodes, places, PITCH).reshape(30, 30)
        for how in ("spots", "blocks")
    )
    # Of two neighbours in a row: by chance 0.3, in blocks of five at least 4 of 5.
    beside = [float(hidden[:, 1:][hidden[:, :-1]].mean()) for hidden in (alone, whole)]
    assert beside[0] < 0.4
    assert beside[1] > 0.75


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"how": "rows"}, "expected spots or blocks, found 'rows'"),
        ({"share": 0.0}, "above 0 and below 1, found 0.0"),
        ({"share": 1.0}, "above 0 and below 1, found 1.0"),
        ({"share": float("nan")}, "found nan"),
        ({"block": 0.0}, "above 0, found 0.0"),
        ({"block": float("nan")}, "found nan"),
    ],
)
def test_values_that_cannot_work_are_refused(values, text):
    with pytest.raises(errors.ConfigError, match=text):
        hiding.Hiding(**values)


def test_too_few_spots_or_blocks_are_refused_by_name():
    barcodes, places = array(4, 4)
    with pytest.raises(errors.ConfigError, match="slide S7: .*at least two spots, found 1"):
        hiding.Hiding().hidden("S7", barcodes[:1], places[:1], PITCH)
    with pytest.raises(errors.ConfigError, match="slide S7: .*two blocks of 5 .*smaller blocks"):
        hiding.Hiding(how="blocks").hidden("S7", barcodes, places, PITCH)


def test_a_rule_reads_back_from_plain_values():
    rule = hiding.Hiding(how="blocks", share=0.25, seed=9, block=2.5)
    assert hiding.Hiding(**rule.to_json()) == rule


def test_the_distance_between_spots():
    _, places = array(12, 9)
    assert hiding.spot_distance(places) == PITCH
    # Neither a gap nor a stray spot nor a doubled one decides.
    odd = np.concatenate([np.delete(places, [5, 6, 40], axis=0), [[9000.0, 0.0]], places[:1]])
    assert hiding.spot_distance(odd) == PITCH
    hexagonal = np.stack([places[:, 0] + places[:, 1] % 40 / 2, places[:, 1] * 0.75**0.5], axis=1)
    np.testing.assert_allclose(hiding.spot_distance(hexagonal), PITCH, rtol=1e-12)
    assert hiding.spot_distance(places[:1]) == 1.0
    assert hiding.spot_distance(places[[0, 0, 0]]) == 1.0
