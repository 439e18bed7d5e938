"""Gates against slow programs that need no quiet machine: what is compiled, run and moved.

Programs are inspected in both of their forms, the jaxpr that was traced and the HLO that XLA made
of it, with all that is nested in them: branches, loop bodies, fusions. Each inspection is shown a
program that has what it looks for.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_networks

from stemjax import config, mesh, tasks
from stemjax.diffusion import noise
from stemjax.eval import predict as predict_lib
from stemjax.train import checkpoint, dispatch, loop
from stemjax.train import state as states
from stemjax.train import step as steps

GENES, WIDTH = 8, 6
ONE = jax.devices()[:1]
NEVER = re.compile(r"callback|infeed|outfeed|outside_call")
HOST_OPS = {"infeed", "outfeed", "send", "recv", "send-done", "recv-done"}
OPERATION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = .*? ([a-z][a-z0-9\-]*)\(", re.MULTILINE)
TARGET = re.compile(r'custom_call_target="([^"]*)"')


# ---------------------------------------------------------------------- inspections


def equations(jaxpr):
    """All equations of a jaxpr and of those nested in it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def host_traffic(program) -> set[str]:
    """Whatever in a program talks to the host while it runs."""
    found = {
        str(equation.primitive)
        for equation in equations(program.jaxpr)
        if NEVER.search(str(equation.primitive)) or "pinned_host" in str(equation.params)
    }
    found |= HOST_OPS & set(OPERATION.findall(program.hlo))
    return found | {t for t in TARGET.findall(program.hlo) if re.search("callback|host", t, re.I)}


def double_precision(jaxpr, hlo: str = "") -> set[str]:
    """Types of 64-bit floating point in a program, with what makes them."""
    # Results alone: a Python number that is rounded to float32 is an input, and costs nothing.
    found = {
        f"{equation.primitive}: {variable.aval.dtype}"
        for equation in equations(jaxpr)
        for variable in equation.outvars
        if str(getattr(variable.aval, "dtype", "")) in ("float64", "complex128")
    }
    return found | set(re.findall(r"\b(?:f64|c128)\b", hlo))


def aliased(hlo: str) -> set[int]:
    """Numbers of the parameters whose memory the results take over."""
    (header,) = re.findall(r"input_output_alias=\{(.*)\}, entry_computation", hlo) or ("",)
    return {int(number) for number in re.findall(r": \((\d+), \{\}", header)}


def size(hlo: str) -> int:
    """Number of instructions of a compiled program, loop bodies counted once."""
    return len(OPERATION.findall(hlo))


@dataclasses.dataclass(frozen=True)
class Program:
    jaxpr: jax.extend.core.Jaxpr
    hlo: str


def inspect(function, *arguments, **options) -> Program:
    traced = jax.jit(function, **options).trace(*arguments)
    return Program(traced.jaxpr.jaxpr, traced.lower().compile().as_text())


@contextlib.contextmanager
def compilations():
    """Lists the names of the package's own programs that XLA is asked for, one for each time.

    JAX compiles a small program for every operation outside of jit; those are named after it.
    """
    names, on = [], [True]

    def listen(event, _, *, fun_name="", **__):
        name = fun_name.removeprefix("jit(").removesuffix(")")
        if not (on[0] and event == "/jax/core/compile/backend_compile_duration"):
            return
        if not (name.startswith("_") or hasattr(jnp, name) or hasattr(jax.lax, name)):
            names.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        on[0] = False  # JAX has no way to take a listener away


# ---------------------------------------------------------------------- programs


def experiment(**model) -> config.Experiment:
    values = config.as_json(config.Experiment())
    values["model"] |= {"width": 16, "depth": 2, "heads": 2, **model}
    return config.resolve(values)


def sampler_program(sampling: tasks.Sampling, **model) -> Program:
    task = config.make_task(experiment(**model), genes=GENES, condition=WIDTH)
    params = jax.eval_shape(task.init, jax.random.key(0))
    cond = jax.ShapeDtypeStruct((4, WIDTH), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 4))

    def run(params, cond, keys):
        return task.predict(params, cond, keys, sampling=sampling)

    return inspect(run, params, cond, keys)


def train_program(**model) -> tuple[Program, states.TrainState]:
    """Two updates in one call, each in two parts, as the loop compiles them, and the state."""
    made = experiment(**model)
    task = config.make_task(made, genes=GENES, condition=WIDTH)
    optimizer = states.make_optimizer(made.optim, steps=100)
    step = steps.make_train_step(task, optimizer, ema=0.9, seed=0, accumulate=2)
    state = jax.eval_shape(lambda key: states.init_state(task, optimizer, key), jax.random.key(0))
    widths = {"cond": WIDTH, "x0": GENES, "mask": GENES}
    handed = {name: jax.ShapeDtypeStruct((8, 2, w), jnp.float32) for name, w in widths.items()}
    call, layout = dispatch.make_call(step, lambda _, part: part), mesh.make_layout(ONE)
    compiled = steps.compile_update(call, layout, state, {}, handed)
    return Program(jax.make_jaxpr(call)(state, {}, handed).jaxpr, compiled.as_text()), state


SAMPLINGS = {
    "mean": tasks.Sampling(mode="mean"),
    "pair": tasks.Sampling(mode="pair"),
    "heun": tasks.Sampling(mode="draws", sampler="heun", n_draws=2, steps=4),
    "ancestral": tasks.Sampling(mode="draws", sampler="ancestral", n_draws=2, steps=4),
}


@pytest.fixture(scope="module")
def training():
    return train_program()


@pytest.fixture(scope="module")
def programs(training):
    found = {name: sampler_program(SAMPLINGS[name]) for name in ("mean", "pair", "ancestral")}
    return {**found, "train": training[0]}


def test_no_program_talks_to_the_host(programs):
    assert {name: host_traffic(program) for name, program in programs.items()} == {
        name: set() for name in programs
    }


def test_a_callback_in_a_loop_is_seen():
    def chatty(x):
        def body(c, _):
            jax.debug.callback(lambda v: None, c[0])
            return c + 1, None

        return jax.lax.scan(body, x, None, length=3)[0]

    found = host_traffic(inspect(chatty, jnp.ones(2)))
    assert "debug_callback" in found
    assert any("python" in name for name in found)  # and XLA's call of it, in the loop's body

    def asking(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.lax.cond(x[0] > 0, lambda: jax.pure_callback(np.sin, shape, x), lambda: x)

    assert "pure_callback" in host_traffic(inspect(asking, jnp.ones(2)))


def test_no_program_computes_in_double_precision(programs):
    found = {name: double_precision(p.jaxpr, p.hlo) for name, p in programs.items()}
    assert found == {name: set() for name in programs}


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_prediction_stays_single_where_the_user_has_switched_64_bits_on(sampling):
    task = config.make_task(experiment(), genes=GENES, condition=WIDTH)
    params = jax.eval_shape(task.init, jax.random.key(0))
    with jax.enable_x64(True):
        cond, keys = jnp.ones((4, WIDTH), jnp.float32), jax.random.split(jax.random.key(0), 4)
        traced = jax.make_jaxpr(lambda p, c, k: task.predict(p, c, k, sampling=sampling))(
            params, cond, keys
        )
        assert double_precision(traced.jaxpr) == set()
        seen = jax.make_jaxpr(lambda x: jnp.linspace(0, 1, 4) * x)(jnp.float32(1))
        assert any("float64" in name for name in double_precision(seen.jaxpr))


def test_the_whole_state_is_updated_in_place(training):
    program, state = training
    leaves = jax.tree_util.tree_leaves_with_path(state)
    kept = aliased(program.hlo)
    assert [jax.tree_util.keystr(p) for i, (p, _) in enumerate(leaves) if i not in kept] == []
    assert {path[0].name for path, _ in leaves} == {"step", "params", "ema", "opt"}
    assert len(kept) == len(leaves)  # and nothing else
    given = jnp.ones(3), jnp.ones(2)
    assert aliased(inspect(lambda a, b: (a + 1, b + 1), *given, donate_argnums=1).hlo) == {1}
    assert aliased(inspect(lambda a, b: (a + 1, b + 1), *given).hlo) == set()


def test_a_sampler_of_1000_steps_is_no_larger_than_one_of_8(programs):
    short = programs["pair"]
    long = sampler_program(tasks.Sampling(mode="pair", steps=1000))
    assert size(short.hlo) > 100
    assert size(long.hlo) <= size(short.hlo)
    assert len(list(equations(long.jaxpr))) <= len(list(equations(short.jaxpr)))
    # In bytes, by the ladder at most: 1,000 levels and numbers of steps, of which XLA prints few.
    assert abs(len(long.hlo) - len(short.hlo)) < 0.05 * len(short.hlo) + 24_000


def test_a_program_does_not_grow_with_the_networks_depth(programs):
    deep = sampler_program(SAMPLINGS["pair"], depth=6)
    # XLA may unroll one turn more or less of a small loop, no layer.
    assert abs(size(deep.hlo) - size(programs["pair"].hlo)) < 0.05 * size(deep.hlo)
    trained, _ = train_program(depth=6)
    assert abs(size(trained.hlo) - size(programs["train"].hlo)) < 0.05 * size(trained.hlo)


def test_an_unrolled_loop_is_seen():
    def unrolled(x, depth):
        for _ in range(depth):
            x = jnp.tanh(x @ x)
        return x

    two, six = (inspect(lambda x, n=n: unrolled(x, n), jnp.ones((4, 4))) for n in (2, 6))
    assert size(six.hlo) > 2 * size(two.hlo)


# ---------------------------------------------------------------------- evaluations


def counting_task(kind: str):
    """A task whose network notes its rows at every call on the device."""
    rows, channels = [], 2 if kind in ("marginal", "ddpm") else 1

    def apply(params, x, level, cond):
        # Unordered, and once a call, in loops too; the shape is known when it is traced.
        jax.debug.callback(lambda _, n=x.shape[0]: rows.append(n), x[0, 0])
        out = x + cond.sum(axis=1, keepdims=True)
        return out if channels == 1 else jnp.stack([out, out], axis=1)

    built = toy_networks.conditional(apply)
    if kind == "ddpm":
        return tasks.DdpmTask(network=built, genes=GENES), rows
    law = noise.LogNormal(mean=-1.2, std=1.2)
    options = {kind: True} if kind in ("marginal", "residual") else {}
    return tasks.StemTask(network=built, genes=GENES, noise=law, **options), rows


@pytest.mark.parametrize(
    ("kind", "sampling", "documented"),
    [
        ("edm", {"mode": "mean"}, 1),
        ("marginal", {"mode": "marginal"}, 1),
        ("edm", {"mode": "pair"}, 16),
        ("edm", {"mode": "draws"}, 160),
        ("edm", {"mode": "draws", "sampler": "heun", "steps": 18}, 700),
        ("edm", {"mode": "draws", "sampler": "heun", "steps": 18, "churn": 10.0}, 700),
        ("edm", {"mode": "draws", "sampler": "ddim", "steps": 50}, 1000),
        ("edm", {"mode": "draws", "sampler": "ddim", "steps": 50, "ladder": "ddpm"}, 1000),
        ("edm", {"mode": "draws", "sampler": "ancestral", "n_draws": 4, "steps": 9}, 36),
        ("edm", {"mode": "draws", "sampler": "dpmpp2m_sde", "n_draws": 4, "steps": 9}, 36),
        ("edm", {"mode": "draws", "sampler": "ab2", "n_draws": 4, "steps": 9}, 36),
        ("residual", {"mode": "mean"}, 1),
        ("residual", {"mode": "pair"}, 17),
        ("ddpm", {"mode": "pair"}, 16),
        (
            "ddpm",
            {"mode": "draws", "sampler": "ddpm", "steps": 1000, "antithetic": False},
            20_000,
        ),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_a_spot_costs_the_documented_evaluations(kind, sampling, documented):
    task, rows = counting_task(kind)
    asked, spots = tasks.Sampling(**sampling), 3
    keys = jax.random.split(jax.random.key(0), spots)
    run = jax.jit(lambda cond, keys: task.predict({}, cond, keys, sampling=asked))
    jax.block_until_ready(run(jnp.ones((spots, WIDTH)), keys))
    jax.effects_barrier()
    assert sum(rows) / spots == documented
    assert task.evaluations(asked) == documented


# ---------------------------------------------------------------------- compilations


@pytest.fixture(scope="module")
def run(toy_records, toy_experiment, tmp_path_factory):
    """A finished run of 12 steps with two validations, and the programs compiled for it."""
    workdir = tmp_path_factory.mktemp("run")
    with compilations() as names:
        loop.train(toy_experiment, toy_records, workdir, layout=mesh.make_layout(ONE))
    return checkpoint.load(workdir), collections.Counter(names)


def test_a_training_run_compiles_each_of_its_programs_once(run):
    # Initialisation, the call of the loop, and the prediction of its validations.
    assert run[1] == {"init": 1, "call": 1, "run": 1}


SIZES = (1, 7, 61, 150, 33, 128)


@pytest.mark.parametrize("name", ["mean", "pair"])
def test_a_job_of_odd_sizes_compiles_at_most_three_programs(name):
    task = config.make_task(experiment(), genes=GENES, condition=WIDTH)
    params, key = task.init(jax.random.key(0)), jax.random.key(1)
    with compilations() as names:
        predict = tasks.make_predictor(task, SAMPLINGS[name], rows=64)
        for spots in SIZES:
            drawn = predict(params, np.ones((spots, WIDTH)), jax.random.split(key, spots))
            assert drawn.shape[1] == spots
    assert 1 <= len(names) <= 3
    assert predict.compilations == len(names)


def test_slides_of_one_model_share_its_programs(run, toy_records):
    trained, _ = run
    with compilations() as names:
        for slide in ("T1", "T2", "V1", "X1"):
            predict_lib.predict_slide(trained, toy_records, slide, SAMPLINGS["pair"], rows=16)
    assert 1 <= len(names) <= 3


def test_a_program_for_every_size_is_seen():
    with compilations() as names:
        program = jax.jit(lambda x: jnp.sin(x).sum())
        program.__wrapped__.__name__ = "program"
        for spots in SIZES:
            program(jnp.ones(spots))
    assert len(names) == len(SIZES)
