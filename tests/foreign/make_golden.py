"""Writes golden.pt by real torch and golden.npz, what it holds; run once, with torch installed.

golden.npz names a tensor by its path in the tree; a bfloat16 one is there as its bits, uint16.
"""

import collections
import pathlib
import sys

import numpy as np
import torch

HERE = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else __file__).resolve()
HERE = HERE if HERE.is_dir() else HERE.parent


def make_tree():
    torch.manual_seed(0)
    linear = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(linear.parameters(), lr=1e-3, betas=(0.9, 0.95))
    for _ in range(2):
        optimizer.zero_grad()
        linear(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    shared = torch.arange(12, dtype=torch.float32)
    numbers = torch.tensor([[0.0, 1.5, -2.25], [3.0, 100.0, 7.0]])
    kinds = ["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8"]
    return {
        "model": linear.state_dict(),
        "optimizer": optimizer.state_dict(),
        "dtypes": {kind: numbers.to(getattr(torch, kind)) for kind in kinds},
        "uint8": torch.tensor([0, 255], dtype=torch.uint8),
        "bool": torch.tensor([[True], [False]]),
        "transposed": torch.arange(6.0).reshape(2, 3).t(),
        "strided": torch.arange(24).reshape(2, 3, 4)[:, 1:, ::2],
        "expanded": torch.tensor([[1.0], [2.0]]).expand(2, 3),
        "scalar": torch.tensor(3.25, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
        "whole": shared,
        "part": shared[4:8],
        "parameter": torch.nn.Parameter(torch.tensor([1.0, -1.0]).bfloat16()),
        "ordered": collections.OrderedDict([("z", 1), ("a", [True, None, (1, "x", 2.5)])]),
        "size": torch.Size((2, 3)),
        "integers": [0, 255, 256, 65536, -1, 2**40, -(2**70)],
        "text": "h\u00e9 \U0001f9ec",
    }


def tensors(tree, path=""):
    if isinstance(tree, torch.Tensor):
        value = tree.detach()
        yield path, value.view(torch.uint16) if value.dtype == torch.bfloat16 else value
    elif isinstance(tree, dict | list | tuple):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, value in items:
            yield from tensors(value, f"{path}/{key}")


if __name__ == "__main__":
    made = make_tree()
    torch.save(made, HERE / "golden.pt")
    np.savez_compressed(HERE / "golden.npz", **{k: v.numpy() for k, v in tensors(made)})
