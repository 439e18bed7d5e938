"""One run in several layouts of devices and processes: loss curves laid over each other.

    uv run python benchmarks/layouts.py --quick --json OUT
    uv run python benchmarks/layouts.py --json benchmarks/results/layouts.json --picture PNG

`stemjax train` is started as a user would start it, on the demo's drawn sections: as one process
with one device, with four, and as two processes with two each, with and without ``fsdp`` and
``genes``. A CPU plays the devices, which share its cores: what is compared is the losses, not the
time. The same rows come in the same order in every layout, and each row's noise is the same, so the
curves differ by the order of float32 sums alone, which training then amplifies from step to step.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
from typing import Any

import harness
import numpy as np
import samplers

from stemjax import demo
from stemjax.data import genes, prepare


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrangement:
    """How a run is laid out.

    Attributes:
      processes: started at once.
      devices: of each.
      flags: of the command.
    """

    processes: int
    devices: int
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Processes x devices, and what is split besides."""
        split = ", ".join(flag.removeprefix("--config.mesh.") for flag in self.flags)
        return f"{self.processes}x{self.devices}" + (f", {split}" if split else "")


ARRANGEMENTS = (
    Arrangement(processes=1, devices=1),
    Arrangement(processes=1, devices=4),
    Arrangement(processes=2, devices=2),
    Arrangement(processes=2, devices=2, flags=("--config.mesh.fsdp=2",)),
    Arrangement(processes=2, devices=2, flags=("--config.mesh.genes=2",)),
)
"""The first is what the others are held against."""

QUICK = 3


def make_records(out: pathlib.Path) -> None:
    """Writes the records of the demo's drawn sections."""
    sections = demo.draw_sections()
    prepare.prepare(
        sections.slides.__getitem__,
        tuple(sections.slides),
        out,
        test=(demo.TEST,),
        genes=genes.Panel(genes=demo.LAW.genes, rule="all genes of the drawn law", slides=()),
        workers=2,
    )


def train(
    chosen: Arrangement, config: str, records: pathlib.Path, workdir: pathlib.Path, steps: int
) -> np.ndarray:
    """Returns the loss of every step of a run in an arrangement, [steps].

    Raises:
      RuntimeError: a process failed.
    """
    command = [
        sys.executable, "-m", "stemjax.cli", "train", f"--config={config}",
        f"--workdir={workdir}", f"--config.data.records={records}",
        f"--config.train.steps={steps}", f"--config.train.save_every={steps}",
        "--config.train.log_every=1", "--config.train.validate_every=0",
        "--config.train.accumulate=1",
        # Wide enough that fsdp has something to split (`mesh.SPLIT_FROM`); a batch for two cores.
        "--config.model.width=128", "--config.train.batch=32", *chosen.flags,
    ]  # fmt: skip
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(chosen.devices)}
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    workdir.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        running, logs = [], [workdir / f"process{i}.log" for i in range(chosen.processes)]
        for index, log in enumerate(logs):
            several = (
                "--coordinator", f"127.0.0.1:{port}", "--process-count", str(chosen.processes),
                "--process-index", str(index),
            ) if chosen.processes > 1 else ()  # fmt: skip
            running.append(
                subprocess.Popen(
                    [*command, *several], env=environment, stderr=subprocess.STDOUT,
                    stdout=stack.enter_context(log.open("w")),
                )
            )  # fmt: skip
        failed = [i for i, process in enumerate(running) if process.wait()]
    if failed:
        raise RuntimeError(f"{chosen.name}: {logs[failed[0]].read_text()[-2000:]}")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return np.asarray([line["loss"] for line in lines if "loss" in line])


def compare(curves: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Returns a line for each curve: how far it is from the first at most, and the curve."""
    base = next(iter(curves.values()))
    found = []
    for name, curve in curves.items():
        apart = np.abs(curve / base - 1)
        found.append(
            {
                "arrangement": name,
                "first_10": float(apart[:10].max()),
                "largest": float(apart.max()),
                "at_step": int(apart.argmax()) + 1,
                "last_loss": float(curve[-1]),
                "losses": [float(value) for value in curve],
            }
        )
    return found


def tables(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    head = ["processes x devices", "largest relative difference", "in the first 10 steps",
            "at step", "last loss"]  # fmt: skip
    rows = [
        [line["arrangement"], f"{line['largest']:.1e}", f"{line['first_10']:.1e}",
         str(line["at_step"]) if line["largest"] else "-", f"{line['last_loss']:.6f}"]
        for line in result["lines"]
    ]  # fmt: skip
    steps = len(result["lines"][0]["losses"])
    return f"Losses of {steps} steps by those of one device:\n\n{samplers.markdown(head, rows)}"


def draw(result: dict[str, Any], path: pathlib.Path) -> None:
    """Draws the curves, and below them how far each is from the first."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (curves, apart) = plt.subplots(
        2, 1, figsize=(8, 6), sharex=True, height_ratios=(3, 2), layout="constrained"
    )
    base = np.asarray(result["lines"][0]["losses"])
    steps = np.arange(1, len(base) + 1)
    # Wide below narrow: curves that coincide would hide all but the last.
    for number, line in enumerate(result["lines"]):
        losses = np.asarray(line["losses"])
        width = 1.2 + 2.2 * (len(result["lines"]) - 1 - number)
        curves.plot(steps, losses, linewidth=width, label=line["arrangement"])
        if number:
            apart.semilogy(steps, np.maximum(np.abs(losses / base - 1), 1e-9), linewidth=1,
                           color=f"C{number}")  # fmt: skip
    curves.set(ylabel="loss", title="One run in several layouts (processes x devices)")
    curves.legend(frameon=False)
    apart.axhline(2**-23, color="#888888", linewidth=0.8, linestyle=":")
    apart.annotate("float32", (steps[0], 2**-23), ha="left", va="bottom", color="#666666")
    apart.set(xlabel="step", ylabel="relative difference\nfrom 1x1")
    for axes in (curves, apart):
        axes.grid(color="#e5e5e5", linewidth=0.6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    """Trains in every layout, prints the table, writes JSON and picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    harness.add_arguments(parser)
    parser.set_defaults(config=str(harness.ROOT / "configs" / "stem_demo.py"))
    parser.add_argument("--steps", type=int, help="updates (default: 100; quick: 10)")
    parser.add_argument("--picture", type=pathlib.Path, metavar="PNG", help="where to draw it")
    args, experiment = harness.parse(parser, argv)
    steps = args.steps or (10 if args.quick else 100)
    about, curves = harness.surroundings(), {}
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        make_records(root / "records")
        for chosen in ARRANGEMENTS[:QUICK] if args.quick else ARRANGEMENTS:
            workdir = root / f"run{len(curves)}"
            curves[chosen.name] = train(chosen, args.config, root / "records", workdir, steps)
            print(f"{chosen.name}: {steps} steps", flush=True)
    result = harness.result("layouts", about, experiment, compare(curves), steps=steps)
    print(tables(result))
    if args.json:
        harness.save(args.json, result)
    if args.picture:
        draw(result, args.picture)


if __name__ == "__main__":
    main()
