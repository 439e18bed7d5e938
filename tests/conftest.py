"""Switches and fixtures for all tests."""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile

import jax
import pytest

_PROGRAMS = "STEMJAX_TEST_PROGRAMS"
"""Environment variable with the folder in which this run's processes share compiled programs."""


def pytest_configure(config: pytest.Config) -> None:
    """Half of the default run is XLA compiling: it optimises less there. Slow tests run long.

    The same small networks are trained in many tests: a program that took a while to compile is
    kept until the end of the run.
    """
    if config.option.markexpr == "not slow":
        os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    if _PROGRAMS not in os.environ:
        os.environ[_PROGRAMS] = tempfile.mkdtemp(prefix="stemjax-tests-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(_PROGRAMS), ignore_errors=True))
    jax.config.update("jax_compilation_cache_dir", os.environ[_PROGRAMS])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


# Commands that tests run keep no compiled programs in the user's cache.
os.environ.setdefault("STEMJAX_CACHE", "off")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = pathlib.Path(__file__).resolve().parents[1]


def her2st_dir() -> pathlib.Path | None:
    """The folder of the HER2ST sections, or None where they are absent."""
    given = os.environ.get("STEMJAX_HER2ST")
    folder = pathlib.Path(given) if given else ROOT.parent / "shared" / "her2st"
    return folder if (folder / "ST-cnts").is_dir() else None


@pytest.fixture(scope="session")
def her2st() -> pathlib.Path:
    """The HER2ST folder; skips where it is absent."""
    folder = her2st_dir()
    if folder is None:
        pytest.skip("HER2ST sections absent: set STEMJAX_HER2ST or put them in ../shared/her2st")
    return folder


@pytest.fixture
def key() -> jax.Array:
    """A fixed random key."""
    return jax.random.key(20261120)


@pytest.fixture(scope="session")
def toy_records(tmp_path_factory):
    """Records of slides T1, T2 (patient P), V1 and X1 (patients of their own); panel without X1."""
    from toy_slides import TOY_GENES, toy_slide

    from stemjax.data import embeddings as embeddings_lib
    from stemjax.data import genes as genes_lib
    from stemjax.data import records

    out = tmp_path_factory.mktemp("toy_records")
    contract = embeddings_lib.EncoderContract(
        name="toy",
        width=6,
        input_px=224,
        fov_um=None,
        resize="none",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        pooling="none",
        projection="none",
        source="tests",
        revision="1",
    )
    panel = genes_lib.Panel(genes=TOY_GENES, rule="toy", slides=("T1", "T2", "V1"))
    for seed, (name, patient) in enumerate(
        [("T1", "P"), ("T2", "P"), ("V1", "Q"), ("X1", "R")], start=1
    ):
        slide, embeddings = toy_slide(name, seed, patient)
        records.write_slide(out, slide, embeddings, panel=panel, contract=contract)
    return records.open_records(out)


@pytest.fixture(scope="session")
def toy_experiment():
    """A run of seconds on the toy records."""
    from stemjax import config

    values = config.default_config()
    values.data.test, values.data.val = "X1", "V1"
    values.model.width, values.model.depth, values.model.heads = 16, 2, 2
    values.diffusion.mean_fraction = 0.25
    values.optim.learning_rate, values.optim.warmup, values.optim.ema = 3e-3, 2, 0.9
    values.train.batch, values.train.steps, values.train.log_every = 16, 12, 4
    values.train.validate_every, values.train.save_every = 6, 6
    return config.resolve(values)
