"""The fixed case on which every row of a speed table shows its quality.

    uv run python benchmarks/fixture.py            # scores of the references
    uv run python benchmarks/fixture.py --train    # trains the two networks anew, two minutes

Two small Stem networks, one of the EDM objective with a mean token and one of the published
process, were trained on fresh draws of the drawn law (`stemjax.data.synthetic`); their weights lie
in benchmarks/fixture/ as float16. Spots and true draws come from fixed seeds and the conditional
mean is the law's own, so a row's scores show what its sampler, mode, dtype and attention cost, and
nothing of real tissue. All of it is in standard deviations of a gene.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import pathlib
import time
from typing import Any, cast

import harness
import jax
import numpy as np
import optax
import safetensors
import safetensors.numpy
from means import condition
from scipy import stats

from stemjax import config, errors, tasks
from stemjax.data import synthetic, transforms
from stemjax.diffusion import sampler
from stemjax.eval import metrics
from stemjax.train import state as states
from stemjax.typing import Batch

FOLDER = pathlib.Path(__file__).resolve().parent / "fixture"
GENES, SPOTS, TRUTHS = 24, 128, 4
UPDATES, BATCH = {"edm": 1000, "ddpm": 4000}, 128
SIZE = {"width": 32, "depth": 2, "heads": 2}
DIFFUSION: dict[str, dict[str, Any]] = {
    "edm": {"noise_mean": 0.0, "noise_std": 1.4, "mean_fraction": 0.25},
    "ddpm": {"process": "ddpm", "mean_fraction": 0.0},
}
OPTIM = {"learning_rate": 3e-3, "schedule": "cosine", "ema": 0.99}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fixture:
    """Spots of the law with what is true of them, in standard deviations of a gene.

    Attributes:
      law: the law.
      space: standardisation of log2(count + 1) that the networks were trained in.
      cond: what the networks are shown, [l 4].
      mean: exact conditional mean, [l g].
      true: true draws, [t l g]; scores are averaged over t.
    """

    law: synthetic.Law
    space: transforms.Standardisation
    cond: np.ndarray
    mean: np.ndarray
    true: np.ndarray

    def score(
        self, profiles: np.ndarray, *, law: bool, antithetic: bool = False
    ) -> dict[str, float | None]:
        """Returns the scores of profiles [n l g], averaged over the true draws.

        Args:
          profiles: draws, or with n = 1 a single prediction.
          law: whether they stand for the law; else their average is the prediction, and CRPS and
            energy score are those of that one point.
          antithetic: whether draws 2i and 2i + 1 are a pair.

        Returns:
          ``pcc`` (mean over genes), ``mse`` and ``rvd`` of the average, ``rvd_draws`` of single
          draws (None of a point), ``crps``, ``energy``, and ``mean_rms``, the root mean square
          distance of the average from the exact conditional mean.
        """
        profiles = np.asarray(profiles, np.float64)
        mean = profiles.mean(axis=0)
        stand_in = profiles if law else mean[None]
        found: dict[str, list[float]] = {}
        for true in self.true:
            crps = metrics.mae(mean, true)
            if law:
                crps = metrics.Draws(values=profiles, antithetic=antithetic).crps(true).mean()
            one = {
                "pcc": metrics.pcc_top(metrics.pcc_per_gene(mean, true)),
                "mse": metrics.mse(mean, true),
                "rvd": metrics.rvd(mean, true),
                "crps": crps,
                "energy": metrics.energy_score(stand_in, true, antithetic=law and antithetic),
            }
            if law:
                one["rvd_draws"] = metrics.rvd_of_draws(profiles, true)
            for name, value in one.items():
                found.setdefault(name, []).append(float(value))
        scores = {name: float(np.mean(values)) for name, values in found.items()}
        rms = float(np.sqrt(metrics.mse(mean, self.mean)))
        return {"rvd_draws": None, **scores, "mean_rms": rms}

    def references(self) -> dict[str, dict[str, float | None]]:
        """Returns the scores of a constant, of the exact mean, and of 20 true draws."""
        z = states_of_spots()
        drawn = self.law.sample_values(z, 20, np.random.default_rng(3))
        return {
            "constant": self.score(np.zeros((1, SPOTS, GENES)), law=False),
            "exact mean": self.score(self.mean[None], law=False),
            "20 true draws": self.score(self.space.apply(drawn), law=True),
        }


def states_of_spots() -> np.ndarray:
    """Returns the spots' states, [l 4]: evenly spread, the same everywhere."""
    points = stats.qmc.Halton(len(synthetic.STATES), scramble=False).random(SPOTS)
    return 0.03 + 0.94 * points


@functools.cache
def load() -> Fixture:
    """Returns the fixture's spots."""
    law, z = synthetic.Law(n_genes=GENES), states_of_spots()
    mean, variance = law.conditional_mean(z), law.conditional_variance(z)
    space = transforms.Standardisation(
        mean=mean.mean(axis=0).astype(np.float32),
        std=np.sqrt(mean.var(axis=0) + variance.mean(axis=0)).astype(np.float32),
    )
    return Fixture(
        law=law,
        space=space,
        cond=condition(z),
        mean=(mean - space.mean) / space.std,
        true=space.apply(law.sample_values(z, TRUTHS, np.random.default_rng(1))),
    )


def experiment(process: str, **model: Any) -> config.Experiment:
    """Returns the experiment of a process's network, with other keys of the model if given."""
    return config.resolve(
        {"model": SIZE | model, "diffusion": DIFFUSION[process], "optim": OPTIM},
    )


def make_task(process: str, **model: Any) -> tasks.DiffusionTask:
    """Returns the task of a process's network; ``model`` may change dtype and attention."""
    found = experiment(process, **model)
    made = config.make_task(found, genes=GENES, condition=len(synthetic.STATES))
    return cast(tasks.DiffusionTask, made)


@functools.cache
def load_params(process: str) -> Any:
    """Returns the trained weights of a process's network, float32.

    Raises:
      BundleError: they are of another network or recipe than this file's.
    """
    path = FOLDER / f"{process}.safetensors"
    with safetensors.safe_open(path, "numpy") as file:
        recipe = json.loads(file.metadata()["provenance"])["recipe"]
    if recipe != _recipe(process):
        raise errors.BundleError(
            f"benchmark fixture {path.name}: recipe",
            expected=json.dumps(_recipe(process)),
            found=json.dumps(recipe),
            fix="train it anew: benchmarks/fixture.py --train",
        )
    stored = safetensors.numpy.load_file(path)
    wanted = jax.eval_shape(make_task(process).init, jax.random.key(0))
    shapes = {name: leaf.shape for name, leaf in _named(wanted)}
    if shapes != {name: array.shape for name, array in stored.items()}:
        raise errors.BundleError(
            f"benchmark fixture {path.name}",
            expected="the weights of the network that configs make now",
            found="others",
            fix="train it anew: benchmarks/fixture.py --train",
        )
    leaves = [stored[name].astype(np.float32) for name in shapes]
    return jax.tree.unflatten(jax.tree.structure(wanted), leaves)


def quality(process: str, sampling: tasks.Sampling, **model: Any) -> dict[str, float | None]:
    """Returns the scores of a way to sample, on the fixture's network of that process.

    Args:
      process: ``edm`` or ``ddpm``.
      sampling: the way.
      **model: dtype, attention and such, as in configs.
    """
    given = load()
    predict = tasks.make_predictor(make_task(process, **model), sampling, rows=1280)
    keys = sampler.spot_keys(0, "fixture", [f"{i}" for i in range(SPOTS)])
    profiles = predict(load_params(process), given.cond, keys)
    law = sampling.mode == "draws" and sampling.n_draws > 1
    return given.score(profiles, law=law, antithetic=sampling.in_pairs)


def _recipe(process: str) -> dict[str, Any]:
    return {
        "genes": GENES,
        "updates": UPDATES[process],
        "batch": BATCH,
        "model": SIZE,
        "diffusion": DIFFUSION[process],
        "optim": OPTIM,
        "seed": 0,
    }


def train(process: str) -> tuple[Any, float]:
    """Returns the moving average of the weights, and the mean loss of the last 100 updates."""
    given, task = load(), make_task(process)
    optim = experiment(process).optim
    optimizer = states.make_optimizer(optim, UPDATES[process])
    params = task.init(jax.random.key(0))

    @jax.jit
    def update(i: jax.Array, params: Any, ema: Any, opt: Any, batch: Batch) -> tuple:
        key = jax.random.fold_in(jax.random.key(1), i)
        (loss, _), gradient = jax.value_and_grad(task.loss, has_aux=True)(params, batch, key)
        change, opt = optimizer.update(gradient, opt, params)
        params = optax.apply_updates(params, change)
        ema = optax.incremental_update(params, ema, 1 - jax.numpy.minimum(optim.ema, i / (i + 10)))
        return params, ema, opt, loss

    ema, opt, losses = params, optimizer.init(params), []
    rng = np.random.default_rng(2)
    for i in range(UPDATES[process]):
        z = rng.uniform(0.03, 0.97, (BATCH, len(synthetic.STATES)))
        x0 = given.space.apply(given.law.sample_values(z, 1, rng)[0]).astype(np.float32)
        batch = Batch(cond=condition(z), x0=x0, mask=np.ones_like(x0))
        params, ema, opt, loss = update(jax.numpy.asarray(i), params, ema, opt, batch)
        losses.append(loss)
    return ema, float(np.mean(losses[-100:]))


def write(process: str, params: Any, loss: float) -> None:
    """Stores trained weights as float16, with where they come from."""
    arrays = {name: np.asarray(leaf).astype(np.float16) for name, leaf in _named(params)}
    about = harness.surroundings()
    kept = ("device", "jax", "stemjax", "commit", "date")
    provenance = {
        "command": "benchmarks/fixture.py --train",
        "recipe": _recipe(process),
        "loss": loss,
        **{name: about[name] for name in kept},
    }
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{process}.safetensors"
    safetensors.numpy.save_file(arrays, path, {"provenance": json.dumps(provenance)})
    path.chmod(0o644)  # safetensors makes files that only their owner reads


def _named(params: Any) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]


def main() -> None:
    """Trains if asked, prints the references and both networks' scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--train", nargs="*", choices=list(DIFFUSION), help="train them, or those named, anew"
    )
    args = parser.parse_args()
    if args.train is not None:
        for process in args.train or DIFFUSION:
            started = time.monotonic()
            params, loss = train(process)
            write(process, params, loss)
            print(f"{process}: loss {loss:.4f}, {time.monotonic() - started:.0f} s")
    for name, scores in load().references().items():
        harness.emit({"of": name, **scores})
    ways = {"edm": [tasks.Sampling(mode="mean")], "ddpm": []}
    for process, first in ways.items():
        for sampling in [*first, tasks.Sampling(mode="pair"), tasks.Sampling(mode="draws")]:
            name = f"{process} {sampling.mode}"
            harness.emit({"of": name, **quality(process, sampling)})


if __name__ == "__main__":
    main()
