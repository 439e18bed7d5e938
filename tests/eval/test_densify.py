"""Points between the spots of small slides: what is embedded, predicted, kept and refused."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import scipy.sparse

from stemjax import config, errors, tasks
from stemjax.data import embeddings, genes, images, no_image, patches, records, slides
from stemjax.eval import densify, evaluate, joining, predict
from stemjax.train import checkpoint
from stemjax.train import material as material_lib

GENES = tuple(f"G{i}" for i in range(5))
MEAN = tasks.Sampling(mode="mean")


def hexagonal() -> slides.Slide:
    """56 spots of a Visium array, 100 um apart, without an image; one gene was not measured."""
    column, row = (a.ravel() for a in np.meshgrid(np.arange(14), np.arange(8)))
    kept = (column + row) % 2 == 0
    array = np.stack([column, row], axis=1)[kept].astype(np.float32)
    return made("HEX", array, 150.0 + array * (100.0, 100.0 * np.sqrt(3)), mpp=0.5)


def square() -> slides.Slide:
    """30 spots of an ST array, 200 um apart, over noise of two textures; one edge near the rim."""
    column, row = (a.ravel() for a in np.meshgrid(np.arange(6), np.arange(5)))
    array = np.stack([column, row], axis=1).astype(np.float32) + (3, 9)
    rng = np.random.default_rng(7)
    pixels = rng.integers(90, 230, (240, 290, 3)).astype(np.uint8)
    pixels[:, 140:] = np.array([180, 90, 150]) + rng.integers(0, 40, (240, 150, 3))
    label = tuple("tumour" if x < 6 else "" for x in array[:, 0])
    return made(
        "SQ", array, 20.0 + (array - (3, 9)) * 50, mpp=4.0, image=pixels, labels={"region": label}
    )


def made(name, array, pixel, *, mpp, image=None, labels=None) -> slides.Slide:
    rng = np.random.default_rng(len(array))
    rate = 4.0 + 3.0 * np.sin(array[:, :1] / 3 + np.arange(len(GENES)))
    return slides.Slide(
        id=name,
        patient=name,
        counts=scipy.sparse.csr_array(rng.poisson(rate).astype(np.int32)),
        genes=GENES,
        barcodes=tuple(f"{x:g}x{y:g}" for x, y in array),
        array_xy=array,
        pixel_xy=np.asarray(pixel, np.float32),
        image=None if image is None else images.ArrayImage(image),
        mpp=mpp,
        spot_diameter_um=0.5 * mpp * np.ptp(np.asarray(pixel)[:2], axis=0).max(),
        sources={f"{name}.tsv": "0" * 64},
        labels=labels or {},
    )


def written(out, slide, encoder) -> records.Records:
    panel = genes.Panel(genes=GENES, rule="made", slides=())
    found = patches.embed_slide(slide, encoder)
    records.write_slide(out, slide, found, panel=panel, contract=encoder.contract)
    return records.open_records(out)


@pytest.fixture(scope="module")
def hex_source(tmp_path_factory) -> records.Records:
    return written(tmp_path_factory.mktemp("hex"), hexagonal(), no_image.NoImageEncoder())


@pytest.fixture(scope="module")
def square_source(tmp_path_factory) -> records.Records:
    encoder = embeddings.get_encoder("texture")
    return written(tmp_path_factory.mktemp("square"), square(), encoder)


@functools.cache
def experiment(kind: str, slide: str, window: str) -> config.Experiment:
    """A run that recovers the slide."""
    values = config.default_config()
    values.data.recover, values.data.hide_share = slide, 0.4
    values.data.augment = False
    values.model.kind, values.model.width, values.model.depth, values.model.heads = kind, 16, 1, 2
    values.window.kind, values.window.length = window, 9
    if kind.startswith("histosge"):
        values.model.mlp_ratio = 1
    else:
        values.diffusion.mean_fraction = 0.25
    return config.resolve(values)


def trained(source, slide, kind, window) -> checkpoint.Trained:
    """Weights away from the initial ones, without the cost of training."""
    card = material_lib.gather(experiment(kind, slide, window), source).card
    params = card.task.init(jax.random.key(1))
    keys = iter(jax.random.split(jax.random.key(2), 200))
    moved = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape), params)
    return checkpoint.Trained(params=moved, card=card, step=7, weights="last")


def dense(model, source, slide, read=None, *, sampling=MEAN, factor=4, **options):
    chosen = densify.choose_points(source, slide, factor=factor)
    asked = densify.points_table(source, slide, chosen, read)
    return densify.predict_points(model, source, slide, asked, sampling, **options)


def test_points_of_a_hexagonal_slide_are_what_the_task_gives_by_hand(hex_source):
    """Each point from the eight measured spots nearest to it, however the code comes by them."""
    model = trained(hex_source, "HEX", "histosge", "neighbours")
    found = dense(model, hex_source, "HEX")
    card, table = model.card, hex_source.load(["HEX"])
    own = np.asarray(found.obs["stemjax_measured"])
    assert own.sum() == 34  # of 56, 22 are hidden: 40 %
    xy = np.asarray(found.obsm["spatial"], float) * 0.5
    values = np.asarray(card.space.encode_expression(table.counts, table.total, table.mask))
    points = [r for r in range(found.n_obs) if found.obs_names[r] not in table.barcodes]
    assert len(points) > 90
    assert not own[points].any()
    distance = np.hypot(*(xy[points][:, None] - xy[:56]).transpose(2, 0, 1))
    distance[:, ~own[:56]] = np.inf
    near = np.array([np.lexsort((np.arange(56), d))[:8] for d in np.round(distance, 3)])
    n, first = len(points), np.eye(9, dtype=np.float32)[:1]
    given = {
        "cond": np.zeros((n, 9, 1), np.float32),
        "x0": np.concatenate([np.zeros((n, 1, 5)), values[near]], axis=1).astype(np.float32),
        "xy": xy[np.concatenate([np.array(points)[:, None], near], axis=1)].astype(np.float32),
        "place": np.zeros((n, 9, 2), np.float32),
        "present": np.ones((n, 9), np.float32),
        "asked": np.repeat(first, n, axis=0),
        "shown": np.repeat(1 - first, n, axis=0),
    }
    by_hand = jax.jit(functools.partial(card.task.predict, sampling=MEAN))
    drawn = by_hand(model.params, given, jax.random.split(jax.random.key(0), n))
    expected = np.asarray(card.space.values(np.asarray(drawn)[0]))
    # Two programs in fp32, values of size 5.
    np.testing.assert_allclose(np.asarray(found.X)[points], expected, atol=2e-5)
    assert np.ptp(expected, axis=0).min() > 0.03


def test_points_of_a_square_slide_are_what_the_task_gives_by_hand(square_source):
    """A model of single patches: a point is one more patch, embedded as the spots are."""
    model = trained(square_source, "SQ", "lite", "none")
    sampling = tasks.Sampling(mode="draws", n_draws=2, steps=2)
    found = dense(model, square_source, "SQ", lambda _: square(), sampling=sampling, seed=3)
    names = list(found.obs_names[30:])
    slide, card = square(), model.card
    xy = np.asarray(found.obsm["spatial"])[30:]
    placed = dataclasses.replace(
        slide,
        counts=scipy.sparse.csr_array(np.zeros((len(names), 5), np.int32)),
        barcodes=tuple(names),
        array_xy=xy,
        pixel_xy=xy,
        labels={},
    )
    vectors = patches.embed_slide(placed, embeddings.get_encoder("texture"))[:, 0]
    table = dataclasses.replace(square_source.load(["SQ"]), barcodes=tuple(names))
    table = dataclasses.replace(table, slide_index=np.zeros(len(names), np.int32))
    keys = tasks.row_keys(3, table)
    cond = card.space.encode_condition(vectors)
    by_hand = jax.jit(functools.partial(card.task.predict, sampling=sampling))
    drawn = by_hand(model.params, cond, keys)
    expected = np.asarray(card.space.values(np.asarray(drawn)))
    np.testing.assert_allclose(
        np.asarray(found.obsm["stemjax_draws"])[30:].transpose(1, 0, 2), expected, atol=2e-4
    )
    # Half way between two spots, and named so.
    np.testing.assert_allclose(xy[names.index("3.5x9")], [45.0, 20.0], atol=0.01)
    assert np.ptp(np.asarray(found.X)[30:], axis=0).min() > 1e-3


@pytest.mark.parametrize(
    ("kind", "window"),
    [
        ("histosge", "neighbours"),
        ("histosge_published", "rows"),
        ("lite", "none"),
        ("lite", "neighbours"),
    ],
)
def test_measured_rows_are_those_of_the_slide_without_points(hex_source, kind, window):
    model = trained(hex_source, "HEX", kind, window)
    sampling = MEAN if kind.startswith("h") else tasks.Sampling(mode="draws", n_draws=2, steps=2)
    found = dense(model, hex_source, "HEX", sampling=sampling, seed=4)
    alone = predict.predict_slide(model, hex_source, "HEX", sampling, seed=4)
    assert list(found.obs_names[:56]) == list(alone.obs_names)
    # Two programs of other batches, fp32.
    np.testing.assert_allclose(found.X[:56], alone.X, atol=1e-4)
    np.testing.assert_array_equal(found.obsm["spatial"][:56], alone.obsm["spatial"])
    for name in ("array_row", "array_col", "in_tissue"):
        np.testing.assert_array_equal(found.obs[name][:56], alone.obs[name])
    assert np.ptp(np.asarray(found.X)[56:], axis=0).min() >= 0


def test_what_was_measured_is_kept_beside_the_prediction(square_source):
    model = trained(square_source, "SQ", "histosge", "neighbours")
    found = dense(model, square_source, "SQ", lambda _: square())
    table = square_source.load(["SQ"])
    measured = np.asarray(found.obs["stemjax_measured"])
    assert measured.dtype == bool
    assert measured.sum() == 18  # of 30: 12 are hidden
    observed = found.layers["stemjax_observed"]
    np.testing.assert_allclose(
        observed[measured], np.log2(table.counts[measured[:30]] + 1.0), rtol=1e-6
    )
    assert np.isnan(observed[~measured]).all()
    assert not np.isnan(found.X).any()
    region = found.obs["region"]
    expected = ["tumour" if x < 6 else None for x in table.array_xy[:, 0]]
    assert [None if value != value else value for value in region[:30]] == expected
    assert region[30:].isna().all()
    told = json.loads(found.uns["stemjax"]["points"])
    assert told == {"spots": 30, "points": found.n_obs - 30}
    assert json.loads(found.uns["stemjax"]["hidden"])["share"] == 0.4


def test_a_gene_that_was_not_measured_has_no_observed_value(hex_source, tmp_path):
    slide = hexagonal()
    fewer = dataclasses.replace(
        slide, genes=GENES[:4], counts=scipy.sparse.csr_array(slide.counts[:, :4])
    )
    source = written(tmp_path, fewer, no_image.NoImageEncoder())
    model = trained(hex_source, "HEX", "histosge", "neighbours")
    found = dense(model, source, "HEX")
    observed = found.layers["stemjax_observed"]
    measured = np.asarray(found.obs["stemjax_measured"])
    assert np.isnan(observed[:, 4]).all()
    assert np.isfinite(observed[measured][:, :4]).all()


def test_the_portions_on_a_device_change_nothing(hex_source):
    model = trained(hex_source, "HEX", "histosge", "neighbours")
    one, two = (dense(model, hex_source, "HEX", rows=rows) for rows in (16, 1000))
    # Programs of other shapes: fp32 rounding of values of size 5.
    np.testing.assert_allclose(one.X, two.X, atol=1e-4)
    assert one.n_obs > 9 * 16


def test_a_point_does_not_depend_on_the_other_points(hex_source):
    model = trained(hex_source, "HEX", "lite", "neighbours")
    sampling = tasks.Sampling(mode="draws", n_draws=2, steps=2)
    every = dense(model, hex_source, "HEX", sampling=sampling)
    chosen = densify.choose_points(hex_source, "HEX", factor=4)
    few = densify.points_table(hex_source, "HEX", chosen)
    rows = [5, 60, 31]
    few = dataclasses.replace(
        few,
        barcodes=tuple(few.barcodes[r] for r in rows),
        **{
            name: getattr(few, name)[rows]
            for name in ("embeddings", "counts", "total", "mask", "slide_index")
            + ("array_xy", "pixel_xy")
        },
    )
    found = densify.predict_points(model, hex_source, "HEX", few, sampling)
    np.testing.assert_allclose(found.X[56:], every.X[[56 + r for r in rows]], atol=2e-4)
    other = densify.predict_points(model, hex_source, "HEX", few, sampling, seed=1)
    assert np.abs(other.X - found.X)[56:].min(axis=1).max() > 0.01


def test_it_reads_back_and_is_scored_as_the_slide_alone(square_source, tmp_path):
    model = trained(square_source, "SQ", "histosge", "neighbours")
    found = dense(model, square_source, "SQ", lambda _: square())
    predict.write(found, tmp_path / "dense.h5ad")
    back = joining.read(tmp_path / "dense.h5ad")
    np.testing.assert_array_equal(back.X, found.X)
    np.testing.assert_array_equal(back.layers["stemjax_observed"], found.layers["stemjax_observed"])
    assert back.obs["region"].isna().sum() == found.obs["region"].isna().sum()
    np.testing.assert_array_equal(back.obs["stemjax_measured"], found.obs["stemjax_measured"])
    assert json.loads(back.uns["stemjax"]["points"])["spots"] == 30
    alone = predict.predict_slide(model, square_source, "SQ", MEAN)
    fast = ("MLP", "embedding kNN", "kriging", "component kriging")
    scores = [
        evaluate.evaluate(one, square_source, resamples=0, leave_out=fast) for one in (back, alone)
    ]
    assert scores[0]["slides"][0]["spots"] == 12
    for one, two in zip(*(found["rows"] for found in scores), strict=True):
        assert one["name"] == two["name"]
        # The predictions differ by fp32 rounding.
        assert one["scores"]["mse"]["value"] == pytest.approx(
            two["scores"]["mse"]["value"], rel=1e-4
        )


def test_points_are_chosen_in_one_way(hex_source, square_source, tmp_path):
    with pytest.raises(errors.ConfigError, match="found none of them"):
        densify.choose_points(hex_source, "HEX")
    with pytest.raises(errors.ConfigError, match="found factor and pitch_um"):
        densify.choose_points(hex_source, "HEX", factor=4, pitch_um=30.0)
    near = densify.choose_points(hex_source, "HEX", pitch_um=25.0)
    assert near.spacing_um == 25.0
    assert len(near.names) > 12 * 56
    (tmp_path / "points.csv").write_text("name,x,y\nmiddle,45,20\n")
    read = densify.choose_points(square_source, "SQ", file=str(tmp_path / "points.csv"))
    assert read.names == ("middle",)
    np.testing.assert_allclose(read.xy_um, [[180.0, 80.0]])
    np.testing.assert_allclose(read.array_xy, [[3.5, 9.0]], atol=1e-6)


def test_points_beside_the_image_are_left_out(square_source, tmp_path):
    rows = "inside,45,20\nabove,45,-1\nright,290,20\ncorner,289.9,239.9\nbelow,45,240\nleft,-0.1,20"
    (tmp_path / "points.csv").write_text(f"name,x,y\n{rows}\n")
    chosen = densify.choose_points(square_source, "SQ", file=str(tmp_path / "points.csv"))
    asked = densify.points_table(square_source, "SQ", chosen, lambda _: square())
    assert asked.barcodes == ("inside", "corner")
    np.testing.assert_allclose(asked.pixel_xy, [[45, 20], [289.9, 239.9]], rtol=1e-6)
    assert not asked.mask.any()
    assert not asked.counts.any()
    (tmp_path / "beside.csv").write_text("x,y\n-5,-5\n")
    chosen = densify.choose_points(square_source, "SQ", file=str(tmp_path / "beside.csv"))
    with pytest.raises(errors.ConfigError, match="some inside the image"):
        densify.points_table(square_source, "SQ", chosen, lambda _: square())


def _without_image():
    return dataclasses.replace(square(), image=None)


@pytest.mark.parametrize(
    ("read", "error", "message"),
    [
        (None, errors.ConfigError, "need patches of its image.*--layout and --data"),
        (lambda: dataclasses.replace(square(), mpp=4.1), errors.SlideError, "found 4.1"),
        (
            lambda: dataclasses.replace(square(), sources={"SQ.tsv": "1" * 64}),
            errors.SlideError,
            "another SQ.tsv",
        ),
        (_without_image, errors.ImageError, "slide SQ has no image"),
    ],
)
def test_what_is_no_slide_of_the_records_is_refused(square_source, read, error, message):
    chosen = densify.choose_points(square_source, "SQ", factor=4)
    with pytest.raises(error, match=message):
        densify.points_table(square_source, "SQ", chosen, read and (lambda _: read()))


def test_an_encoder_that_is_not_built_in_and_another_of_the_name_are_refused(toy_records):
    chosen = densify.choose_points(toy_records, "X1", factor=4)
    with pytest.raises(errors.ConfigError, match="toy"):
        densify.points_table(toy_records, "X1", chosen, lambda _: square())


def test_a_point_with_the_name_of_a_spot_is_refused(hex_source, tmp_path):
    (tmp_path / "points.csv").write_text("name,x_um,y_um\n4x2,200,200\nother,180,220\n")
    chosen = densify.choose_points(hex_source, "HEX", file=str(tmp_path / "points.csv"))
    asked = densify.points_table(hex_source, "HEX", chosen)
    model = trained(hex_source, "HEX", "histosge", "neighbours")
    with pytest.raises(errors.ConfigError, match="names of points.*found 4x2"):
        densify.predict_points(model, hex_source, "HEX", asked, MEAN)


def test_a_mask_of_the_thumbnail_keeps_points_off_the_glass(square_source):
    mask = densify.tissue_of(square_source, "SQ")
    assert mask is not None
    # The right part of the image is stained, the left grey.
    assert mask.covers(np.array([[250 * 4.0, 100 * 4.0]])).all()


def test_records_without_an_image_have_no_mask(hex_source):
    assert densify.tissue_of(hex_source, "HEX") is None
