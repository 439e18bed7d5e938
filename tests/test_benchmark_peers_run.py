"""The A/B against PyTorch as a whole: our side's calls, a child that is no torch, and torch."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stemjax import config
from stemjax.diffusion import ddpm

ROOT = pathlib.Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from peers import ab, rounds, sides

    return types.SimpleNamespace(ab=ab, rounds=rounds, sides=sides)


# Our side.


@pytest.fixture(scope="module")
def small():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from peers import sides
    finally:
        sys.path.remove(str(BENCHMARKS))
    experiment = config.resolve({"model": {"width": 16, "depth": 2, "heads": 2}})
    inputs = sides.make_inputs(genes=5, condition=7, rows=4, spots=3, kept=4)
    return sides.Ours(experiment, inputs)


SOLVER = {"rule": "ddim", "sigma_data": 1.0, "low": 0.01, "high": 80.0}


def test_our_draws_start_from_the_noise_that_is_handed_over(small):
    """One step of DDIM lands on D(80 z; 80), and rows come spot by spot, +z and then -z."""
    job = {"kind": "pair", "process": "edm", "steps": 1, "spots": 3, **SOLVER}
    task, arrays = small._tasks["edm", "float32"], small.inputs.arrays
    unit = np.stack([arrays["unit"], -arrays["unit"]], axis=1).reshape(6, 5)
    denoise = task.denoiser(small.params, jnp.asarray(arrays["cond"][:3]), repeat=2)
    wanted = denoise(80 * jnp.asarray(unit), jnp.full(6, 80.0))
    # float32, compiled as one program and apart.
    np.testing.assert_allclose(small.run("exact", job), wanted, atol=1e-5)


def test_our_chain_takes_the_noise_that_is_handed_over_in_its_order(small):
    job = {"kind": "ancestral", "process": "ddpm", "kept": 4, "spots": 2}
    task, arrays = small._tasks["ddpm", "float32"], small.inputs.arrays
    process, x = ddpm.Process(kept=4), jnp.asarray(arrays["unit"][:2])
    cond = jnp.asarray(arrays["cond"][:2])
    for i, noise in zip(reversed(range(4)), arrays["noise"]):
        c = process.coefficients().at(jnp.full(2, i))
        output = task.network.apply(small.params, x, c.time[:, 0], cond)
        x = ddpm.ancestral_step(output, x, noise[:2], c)
    # x grows to some hundreds, and float32 resolves 1e-7 of that.
    np.testing.assert_allclose(small.run("exact", job), x, rtol=1e-4, atol=1e-3)


def test_both_processes_and_precisions_share_one_network(small):
    x, t, cond = (jnp.asarray(small.inputs.arrays[name]) for name in ("x", "t", "cond"))
    outputs = {
        key: task.network.apply(small.params, x, t, cond[:4]) for key, task in small._tasks.items()
    }
    exact = small.run("exact", {"kind": "forward", "batch": 4})
    assert exact.shape == (4, 2, 5)
    assert len(outputs) == 4
    for (_, dtype), output in outputs.items():
        # bfloat16 has 8 bits; two blocks.
        scale = np.abs(exact).max()
        np.testing.assert_allclose(
            output, exact, atol=(1e-6 if dtype == "float32" else 0.05) * scale
        )
        if dtype == "bfloat16":
            assert np.abs(output - exact).max() > 1e-4 * scale  # it is rounded indeed
    assert sum(v.size for v in small.state.values()) == sum(
        leaf.size for leaf in jax.tree.leaves(small.params)
    )


# All of it, with a child that is no torch.

STUB = """
import os, sys
import numpy as np
sys.path.insert(0, {benchmarks!r})
sys.path.insert(0, {folder!r})
import formula
from peers import protocol

here = {{}}

def hello(threads):
    return {{"variants": ["exact", "eager", "compiled", "bf16"], "threads": threads,
            "torch": "none", "platform": "cpu", "cpu_capability": "stub"}}

def load(weights, arrays, size):
    for name in (weights, arrays):
        with np.load(name, allow_pickle=False) as found:
            here.update({{key: found[key] for key in found.files}})
    return {{"parameters": int(here["w"].size)}}

def prepare(variant, job):
    if variant == "compiled":
        return {{"unavailable": "torch.compile: no working C++ | compiler"}}
    return {{"first": 0.1}}

def run(variant, job, out):
    found = formula.result(here, job)
    if {fault!r} in (variant, job["kind"]):
        found = found * np.float32(1.001)
    np.save(out, found)
    return {{}}

def time(variant, job, calls):
    with open({folder!r} + "/turns", "a") as file:
        file.write(f"{{job['kind']}} torch {{variant}}\\n")
    return {{"seconds": [formula.SECONDS[variant]] * calls}}

protocol.serve({{f.__name__: f for f in (hello, load, prepare, run, time)}})
"""
FORMULA = """
import numpy as np

SECONDS = {"eager": 3.0, "bf16": 6.0, "float32": 1.5, "bfloat16": 1.0}

def result(arrays, job):
    rows = job.get("batch") or job["spots"]
    start = arrays["cond"][:rows] @ arrays["w"]
    return start + arrays["unit"][:1] * len(job["kind"])
"""


@pytest.fixture
def run_with_stub(peers, tmp_path, monkeypatch, capsys):
    """Runs `ab.main` with a formula on both sides; returns its output and the turns."""
    (tmp_path / "formula.py").write_text(FORMULA)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "formula", raising=False)
    import formula

    turns = tmp_path / "turns"

    class Ours:
        levels = {"edm": (0.01, 80.0), "ddpm": (0.01, 157.0)}

        def __init__(self, experiment, inputs):
            self.inputs = inputs
            genes, condition = inputs.arrays["x"].shape[1], inputs.arrays["cond"].shape[1]
            self.state = {"w": np.ones((condition, genes), np.float32)}

        def prepare(self, variant, job):
            return {"first": 0.1}

        def run(self, variant, job):
            return formula.result({**self.state, **self.inputs.arrays}, job)

        def time(self, variant, job, calls):
            with turns.open("a") as file:
                file.write(f"{job['kind']} ours {variant}\n")
            return [formula.SECONDS[variant]] * calls

    monkeypatch.setattr(peers.sides, "Ours", Ours)
    monkeypatch.setattr(peers.rounds.time, "sleep", lambda seconds: None)

    def run(fault="none"):
        stub = tmp_path / "stub.py"
        stub.write_text(STUB.format(benchmarks=str(BENCHMARKS), folder=str(tmp_path), fault=fault))
        monkeypatch.setattr(peers.ab, "DRIVER", stub)
        out = tmp_path / "result.json"
        peers.ab.main(["--torch-python", sys.executable, "--quick", "--rounds", "2",
                       "--json", str(out)])  # fmt: skip
        return capsys.readouterr().out, json.loads(out.read_text()), turns.read_text().split("\n")

    return run


def test_a_whole_run_by_turns(run_with_stub):
    text, result, turns = run_with_stub()
    one_round = [
        f"{kind} {turn}"
        for kind, taken in (
            ("forward", ("ours float32", "torch eager", "ours bfloat16", "torch bf16")),
            ("pair", ("ours float32", "torch eager", "ours bfloat16", "torch bf16")),
            ("draws", ("ours float32", "ours bfloat16")),
            ("mean", ("ours float32", "ours bfloat16")),
            ("published", ("torch eager",)),
        )
        for turn in taken
    ]
    assert turns == 3 * one_round + [""]  # once to see how long a call takes, then two rounds
    found = {(r["job"], r["against"]): r["ratio"] for r in result["ratios"]}
    assert found["forward 4", "PyTorch as published, float32"] == pytest.approx(2.0)
    assert found["forward 4", "PyTorch at its best"] == pytest.approx(3.0)
    # 2 of 1000 steps of 20 rows, one spot, in 3 s; our mean of 2 spots in 1 s.
    assert found["mean", "published 20 x 1000"] == pytest.approx(1500 / 0.5)
    assert result["unavailable"].keys() == {"compiled"}
    assert result["threads_ours"] == result["threads_torch"] == len(os.sched_getaffinity(0))
    assert all(line["same"] for line in result["agreement"])
    assert result["benchmark"] == "peers"
    for cell in (
        "| forward 4 | PyTorch as published, float32 | float32 | eager | 2 (2 to 2) | >= 2 | pass",
        "| mean | published 20 x 1000 (extrapolated) | bfloat16 | eager | 3,000 (3,000 to 3,000) "
        "| >= 10,000 | fail |",
        "| published | torch | eager | 20,000 | 3000 | 7.5e+04 | 1.5e+03 (extrapolated) |",
        "| all | torch | compiled | not available: torch.compile: no working C++ / compiler |",
        "| pair ddpm ddim | torch | exact | 0 | 0 | 0.0001 |",
        "2 of 1000 steps timed at 20 rows",
    ):
        assert cell in text


@pytest.mark.parametrize(
    ("fault", "named"),
    [("exact", "pair edm ddim torch exact"), ("eager", "forward 4 torch eager"),
     ("ancestral", "ancestral ddpm torch exact"), ("mean", "mean edm torch exact")],
)  # fmt: skip
def test_no_ratio_of_different_numbers(run_with_stub, tmp_path, capsys, fault, named):
    with pytest.raises(SystemExit, match=f"no ratio is given: .*{named}: max abs"):
        run_with_stub(fault)
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "result.json").exists()
    assert not (tmp_path / "turns").exists()  # nothing was timed either


def test_half_precision_has_its_own_limit(run_with_stub):
    """A thousandth is a difference in float32 and none in bfloat16."""
    _, result, _ = run_with_stub("bf16")
    line = next(d for d in result["agreement"] if d["what"] == ["forward 4", "torch", "bf16"])
    assert line["relative"] == pytest.approx(1e-3, rel=0.01)
    assert line["same"]


def test_quick_against_torch_itself(tmp_path):
    python = os.environ.get("STEMJAX_TORCH_PYTHON")
    if not python:
        pytest.skip("set STEMJAX_TORCH_PYTHON to a Python that has torch: it is not in this one")
    out = tmp_path / "peers.json"
    command = [sys.executable, "benchmarks/peers/ab.py", "--torch-python", python, "--quick"]
    done = subprocess.run([*command, "--rounds", "2", "--json", str(out)], cwd=ROOT,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    compared = {tuple(d["what"]): d for d in result["agreement"]}
    for process in ("edm", "ddpm"):
        for rule in ("ddim", "dpmpp2m"):
            assert compared[f"pair {process} {rule}", "torch", "exact"]["relative"] <= 1e-4
    assert compared["ancestral ddpm", "torch", "exact"]["relative"] <= 1e-4
    assert {line["variant"] for line in result["lines"] if line["side"] == "torch"} == {
        "eager", "compiled", "bf16", "bf16 compiled",
    } - set(result["unavailable"])  # fmt: skip
    assert all(line["median_s"] > 0 for line in result["lines"])
    assert "| published | torch | eager | 20,000 |" in done.stdout
