"""Few-step samplers around a PyTorch network, written from their papers to compare with.

A state is z = alpha x0 + s n. EDM (Karras et al. 2022, arXiv 2206.00364) has alpha = 1 and s the
noise level sigma; the published process has alpha² + s² = 1 and sigma = s / alpha. The rules are
DDIM (arXiv 2010.02502, eq. 12, eta = 0) and DPM-Solver++(2M) (arXiv 2211.01095, Algorithm 2), both
in their papers' own (alpha, s) form. All scalars are worked out before the first step, in float64,
so that a step costs the network and a few products.
"""
# pyright: reportMissingImports=false

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch_stem import Network, Process

MEAN_LEVEL = 250 * math.log(1e5)
"""The level that the network is shown at sigma = inf."""

Denoise = Callable[[Tensor, int], Tensor]
"""(state, number of the step) -> estimate of x0."""


def karras(steps: int, low: float, high: float, rho: float = 7.0) -> np.ndarray:
    """EDM's levels (eq. 5), falling from ``high`` to ``low``, then 0; float32 [steps + 1]."""
    ramp = np.arange(steps) / max(1, steps - 1)
    levels = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return np.append(levels, 0.0).astype(np.float32)


def published_levels(process: Process) -> np.ndarray:
    """The process's sigma at each of its steps, rising, float64."""
    return np.sqrt((1 - process.abar) / process.abar)


@dataclasses.dataclass(frozen=True)
class Edm:
    """A network in EDM's form: D = c_skip z + c_out F(c_in z, 250 ln sigma)."""

    sigma_data: float = 1.0

    def weights(self, sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(alpha, s) of each level, float64."""
        return np.ones_like(sigmas), sigmas

    def denoiser(self, network: Network, cond: Tensor, sigmas: np.ndarray) -> Denoise:
        """The denoiser at the levels ``sigmas``, the last one (0) left out."""
        data, total = self.sigma_data, sigmas**2 + self.sigma_data**2
        skip, scale = data**2 / total, 1 / np.sqrt(total)
        out, levels = sigmas * data * scale, 250 * np.log(sigmas)

        def denoise(z: Tensor, i: int) -> Tensor:
            level = torch.full((len(z),), float(levels[i]), device=z.device)
            answer = network(float(scale[i]) * z, level, cond)[:, 0]
            return float(skip[i]) * z + float(out[i]) * answer

        return denoise

    def mean(self, network: Network, cond: Tensor, genes: int) -> Tensor:
        """D(0; inf) = sigma_data F(0, `MEAN_LEVEL`), the conditional mean [b, g]."""
        zeros = torch.zeros(len(cond), genes, device=cond.device)
        level = torch.full((len(cond),), MEAN_LEVEL, device=cond.device)
        return self.sigma_data * network(zeros, level, cond)[:, 0]


@dataclasses.dataclass(frozen=True)
class Published:
    """The published network, which predicts the noise: x0 = (z - s eps) / alpha."""

    process: Process

    def weights(self, sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(alpha, s) of each level, float64."""
        alpha = 1 / np.hypot(1.0, sigmas)
        return alpha, sigmas * alpha

    def denoiser(self, network: Network, cond: Tensor, sigmas: np.ndarray) -> Denoise:
        """The denoiser at the levels ``sigmas``; between two time steps t is linear in ln sigma."""
        known = np.log(published_levels(self.process))
        times = np.interp(np.log(sigmas), known, np.arange(len(known)))
        alpha, s = self.weights(sigmas)

        def denoise(z: Tensor, i: int) -> Tensor:
            t = torch.full((len(z),), float(times[i]), device=z.device)
            return (z - float(s[i]) * network(z, t, cond)[:, 0]) / float(alpha[i])

        return denoise


Form = Edm | Published


@torch.no_grad()
def sample(
    network: Network, cond: Tensor, unit: Tensor, *, form: Form, rungs: np.ndarray, rule: str
) -> Tensor:
    """Draws of x0 [b, g] from unit noise [b, g], one evaluation a step.

    ``rule`` is "ddim" or "dpmpp2m"; ``rungs`` falls and ends with 0.
    """
    sigmas = rungs.astype(np.float64)
    alpha, s = form.weights(sigmas)
    denoise = form.denoiser(network, cond, sigmas[:-1])
    z = float(s[0]) * unit
    before = None
    for i in range(len(sigmas) - 1):
        x0 = target = denoise(z, i)
        if rule == "dpmpp2m" and before is not None and sigmas[i + 1] > 0:
            # r = h_prev / h with lambda = ln(alpha / s) = -ln sigma.
            r = math.log(sigmas[i - 1] / sigmas[i]) / math.log(sigmas[i] / sigmas[i + 1])
            target = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
        before = x0
        if rule == "ddim":
            noise = (z - float(alpha[i]) * x0) / float(s[i])
            z = float(alpha[i + 1]) * x0 + float(s[i + 1]) * noise
        else:
            ratio = s[i + 1] / s[i]
            # alpha_next (1 - exp(-h)), multiplied out, which has its limit at s_next = 0.
            z = float(ratio) * z + float(alpha[i + 1] - alpha[i] * ratio) * target
    return z
