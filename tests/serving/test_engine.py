"""A spot's profile is the one that `stemjax predict` writes, in whatever company it is computed."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from stemjax import tasks
from stemjax.eval import conformal, predict
from stemjax.serving import engine, menu

# The same functions in programs of other sizes: float32 rounding of values of size 5.
NEAR = {"rtol": 1e-5, "atol": 1e-4}


@pytest.fixture(scope="module")
def warm(trained, offer):
    made = engine.Engine(trained, offer, max_batch=16)
    made.warm()
    return made


def rows_of(trained, toy_records, slide, where, seed):
    """Spots of a slide as a request brings them."""
    table = toy_records.load([slide])
    return engine.Rows(
        cond=trained.card.space.encode_condition(table.embeddings[where, 0]),
        seed=seed,
        slide=slide,
        barcodes=tuple(table.barcodes[row] for row in where),
    )


def predicted(trained, toy_records, slide, sampling, seed):
    """What `stemjax predict` gives for all spots of the slide, by the names of the engine."""
    result = predict.predict_slide(trained, toy_records, slide, sampling, seed=seed)
    found = {"mean": result.X, **{n: result.layers[n] for n in result.layers if n}}
    if predict.DRAWS in result.obsm:
        found["draws"] = result.obsm[predict.DRAWS]
    renamed = {predict.STD: "std", predict.STANDARD_ERROR: "standard_error"}
    return {renamed.get(name, name): np.asarray(array) for name, array in found.items()}


ORDERS = [
    ("mean", {}), ("pair", {}), ("draws", {}), ("draws", {"draws": 2}), ("intervals", {"draws": 4}),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "asked"), ORDERS)
def test_the_profiles_are_those_of_predict_alone_and_in_company(
    warm, offer, trained, toy_records, mode, asked
):
    order = offer.order(mode, draws=asked.get("draws"), steps=None)
    wanted = predicted(trained, toy_records, "X1", order.sampling, 3)
    rows, where = rows_of(trained, toy_records, "X1", [7, 30, 59], 3), [7, 30, 59]
    others = [
        rows_of(trained, toy_records, "T1", range(6), 3),
        rows_of(trained, toy_records, "X1", range(4), 9),
    ]
    alone = warm.profiles(order, [rows])
    shared = warm.profiles(order, [others[0], rows, others[1]])
    assert set(alone) == set(shared)
    # Predict writes draws and intervals, as far as there are any; here they are asked for.
    ends = {name for level in (0.5, 0.9) for name in conformal.layer_names(level)}
    left_out = {"draws"} if mode == "intervals" else ends & set(wanted)
    assert set(wanted) - set(alone) == left_out
    assert (mode == "intervals") == (ends <= set(alone))
    for name, array in alone.items():
        np.testing.assert_allclose(array, wanted[name][where], **NEAR, err_msg=name)
        np.testing.assert_allclose(shared[name][6:9], array, **NEAR, err_msg=name)
    # The others have noise of their own seed and slide.
    for seed, slide, at, part in ((3, "T1", range(6), shared["mean"][:6]),
                                  (9, "X1", range(4), shared["mean"][9:])):  # fmt: skip
        theirs = predicted(trained, toy_records, slide, order.sampling, seed)["mean"]
        np.testing.assert_allclose(part, theirs[list(at)], **NEAR)


def test_fewer_draws_are_the_first_of_those_that_are_compiled(warm, offer, trained, toy_records):
    rows = rows_of(trained, toy_records, "X1", range(5), 1)
    few = warm.profiles(offer.order("draws", draws=2, steps=None), [rows])
    many = warm.profiles(offer.order("draws", draws=4, steps=None), [rows])
    assert (few["draws"].shape, many["draws"].shape) == ((5, 2, 8), (5, 4, 8))
    np.testing.assert_array_equal(few["draws"], many["draws"][:, :2])
    np.testing.assert_allclose(few["mean"], few["draws"].mean(axis=1), rtol=1e-5)
    assert "standard_error" in many
    assert "standard_error" not in few  # one pair tells nothing of its own error


def test_after_warming_up_nothing_is_compiled(trained):
    compiled, on = [], [True]

    def listen(event, _, **about):
        if on[0] and event == "/jax/core/compile/backend_compile_duration":
            compiled.append(about.get("fun_name", "?"))

    # Sizes that no other test has: JAX remembers small programs for as long as the process lives.
    tasks.predictor._cached.cache_clear()
    offer = menu.make_menu(trained, modes=("mean", "draws"), n_draws=(4,), steps=(2,))
    cold = engine.Engine(trained, offer, max_batch=48)
    assert [cold.sizes(sampling) for sampling in offer.compiled] == [(48, 12, 4)] * 2
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        cold.warm()
        assert len(compiled) >= cold.compilations == 6  # the listener hears
        compiled.clear()
        for mode, draws in (("mean", None), ("draws", 4), ("draws", 2), ("intervals", 4)):
            order = offer.order(mode, draws=draws, steps=None)
            for sizes in ((1,), (2, 1), (5,), (3, 4, 2), (7, 8), (48,)):
                parts = [
                    engine.Rows(
                        cond=np.ones((n, 6), np.float32), seed=n, slide=f"S{n}",
                        barcodes=tuple(map(str, range(n))),
                    )
                    for n in sizes
                ]  # fmt: skip
                cold.profiles(order, parts)
        assert compiled == []
    finally:
        on[0] = False  # JAX has no way to take a listener away
    assert cold.compilations == 6


def test_a_batch_is_no_larger_than_asked_and_than_the_device_likes(trained, offer, monkeypatch):
    made = engine.Engine(trained, offer, max_batch=16)
    assert [made.sizes(sampling) for sampling in offer.compiled] == [(16, 4)] * 3
    monkeypatch.setattr(tasks.predictor, "rows_at_a_time", lambda row_bytes: 8)
    tasks.predictor._cached.cache_clear()
    made = engine.Engine(trained, offer, max_batch=1000)
    by_mode = {one.mode: made.sizes(one)[0] for one in offer.compiled}
    tasks.predictor._cached.cache_clear()
    # Eight rows on each of four devices; a pair is two rows a spot, and here draws are four.
    assert by_mode == {"mean": 32, "pair": 16, "draws": 8}


def test_a_model_whose_programs_differ_is_another_order(offer, trained):
    one = offer.order("draws", draws=4, steps=2)
    assert one == offer.order("draws", draws=None, steps=None)
    assert one != offer.order("draws", draws=2, steps=2)
    assert one != offer.order("intervals", draws=4, steps=None)
    assert one != dataclasses.replace(one, sampling=dataclasses.replace(one.sampling, steps=3))
    assert isinstance(hash(one), int)
    assert (
        menu.make_menu(trained, modes=("draws",), n_draws=(4,), steps=(2,)).order(
            None, draws=None, steps=None
        )
        == one
    )
