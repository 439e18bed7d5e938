"""Draws gene profiles from an exported denoiser with numpy and onnxruntime alone: DDIM, eta = 0.

    python onnx_ddim.py FOLDER EMBEDDINGS.npy -o profiles.npy

FOLDER is what `export_onnx.py` wrote. EMBEDDINGS.npy holds a row a spot [n c], from the encoder
that config.json names. profiles.npy gets one sample a spot, or its mean with --mean [n g] float32
in the value space that config.json names as ``transform``, genes in the order given there.
"""

import argparse
import json
import pathlib

import numpy as np
import onnxruntime


def make_rungs(steps: int, *, sigma_min: float, sigma_max: float, rho: float) -> np.ndarray:
    """Returns the steps + 1 noise levels of EDM's ladder (arXiv 2206.00364, eq. 5), down to 0."""
    levels = np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps) ** rho
    return np.append(levels, 0.0).astype(np.float32)


class Model:
    """A denoiser and its spaces.

    Args:
      folder: holds denoiser.onnx and config.json.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # below that it reports on its own optimising
        path = str(folder / "denoiser.onnx")
        self.session = onnxruntime.InferenceSession(path, options)

    def space(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean and standard deviation of ``condition`` or ``expression``, float32."""
        values = self.config[name]
        return np.asarray(values["mean"], np.float32), np.asarray(values["std"], np.float32)

    def denoise(self, x: np.ndarray, sigma: float, cond: np.ndarray) -> np.ndarray:
        """Returns D(x; sigma) of each row, [n g]."""
        inputs = {"x": x, "sigma": np.full(len(x), sigma, np.float32), "cond": cond}
        return np.asarray(self.session.run(["x0"], inputs)[0])

    def mean(self, cond: np.ndarray) -> np.ndarray:
        """Returns E[x0 | cond], one evaluation, of a model that was trained to give it."""
        if not self.config["has_mean"]:
            raise SystemExit("this model has no mean token: average samples instead")
        zeros = np.zeros((len(cond), len(self.config["genes"])), np.float32)
        return self.denoise(zeros, np.inf, cond)

    def sample(self, cond: np.ndarray, noise: np.ndarray, steps: int) -> np.ndarray:
        """Returns a sample of x0 from each row of unit noise, [n g] in the model's space."""
        rungs = make_rungs(steps, **self.config["schedule"])
        # A residual model denoises x0 less its mean.
        centre = self.mean(cond) if self.config["residual"] else np.float32(0)
        x = rungs[0] * noise - centre
        for sigma, below in zip(rungs[:-1], rungs[1:]):
            denoised = self.denoise(x, sigma, cond)
            x = denoised + below / sigma * (x - denoised)
        return centre + x


def main() -> None:
    """Parses the command line and writes the profiles."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("embeddings", type=pathlib.Path)
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True)
    parser.add_argument("--mean", action="store_true", help="the mean instead of a sample")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=pathlib.Path, help="unit normal noise [n g] to begin with")
    parser.add_argument("--rows", type=int, default=64, help="spots at a time")
    args = parser.parse_args()
    model = Model(args.folder)
    mean, std = model.space("condition")
    cond = (np.load(args.embeddings).astype(np.float32) - mean) / std
    shape = (len(cond), len(model.config["genes"]))
    noise = np.random.default_rng(args.seed).standard_normal(shape, np.float32)
    if args.noise:
        noise = np.load(args.noise).astype(np.float32)
    profiles = np.empty(shape, np.float32)
    for start in range(0, len(cond), args.rows):
        rows = slice(start, start + args.rows)
        if args.mean:
            profiles[rows] = model.mean(cond[rows])
        else:
            profiles[rows] = model.sample(cond[rows], noise[rows], args.steps)
    mean, std = model.space("expression")
    profiles = profiles * std + mean
    np.save(args.output, profiles)
    best = [model.config["genes"][i] for i in profiles.mean(axis=0).argsort()[::-1][:3]]
    print(f"{args.output}: {shape[0]} spots, {shape[1]} genes, highest {', '.join(best)}")


if __name__ == "__main__":
    main()
