"""The roof of a device and the rows of a sampling result under it, as a picture.

    uv run python benchmarks/roofline.py benchmarks/results/sampling.json docs/images/roofline.png

FLOP and bytes of an evaluation are by formula, for a network computed layer by layer with fused
attention and epilogues: what a good program has to move, not what this one moved. The roof (matrix
products of each dtype, a large copy) was measured in the same process as the rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
from typing import Any

import jax

from stemjax import config
from stemjax.models import histosge, stem

VECTORS = 26
"""Vectors of the network's width that a token's way through a block reads and writes.

Norm 2, qkv 4, attention 4, projection with gate and residual 3, norm 2, first half of the MLP with
GELU 5, second half with gate and residual 6.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """Least work of one evaluation.

    Attributes:
      flop: of its matrix products.
      byte: that pass the memory: activations between kernels, and this row's share of the weights.
    """

    flop: float
    byte: float

    def floor(self, *, matmul: float, copy: float) -> float:
        """Returns the seconds that the slower of products (FLOP/s) and memory (byte/s) takes."""
        return max(self.flop / matmul, self.byte / copy)


def work(experiment: config.Experiment, *, genes: int, condition: int, rows: int) -> Work:
    """Returns the work of one evaluation of an experiment's network.

    Args:
      experiment: its model, and the process and options that decide its outputs.
      genes: size of the panel.
      condition: width of the embeddings.
      rows: evaluations computed together, which share the reading of the weights.
    """
    shape = config.network_shape(experiment, genes=genes, condition=condition)
    assert not isinstance(shape, histosge.HisToSGEConfig), "of denoisers alone"
    # A lite network without latents is one token; what its profile itself moves is left out.
    tokens = genes if isinstance(shape, stem.StemConfig) else max(1, shape.latents)
    init = config.make_task(experiment, genes=genes, condition=condition).init
    leaves = jax.tree.leaves(jax.eval_shape(init, jax.random.key(0)))
    width = 2 if shape.dtype == "bfloat16" else 4
    weights = width * sum(math.prod(leaf.shape) for leaf in leaves)
    return Work(
        flop=config.flops_per_evaluation(experiment, genes=genes, condition=condition),
        byte=VECTORS * shape.depth * tokens * shape.width * width + weights / rows,
    )


def points(result: dict[str, Any]) -> list[tuple[str, float, float, str]]:
    """Returns (label, FLOP/byte, FLOP/s, dtype) of the rows of a result that ran."""
    found = []
    for line in result["lines"]:
        if "failed" not in line:
            label = f"{line['way']}, {line['rows']} rows, {line['genes']} genes"
            if line["attention"] != result["model"]["attention"]:
                label += f", {line['attention']}"
            intensity = line["flop_per_evaluation"] / line["byte_per_evaluation"]
            found.append((label, intensity, line["flop_per_s"], line["dtype"]))
    return found


def clusters(places: list[tuple[float, float]], apart: float = 0.05) -> list[list[int]]:
    """Returns the numbers of points so close in a log-log picture that they share a label.

    Args:
      places: x and y of each point.
      apart: decades between neighbours of two clusters, at least, in x or in y.
    """
    found: list[list[int]] = []
    by_height = sorted(range(len(places)), key=lambda i: (places[i][1], places[i][0]))
    for i in by_height:
        near = [c for c in found if any(_decades(places[i], places[j]) < apart for j in c)]
        found = [c for c in found if c not in near] + [sum(near, []) + [i]]
    return [sorted(c) for c in found]


def _decades(a: tuple[float, float], b: tuple[float, float]) -> float:
    return max(abs(math.log10(u / v)) for u, v in zip(a, b))


def draw(result: dict[str, Any], path: pathlib.Path) -> None:
    """Draws the picture of a sampling result.

    Raises:
      ValueError: no row of the result ran.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shown = points(result)
    if not shown:
        raise ValueError("no row of this result ran: there is nothing to draw")
    roof = result["roof"]
    copy, rates = roof["copy_byte_per_s"], roof["matmul_flop_per_s"]
    colours = {"float32": "#1b6ca8", "bfloat16": "#b5541c"}
    figure, (axes, legend) = plt.subplots(
        1, 2, figsize=(11, 5.2), width_ratios=(3, 2), facecolor="white", layout="constrained"
    )
    ridges = [rate / copy for rate in rates.values()]
    low = 10 ** math.floor(math.log10(min([x for _, x, _, _ in shown] + ridges) / 2))
    high = 10 ** math.ceil(math.log10(max([x for _, x, _, _ in shown] + ridges) * 2))
    for dtype, rate in rates.items():
        ridge = rate / copy
        axes.plot([low, ridge, high], [low * copy, rate, rate], color=colours[dtype], linewidth=2)
        axes.annotate(f"{dtype} products {rate / 1e12:.3g} TFLOP/s", (high, rate), ha="right",
                      xytext=(-4, 4), textcoords="offset points", color=colours[dtype])  # fmt: skip
    axes.annotate(f"copy {copy / 1e9:.3g} GB/s", (min(ridges) / 2, min(ridges) * copy / 2),
                  xytext=(10, -4), textcoords="offset points", color="#444444")  # fmt: skip
    entries = []
    for number, (label, x, y, dtype) in enumerate(shown, start=1):
        axes.plot(x, y, "o", color=colours[dtype], markersize=6)
        entries.append(f"{number:2d}  {label}, {dtype}: {y / rates[dtype]:.0%} of products")
    for numbers in clusters([(x, y) for _, x, y, _ in shown]):
        _, x, y, _ = shown[numbers[len(numbers) // 2]]
        named = [str(number + 1) for number in numbers]
        text = "\n".join(", ".join(named[i : i + 5]) for i in range(0, len(named), 5))
        axes.annotate(text, (x, y), xytext=(9, 0), textcoords="offset points", va="center",
                      fontsize=8)  # fmt: skip
    axes.set(
        xscale="log", yscale="log", xlim=(low, high),
        ylim=(min(y for _, _, y, _ in shown) / 2, 1.6 * max(rates.values())),
        xlabel="FLOP / byte (by formula)", ylabel="FLOP/s (by formula, over measured time)",
    )  # fmt: skip
    axes.set_title(f"Sampling under the measured roof: {result['device']}, "
                   f"load {result['load']:.1f}", loc="left", fontsize=10)  # fmt: skip
    axes.grid(which="both", color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    legend.axis("off")
    legend.text(0, 1, "\n".join(entries), va="top", fontsize=8, family="monospace")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=pathlib.Path, help="JSON of benchmarks/sampling.py")
    parser.add_argument("picture", type=pathlib.Path, help="PNG")
    args = parser.parse_args()
    draw(json.loads(args.result.read_text()), args.picture)
    print(f"wrote {args.picture}")


if __name__ == "__main__":
    main()
