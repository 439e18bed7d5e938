"""A small model, its service on a loopback port, and a service whose device is a gate."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from live import Gate, serving

from stemjax import config, tasks
from stemjax.data import embeddings, space, transforms
from stemjax.eval import predict
from stemjax.serving import app, menu, service
from stemjax.train import calibration, checkpoint

DRAWS = tasks.Sampling(mode="draws", n_draws=4, steps=2)
LIMITS = {"max_batch": 16, "max_wait_ms": 1.0, "max_spots": 40, "max_body_bytes": 20_000}


def calibrate(model: checkpoint.Trained, sampling: tasks.Sampling) -> calibration.Calibration:
    """A calibration whose offsets nobody fitted; the last gene was not measured."""
    genes = model.card.space.genes
    offsets = np.array([[-1.0, 1.5], [-2.0, 2.5]])[:, :, None] * np.linspace(0.5, 2, len(genes))
    offsets[..., -1] = np.nan
    return calibration.Calibration(
        levels=(0.5, 0.9),
        offsets=offsets,
        floor=np.full(len(genes), 0.3),
        spots=np.array([40] * (len(genes) - 1) + [0]),
        slides=("V1",),
        genes=genes,
        value_space=model.card.space.transform,
        sampling=predict.describe_sampling(model.card, sampling),
        model=model.identity,
        raw=None,
        held_out=(0.5, None),
        held_out_by="by hand",
    )


def make_card() -> checkpoint.Card:
    """The card of a small network that fits the toy records, without the time to write them."""

    def standardisation(seed: int, width: int) -> transforms.Standardisation:
        rng = np.random.default_rng(seed)
        return transforms.Standardisation(
            mean=rng.uniform(1, 3, width), std=rng.uniform(1, 2, width)
        )

    genes = tuple(f"TOY{number:02d}" for number in range(8))
    return checkpoint.Card(
        experiment=config.resolve(
            {"model": {"width": 16, "depth": 1, "heads": 2}, "diffusion": {"mean_fraction": 0.25}}
        ),
        space=space.Space(
            genes=genes,
            transform="log2p1",
            expression=standardisation(1, len(genes)),
            condition=standardisation(2, 6),
        ),
        contract=embeddings.EncoderContract(
            name="toy", width=6, input_px=224, fov_um=None, resize="none", mean=(0.0,) * 3,
            std=(1.0,) * 3, pooling="none", projection="none", source="tests", revision="1",
        ),
        split={"train": ["T1", "T2"], "val": ["V1"], "test": ["X1"], "kind": "new patient"},
        panel={"genes": list(genes), "rule": "toy", "slides": ["T1"]},
        versions={"stemjax": "0"},
    )  # fmt: skip


@pytest.fixture(scope="session")
def trained() -> checkpoint.Trained:
    """Weights away from the initial ones, calibrated for two ways of sampling."""
    card = make_card()
    params = card.task.init(jax.random.key(1))
    keys = iter(jax.random.split(jax.random.key(2), 100))
    moved = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape), params)
    model = checkpoint.Trained(params=moved, card=card, step=7, weights="last")
    made = [calibrate(model, sampling) for sampling in (tasks.Sampling(mode="mean"), DRAWS)]
    return model.with_calibrations(made)


@pytest.fixture(scope="session")
def offer(trained) -> menu.Menu:
    """Mean, pair and draws in two steps."""
    return menu.make_menu(trained, modes=("mean", "pair", "draws"), n_draws=(4,), steps=(2,))


@pytest.fixture(scope="session")
def live(trained, offer):
    """The address of a service that is ready."""
    made = service.Service(trained, offer, service.Limits(**LIMITS))
    with serving(app.make_app(made), made) as (address, _):
        yield address


@pytest.fixture
def gated(trained, offer, monkeypatch):
    """Makes a service whose batches wait until its gate opens: (limits) -> address, gate."""
    monkeypatch.setattr(service.engine, "Engine", Gate)
    started = []

    def start(**limits):
        made = service.Service(trained, offer, service.Limits(**{**LIMITS, **limits}))
        context = serving(app.make_app(made), made)
        started.append((context, made._engine))
        address, made._engine.server = context.__enter__()
        return address, made._engine

    yield start
    for context, gate in started:
        gate.open.set()
        context.__exit__(None, None, None)
