"""Several updates a call: the same run, whatever their number; memory decides what is kept."""

from __future__ import annotations

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest

from stemjax import config, errors, mesh
from stemjax.data import pipeline
from stemjax.train import checkpoint, dispatch, loop
from stemjax.train import state as states
from stemjax.train import step as steps


@pytest.mark.parametrize(
    ("asked", "rhythm", "expected"),
    [(1, (50, 1000, 1000), 1), (20, (50, 1000, 1000), 10), (7, (7, 14, 0), 7), (9, (4, 6, 6), 2),
     (9, (6, 4, 6), 2), (9, (6, 6, 4), 2),
     (50, (7, 10, 10), 1), (100, (50, 100, 0), 50)],
)  # fmt: skip
def test_a_call_divides_every_rhythm(asked, rhythm, expected):
    log, save, validate = rhythm
    cfg = config.Train(
        steps_per_call=asked, log_every=log, save_every=save, validate_every=validate
    )
    assert dispatch.steps_per_call(cfg) == expected


@pytest.mark.parametrize(("first", "last"), [(0, 21), (0, 18), (3, 18), (5, 6), (9, 9), (20, 3)])
def test_calls_take_every_step_once_and_end_at_multiples(first, last):
    calls = list(dispatch.plan_calls(first, last, 7))
    done = [step for start, updates in calls for step in range(start, start + updates)]
    assert done == list(range(first, last))
    assert all(updates == 1 or (updates == 7 and start % 7 == 0) for start, updates in calls)
    # What could be one call is.
    whole = [m for m in range(0, 21, 7) if first <= m and m + 7 <= last]
    assert [start for start, updates in calls if updates == 7] == whole


def _rhythmic(experiment, **train):
    values = config.as_json(experiment)
    values["train"] |= {"steps": 16, "log_every": 7, "save_every": 7, "validate_every": 0}
    values["train"] |= train
    values["model"] |= {"width": 8, "depth": 1}
    values["data"]["residence"] = "device" if train else "ram"
    return config.resolve(values)


def _weights(workdir) -> dict:
    return checkpoint.load(workdir, weights="last").params


def _logged(workdir) -> dict[tuple[int, str], float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timing = ("step", "steps_per_second", "spots_per_second", "eta_seconds")
    return {(line["step"], k): v for line in lines for k, v in line.items() if k not in timing}


def test_seven_updates_a_call_on_the_device_are_the_same_run(
    toy_records, toy_experiment, tmp_path, monkeypatch
):
    layout, compiled = mesh.make_layout(jax.devices()[:1]), []
    original = steps.compile_update

    def counted(call, layout, state, table, handed):
        compiled.append(handed["row"].shape if "row" in handed else handed["x0"].shape[:2])
        return original(call, layout, state, table, handed)

    monkeypatch.setattr(steps, "compile_update", counted)
    loop.train(_rhythmic(toy_experiment), toy_records, tmp_path / "one", layout=layout)
    seven = _rhythmic(toy_experiment, steps_per_call=7)
    loop.train(seven, toy_records, tmp_path / "seven", layout=layout)
    assert compiled == [(16, 1), (16, 7), (16, 1)]
    loop.train(seven, toy_records, tmp_path / "parts", layout=layout, stop_at=9)
    loop.train(seven, toy_records, tmp_path / "parts", layout=layout)
    # A program of one update and one of seven may round differently, and Adam divides small
    # gradients by their own size: a hundredth of one update of 3e-3.
    for name in ("seven", "parts"):
        chex.assert_trees_all_close(
            _weights(tmp_path / "one"), _weights(tmp_path / name), atol=3e-5, rtol=0
        )
    one, many = _logged(tmp_path / "one"), _logged(tmp_path / "seven")
    assert {step for step, _ in many} == {7, 14, 16}
    assert one.keys() == many.keys()
    np.testing.assert_allclose(list(one.values()), [many[k] for k in one], rtol=1e-3)


def _sized(batch: int = 16):
    """A network whose activations outweigh its parameters, and abstract arguments of its step."""
    experiment = config.resolve(
        {
            "model": {"width": 32, "depth": 8, "heads": 2},
            "diffusion": {"mean_fraction": 1.0},
            "train": {"batch": batch},
        }
    )
    layout = mesh.make_layout(jax.devices()[:1])
    optimizer = states.make_optimizer(experiment.optim, 10)

    def placed(tree, sharding):
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree
        )

    def task(remat):
        model = dataclasses.replace(experiment.model, remat=remat)
        changed = dataclasses.replace(experiment, model=model)
        return config.make_task(changed, genes=24, condition=6)

    state = placed(
        jax.eval_shape(lambda k: states.init_state(task(False), optimizer, k), jax.random.key(0)),
        layout.replicated,
    )
    handed = placed(
        {name: jax.ShapeDtypeStruct((batch, 2, width), np.float32)
         for name, width in (("cond", 6), ("x0", 24), ("mask", 24))},
        layout.data,
    )  # fmt: skip

    def build(remat: bool) -> jax.stages.Compiled:
        step = steps.make_train_step(task(remat), optimizer, ema=0.9, seed=0)
        call = dispatch.make_call(step, pipeline.HostView().show)
        return steps.compile_update(call, layout, state, {}, handed)

    return build, state


def test_memory_decides_what_is_computed_again():
    build, state = _sized()
    kept, again = build(False), build(True)
    most, least = dispatch.memory_bytes(kept), dispatch.memory_bytes(again)
    # 8 blocks keep their input (24 tokens of 32 float32, 16 spots) instead of some 15 such arrays.
    assert least < 0.6 * most
    chosen = []

    def counted(remat: bool) -> jax.stages.Compiled:
        chosen.append(remat)
        return again if remat else kept

    room = int(most / 0.9) + 1
    for policy, budget, remat, builds in (
        ("auto", room, False, [False]),
        ("auto", most, True, [False, True]),
        ("auto", 0, False, [False]),
        ("none", room, False, [False]),
        ("blocks", room, True, [True]),
    ):
        program, taken = dispatch.compile_within(counted, policy, budget)
        assert (program is again, taken, chosen) == (remat, remat, builds), (policy, budget)
        chosen.clear()
    # The state is updated where it lies: what is written elsewhere is the metrics, 8 scalars.
    found = kept.memory_analysis()
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert found.alias_size_in_bytes == pytest.approx(size, abs=8)
    assert found.output_size_in_bytes - found.alias_size_in_bytes < 4096


@pytest.mark.parametrize(("policy", "hint"), [("auto", False), ("blocks", False), ("none", True)])
def test_what_fits_in_no_way_is_refused_before_it_is_run(policy, hint):
    build, _ = _sized(batch=4)
    program = build(True)
    with pytest.raises(errors.ResourceError, match=r"config\.train\.accumulate") as error:
        dispatch.compile_within(lambda remat: program, policy, 1000)
    assert ("config.train.remat=blocks" in error.value.fix) == hint
    assert "1 kB" in str(error.value)


def test_the_memory_of_a_cpu_is_the_machines_and_shared_by_its_devices():
    assert dispatch.budget() == pipeline.memory_limit() // 4


def test_a_compiler_that_refuses_for_memory_is_asked_again_and_no_other_error_is_hidden():
    program = jax.jit(lambda x: x).lower(1.0).compile()

    def refuse(message):
        def build(remat: bool):
            if not remat:
                raise jax.errors.JaxRuntimeError(message)
            return program

        return build

    taken = dispatch.compile_within(refuse("RESOURCE_EXHAUSTED: hbm"), "auto", 10**9)
    assert taken == (program, True)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        dispatch.compile_within(refuse("INTERNAL: else"), "auto", 10**9)
