"""Check an exported checkpoint with torch alone.

`python tests/parity/check_export.py EXPORTED.pt REFERENCE.npz [--heads N] [--atol A]`

The reference holds x, t, cond and output, the "ema" weights' result (`--weights model` where it is
the "model" weights'). Exit status 1 and one readable line on any mismatch.
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np
import torch

# The one PyTorch implementation of the repository stands there.
sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "peers"))
from torch_stem import StemModel


def sizes(state, heads):
    """The model's sizes, read off the tensors; only the number of heads leaves no trace."""
    genes, width = state["gene_joint_embed.gene_name_ebd"].shape
    found = (re.match(r"blocks\.(\d+)\.", name) for name in state)
    depth = 1 + max((int(match[1]) for match in found if match), default=-1)
    if not depth:
        raise ValueError("no blocks.{i} in the state dict")
    if width % heads:
        raise ValueError(f"width {width} is not a multiple of {heads} heads (see --heads)")
    return {
        "genes": genes,
        "width": width,
        "depth": depth,
        "heads": heads,
        "condition": state["label_embed.0.weight"].shape[1],
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / width,
    }


def load_model(state, heads):
    """A model that holds `state`, names and shapes strictly."""
    model = StemModel(**sizes(state, heads))
    model.load_state_dict(state, strict=True)
    wrong = {str(value.dtype) for value in state.values()} - {"torch.float32"}
    if wrong:
        raise ValueError(f"weights of type {sorted(wrong)}, not torch.float32")
    return model.eval()


def check_optimiser(saved, model):
    """Load the optimiser and see that its moments have the parameters' shapes."""
    optimiser = torch.optim.AdamW(model.parameters())
    optimiser.load_state_dict(saved)
    count = len(optimiser.param_groups[0]["params"])
    if len(saved["state"]) not in (0, count):  # none before the first step, then all of them
        raise ValueError(f"opt: moments of {len(saved['state'])} of {count} parameters")
    for name, parameter in model.named_parameters():
        for moment in ("exp_avg", "exp_avg_sq"):
            value = optimiser.state.get(parameter, {}).get(moment)
            if value is not None and value.shape != parameter.shape:
                raise ValueError(f"opt: {moment} of {name} is {tuple(value.shape)}")
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()


def check(arguments):
    """The largest absolute error of the export's outputs."""
    saved = torch.load(arguments.exported, map_location="cpu", weights_only=True)
    if not isinstance(saved, dict) or set(saved) != {"model", "ema", "opt"}:
        keys = sorted(map(str, saved)) if isinstance(saved, dict) else type(saved).__name__
        raise ValueError(f"expected the keys model, ema and opt, found {keys}")
    models = {name: load_model(saved[name], arguments.heads) for name in ("ema", "model")}
    with np.load(arguments.reference, allow_pickle=False) as reference:
        x, t, cond, expected = (
            torch.from_numpy(reference[name]) for name in ("x", "t", "cond", "output")
        )
    with torch.no_grad():
        output = models[arguments.weights](x, t, cond)
    check_optimiser(saved["opt"], models["model"])  # last: it moves these weights
    if output.shape != expected.shape:
        raise ValueError(f"output {tuple(output.shape)}, reference {tuple(expected.shape)}")
    error = (output - expected).abs().max().item()
    if not error <= arguments.atol:  # so that nan fails too
        raise ValueError(f"max abs error {error:.3g} of {arguments.weights}, > {arguments.atol}")
    return error


def main():
    parser = argparse.ArgumentParser(description="Check an exported checkpoint with torch alone.")
    parser.add_argument("exported")
    parser.add_argument("reference")
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--atol", type=float, default=1e-5)
    parser.add_argument("--weights", choices=("ema", "model"), default="ema")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        error = check(arguments)
    except Exception as problem:  # noqa: BLE001 - whatever torch says, as one readable line
        message = " ".join(str(problem).split())
        sys.stderr.write(f"{arguments.exported}: {type(problem).__name__}: {message}\n")
        return 1
    sys.stdout.write(f"{arguments.exported}: ok, max abs error {error:.3g}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
