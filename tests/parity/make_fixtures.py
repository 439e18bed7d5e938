"""Write the fixtures of the PyTorch side: `python tests/parity/make_fixtures.py`.

All random numbers come from numpy's PCG64, so that they do not depend on torch's version. To keep
the files small, inputs are float32 numbers that half precision holds, the long chain's noise is
random signs (mean 0, variance 1), and the npz members are LZMA-compressed (np.load reads them).
"""

import hashlib
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch

# The one PyTorch implementation of the repository stands there.
sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "peers"))
from torch_stem import Process, StemModel, linear_betas, respace, space_timesteps

SEED = 20261121
DATE = "2026-11-21"
SMALL = {"genes": 7, "width": 16, "depth": 2, "heads": 2, "condition": 10}
PUBLISHED = {"genes": 200, "width": 384, "depth": 12, "heads": 6, "condition": 1536}
PUBLISHED_TOTAL = 35_639_042
FOLDER = Path(__file__).parent / "fixtures"


def normal(rng, *shape, scale=1.0):
    """Normal numbers that half precision holds exactly, as a float32 tensor."""
    values = (scale * rng.standard_normal(shape)).astype(np.float16)
    return torch.from_numpy(values.astype(np.float32))


def random_state(rng):
    """A small model's state with every number random: no zero adaLN, no zero head."""
    state = {}
    for name, value in StemModel(**SMALL).state_dict().items():
        if name.endswith("bias"):
            scale = 0.1
        elif name.endswith("gene_name_ebd"):
            scale = 0.5
        else:
            scale = 0.7 / value.shape[1] ** 0.5
        state[name] = torch.from_numpy(
            (scale * rng.standard_normal(value.shape)).astype(np.float32)
        )
    return state


def load(state):
    """A small model that holds `state`."""
    model = StemModel(**SMALL)
    model.load_state_dict(state, strict=True)
    return model


def train_a_little(rng, process, model):
    """Make a denoiser of it, so that whole chains stay of order 1 and errors are absolute."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    weight = normal(rng, SMALL["condition"], SMALL["genes"], scale=0.2)
    for _ in range(1500):
        y, noise = normal(rng, 128, SMALL["condition"]), normal(rng, 128, SMALL["genes"])
        x0 = y @ weight + normal(rng, 128, SMALL["genes"], scale=0.5)
        t = torch.from_numpy(rng.integers(0, 1000, 128))
        optimiser.zero_grad()
        process.training_terms(model, x0, t, y, noise)["loss"].mean().backward()
        optimiser.step()


def forward_arrays(rng, model, ema):
    """Inputs and outputs; bare names, as check_export.py reads them (`output` is of "ema")."""
    t = torch.tensor([0, 1, 37, 500, 999], dtype=torch.int32)
    t_float = torch.tensor([0.0, 0.5, 412.25, 733.5, 998.75])
    x, y = normal(rng, 5, SMALL["genes"], scale=2.0), normal(rng, 5, SMALL["condition"])
    with torch.no_grad():
        return {
            "x": x,
            "t": t,
            "t_float": t_float,
            "cond": y,
            "output": ema(x, t, y),
            "output_model": model(x, t, y),
            "output_float": ema(x, t_float, y),
            "output_float_model": model(x, t_float, y),
        }


def loss_inputs(rng):
    """Rows of log2(1 + count); of the rows with t = 0, the second has inner and left-edge bins."""
    t = torch.tensor([0, 0, 1, 37, 500, 999])
    x0 = torch.from_numpy(np.log2(1 + rng.integers(0, 256, (6, 7))).astype(np.float32))
    x0[0, :2] = 0.0
    x0[1] = torch.tensor([-0.75, 0.0, 0.25, 0.998, -0.5, -1.5, 1.0])
    return x0, t, normal(rng, 6, SMALL["condition"]), normal(rng, 6, SMALL["genes"])


def loss_arrays(process, model, inputs):
    """The loss, its terms and the gradient of its mean."""
    x0, t, y, noise = inputs
    model.zero_grad()
    terms = process.training_terms(model, x0, t, y, noise)
    terms["loss"].mean().backward()
    out = {"x0": x0, "t": t.to(torch.int32), "cond": y, "noise": noise}
    out |= {"x_t": process.q_sample(x0, t, noise)} | {k: v.detach() for k, v in terms.items()}
    arrays = {f"loss/{name}": value for name, value in out.items()}
    return arrays | {f"grad/{name}": p.grad.clone() for name, p in model.named_parameters()}


@torch.no_grad()
def step_arrays(rng, process, ema):
    """Single ancestral steps: arrays [4, b, g] for the four levels in `step/t`."""
    levels = (0, 1, 250, 999)
    y = normal(rng, 2, SMALL["condition"])
    rows = {name: [] for name in ("x", "noise", "mean", "log_variance", "x_prev")}
    for level in levels:
        x, noise = normal(rng, 2, 7, scale=1.5), normal(rng, 2, 7)
        prev, mean, logvar = process.step(ema, x, torch.tensor([level, level]), y, noise)
        for name, value in zip(rows, (x, noise, mean, logvar, prev), strict=True):
            rows[name].append(value)
    arrays = {f"step/{name}": torch.stack(value) for name, value in rows.items()}
    return arrays | {"step/t": torch.tensor(levels, dtype=torch.int32), "step/cond": y}


@torch.no_grad()
def chain_arrays(rng, process, ema):
    """A whole chain; a shortened one's `timesteps` in step order, as the network gets them."""
    steps = len(process.betas)
    x, y = normal(rng, 2, SMALL["genes"]), normal(rng, 2, SMALL["condition"])
    shape = (steps, 2, SMALL["genes"])
    if steps < 1000:
        noise = normal(rng, *shape)
    else:
        noise = torch.from_numpy(rng.choice(np.array([-1.0, 1.0], np.float32), shape))
    out = {"x_T": x, "cond": y, "noise": noise, "final": process.chain(ema, x, y, noise)}
    if steps < 1000:
        out["timesteps"] = torch.from_numpy(process.timesteps[::-1].astype(np.int32))
    return {f"chain{steps}/{name}": value for name, value in out.items()}


def process_arrays(process):
    """The process's constants, float64."""
    prefix = f"process{len(process.betas)}"
    return {
        f"{prefix}/betas": process.betas,
        f"{prefix}/abar": process.abar,
        f"{prefix}/log_posterior_variance_clipped": process.log_posterior,
    }


def save_npz(path, arrays):
    """An npz archive with LZMA in place of deflate, and without dates."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")
            member.compress_type = zipfile.ZIP_LZMA
            with archive.open(member, "w") as file:
                np.lib.format.write_array(file, np.asarray(value), allow_pickle=False)


def published_names():
    """Names and shapes at the published size, without allocating it."""
    with torch.device("meta"):
        state = StemModel(**PUBLISHED).state_dict()
    total = sum(value.numel() for value in state.values())
    if total != PUBLISHED_TOTAL:
        raise SystemExit(f"{total} parameters at the published size, not {PUBLISHED_TOTAL}")
    return {"shapes": {k: list(v.shape) for k, v in state.items()}, "parameters": total}


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    FOLDER.mkdir(exist_ok=True)
    rng = np.random.default_rng(SEED)
    process = Process(linear_betas())
    short = respace(process.betas, space_timesteps(1000, 50))

    model, ema = load(random_state(rng)), load(random_state(rng))
    train_a_little(rng, process, ema)
    inputs = loss_inputs(rng)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    loss_arrays(process, model, inputs)  # gradients of the one step that fills the moments
    optimiser.step()
    states = {
        "model": dict(model.state_dict()),
        "ema": dict(ema.state_dict()),
        "opt": optimiser.state_dict(),
    }
    torch.save(states, FOLDER / "small.pt")

    arrays = forward_arrays(rng, model, ema)
    arrays |= loss_arrays(process, model, inputs)  # with the weights as saved, after that step
    arrays |= step_arrays(rng, process, ema)
    arrays |= chain_arrays(rng, short, ema) | chain_arrays(rng, process, ema)
    arrays |= process_arrays(process) | process_arrays(short)
    for n in (10, 50, 250, 1000):
        arrays[f"space/{n}"] = np.asarray(space_timesteps(1000, n), np.int32)
    save_npz(FOLDER / "small.npz", arrays)

    names = json.dumps(published_names(), separators=(",", ":"))
    (FOLDER / "published_names.json").write_text(names + "\n")
    files = ("published_names.json", "small.npz", "small.pt")
    provenance = {
        "command": "python tests/parity/make_fixtures.py",
        "date": DATE,
        "numpy": np.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "seed": SEED,
        "sha256": {f: hashlib.sha256((FOLDER / f).read_bytes()).hexdigest() for f in files},
        "small": SMALL | {"mlp_ratio": 4},
        "torch": torch.__version__,
    }
    (FOLDER / "PROVENANCE.json").write_text(json.dumps(provenance, indent=2) + "\n")


if __name__ == "__main__":
    main()
