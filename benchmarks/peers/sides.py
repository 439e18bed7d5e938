"""The two sides of `ab.py`: stemjax in this process, PyTorch in a child."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np

from peers import protocol
from stemjax import config, tasks
from stemjax.diffusion import ddpm, sampler
from stemjax.export import published
from stemjax.tasks import predictor

VARIANTS = {"exact": "float32", "float32": "float32", "bfloat16": "bfloat16"}
"""Our variants -> ``model.dtype``; "exact" keeps float32 products from TF32, for the numbers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What both sides are given.

    Attributes:
      arrays: x [b g], t [b] in 0..999, cond [b c], unit [l g] (first noise of a spot), noise
        [s l g] (that of each step of the shortened chain); float32.
      keys: one key a spot, of which ``unit`` and ``noise`` are made.
    """

    arrays: dict[str, np.ndarray]
    keys: jax.Array


def make_inputs(*, genes: int, condition: int, rows: int, spots: int, kept: int) -> Inputs:
    """Returns random inputs: ``rows`` for forward passes and conditions, ``spots`` to draw."""
    rng = np.random.default_rng(0)
    keys = sampler.spot_keys(0, "peers", [f"{i}" for i in range(spots)])
    unit = sampler.initial_noise(keys, n_draws=2, genes=genes, antithetic=True)[0]
    steps = [
        sampler.step_noise(keys, jnp.uint32(k), genes, jnp.dtype(jnp.float32)) for k in range(kept)
    ]
    arrays = {
        "x": rng.standard_normal((rows, genes)),
        "t": rng.integers(0, 1000, rows),
        "cond": rng.standard_normal((max(rows, spots), condition)),
        "unit": np.asarray(unit),
        "noise": np.stack(steps),
    }
    return Inputs(arrays={k: np.asarray(v, np.float32) for k, v in arrays.items()}, keys=keys)


class Ours:
    """stemjax: one set of two-channel weights, as the published process and as an EDM model.

    Args:
      experiment: sizes of the network; its precision is the variant's.
      inputs: what the calls are made on.
    """

    def __init__(self, experiment: config.Experiment, inputs: Inputs) -> None:
        self.inputs = inputs
        genes, condition = inputs.arrays["x"].shape[1], inputs.arrays["cond"].shape[1]
        self._tasks: dict[tuple[str, str], Any] = {}
        for dtype in set(VARIANTS.values()):
            for process in ("edm", "ddpm"):
                made = _experiment(experiment, process, dtype)
                self._tasks[process, dtype] = config.make_task(
                    made, genes=genes, condition=condition
                )
        params = self._tasks["edm", "float32"].init(jax.random.key(0))
        self.params = harness.awake(params)
        self._calls: dict[tuple[str, str], tuple[Any, tuple[Any, ...]]] = {}

    @property
    def state(self) -> dict[str, np.ndarray]:
        """The weights under their published names."""
        return published.to_state(self.params)

    @property
    def levels(self) -> dict[str, tuple[float, float]]:
        """Process -> the ends of its ladder."""
        return {name: self._tasks[name, "float32"].levels for name in ("edm", "ddpm")}

    def prepare(self, variant: str, job: Mapping[str, Any]) -> dict[str, Any]:
        """Compiles and calls; see `rounds.Side`."""
        started = time.perf_counter()
        self._call(variant, job)
        return {"first": time.perf_counter() - started}

    def run(self, variant: str, job: Mapping[str, Any]) -> np.ndarray:
        """Returns the result, draws spot-major [l n, g]."""
        program, given = self._call(variant, job)
        found = np.asarray(program(*given), np.float32)
        if job["kind"] in ("mean", "pair", "draws"):
            return found.swapaxes(0, 1).reshape(-1, found.shape[-1])
        return found

    def time(self, variant: str, job: Mapping[str, Any], calls: int) -> list[float]:
        """Returns the seconds of each call; see `rounds.Side`."""
        program, given = self._call(variant, job)
        return [
            harness.time_calls(program, lambda i: given, repeats=1, warm_up=0).median
            for _ in range(calls)
        ]

    def _call(self, variant: str, job: Mapping[str, Any]) -> tuple[Any, tuple[Any, ...]]:
        """What computes a job, compiled, and its arguments; made once."""
        key = variant, repr(sorted(job.items()))
        if key not in self._calls:
            precision = "highest" if variant == "exact" else None
            with jax.default_matmul_precision(precision):
                program, given = self._calls[key] = self._made(variant, job)
                jax.block_until_ready(program(*given))  # predictors compile when they are called
        return self._calls[key]

    def _made(
        self, variant: str, job: Mapping[str, Any]
    ) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        arrays, kind = self.inputs.arrays, job["kind"]
        task = self._tasks[job.get("process", "edm"), VARIANTS[variant]]
        # As many rows at a time as the package takes.
        rows = predictor.rows_at_a_time(task.row_bytes)
        if kind == "forward":
            tree = {name: arrays[name][: job["batch"]] for name in ("x", "t", "cond")}

            def forward(params: Any, tree: Any, keys: jax.Array) -> jax.Array:
                return task.network.apply(params, tree["x"], tree["t"], tree["cond"])

            made = predictor.by_portions(forward, rows=rows, spots_axis=0)
            return made, (self.params, tree, jax.random.split(jax.random.key(0), job["batch"]))
        spots = job["spots"]
        given = self.params, arrays["cond"][:spots], self.inputs.keys[:spots]
        if kind == "ancestral":
            given = *given, arrays["unit"][:spots]
            return harness.build(_ancestral(task, job["kept"]), given).program, given
        sampling = tasks.Sampling(mode="mean")
        if kind != "mean":
            sampling = tasks.Sampling(
                mode=kind,
                sampler=job["rule"],
                steps=job["steps"],
                n_draws=job.get("draws", 2),
                sigma_min=job["low"],
                sigma_max=job["high"],
            )

        def predict(params: Any, cond: jax.Array, keys: jax.Array) -> jax.Array:
            return task.predict(params, cond, keys, sampling=sampling)

        spots = max(1, rows // sampling.draws)
        return predictor.by_portions(predict, rows=spots, spots_axis=1), given


def _ancestral(task: Any, kept: int) -> Callable[..., jax.Array]:
    """The published steps of a shortened chain, from noise that is given."""

    def run(params: Any, cond: jax.Array, keys: jax.Array, unit: jax.Array) -> jax.Array:
        def network(x: jax.Array, t: jax.Array) -> jax.Array:
            return task.network.apply(params, x, t, cond)

        return ddpm.ancestral(network, ddpm.Process(kept=kept), unit, keys)

    return run


def _experiment(experiment: config.Experiment, process: str, dtype: str) -> config.Experiment:
    """The same network with two channels, which both processes can read."""
    diffusion = config.Diffusion(process="edm", mean_fraction=0.1, marginal=True)
    if process == "ddpm":
        diffusion = config.Diffusion(process="ddpm", mean_fraction=0.0)
    model = {**dataclasses.asdict(experiment.model), "dtype": dtype}
    return config.resolve({"model": model, "diffusion": dataclasses.asdict(diffusion)})


class Theirs:
    """A child that answers as `torch_driver.py` does.

    Args:
      child: started, not yet asked anything.
      folder: for the arrays that go between.
    """

    def __init__(self, child: protocol.Child, folder: pathlib.Path) -> None:
        self._child, self._folder, self._count = child, folder, 0

    def load(self, ours: Ours, size: Mapping[str, Any]) -> dict[str, Any]:
        """Hands over weights and inputs; returns what the child says of them."""
        weights, arrays = self._folder / "weights.npz", self._folder / "arrays.npz"
        np.savez(weights, **ours.state)  # pyright: ignore[reportArgumentType]  # names, no option
        np.savez(arrays, **ours.inputs.arrays)  # pyright: ignore[reportArgumentType]
        return self._child.ask("load", weights=str(weights), arrays=str(arrays), size=dict(size))

    def prepare(self, variant: str, job: Mapping[str, Any]) -> dict[str, Any]:
        """Asks for it; see `rounds.Side`."""
        return self._child.ask("prepare", variant=variant, job=dict(job))

    def run(self, variant: str, job: Mapping[str, Any]) -> np.ndarray:
        """Returns the array that the child wrote."""
        self._count += 1
        out = self._folder / f"{self._count}.npy"
        self._child.ask("run", variant=variant, job=dict(job), out=str(out))
        found = np.load(out, allow_pickle=False)
        out.unlink()
        return found

    def time(self, variant: str, job: Mapping[str, Any], calls: int) -> list[float]:
        """Returns the seconds that the child measured; see `rounds.Side`."""
        return self._child.ask("time", variant=variant, job=dict(job), calls=calls)["seconds"]
