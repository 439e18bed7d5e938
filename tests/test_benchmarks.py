"""The benchmark harness: what is inside the clock, what is not, and what a result holds."""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from stemjax import config, errors

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import harness

    return harness


class Clock:
    """Seconds that pass only when somebody says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def late(self, seconds):
        """A value that is ready so many seconds after somebody waits for it."""

        def wait():
            self.now += seconds

        return types.SimpleNamespace(block_until_ready=wait)


def test_compile_and_warm_up_are_outside_the_timed_calls(harness):
    ticks, made = iter(range(1000)), []

    def arguments(i):
        made.append(i)
        return (jnp.full((2,), float(i)),)

    timing = harness.measure(
        lambda x: x + 1, arguments, repeats=4, warm_up=2, clock=lambda: next(ticks)
    )
    # Every pair of readings is one tick apart: lowering 1, compiling 1, each timed call 1.
    assert (timing.lower, timing.compile, timing.median, timing.repeats) == (1, 1, 1.0, 4)
    assert made == [0, *range(6)]  # one for lowering, then new arguments at every call
    # 3 readings to compile; warm-up reads once a call (its start), timed calls twice.
    assert next(ticks) == 3 + 2 + 2 * 4


def test_the_whole_output_is_waited_for_and_the_arguments_before(harness):
    clock = Clock()

    def call(argument):
        clock.now += 1.0
        return {"a": clock.late(2.0), "b": (clock.late(4.0), [clock.late(8.0)])}

    timing = harness.time_calls(
        call, lambda i: (clock.late(100.0),), repeats=3, warm_up=0, clock=clock
    )
    assert timing.quartiles == (15.0, 15.0)
    assert clock.now == 3 * 115


@pytest.mark.parametrize(("repeats", "seconds", "calls"), [(2, 10.0, 3), (5, 10.0, 5), (2, 0.0, 2)])
def test_calls_go_on_until_there_are_enough_of_them_and_they_lasted(
    harness, repeats, seconds, calls
):
    clock = Clock()

    def call():
        clock.now += 3.0

    def arguments(i):
        clock.now += 1.0
        return ()

    # Timed calls end 3, 7, 11, ... seconds after the first began.
    timing = harness.time_calls(
        call, arguments, repeats=repeats, warm_up=2, seconds=seconds, clock=clock
    )
    assert (timing.repeats, timing.median) == (calls, 3.0)
    assert clock.now == 4 * (2 + calls)


def test_percentiles_are_those_of_the_timed_calls(harness):
    clock, lengths = Clock(), iter([1000.0, *range(11, 0, -1)])

    def call():
        clock.now += next(lengths)

    timing = harness.time_calls(call, repeats=11, warm_up=1, clock=clock)
    # 1 to 11: quantile q is 1 + 10 q.
    assert timing.quartiles == (3.5, 8.5)
    assert (timing.p10, timing.median, timing.p90) == (2.0, 6.0, 10.0)
    assert timing.p99 == pytest.approx(10.9)
    assert timing.line["p90_s"] == 10.0
    assert "temp_bytes" not in timing.line  # plain Python


def test_a_function_is_compiled_anew_and_its_memory_known(harness):
    traced = []

    def function(x, y):
        traced.append(1)
        return jnp.sin(x @ y)

    given = (jnp.ones((8, 32)), jnp.ones((32, 4)))
    first, again = (harness.build(function, given) for _ in range(2))
    assert len(traced) == 2
    assert first.program is not again.program
    memory = again.memory
    assert (memory.argument, memory.output) == (4 * (8 * 32 + 32 * 4), 4 * 8 * 4)
    assert memory.peak >= memory.argument + memory.output


def test_the_second_compilation_comes_from_the_persistent_cache(harness):
    events, before = [], jax.config.jax_compilation_cache_dir

    def listen(event, **_):
        events.append(event.rsplit("/", 1)[-1])

    jax.monitoring.register_event_listener(listen)
    try:
        assert harness.compile_cached(lambda x: jnp.cos(x) + 5, (jnp.ones(3),)) > 0
    finally:
        jax.monitoring.unregister_event_listener(listen)
    assert events.count("cache_hits") == 1
    assert jax.config.jax_compilation_cache_dir == before


def test_the_flags_name_an_experiment(harness):
    parser = argparse.ArgumentParser()
    harness.add_arguments(parser)
    args, found = harness.parse(
        parser,
        ["--config", str(ROOT / "configs/stem_published.py"), "--config.model.width=96", "--quick"],
    )
    assert (found.model.width, found.model.depth, args.quick) == (96, 12, True)
    assert harness.parse(parser, [])[1].name == "stem_her2st"  # whatever the working folder is
    with pytest.raises(errors.ConfigError, match="widht"):
        harness.parse(parser, ["--config.model.widht=96"])
    with pytest.raises(SystemExit):
        harness.parse(parser, ["--qiuck"])


def test_a_result_says_what_it_depends_on(harness, tmp_path):
    experiment = config.resolve({"model": {"width": 8, "heads": 2}})
    made = harness.result("toy", harness.surroundings(), experiment, [{"a": 1}], genes=3)
    harness.save(tmp_path / "new" / "toy.json", made)
    found = json.loads((tmp_path / "new" / "toy.json").read_text())
    assert (found["schema"], found["benchmark"], found["genes"]) == (1, "toy", 3)
    assert found["config"] == config.digest(experiment)
    assert found["lines"] == [{"a": 1}]
    for key in ("device", "platform", "cores", "threads", "load", "load_end", "date", "jax",
                "versions", "commit", "xla_flags", "matmul_precision", "command"):  # fmt: skip
        assert key in found, key
    assert found["versions"]["jaxlib"]
    assert str(ROOT) not in found["command"]


def test_the_command_names_no_folder_of_the_machine(harness, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/here/toy.py", "--quick", "--json", "/some/where/out.json"])
    assert harness.surroundings()["command"] == "toy.py --quick --json out.json"


def test_a_result_is_written_whole_or_not_at_all(harness, tmp_path):
    path = tmp_path / "toy.json"
    harness.save(path, {"lines": [1]})
    with pytest.raises(ValueError, match="JSON"):
        harness.save(path, {"lines": [float("nan")]})
    assert json.loads(path.read_text()) == {"lines": [1]}
    assert [file.name for file in tmp_path.iterdir()] == ["toy.json"]


def test_only_a_chip_of_exactly_this_name_has_a_rating(harness, monkeypatch):
    import machine

    def rated(name):
        device = types.SimpleNamespace(device_kind=name)
        monkeypatch.setattr(machine.jax, "devices", lambda: [device])
        return machine.rating()

    assert rated("NVIDIA H200").bfloat16 == 989e12
    assert rated("TPU v5 lite").memory == 819e9
    for unknown in ("NVIDIA H200 NVL", "NVIDIA H20", "cpu", "TPU v5 lite pod"):
        assert rated(unknown) is None


def test_a_row_s_roof_is_the_mean_of_what_was_measured_before_and_after_it(harness, monkeypatch):
    import roofs

    rates = iter([100.0, 300.0, 500.0, 700.0])

    def rising(*, repeats):
        rate = next(rates)
        return {"matmul_flop_per_s": {"float32": rate}, "copy_byte_per_s": rate / 10, "rating": 7}

    monkeypatch.setattr(roofs, "roof", rising)
    run = roofs.Roofs()
    first, second = (run.around()() for _ in range(2))
    assert first["matmul_flop_per_s"]["float32"] == 200.0
    assert second == {"matmul_flop_per_s": {"float32": 600.0}, "copy_byte_per_s": 60.0, "rating": 7}
    assert run.mean["matmul_flop_per_s"]["float32"] == 400.0
    assert run.mean["copy_byte_per_s"] == 40.0


def test_rates_count_two_operations_a_product_and_both_ways_of_a_copy(harness, monkeypatch):
    import roofs

    def half_a_second(function, arguments, **_):
        return types.SimpleNamespace(median=0.5)

    monkeypatch.setattr(harness, "measure", half_a_second)
    assert roofs.matmul_rate("bfloat16", 16) == 2 * 16**3 / 0.5
    assert roofs.copy_rate(3) == 2 * 3 * 2**20 / 0.5
