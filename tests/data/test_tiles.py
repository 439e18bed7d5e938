"""Tissue that no spot vouches for, and the grid over it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from made_images import INKS, draw_pen, paint_section

from stemjax import errors
from stemjax.data import images, points, tiles, tissue


def overlap(one, two):
    return (one & two).sum() / (one | two).sum()


@pytest.mark.parametrize(
    ("glass", "noise", "pale"),
    [
        ((243, 241, 244), 2, 0.0),
        ((255, 255, 255), 10, 0.0),  # white, noisy
        ((205, 205, 205), 10, 0.0),  # grey, noisy
        ((232, 222, 230), 4, 0.0),  # tinted, as HER2ST's
        ((243, 241, 244), 3, 0.7),  # hardly stained
    ],
)
def test_painted_tissue_is_found(glass, noise, pale):
    pixels, truth = paint_section(seed=1, glass=glass, noise=noise, pale=pale)
    # Seen: .99 and more; the rest is the outline, blurred before the threshold.
    assert overlap(tissue.section_mask(pixels), truth) > 0.97


@pytest.mark.parametrize("colour", sorted(INKS))
def test_ink_is_no_tissue(colour):
    pixels, truth = paint_section(seed=1)
    inked, ink = draw_pen(pixels, colour)
    found = tissue.section_mask(inked)
    assert overlap(found, truth & ~ink) > 0.97
    assert not (found & ink).any()
    # Nor where the slide holds nothing else, nor where a stroke crosses tissue.
    blank, _ = paint_section(seed=1, pieces=0)
    assert not tissue.section_mask(draw_pen(blank, colour)[0]).any()
    crossed = pixels.copy()
    crossed[395:410, 100:900] = INKS[colour]
    found = tissue.section_mask(crossed)
    assert not found[396:409].any()
    assert overlap(found[:390], truth[:390]) > 0.97
    # A dot as small as the holes that are closed; washed-out ink, no darker than pale tissue.
    dotted = pixels.copy()
    y, x = np.argwhere(truth)[truth.sum() // 2]
    dotted[y - 5 : y + 5, x - 5 : x + 5] = INKS[colour]
    assert not tissue.section_mask(dotted)[y - 4 : y + 4, x - 4 : x + 4].any()
    faint = np.rint(blank - 0.22 * (blank - np.array(INKS[colour], float)))
    faint[200:] = blank[200:]
    assert not tissue.section_mask(faint.astype(np.uint8)).any()


def test_a_scanners_borders_are_no_tissue():
    pixels, truth = paint_section(seed=2)
    pixels, truth = pixels.copy(), truth.copy()
    pixels[:40], pixels[-25:], pixels[:, -60:] = 0, 8, (3, 2, 6)
    truth[:40] = truth[-25:] = truth[:, -60:] = False
    assert overlap(tissue.section_mask(pixels), truth) > 0.97
    padded = np.pad(pixels[:, :-60], ((0, 0), (200, 200), (0, 0)), constant_values=255)
    found = tissue.section_mask(padded)[:, 200:-200]
    assert overlap(found, truth[:, :-60]) > 0.97


@pytest.mark.parametrize(("glass", "noise"), [((243, 241, 244), 8), ((200, 200, 203), 10)])
def test_a_blank_slide_has_no_tissue_and_says_how_to_go_on(glass, noise):
    pixels, _ = paint_section(pieces=0, glass=glass, noise=noise)
    with pytest.raises(errors.ImageError, match="no tissue is seen in blank.*--tissue.*--whole"):
        tiles.tissue_grid(images.ArrayImage(pixels, "blank"), 1.0)


def test_pale_tissue_beside_dark_and_haze_and_dust():
    # Two pieces: Otsu's threshold alone would lie between the pale and the dark one.
    pixels, truth = paint_section(seed=1)
    pale, _ = paint_section(seed=1, pale=0.7)
    pixels = np.concatenate([pale[:, :500], pixels[:, 500:]], axis=1)
    assert overlap(tissue.section_mask(pixels), truth) > 0.95
    # Stain smeared over glass, and dust close enough to be closed into one piece.
    blank, _ = paint_section(pieces=0)
    haze = blank.copy()
    haze[:, 700:] -= np.array([0, 11, 2], np.uint8)
    assert not tissue.section_mask(haze).any()
    dust = blank.copy()
    for y, x in np.ndindex(2, 2):
        dust[7 + y :: 15, 7 + x :: 15] = (150, 60, 160)
    assert not tissue.section_mask(dust).any()


@pytest.mark.her2st
def test_the_masks_of_her2st_are_those_that_its_spots_were_tested_with(her2st):
    # Looked at: the difference is pale fat in B4, and stain smeared over glass, which this mask
    # leaves out. Dark blue nuclei are no blue ink.
    for section in ("B4", "C4"):
        (path,) = (her2st / "ST-imgs" / section[0] / section).glob("*.jpg")
        thumbnail, _ = images.open_image(path).thumbnail(1000)
        found = tissue.section_mask(thumbnail)
        assert overlap(found, tissue.tissue_mask(thumbnail)) > 0.95


def shares_by_pixels(truth, centre, side):
    """Share of each square that is true, from a picture of 8 x 8 points a pixel."""
    fine = np.kron(truth, np.ones((8, 8), bool))
    result = []
    for x, y in np.asarray(centre, float):
        low = np.rint(8 * (np.array([x, y]) - side / 2)).astype(int)
        high = low + round(8 * side)
        low = np.maximum(low, 0)
        result.append(fine[low[1] : high[1], low[0] : high[0]].sum() / (8 * side) ** 2)
    return np.array(result)


@pytest.mark.parametrize("kind", ["square", "hexagonal"])
def test_shares_are_areas(monkeypatch, kind):
    # Of a mask as large as the image, the share of a tile is known to the last digit, also where
    # its borders cut through pixels. 12.5 px: eighths of pixels, on the square grid.
    rng = np.random.default_rng(0)
    truth = rng.random((90, 130)) < np.linspace(0, 1, 130)
    monkeypatch.setattr(tissue, "section_mask", lambda thumbnail: truth)
    image = images.ArrayImage(np.full((90, 130, 3), 200, np.uint8))
    found = tiles.tissue_grid(image, 2.0, pitch_um=25.0, kind=kind, min_tissue=0.4)
    exact = shares_by_pixels(truth, found.pixel_xy, 12.5)
    # Hexagonal rows lie between eighths: an eighth of a row of 12.5.
    np.testing.assert_allclose(found.share, exact, atol=1e-6 if kind == "square" else 0.02)
    assert (found.share >= 0.4).all()
    everything = tiles.tissue_grid(image, 2.0, pitch_um=25.0, kind=kind, min_tissue=1e-9)
    exact = shares_by_pixels(truth, everything.pixel_xy, 12.5)
    kept = set(found.names)
    clear = abs(exact - 0.4) > 0.02
    names = np.array(everything.names)[clear]
    assert {n for n, s in zip(names, exact[clear], strict=True) if s > 0.4} == kept & set(names)


def test_the_square_grid_starts_half_a_pitch_from_the_corner():
    image = images.ArrayImage(np.full((250, 430, 3), 240, np.uint8))
    found = tiles.tissue_grid(image, 0.5, pitch_um=50.0, whole=True, min_tissue=0.25)
    # 100 px: columns at 50, 150, 250, 350 (tile inside) and none at 450, beyond the image; rows at
    # 50, 150 and none at 250, whose centre is the first row that is not there.
    assert found.names == ("0x0", "1x0", "2x0", "3x0", "0x1", "1x1", "2x1", "3x1")
    assert found.pixel_xy[[0, 5]].tolist() == [[50, 50], [150, 150]]
    np.testing.assert_array_equal(found.share, 1)
    wide = images.ArrayImage(np.full((251, 360, 3), 240, np.uint8))
    found = tiles.tissue_grid(wide, 0.5, pitch_um=50.0, whole=True, min_tissue=0.1)
    # Tiles over the edge count what lies beyond as none: 51 of 100 rows, 60 of 100 columns.
    corner = dict(zip(found.names, found.share.tolist(), strict=True))
    assert corner["3x2"] == pytest.approx(0.51 * 0.6)
    assert corner["0x2"] == pytest.approx(0.51)
    strict = tiles.tissue_grid(wide, 0.5, pitch_um=50.0, whole=True, min_tissue=0.55)
    assert "0x2" not in strict.names
    assert "3x1" in strict.names


def test_the_hexagonal_grid_is_visiums():
    image = images.ArrayImage(np.full((300, 400, 3), 240, np.uint8))
    found = tiles.tissue_grid(image, 1.0, pitch_um=100.0, kind="hexagonal", whole=True)
    assert found.names[:5] == ("0x0", "2x0", "4x0", "6x0", "1x1")
    assert (found.array_xy.sum(axis=1) % 2 == 0).all()
    far = np.linalg.norm(found.pixel_xy[:, None] - found.pixel_xy[None], axis=2)
    assert np.sort(far[5])[1:7] == pytest.approx([100.0] * 6, rel=1e-5)
    # Odd rows end half a pitch earlier: a tile at 400 px would have its centre on the edge.
    assert "7x1" not in found.names


def test_a_place_keeps_its_name_whatever_tissue_there_is():
    pixels, _ = paint_section(seed=3)
    image = images.ArrayImage(pixels)
    few = tiles.tissue_grid(image, 5.0, pitch_um=100.0, min_tissue=0.9)
    many = tiles.tissue_grid(image, 5.0, pitch_um=100.0, whole=True)
    assert 50 < len(few.names) < len(many.names) == 50 * 40
    place = dict(zip(many.names, many.pixel_xy.tolist(), strict=True))
    assert [place[name] for name in few.names] == few.pixel_xy.tolist()
    assert list(few.names) == sorted(few.names, key=lambda n: [int(i) for i in n.split("x")][::-1])


def test_tiles_cover_the_painted_tissue():
    pixels, truth = paint_section(seed=4)
    found = tiles.tissue_grid(images.ArrayImage(pixels), 4.0, pitch_um=100.0)
    covered = np.zeros(truth.shape, bool)
    for x, y in np.rint(found.pixel_xy - 12.5).astype(int).tolist():
        covered[y : y + 25, x : x + 25] = True
    assert overlap(covered, truth) > 0.9  # tiles of 25 px on pieces 300 px wide
    seen = float(found.notes[1].split("%")[0])
    assert seen == pytest.approx(100 * truth.mean(), abs=0.5)
    assert found.notes[0] == "tissue is what looks stained in a thumbnail"
    n = len(found.names)
    assert found.notes[2] == f"{n} square tiles 100 um apart with at least 50% tissue"


def feature(*rings, name=None, kind="Polygon"):
    made = {"type": "Feature", "geometry": {"type": kind, "coordinates": list(rings)}}
    made["properties"] = {} if name is None else {"classification": {"name": name}}
    return made


def square(x, y, side):
    corners = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    return [[float(v) for v in corner] for corner in corners]


BLANK = images.ArrayImage(np.full((1000, 1600, 3), 240, np.uint8), "blank")


def write(path, data):
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_outlines_decide_where_there_are_some(tmp_path):
    outlines = [
        feature(square(0, 0, 600), square(200, 200, 200), name="Tumor"),
        feature([square(800, 0, 200)], [square(900, 0, 200)], kind="MultiPolygon"),
        {"type": "Feature", "geometry": {"type": "Point", "coordinates": [5, 5]}},
    ]
    wanted = {f"{x}x{y}" for x in range(6) for y in range(6)}
    wanted -= {f"{x}x{y}" for x in (2, 3) for y in (2, 3)}  # the hole
    wanted |= {f"{x}x{y}" for x in (8, 9, 10) for y in (0, 1)}  # an overlap counts once
    bare = {"type": "GeometryCollection", "geometries": [f["geometry"] for f in outlines]}
    for data in ({"type": "FeatureCollection", "features": outlines}, outlines, bare):
        path = write(tmp_path / "tissue.geojson", data)
        found = tiles.tissue_grid(BLANK, 1.0, pitch_um=100.0, tissue_geojson=path)
        assert set(found.names) == wanted
        np.testing.assert_allclose(found.share, 1, atol=1e-6)
    found = tiles.tissue_grid(
        BLANK, 1.0, pitch_um=100.0, tissue_geojson=write(path, outlines), min_tissue=0.5
    )
    assert found.notes[0] == (
        "tissue is what tissue.geojson outlines, polygons: of no class 2, Tumor 1"
    )
    assert found.notes[1].startswith("23.8% of the image")  # 380,000 of 1,600,000 px


def test_filling_agrees_with_a_rule_for_single_points():
    rng = np.random.default_rng(3)
    angle = np.sort(rng.uniform(0, 2 * np.pi, 40))
    star = 50 + np.stack([np.cos(angle), np.sin(angle)], 1) * rng.uniform(10, 70, (40, 1))
    hole = 50 + 8 * np.array([[0, 0], [0.9, 0.1], [0.5, 1.0]])
    found = tiles.fill([[star, hole]], (80, 120), (1.0, 0.8))

    def inside(x, y, ring):  # crossings of the ray to the right
        odd = False
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
                odd = not odd
        return odd

    rings = [ring * (1.0, 0.8) for ring in (star, hole)]
    for row in range(80):
        for column in range(120):
            at = (column + 0.5, row + 0.5)
            assert found[row, column] == (inside(*at, rings[0]) != inside(*at, rings[1]))
    assert 0 < found.sum() < found.size


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ("{", "JSONDecodeError"),
        ("[" * 100_000, "nested too deep"),
        ({"type": "FeatureCollection"}, "KeyError: 'features'"),
        ({"type": "Topology"}, "geometry of type 'Topology'"),
        ([1, 2], "int instead of a feature"),
        (feature([[0, 0], [1, 1]]), "fewer than three"),
        (feature([[0, 0], [1, 1], [1e300, 0]]), "not finite, or 10,000,000"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [NaN, 1], [2, 2]]]}', "not finite"),
        (feature([[0, 0], ["a", 1], [2, 2]]), "ValueError"),
        ({"type": "FeatureCollection", "features": []}, "no feature"),
        ({"type": "Point", "coordinates": [1, 2]}, "points or lines alone"),
    ],
)
def test_outlines_that_cannot_be_read(tmp_path, data, match):
    path = write(tmp_path / "tissue.geojson", data)
    with pytest.raises(errors.SlideError, match=rf"tissue\.geojson.*({match})"):
        tiles.tissue_grid(BLANK, 1.0, tissue_geojson=path)


def test_outlines_too_large_absent_or_of_another_image(tmp_path, monkeypatch):
    path = write(tmp_path / "tissue.geojson", feature(square(9000, 20, 50)))
    with pytest.raises(errors.SlideError, match="nothing on blank.*x from 9000 to 9050"):
        tiles.tissue_grid(BLANK, 1.0, tissue_geojson=path)
    with pytest.raises(errors.SlideError, match="absent.*FileNotFoundError"):
        tiles.read_outlines(tmp_path / "absent.geojson")
    monkeypatch.setattr(tiles, "MAX_GEOJSON_BYTES", 100)
    with pytest.raises(errors.SlideError, match="bytes, above 100"):
        tiles.read_outlines(path)
    depth = {"type": "Polygon", "coordinates": [square(0, 0, 9)]}
    for _ in range(10):
        depth = {"type": "GeometryCollection", "geometries": [depth]}
    monkeypatch.undo()
    with pytest.raises(errors.SlideError, match="collections within collections"):
        tiles.read_outlines(write(path, depth))


def test_arguments_that_cannot_be_used(tmp_path):
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(errors.PixelSizeError, match="um above 0"):
            tiles.tissue_grid(BLANK, bad)
    for field, value in [("pitch_um", 0.0), ("kind", "round"), ("min_tissue", 0.0)]:
        options = {field: value}
        with pytest.raises(errors.ConfigError, match=field):
            tiles.tissue_grid(BLANK, 1.0, **options)
    with pytest.raises(errors.ConfigError, match="either the whole"):
        tiles.tissue_grid(BLANK, 1.0, whole=True, tissue_geojson=tmp_path / "a.geojson")
    with pytest.raises(errors.ConfigError, match="too many tiles.*5,000,000.*pixel size"):
        tiles.tissue_grid(BLANK, 1000.0, pitch_um=100.0)
    with pytest.raises(errors.ConfigError, match="no tile fits.*2,000 px"):
        tiles.tissue_grid(BLANK, 0.025, whole=True)
    assert points.MOST == 5_000_000


def test_too_little_tissue_for_any_tile():
    pixels, _ = paint_section(seed=4)
    with pytest.raises(errors.ImageError, match=r"no tile.*at least 95%.*at most \d\d%.*smaller"):
        tiles.tissue_grid(images.ArrayImage(pixels), 1.0, pitch_um=800.0, min_tissue=0.95)
