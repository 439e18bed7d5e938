"""What the frontier's networks are trained and judged on: HER2ST sections, and the drawn law."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import means
import numpy as np
import samplers
from jaxtyping import Float, Key
from scipy.spatial import distance

from fewstep import tuning
from stemjax import config, tasks
from stemjax.data import pipeline, records, synthetic
from stemjax.eval import metrics, scoring
from stemjax.eval import truth as truths
from stemjax.train import checkpoint, loop
from stemjax.typing import Batch, Params

TRAIN, CHOICE, TEST = ("B4", "C2", "C4"), "C3", "C5"
"""Sections of HER2ST: for training, for every choice, and the one that nothing is chosen on."""
ENERGY = {"her2st": "energy score", "law": "energy distance"}
"""What the energy of a place is."""
RESAMPLES = 500
_TRUE_DRAWS = 32  # of the law a spot, which a generator's draws are held against

type Scores = dict[str, Float[np.ndarray, " r"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Net:
    """A task and its weights."""

    task: Any
    params: Params


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """Spots that draws are judged on.

    Attributes:
      cond: conditions, [l c].
      keys: seed -> one key a spot.
      ground: the truth of the scored genes.
      values: model space [n l g] -> value space, scored genes.
      mean: the exact conditional mean in the model's space, [l g], where it is known.
      energy: (draws in the value space [n l g], antithetic) -> energy score or distance, [l].
    """

    cond: np.ndarray
    keys: Callable[[int], Key[jax.Array, " l"]]
    ground: scoring.Ground
    values: Callable[[np.ndarray], np.ndarray]
    mean: np.ndarray | None
    energy: Callable[[np.ndarray, bool], np.ndarray]


class Place(Protocol):
    """Where networks are trained and judged."""

    name: str

    def network(self, model: str, seed: int) -> Net:
        """Returns the trained ``edm`` or ``ddpm`` network of a seed, training it if need be."""
        ...

    def batches(self, seed: int) -> Iterator[Batch]:
        """Returns training batches without end."""
        ...

    def view(self, role: str) -> View:
        """Returns the spots to be judged on, for the role ``choice`` or ``test``."""
        ...


def objective(model: str, own: config.Diffusion) -> config.Diffusion:
    """Returns the objective of ``edm``, the experiment's own, or of ``ddpm``, the published one."""
    if model == "ddpm":
        return dataclasses.replace(config.Diffusion(), process="ddpm", mean_fraction=0.0)
    return own


class Her2st:
    """Sections B4, C2 and C4 for training, C3 for choices, C5 for the test.

    Args:
      folder: records of the five.
      workdir: where runs are kept; a finished run is not trained again.
      experiment: model, objective and training; its data and seed are replaced.
      spots: how many of a section are judged; None for all.
    """

    name = "her2st"

    def __init__(
        self,
        folder: pathlib.Path,
        workdir: pathlib.Path,
        experiment: config.Experiment,
        spots: int | None = None,
    ) -> None:
        self.spots = spots
        self.source, self.workdir = records.open_records(folder), workdir / self.name
        # Steps are given, not chosen by validation: C3 is left to the choices of this script.
        self.experiment = dataclasses.replace(
            experiment,
            data=dataclasses.replace(
                experiment.data, records=str(folder), test=TEST, val=CHOICE, manifest=""
            ),
            train=dataclasses.replace(experiment.train, validate_every=0),
        )
        self.training = self.source.load(TRAIN)

    def network(self, model: str, seed: int) -> Net:
        """As `Place.network`; the run is that of ``stemjax train``."""
        wanted = dataclasses.replace(
            self.experiment,
            seed=seed,
            diffusion=objective(model, self.experiment.diffusion),
        )
        loop.train(wanted, self.source, self.workdir / f"{model}_{seed}")
        found = checkpoint.load(self.workdir / f"{model}_{seed}", weights="last")
        self.space = found.card.space
        return Net(task=found.card.task, params=found.params)

    def batches(self, seed: int) -> Iterator[Batch]:
        """As `Place.batches`: the rows and views that a run of this seed is shown."""
        table, train = self.training, self.experiment.train
        x0 = self.space.encode_expression(table.counts, table.total, table.mask)
        mask = table.mask.astype(np.float32)
        schedule = pipeline.Schedule(
            n=table.n, batch=train.batch, seed=seed,
            variants=table.embeddings.shape[1] if self.experiment.data.augment else 1,
        )  # fmt: skip
        step = 0
        while True:
            rows, variants = schedule.rows(step), schedule.variant(step)
            cond = self.space.encode_condition(table.embeddings[rows, variants])
            yield Batch(cond=cond, x0=x0[rows], mask=mask[rows])
            step += 1

    def view(self, role: str) -> View:
        """As `Place.view`: the spots and genes that `stemjax evaluate` scores."""
        slide = CHOICE if role == "choice" else TEST
        truth, space = truths.of_records(self.source).load(slide), self.space
        table = truth.table
        assert table is not None
        kept = truth.measured & (self.training.mask != 0).any(axis=0)
        some = slice(self.spots)
        ground = scoring.make_ground(
            truth.values(space.transform)[some, kept],
            total=truth.total[some],
            array_xy=truth.array_xy[some],
            resamples=RESAMPLES,
            seed=0,
        )

        def energy(draws: np.ndarray, antithetic: bool) -> np.ndarray:
            return metrics.energy_score_per_spot(draws, ground.true, antithetic=antithetic)

        return View(
            cond=space.encode_condition(table.embeddings[some, 0]),
            keys=lambda seed: tasks.row_keys(seed, table)[some],
            ground=ground,
            values=lambda drawn: space.values(drawn)[..., kept],
            mean=None,
            energy=energy,
        )


class Law:
    """The drawn law: fresh draws for training, spots of known law and mean to be judged on.

    Args:
      workdir: where weights are kept.
      experiment: model and training; its objective is replaced by that of benchmarks/means.py.
      spots: judged spots.
    """

    name = "law"

    def __init__(self, workdir: pathlib.Path, experiment: config.Experiment, spots: int) -> None:
        self.workdir, self.experiment = workdir / self.name, experiment
        self.world = samplers.World(spots=spots, draws=2)

    def network(self, model: str, seed: int) -> Net:
        """As `Place.network`."""
        own = config.Diffusion(noise_mean=0.0, noise_std=1.4, mean_fraction=0.25)
        wanted = dataclasses.replace(
            self.experiment,
            seed=seed,
            diffusion=objective(model, own),
        )
        task = config.make_task(wanted, genes=self.world.genes, condition=len(synthetic.STATES))
        path = self.workdir / f"{model}_{seed}.npz"
        params = tuning.load(path)
        if params is None:
            params = tuning.train(
                task,
                self.batches(seed),
                updates=wanted.train.steps,
                optim=wanted.optim,
                accumulate=wanted.train.accumulate,
                seed=seed,
            )
            tuning.save(path, params)
        return Net(task=task, params=params)

    def batches(self, seed: int) -> Iterator[Batch]:
        """As `Place.batches`: every spot is new."""
        rng = np.random.default_rng([seed, 2])
        while True:
            z = rng.uniform(0.03, 0.97, (self.experiment.train.batch, len(synthetic.STATES)))
            x0 = self.world.space.apply(self.world.law.sample_values(z, 1, rng)[0])
            yield Batch(cond=means.condition(z), x0=x0, mask=np.ones_like(x0))

    def view(self, role: str) -> View:
        """As `Place.view`: other true draws for either role. Each spot is a block of its own."""
        world, first = self.world, 256 if role == "choice" else 0
        true = world.true[first].astype(np.float64)
        several = world.true[first + 1 : first + 1 + _TRUE_DRAWS]
        apart = 2 * metrics.BLOCK * np.arange(world.spots)
        ground = scoring.make_ground(
            true,
            total=np.ones(world.spots),
            array_xy=np.stack([apart, 0 * apart], axis=1),
            resamples=RESAMPLES,
            seed=0,
        )
        within = np.array([distance.pdist(several[:, i]).mean() for i in range(world.spots)])

        def energy(draws: np.ndarray, antithetic: bool) -> np.ndarray:
            # The energy distance is twice the energy score of true draws less their own distance.
            score = metrics.energy_score_per_spot(
                np.repeat(draws, len(several), axis=1),
                several.swapaxes(0, 1).reshape(-1, world.genes).astype(np.float64),
                antithetic=antithetic,
            )
            return 2 * score.reshape(world.spots, -1).mean(axis=1) - within

        return View(
            cond=means.condition(world.z),
            keys=lambda seed: means.spot_keys(world, seed),
            ground=ground,
            values=lambda drawn: np.asarray(drawn, np.float64),
            mean=world.mean,
            energy=energy,
        )


def judge(
    view: View, drawn: np.ndarray, sampling: tasks.Sampling, reference: np.ndarray
) -> tuple[Scores, np.ndarray | None]:
    """Returns the scores of what a network gave, and the energy of each spot.

    Args:
      view: the spots.
      drawn: in the model's space, [n l g]; n = 1 for a mean.
      sampling: how it was drawn. Modes other than draws have a mean alone.
      reference: mean to be compared with, in the model's space, [l g].

    Returns:
      Each score on all spots, then on each resample, [1+r]: PCC (mean over genes), MSE, RVD of the
      mean and of one draw, CRPS, ``energy``, and ``mean_error``, the root mean square distance of
      the mean from ``reference`` in standard deviations of a gene. The energy is [l], or None
      without draws.
    """
    ground, values = view.ground, view.values(drawn)

    def pointwise(mean: np.ndarray, forecast: metrics.Forecast | None = None) -> scoring.Scored:
        return scoring.score(ground, mean, forecast=forecast, structure=False, ranks=False)

    in_draws = sampling.mode == "draws"
    forecast = metrics.Draws(values=values, antithetic=sampling.in_pairs) if in_draws else None
    scored = pointwise(values.mean(axis=0), forecast).values
    found = {"pcc": scored["pcc_all"], "mse": scored["mse"], "rvd": scored["rvd"]}
    apart = (np.asarray(drawn, np.float64).mean(axis=0) - reference) ** 2
    found["mean_error"] = np.sqrt(ground.resamples.mean(apart.mean(axis=1)))
    if not in_draws:
        return found, None
    found["crps"] = scored["crps"]
    found["rvd_draw"] = np.mean([pointwise(draw).values["rvd"] for draw in values], axis=0)
    energy = view.energy(values, sampling.in_pairs)
    return found | {"energy": ground.resamples.mean(energy)}, energy


def draw(net: Net, view: View, sampling: tasks.Sampling, *, seed: int) -> np.ndarray:
    """Returns what a network draws for a view's spots, in the model's space, [n l g]."""
    return tasks.make_predictor(net.task, sampling)(net.params, view.cond, view.keys(seed))
