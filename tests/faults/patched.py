"""What is put into a child before its command: pauses, numbers that are not finite, sabotage.

The product has no hooks for any of it. Sabotage switches off one of the things that the promises
rest on; the harness has to see that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any


def pace(seconds: float) -> None:
    """Every update takes so much longer: the window in which one is met is wide."""
    from stemjax.train import dispatch

    run = dispatch.Programs.run

    def slow(self: Any, state: Any, start: int, handed: Any) -> Any:
        time.sleep(seconds)
        return run(self, state, start, handed)

    dispatch.Programs.run = slow


def mark_validation(mark: pathlib.Path, seconds: float) -> None:
    """A validation leaves a file when it begins, and takes so much longer."""
    from stemjax.train import validation

    make = validation.make_validate

    def make_slow(*given: Any, **more: Any) -> Callable[..., dict[str, float]]:
        validate = make(*given, **more)

        def slow(*given: Any, **more: Any) -> dict[str, float]:
            mark.touch()
            time.sleep(seconds)
            return validate(*given, **more)

        return slow

    validation.make_validate = make_slow


def poison_batch(first: int, count: int) -> None:
    """Expression of some steps' batches is NaN, whenever they are done."""
    _poison_step(lambda jnp, state, batch: (state, _spoilt(jnp, state, batch, first, count)))


def _spoilt(jnp: Any, state: Any, batch: Any, first: int, count: int) -> dict[str, Any]:
    wrong = (state.step >= first) & (state.step < first + count)
    return {**batch, "x0": jnp.where(wrong, jnp.nan, batch["x0"])}


def poison_gradient(first: int, count: int) -> None:
    """Gradients of some steps are infinite, whenever they are done; the loss is finite."""
    import jax
    import jax.numpy as jnp

    from stemjax.train import step as steps

    gradient = steps._gradient

    def spoilt(task: Any, params: Any, batch: Any, *given: Any) -> Any:
        grads, metrics = gradient(task, params, batch, *given)
        done = _step_of(batch)
        wrong = (done >= first) & (done < first + count)
        leaves, tree = jax.tree.flatten(grads)
        leaves[0] = jnp.where(wrong, jnp.inf, leaves[0])
        return jax.tree.unflatten(tree, leaves), metrics

    steps._gradient = spoilt


def _step_of(batch: Any) -> Any:
    """The step of a batch, of which `Batch` says how much of the run is done."""
    import jax.numpy as jnp

    from tests.faults import artefacts

    return jnp.round(batch["progress"].reshape(-1)[0] * artefacts.STEPS).astype(jnp.int32)


def poison_params(step: int) -> None:
    """Weights become NaN once, before a step, as by a fault of the memory."""
    import jax
    import jax.numpy as jnp

    from stemjax.train import dispatch

    run, left = dispatch.Programs.run, [1]

    def spoilt(self: Any, state: Any, start: int, handed: Any) -> Any:
        if start == step and left:
            left.clear()
            leaves, tree = jax.tree.flatten(state.params)
            shardings = [leaf.sharding for leaf in leaves]
            leaves[0] = jax.device_put(jnp.full_like(leaves[0], jnp.nan), shardings[0])
            state = dataclasses.replace(state, params=jax.tree.unflatten(tree, leaves))
        return run(self, state, start, handed)

    dispatch.Programs.run = spoilt


def _poison_step(change: Callable[[Any, Any, Any], tuple[Any, Any]]) -> None:
    import jax.numpy as jnp

    from stemjax.train import step as steps

    make = steps.make_train_step

    def make_spoilt(*given: Any, **more: Any) -> Callable[[Any, Any], Any]:
        step = make(*given, **more)
        return lambda state, batch: step(*change(jnp, state, batch))

    steps.make_train_step = make_spoilt


def without_manifest() -> None:
    """Sabotage: a list of hashes agrees with everything."""
    from stemjax.data import integrity

    integrity.damage = lambda folder, **given: []
    integrity.sha256 = lambda path: "0" * 64


def without_rename() -> None:
    """Sabotage: writers write in place; nothing is beside the file and then moved."""
    from stemjax.data import integrity

    @contextlib.contextmanager
    def folder_in_place(target: pathlib.Path, **given: Any) -> Iterator[pathlib.Path]:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        yield target

    @contextlib.contextmanager
    def file_in_place(target: pathlib.Path, **given: Any) -> Iterator[pathlib.Path]:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        yield target

    def write_text(path: pathlib.Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")

    integrity.published_folder = folder_in_place
    integrity.published_file = file_in_place
    integrity.write_text = write_text


def without_signals() -> None:
    """Sabotage: handlers of SIGTERM and SIGINT are never installed."""
    install = signal.signal

    def refuse(number: int, handler: Any) -> Any:
        if number in (signal.SIGTERM, signal.SIGINT) and callable(handler):
            return signal.getsignal(number)
        return install(number, handler)

    signal.signal = refuse


SABOTAGE: dict[str, Callable[[], None]] = {
    "manifest": without_manifest,
    "rename": without_rename,
    "signals": without_signals,
}


def limit_file_size(size: int) -> None:
    """No file grows beyond a size: where no small file system can be mounted for a full disk."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
