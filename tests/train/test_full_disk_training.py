"""A disk that fills up while a run saves: older steps stay whole, and what is missing is said."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import subprocess

import chex
import jax
import pytest

from stemjax import errors, mesh
from stemjax.train import checkpoint, loop, saving, writers


@contextlib.contextmanager
def small_disk(folder, size):
    """A file system of so many bytes; skips where this user may not mount one."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _used(folder):
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))


def _train(experiment, source, workdir, **more):
    return loop.train(
        experiment, source, workdir, layout=mesh.make_layout(jax.devices()[:1]), **more
    )


@pytest.fixture
def saved(toy_records, toy_experiment, tmp_path):
    """A run to step 6 on a large disk, and what it takes there."""
    _train(toy_experiment, toy_records, tmp_path / "large", stop_at=6)
    return tmp_path / "large"


def test_a_full_disk_leaves_the_older_step_and_says_what_it_needs(
    saved, toy_records, toy_experiment, tmp_path, caplog
):
    each = _used(saved / "checkpoints" / "6")
    with small_disk(tmp_path / "small", _used(saved) + each // 2) as disk:
        subprocess.run(["cp", "-a", str(saved), str(disk / "run")], check=True)
        with pytest.raises(errors.ResourceError) as error:
            _train(toy_experiment, toy_records, disk / "run")
        told = str(error.value)
        assert "checkpoints/12" in told
        assert "no space left" in told
        assert "Step 6 is intact" in told
        last = checkpoint.load(disk / "run", weights="last")
        assert last.step == 6
        assert not list((disk / "run" / "checkpoints").glob("*tmp*"))
        # With space again the same command ends as a run that always had it.
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert _train(toy_experiment, toy_records, disk / "run").step == 12
        again = checkpoint.load(disk / "run", weights="last").params
    _train(toy_experiment, toy_records, tmp_path / "whole")
    chex.assert_trees_all_equal(again, checkpoint.load(tmp_path / "whole", weights="last").params)


def test_a_save_that_fails_in_mid_run_is_tried_again_at_the_next(
    toy_records, toy_experiment, tmp_path, monkeypatch, caplog
):
    """Space comes back between two saves: the run goes on, and keeps what it could."""
    train = dataclasses.replace(toy_experiment.train, save_every=3, validate_every=0)
    experiment = dataclasses.replace(toy_experiment, train=train)
    original, failed = saving.step_folders.integrity.write_manifest, []

    def full(folder):
        if folder.name.startswith("6.") and not failed:
            failed.append(folder)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        original(folder)

    monkeypatch.setattr(saving.step_folders.integrity, "write_manifest", full)
    assert _train(experiment, toy_records, tmp_path).step == 12
    assert failed
    assert "[SJ-R01]" in caplog.text
    assert "step 3 is intact" in caplog.text
    assert "Training goes on" in caplog.text
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [9, 12]


def test_metrics_that_do_not_fit_are_written_later(tmp_path, monkeypatch, caplog):
    with small_disk(tmp_path / "small", 16384) as disk:
        writer = writers.JsonLines(disk / "metrics.jsonl")
        writer.write_scalars(1, {"loss": 1.0})
        (disk / "ballast").write_bytes(bytes(4096))
        with contextlib.suppress(OSError), (disk / "more").open("wb") as file:
            file.write(bytes(16384))
        for step in range(2, 200):
            writer.write_scalars(step, {"loss": float(step)})
        assert "kept until there is space" in caplog.text
        for name in ("ballast", "more"):
            (disk / name).unlink()
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        writer.write_scalars(200, {"loss": 0.0})
        writer.close()
        lines = [json.loads(line) for line in (disk / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 201))
