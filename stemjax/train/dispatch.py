"""Several updates in one call of the device, and the programs that do them.

A call takes what a view handed over for K consecutive steps, [b, K, ...], and does the K updates
one after another in one `lax.scan`. K divides every rhythm of the run, so that a call ends wherever
the loop has something to do; the few steps before the first multiple of K (a run that was stopped
elsewhere) and after the last one are single. A run has two programs at most, and one as a rule.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from stemjax import config, errors, mesh
from stemjax.data import disk, pipeline, resident
from stemjax.tasks.predictor import memory_bytes
from stemjax.train import journal as journals
from stemjax.train import state as states
from stemjax.train import step as steps
from stemjax.typing import Batch, Params

_log = logging.getLogger(__name__)

type Table = Mapping[str, Any]
type Handed = Mapping[str, Any]
type Step = Callable[[states.TrainState, Batch], tuple[states.TrainState, steps.Metrics]]
type Call = Callable[[states.TrainState, Table, Handed], tuple[states.TrainState, steps.Metrics]]

# What a program may take of a device's memory: the rest is for its fragments and for libraries.
_USABLE = 0.9


def steps_per_call(cfg: config.Train) -> int:
    """Returns how many updates a call does: the most that is asked for and divides every rhythm."""
    rhythm = math.gcd(cfg.log_every, cfg.save_every, cfg.validate_every)
    return max(k for k in range(1, cfg.steps_per_call + 1) if rhythm % k == 0)


def plan_calls(first: int, last: int, length: int) -> Iterator[tuple[int, int]]:
    """Yields (start, updates) of the calls from step ``first`` to ``last``.

    Calls of ``length`` updates start at multiples of it; all others do a single update.
    """
    start = first
    while start < last:
        whole = start % length == 0 and start + length <= last
        yield start, length if whole else 1
        start += length if whole else 1


def stack(handed: Sequence[Handed]) -> dict[str, np.ndarray]:
    """Returns what was handed over for K steps as one tree, [b, K, ...].

    The batch comes first, where `mesh.Layout.put` splits it.
    """
    if len(handed) == 1:  # a view, not a copy
        return {name: np.asarray(values)[:, None] for name, values in handed[0].items()}
    return {name: np.stack([part[name] for part in handed], axis=1) for name in handed[0]}


def make_call(step: Step, show: Callable[[Table, Handed], Batch]) -> Call:
    """Returns ``call(state, table, handed) -> (state, metrics)``, one update for each handed step.

    Args:
      step: one update.
      show: makes the batch of a step from the table and what was handed over (`pipeline.View`).

    The metrics are those of the last update, but for ``finite``, of every one, [K].
    """

    def call(
        state: states.TrainState, table: Table, handed: Handed
    ) -> tuple[states.TrainState, steps.Metrics]:
        def one(state: states.TrainState, part: Handed) -> tuple[states.TrainState, steps.Metrics]:
            return step(state, show(table, part))

        parts = {name: jnp.swapaxes(values, 0, 1) for name, values in handed.items()}
        state, metrics = jax.lax.scan(one, state, parts)
        finite = metrics.pop("finite")
        return state, {**jax.tree.map(lambda values: values[-1], metrics), "finite": finite}

    return call


def compile_within(
    build: Callable[[bool], jax.stages.Compiled], policy: str, budget_bytes: int
) -> tuple[jax.stages.Compiled, bool]:
    """Returns a program that fits the device, and whether it computes blocks again.

    Args:
      build: compiles the program without (False) or with (True) computing each block again in
        the backward pass.
      policy: ``none`` and ``blocks`` build that; ``auto`` builds without, and with where the first
        does not fit.
      budget_bytes: memory of a device; 0 is not known, and everything fits.

    Raises:
      ResourceError: what it needs is more than the device has (`memory_analysis`).
    """
    room = _USABLE * budget_bytes if budget_bytes else math.inf
    if policy != "auto":
        program = build(policy == "blocks")
        _require_room(memory_bytes(program), room, budget_bytes, again=policy == "blocks")
        return program, policy == "blocks"
    try:
        program = build(False)
        needed = memory_bytes(program)
        if needed <= room:
            return program, False
    except jax.errors.JaxRuntimeError as error:
        # TPU's compiler refuses what does not fit; GPU's compiles it and fails when it is run.
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needed = math.inf
    program = build(True)
    again = memory_bytes(program)
    _log.info(
        "activations are computed again: %.1f GiB without, %.1f GiB with, of %.1f GiB",
        needed / 2**30, again / 2**30, budget_bytes / 2**30,
    )  # fmt: skip
    _require_room(again, room, budget_bytes, again=True)
    return program, True


def _require_room(needed: int, room: float, budget_bytes: int, *, again: bool) -> None:
    """Refuses a program that a device cannot run, before it is run."""
    if needed <= room:
        return
    raise errors.ResourceError(
        "an update does not fit the memory",
        expected=f"at most {_USABLE:.0%} of a device's {disk.in_words(budget_bytes)}",
        found=disk.in_words(needed),
        fix="raise config.train.accumulate, lower config.train.batch"
        + ("" if again else ", set config.train.remat=blocks")
        + ", or split the model over more devices (config.mesh.fsdp)",
    )


def budget() -> int:
    """Returns the bytes that an update may take on each device, 0 if that is not known.

    Devices that a CPU plays share the machine's memory, or the container's.
    """
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        return pipeline.memory_limit() // len(devices)
    return resident.device_memory()


class Programs:
    """The compiled calls of a run, by the updates that they do; compiled when first needed.

    Args:
      make_step: makes one update, without (False) or with (True) computing blocks again.
      view: where the rows lie.
      layout: the devices.
      journal: keeps compilation apart from the loop's rate.
      policy: ``none``, ``blocks`` or ``auto``, as `compile_within`.
      teacher: weights that each batch has beside its rows, if any (`Batch`).
    """

    def __init__(
        self,
        make_step: Callable[[bool], Step],
        view: pipeline.View,
        layout: mesh.Layout,
        journal: journals.Journal,
        *,
        policy: str,
        teacher: Params | None = None,
    ) -> None:
        self._make_step, self.layout = make_step, layout
        self._journal, self._policy = journal, policy
        self._compiled: dict[int, jax.stages.Compiled] = {}
        # Devices that a CPU plays share its threads: of two programs under way, each may hold some
        # that the other's sum over devices waits for, and both then wait for ever.
        devices = np.asarray(cast(Any, layout.mesh).devices).ravel()
        self._one_at_a_time = len(devices) > 1 and devices[0].platform == "cpu"
        self._table, self._show = view.table, view.show
        if teacher is not None:
            # An argument of the program: as a constant it would be compiled into it.
            self._table = {
                **view.table,
                "teacher": jax.device_put(jax.device_get(teacher), layout.replicated),
            }
            self._show = lambda table, part: cast(
                Batch, {**view.show(table, part), "teacher": table["teacher"]}
            )

    def run(
        self, state: states.TrainState, start: int, handed: Sequence[Handed]
    ) -> tuple[states.TrainState, steps.Metrics]:
        """Returns the state after one update for each step handed over, and the last's metrics.

        Args:
          state: the state at step ``start``, which is given up.
          start: updates done.
          handed: what the view handed over for the steps from ``start`` on.
        """
        given = self.layout.put(stack(handed))
        self._prepare(state, start, len(handed), given)
        done = self._compiled[len(handed)](state, self._table, given)
        if self._one_at_a_time:
            jax.block_until_ready(done)
        return done

    def prepare(
        self, state: states.TrainState, start: int, lengths: Iterable[int], handed: Handed
    ) -> None:
        """Compiles the calls of so many updates, before the first of them.

        A compiler cannot be interrupted: later there would be updates that are not saved yet.

        Args:
          state: the state, which stays as it is.
          start: updates done.
          lengths: updates that calls do.
          handed: what the view hands over for one step.
        """
        for length in sorted(lengths, reverse=True):
            self._prepare(state, start, length, self.layout.put(stack([handed] * length)))

    def _prepare(self, state: states.TrainState, start: int, length: int, given: Handed) -> None:
        if length not in self._compiled:
            jax.block_until_ready(state)  # what still runs belongs on the loop's clock
            with self._journal.compiling(start):
                self._compiled[length] = self._compile(state, given)

    def _compile(self, state: states.TrainState, given: Handed) -> jax.stages.Compiled:
        def build(remat: bool) -> jax.stages.Compiled:
            call = make_call(self._make_step(remat), self._show)
            return steps.compile_update(call, self.layout, state, self._table, given)

        program, remat = compile_within(build, self._policy, budget())
        # A run's second program is like its first.
        self._policy = "blocks" if remat else "none"
        return program
