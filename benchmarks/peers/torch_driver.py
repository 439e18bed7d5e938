"""The PyTorch side of `ab.py`: answers what it is asked over standard input and output.

    PYTHON benchmarks/peers/torch_driver.py      # started by ab.py --torch-python PYTHON

PYTHON is the interpreter of an environment of its own (Python 3.11 or later) with torch >= 2.6 and
numpy; the package's environment never has torch. Requests are in `Driver`, the wire in
`protocol.py`. ``torch.compile`` needs a C++ compiler on a CPU and Triton on a GPU; a variant that
cannot be made says why and is left out.
"""
# pyright: reportMissingImports=false

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import protocol
import torch
import torch_samplers
import torch_stem
from torch import Tensor

Job = dict[str, Any]
Call = Callable[[], Tensor]


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to run the network.

    ``strict`` keeps float32 products in float32 on a GPU, for comparing numbers; elsewhere TF32 is
    taken there, as the published code sets it.
    """

    dtype: torch.dtype = torch.float32
    compiled: bool = False
    strict: bool = False


VARIANTS = {
    "exact": Variant(strict=True),
    "eager": Variant(),
    "compiled": Variant(compiled=True),
    "bf16": Variant(dtype=torch.bfloat16),
    "bf16 compiled": Variant(dtype=torch.bfloat16, compiled=True),
}


class Driver:
    """Answers the requests of `ab.py`; each method is one, and what it returns goes back."""

    def __init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.process = torch_stem.Process(torch_stem.linear_betas())
        self.calls: dict[tuple[str, str], Call] = {}
        self.networks: dict[str, torch_stem.Network] = {}
        self.arrays: dict[str, Tensor] = {}
        self.state: dict[str, Tensor] = {}
        self.size: dict[str, Any] = {}

    def hello(self, threads: int) -> dict[str, Any]:
        """Takes so many threads, and tells versions, device and libraries."""
        torch.set_num_threads(threads)
        on_gpu = self.device.type == "cuda"
        return {
            "variants": list(VARIANTS),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or "cpu",
            "platform": self.device.type,
            "threads": torch.get_num_threads(),
            "interop_threads": torch.get_num_interop_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "mkl": torch.backends.mkl.is_available(),
            "onednn": torch.backends.mkldnn.is_available(),
            "cuda": torch.version.cuda,
            "compiler": shutil.which(os.environ.get("CXX", "g++")) is not None,
            "parallel": " ".join(torch.__config__.parallel_info().split())[:1000],
        }

    def load(self, weights: str, arrays: str, size: dict[str, Any]) -> dict[str, Any]:
        """Reads the weights (published names) and the inputs; ``size`` makes the network."""
        with np.load(weights, allow_pickle=False) as found:
            self.state = {name: torch.from_numpy(found[name]) for name in found.files}
        with np.load(arrays, allow_pickle=False) as found:
            self.arrays = {name: torch.from_numpy(found[name]) for name in found.files}
        self.arrays = {name: value.to(self.device) for name, value in self.arrays.items()}
        self.size = size
        return {"parameters": sum(value.numel() for value in self.state.values())}

    def prepare(self, variant: str, job: Job) -> dict[str, Any]:
        """Makes a call and makes it once: ``{"first": seconds}``, or why it cannot be."""
        self._settings(variant)
        try:
            seconds = self._seconds(self._call(variant, job))
        except Exception as problem:  # compilers fail in their own ways
            if not VARIANTS[variant].compiled:
                raise
            text = " ".join(str(problem).split())[:300]
            return {"unavailable": f"torch.compile: {type(problem).__name__}: {text}"}
        return {"first": seconds}

    def run(self, variant: str, job: Job, out: str) -> dict[str, Any]:
        """Writes what a call gives, float32, as .npy."""
        self._settings(variant)
        answer = self._call(variant, job)()
        np.save(out, answer.float().cpu().numpy(), allow_pickle=False)
        return {}

    def time(self, variant: str, job: Job, calls: int) -> dict[str, Any]:
        """The seconds of each of so many calls, each waited for."""
        self._settings(variant)
        call = self._call(variant, job)
        return {"seconds": [self._seconds(call) for _ in range(calls)]}

    def _seconds(self, call: Call) -> float:
        self._wait()
        started = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _settings(self, variant: str) -> None:
        torch.set_float32_matmul_precision("highest" if VARIANTS[variant].strict else "high")
        torch.backends.cudnn.allow_tf32 = not VARIANTS[variant].strict

    def _network(self, name: str) -> torch_stem.Network:
        """The network of a variant: float32 in and out, whatever it computes in."""
        if name in self.networks:
            return self.networks[name]
        variant = VARIANTS[name]
        model = torch_stem.StemModel(**self.size, fused=True)
        model.load_state_dict(self.state, strict=True)
        model = model.to(self.device, variant.dtype).eval()
        run: Any = model
        if variant.compiled and self.device.type == "cuda":
            run = torch.compile(model, mode="max-autotune", dynamic=False)
        elif variant.compiled:
            import torch._inductor.config as inductor

            inductor.freezing = True
            run = torch.compile(model, dynamic=False)

        def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            return run(x.to(variant.dtype), t.float(), y.to(variant.dtype)).float()

        self.networks[name] = network
        return network

    def _call(self, variant: str, job: Job) -> Call:
        """The call of a job, with its inputs on the device; the same for the same job."""
        key = variant, repr(sorted(job.items()))
        if key not in self.calls:
            made = getattr(self, f"_{job['kind']}")(self._network(variant), job)
            self.calls[key] = torch.no_grad()(made)
        return self.calls[key]

    def _forward(self, network: torch_stem.Network, job: Job) -> Call:
        """One forward pass, at most ``chunk`` rows at a time."""
        given = (self.arrays[name][: job["batch"]].clone() for name in ("x", "t", "cond"))
        parts = list(zip(*(array.split(job["chunk"]) for array in given), strict=True))
        return lambda: torch.cat([network(*part) for part in parts])

    def _mean(self, network: torch_stem.Network, job: Job) -> Call:
        cond = self.arrays["cond"][: job["spots"]].clone()
        form = torch_samplers.Edm(sigma_data=job["sigma_data"])
        return lambda: form.mean(network, cond, self.size["genes"])

    def _pair(self, network: torch_stem.Network, job: Job) -> Call:
        """An antithetic pair a spot, [2 spots, g] spot-major, at most ``chunk`` rows at a time."""
        unit = self.arrays["unit"][: job["spots"]]
        cond = self.arrays["cond"][: job["spots"]].repeat_interleave(2, dim=0)
        rows = torch.stack([unit, -unit], dim=1).reshape(len(cond), -1)
        form: torch_samplers.Form = torch_samplers.Published(self.process)
        if job["process"] == "edm":
            form = torch_samplers.Edm(sigma_data=job["sigma_data"])
        rungs = torch_samplers.karras(job["steps"], job["low"], job["high"])
        parts = list(zip(cond.split(job["chunk"]), rows.split(job["chunk"]), strict=True))

        def call() -> Tensor:
            found = [
                torch_samplers.sample(network, c, z, form=form, rungs=rungs, rule=job["rule"])
                for c, z in parts
            ]
            return torch.cat(found)

        return call

    def _ancestral(self, network: torch_stem.Network, job: Job) -> Call:
        """A whole shortened chain with the noise of both sides."""
        kept = torch_stem.space_timesteps(len(self.process.betas), job["kept"])
        process = torch_stem.respace(self.process.betas, kept)
        spots = job["spots"]
        x, y = self.arrays["unit"][:spots], self.arrays["cond"][:spots]
        noise = self.arrays["noise"][:, :spots]
        return lambda: process.chain(network, x, y, noise)

    def _published(self, network: torch_stem.Network, job: Job) -> Call:
        """The first steps of the published loop over the rows of one batch."""
        spots = -(-job["rows"] // job["draws"])
        cond = self.arrays["cond"][:spots].repeat_interleave(job["draws"], dim=0)[: job["rows"]]
        x = torch.randn(job["rows"], self.size["genes"], device=self.device)
        return lambda: self.process.loop(network, x, cond, job["steps"])


def main() -> None:
    """Answers until the parent closes the line."""
    driver = Driver()
    names = ("hello", "load", "prepare", "run", "time")
    protocol.serve({name: getattr(driver, name) for name in names})


if __name__ == "__main__":
    main()
