"""Every kind of model in every format: made, loaded in a process of its own, compared.

    uv run python benchmarks/export_matrix.py --quick --json OUT
    uv run python benchmarks/export_matrix.py --json benchmarks/results/export_matrix.json \
      --torch TORCH/bin/python --converter ONNX/bin/python --onnxruntime RUNTIME/bin/python

Models with drawn weights: the published process with two channels, EDM (Stem), and lite. What a
format gives is held against the model here on the same inputs: the mean, or of models without one a
sample from the same noise. ``apart`` is the largest difference by the largest value.

    bundle      `stemjax.load` and a prediction; the process may have stemjax, and no orbax
    stablehlo   run.py; the process has jax, and neither stemjax nor flax
    torch       the published process's .pt, other models' torch-edm folder; with torch alone
    onnx        export_onnx.py, then onnx_ddim.py; the process has numpy and onnxruntime

The last two need environments that have what they need (``examples/try_torch.sh`` and
``try_onnx.sh`` make such); without one the cell says so. The .pt is compared tensor by tensor: the
official code is not here. ``call_ms`` is a second call on 64 spots, in a process of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import harness
import jax
import numpy as np

from stemjax import config, tasks
from stemjax.data import embeddings, space, transforms
from stemjax.diffusion import sampler
from stemjax.export import bundle, program, published, torch_edm
from stemjax.train.card import Card
from stemjax.train.trained import Trained

KINDS = {
    "published": {"diffusion": {"process": "ddpm", "mean_fraction": 0.0}},
    "edm": {"diffusion": {"mean_fraction": 0.1}},
    "lite": {"model": {"kind": "lite"}, "diffusion": {"mean_fraction": 0.1}},
}
FORMATS = ("bundle", "stablehlo", "torch", "onnx")
SPOTS, STEPS, SEED, SLIDE = 64, 8, 7, "S"
BARCODES = tuple(f"b{i}" for i in range(SPOTS))
EXAMPLES = harness.ROOT / "examples"

PROMISED_ABSENT = {
    "bundle": ("orbax", "torch", "tensorflow"),
    "stablehlo": ("stemjax", "flax", "optax", "orbax", "safetensors"),
    "torch": ("stemjax", "jax", "flax"),
    "onnx": ("stemjax", "jax", "flax", "torch"),
}

_LAST_LINE = """
print(json.dumps({"call_ms": call_ms, "modules": sorted({m.split(".")[0] for m in sys.modules})}))
"""
LOADERS = {
    "bundle": """
import json, pathlib, sys, time
import numpy as np
import stemjax
from stemjax import tasks
from stemjax.diffusion import sampler
model = stemjax.load(sys.argv[1])
about = json.loads(pathlib.Path(sys.argv[3]).read_text())
sampling = model.card.task.sampling(**about["sampling"])
run = tasks.make_predictor(model.card.task, sampling)
cond = model.card.space.encode_condition(np.load(sys.argv[2]))
keys = sampler.spot_keys(about["seed"], about["slide"], about["barcodes"])
for _ in range(2):
    started = time.perf_counter()
    values = model.card.space.values(run(model.params, cond, keys))
    call_ms = 1e3 * (time.perf_counter() - started)
np.save(sys.argv[4], values[0])
""",
    "stablehlo": """
import json, pathlib, runpy, sys, time
import jax
import numpy as np
from jax import export
runner = runpy.run_path(sys.argv[1] + "/run.py")
about = json.loads(pathlib.Path(sys.argv[3]).read_text())
blob = bytearray(pathlib.Path(sys.argv[1], "program.jaxexport").read_bytes())
program = jax.jit(export.deserialize(blob).call)
weights, given = runner["tensors"]("model*.safetensors"), np.load(sys.argv[2])
keys = runner["spot_keys"](about["seed"], about["slide"], about["barcodes"])
for _ in range(2):
    started = time.perf_counter()
    values = np.asarray(program(weights, given, keys))
    call_ms = 1e3 * (time.perf_counter() - started)
np.save(sys.argv[4], values[0])
""",
    "torch": """
import json, sys, time
import numpy as np
import torch
if sys.argv[1].endswith(".pt"):
    state = torch.load(sys.argv[1], weights_only=True)["ema"]
    np.savez(sys.argv[4], **{name: tensor.numpy() for name, tensor in state.items()})
    call_ms = None
else:
    sys.path.insert(0, sys.argv[1])
    import stem_edm
    model = stem_edm.load(sys.argv[1])
    cond = model.encode(torch.from_numpy(np.load(sys.argv[2])))
    for _ in range(2):
        started = time.perf_counter()
        values = model.decode(model.mean(cond))
        call_ms = 1e3 * (time.perf_counter() - started)
    np.save(sys.argv[4], values.numpy())
""",
    "onnx": """
import json, pathlib, runpy, sys, time
import numpy as np
import onnxruntime
about = json.loads(pathlib.Path(sys.argv[3]).read_text())
loop = runpy.run_path(about["loop"])
model = loop["Model"](pathlib.Path(sys.argv[1]))
mean, std = model.space("condition")
cond = (np.load(sys.argv[2]) - mean) / std
for _ in range(2):
    started = time.perf_counter()
    values = model.mean(cond) if model.config["has_mean"] else model.sample(
        cond, np.load(about["noise"]), about["steps"]
    )
    call_ms = 1e3 * (time.perf_counter() - started)
mean, std = model.space("expression")
np.save(sys.argv[4], values * std + mean)
""",
}  # fmt: skip


def make_model(kind: str, *, width: int, depth: int, heads: int, genes: int, cond: int) -> Trained:
    """Returns a model of drawn weights, awake: gates that are closed would hide its blocks."""
    rng = np.random.default_rng(0)
    values: Any = config.as_json(config.Experiment(name=kind))
    values["model"] |= {"width": width, "depth": depth, "heads": heads}
    for group, part in KINDS[kind].items():
        values[group] |= part

    def standardisation(size: int) -> transforms.Standardisation:
        if kind == "published":  # which works on values as they are
            return transforms.Standardisation(
                mean=np.zeros(size, np.float32), std=np.ones(size, np.float32)
            )
        return transforms.Standardisation(
            mean=rng.normal(size=size).astype(np.float32),
            std=rng.uniform(1, 2, size).astype(np.float32),
        )

    names = tuple(f"G{i}" for i in range(genes))
    card = Card(
        experiment=config.resolve(values),
        space=space.Space(
            genes=names, transform="log2p1",
            expression=standardisation(genes), condition=standardisation(cond),
        ),
        contract=dataclasses.replace(published.UNI_CONCH, name="drawn", width=cond),
        split={"train": ["T"], "val": [], "test": ["X"], "kind": "new patient"},
        panel={"genes": list(names), "rule": "drawn", "slides": ["T"]},
        versions={},
    )  # fmt: skip
    assert isinstance(card.contract, embeddings.EncoderContract)
    fresh = card.task.init(jax.random.key(1))
    scale = 0.02 if width > 64 else 0.2
    params = jax.tree.map(
        lambda leaf: leaf + scale * rng.standard_normal(leaf.shape).astype(np.float32), fresh
    )
    return Trained(params=params, card=card, step=1, weights="last")


def sampling_of(kind: str) -> dict[str, Any]:
    """Returns the sampling that is compared: one evaluation, or a deterministic way from noise."""
    if kind != "published":
        return {"mode": "mean"}
    return {"mode": "draws", "n_draws": 1, "antithetic": False, "sampler": "ddim", "steps": STEPS}


class Matrix:
    """One kind of model in every format.

    Args:
      kind: one of `KINDS`.
      model: the model.
      folder: where everything is written.
      pythons: interpreters of other environments: ``torch``, ``converter``, ``onnxruntime``.
    """

    def __init__(
        self, kind: str, model: Trained, folder: pathlib.Path, pythons: dict[str, str | None]
    ) -> None:
        self._kind, self._model, self._folder, self._pythons = kind, model, folder, pythons
        self._sampling = model.card.task.sampling(**sampling_of(kind))
        rng = np.random.default_rng(1)
        given = rng.normal(size=(SPOTS, model.card.contract.width)).astype(np.float32)
        np.save(folder / "given.npy", given)
        keys = sampler.spot_keys(SEED, SLIDE, BARCODES)
        run = tasks.make_predictor(model.card.task, self._sampling)
        fitted = model.card.space
        self._expected = fitted.values(run(model.params, fitted.encode_condition(given), keys))[0]
        noise = sampler.initial_noise(keys, n_draws=1, genes=len(fitted.genes), antithetic=False)
        np.save(folder / "noise.npy", np.asarray(noise)[0])
        about = {
            "sampling": sampling_of(kind), "seed": SEED, "slide": SLIDE, "barcodes": BARCODES,
            "loop": str(EXAMPLES / "onnx_ddim.py"), "noise": str(folder / "noise.npy"),
            "steps": STEPS,
        }  # fmt: skip
        (folder / "about.json").write_text(json.dumps(about))

    def cell(self, format_: str) -> dict[str, Any]:
        """Returns what came of a format."""
        line: dict[str, Any] = {"kind": self._kind, "format": format_}
        python, missing = self._python(format_)
        if missing:
            return {**line, "not_tried": missing}
        started = time.perf_counter()
        made = self._write(format_)
        line["made_s"] = time.perf_counter() - started
        files = [made] if made.is_file() else [f for f in made.rglob("*") if f.is_file()]
        line["bytes"] = sum(file.stat().st_size for file in files)
        out = self._folder / f"{format_}.{'npz' if made.suffix == '.pt' else 'npy'}"
        started = time.perf_counter()
        said = _run(
            [python, "-c", LOADERS[format_] + _LAST_LINE, str(made),
             str(self._folder / "given.npy"), str(self._folder / "about.json"), str(out)]
        )  # fmt: skip
        line["process_s"] = time.perf_counter() - started
        line |= json.loads(said.strip().splitlines()[-1])
        line["absent"] = [m for m in PROMISED_ABSENT[format_] if m not in line["modules"]]
        line["present"] = [m for m in PROMISED_ABSENT[format_] if m in line["modules"]]
        line["apart"] = self._apart(out)
        return line

    def _python(self, format_: str) -> tuple[str, str]:
        """The interpreter that loads a format, or what is missing."""
        if format_ in ("bundle", "stablehlo"):
            return sys.executable, ""
        needed = ("torch",) if format_ == "torch" else ("converter", "onnxruntime")
        absent = [f"--{name}" for name in needed if not self._pythons[name]]
        return str(self._pythons[needed[-1]]), f"needs {' and '.join(absent)}" if absent else ""

    def _write(self, format_: str) -> pathlib.Path:
        path = self._folder / format_
        if format_ == "bundle":
            bundle.write(self._model, path)
        elif format_ == "stablehlo":
            program.write(self._model, path, sampling=self._sampling)
        elif format_ == "torch" and self._kind == "published":
            path = path.with_suffix(".pt")
            published.write(self._model, path)
        elif format_ == "torch":
            torch_edm.write(self._model, path)
        else:
            source = self._folder / "for_onnx"
            bundle.write(self._model, source)
            script = str(EXAMPLES / "export_onnx.py")
            _run([str(self._pythons["converter"]), script, str(source), "-o", str(path)])
        return path

    def _apart(self, out: pathlib.Path) -> float:
        if out.suffix == ".npz":
            found = np.load(out, allow_pickle=False)
            wanted = published.to_state(self._model.params)
            assert set(found.files) == set(wanted)
            return max(float(np.abs(found[name] - wanted[name]).max()) for name in wanted)
        found = np.load(out, allow_pickle=False)
        return float(np.abs(found - self._expected).max() / np.abs(self._expected).max())


def _run(command: list[str]) -> str:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout


def tables(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    import samplers

    head = [
        "model",
        "format",
        "made s",
        "MB",
        "process s",
        "call ms",
        "apart",
        "not in the process",
    ]
    cells = []
    for line in result["lines"]:
        if "not_tried" in line:
            cells.append([line["kind"], line["format"], line["not_tried"], *[""] * 5])
            continue
        absent = ", ".join(line["absent"])
        if line["present"]:
            absent += f"; but {', '.join(line['present'])} is"
        call = "" if line["call_ms"] is None else f"{line['call_ms']:.0f}"
        cells.append([
            line["kind"], line["format"], f"{line['made_s']:.1f}", f"{line['bytes'] / 1e6:.1f}",
            f"{line['process_s']:.1f}", call, f"{line['apart']:.1e}", absent,
        ])  # fmt: skip
    size = result["size"]
    return (
        f"{SPOTS} spots, {size['genes']} genes, embeddings of {size['cond']}, width "
        f"{size['width']}, depth {size['depth']}; drawn weights.\n\n"
        + samplers.markdown(head, cells)
    )


def main() -> None:
    """Makes every cell, prints a line for each, writes the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small models")
    parser.add_argument("--json", type=pathlib.Path, metavar="OUT", help="write the result here")
    for name, what in (
        ("torch", "that has torch"),
        ("converter", "that has stemjax and jax2onnx"),
        ("onnxruntime", "that has numpy and onnxruntime"),
    ):
        parser.add_argument(f"--{name}", metavar="PYTHON", help=f"an interpreter {what}")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    size = {"width": 384, "depth": 12, "heads": 6, "genes": 200, "cond": 1536}
    if args.quick:
        size = {"width": 32, "depth": 2, "heads": 2, "genes": 16, "cond": 24}
    pythons = {name: getattr(args, name) for name in ("torch", "converter", "onnxruntime")}
    about, lines = harness.surroundings(), []
    with tempfile.TemporaryDirectory() as scratch:
        for kind in KINDS:
            folder = pathlib.Path(scratch) / kind
            folder.mkdir()
            matrix = Matrix(kind, make_model(kind, **size), folder, pythons)
            for format_ in FORMATS:
                line = matrix.cell(format_)
                lines.append(line)
                harness.emit(line)
    result = harness.result("export_matrix", about, None, lines, size=size, quick=args.quick)
    print(tables(result))
    if args.json:
        harness.save(args.json, result)


if __name__ == "__main__":
    main()
