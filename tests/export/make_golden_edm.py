"""Writes golden_edm.npz by the PyTorch module that exports carry; run with torch, not with stemjax.

    python tests/export/make_golden_edm.py           # writes it anew
    python tests/export/make_golden_edm.py --check   # compares the committed file with the module

An array is named by its case: ``stem/state/blocks.0.attn.qkv.weight``, ``stem/heun``. Weights are
random numbers that float16 holds exactly, so that the file stays small; what the module made of
them is float32. ``CASES`` are the sizes, which the test reads too.
"""

import importlib.util
import json
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
MODULE = HERE.parents[1] / "stemjax" / "export" / "reference" / "stem_edm.py"
GENES, CONDITION, ROWS, STEPS = 6, 5, 4, 5
SIZE = {"width": 8, "depth": 2, "heads": 2, "mlp_ratio": 2, "latents": 0}
CASES = {
    "stem": {"kind": "stem"},
    "residual": {"kind": "stem", "residual": True, "marginal": True, "sigma_data": 0.5},
    "vector": {"kind": "lite", "marginal": True},
    "latents": {"kind": "lite", "latents": 3, "residual": True, "sigma_data": 0.7},
}
SIGMAS = (0.02, 0.9, 30.0, np.inf)  # a row each


def make_config(case, genes=GENES, condition=CONDITION):
    """The config.json of a case, with standardisations of many digits."""
    rng = np.random.default_rng(1)
    options = {"residual": False, "marginal": False, "sigma_data": 1.0, **CASES[case]}
    network = {name: options.pop(name, SIZE.get(name)) for name in ("kind", *SIZE)}

    def standardisation(width):
        mean, std = rng.normal(size=width), rng.uniform(1, 2, width)
        return {"mean": mean.astype(np.float32).tolist(), "std": std.astype(np.float32).tolist()}

    return {
        "format": "stem-edm-1",
        "network": network,
        "has_mean": True,
        "schedule": {"sigma_min": 0.01, "sigma_max": 80.0, "rho": 7.0},
        "genes": [f"G{i}" for i in range(genes)],
        "transform": "log2p1",
        "expression": standardisation(genes),
        "condition": standardisation(condition),
        **options,
    }


def run(module, model, inputs):
    """What the module makes of the inputs."""
    import torch

    given = {name: torch.from_numpy(value) for name, value in inputs.items()}
    cond = model.encode(given["embeddings"])
    with torch.no_grad():
        made = {
            "cond": cond,
            "network": model.network(given["x"], given["level"], model.network.condition(cond)),
            "denoised": model.denoiser(cond)(given["x"], given["sigma"]),
            "mean": model.mean(cond),
        }
        for name in ("heun", "ddim"):
            made[name] = model.sample(cond, steps=STEPS, sampler=name, noise=given["noise"])
        made["values"] = model.decode(made["mean"])
        if model.config["marginal"]:
            made["std"] = model.marginal(cond)[1]
    return {name: value.numpy() for name, value in made.items()}


def make_inputs():
    rng = np.random.default_rng(2)
    return {
        "embeddings": rng.normal(size=(ROWS, CONDITION)).astype(np.float16),
        "x": rng.normal(size=(ROWS, GENES)).astype(np.float32),
        "level": np.array([-900, 0.5, 700, 2878], np.float32),
        "sigma": np.array(SIGMAS, np.float32),
        "noise": rng.normal(size=(ROWS, GENES)).astype(np.float32),
    }


def main():
    import torch

    spec = importlib.util.spec_from_file_location("stem_edm", MODULE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rng = np.random.default_rng(0)
    made = {f"inputs/{name}": value for name, value in make_inputs().items()}
    for case in CASES:
        model = module.StemEDM(json.loads(json.dumps(make_config(case)))).eval()
        state = {}
        for name, value in model.network.state_dict().items():
            inside = value.shape[-1] if value.ndim > 1 else 4
            numbers = rng.normal(size=tuple(value.shape)) / np.sqrt(inside)
            state[name] = numbers.astype(np.float16)
            made[f"{case}/state/{name}"] = state[name]
        model.network.load_state_dict(
            {name: torch.from_numpy(value.astype(np.float32)) for name, value in state.items()}
        )
        outputs = run(module, model, make_inputs())
        made |= {f"{case}/{name}": value for name, value in outputs.items()}
    if "--check" not in sys.argv:
        np.savez_compressed(HERE / "golden_edm.npz", **made)
        return
    stored = np.load(HERE / "golden_edm.npz")
    assert set(stored.files) == set(made), set(stored.files) ^ set(made)
    worst = 0.0
    for name, value in made.items():
        assert (stored[name].dtype, stored[name].shape) == (value.dtype, value.shape), name
        np.testing.assert_allclose(stored[name], value, rtol=1e-4, atol=1e-4, err_msg=name)
        finite = np.isfinite(value)
        worst = max(worst, float(np.max(np.abs(stored[name][finite] - value[finite]))))
    print(  # noqa: T201
        f"torch {torch.__version__}: golden_edm.npz holds, largest difference {worst:.1e}"
    )


if __name__ == "__main__":
    main()
