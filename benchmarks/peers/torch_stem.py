"""Stem's denoiser and its DDPM process in PyTorch, written from a specification to compare with.

Papers: DDPM (arXiv 2006.11239), improved DDPM (arXiv 2102.09672), DiT (arXiv 2212.09748) and
Stem (arXiv 2501.15598). Nothing here is shared with the package under test.

The one PyTorch implementation in the repository: `torch_driver.py` times it, and
tests/parity/make_fixtures.py writes what the package is tested against with it. It runs in an
environment of its own (any Python from 3.11 with torch and numpy); the package has no torch.
"""
# pyright: reportMissingImports=false

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(values [b, g], level [b], condition [b, c]) -> [b, 2, g]."""


def sinusoid(t: Tensor) -> Tensor:
    """Cosines then sines of the raw noise level `t` [b] -> [b, 256] (DiT, arXiv 2212.09748)."""
    index = torch.arange(128, dtype=t.dtype, device=t.device)
    angle = t[:, None] * torch.exp(-math.log(10000.0) * index / 128)[None]
    return torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm of the tokens [b, g, d], then a row's own shift and scale [b, d]; no affine."""
    normed = nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6)
    return normed * (1 + scale[:, None]) + shift[:, None]


class GeneEmbed(nn.Module):
    """One token per gene: its learned name vector plus an embedding of its value (Stem)."""

    def __init__(self, genes: int, width: int) -> None:
        super().__init__()
        self.gene_name_ebd = nn.Parameter(torch.empty(genes, width))
        self.gene_count_ebd = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [b, g, d] of values [b, g]."""
        return self.gene_name_ebd[None] + self.gene_count_ebd(x[..., None])


class TimeEmbed(nn.Module):
    """The noise level as a vector: sinusoid, Linear, SiLU, Linear (DiT)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """[b, d] of levels [b]; the angles in float32, since half precision cannot hold 999."""
        return self.mlp(sinusoid(t.to(torch.float32)).to(self.mlp[0].weight.dtype))


class Attention(nn.Module):
    """Self-attention with one fused projection laid out (3, heads, head width).

    ``fused`` takes torch's own attention kernel, as the published network does; without it every
    score is written out, which is what the fixtures were made with.
    """

    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[b, g, d] of tokens [b, g, d]."""
        b, g, d = x.shape
        q, k, v = self.qkv(x).reshape(b, g, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        if self.fused:
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            scores = (q * (d // self.heads) ** -0.5) @ k.transpose(-2, -1)
            mixed = torch.softmax(scores, dim=-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(b, g, d))


class Mlp(nn.Module):
    """Linear, GELU (tanh form), Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[b, g, d] of tokens [b, g, d]."""
        return self.fc2(nn.functional.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Transformer block with adaptive LayerNorm and gated residuals (DiT, adaLN-Zero)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, fused: bool) -> None:
        super().__init__()
        self.attn = Attention(width, heads, fused)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens [b, g, d], under a condition [b, d]."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, -1)
        x = x + gate_a[:, None] * self.attn(modulated_norm(x, shift_a, scale_a))
        return x + gate_m[:, None] * self.mlp(modulated_norm(x, shift_m, scale_m))


class FinalLayer(nn.Module):
    """Adaptive LayerNorm and the projection of each token to (eps, v)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(eps, v) of each token, [b, g, 2]."""
        shift, scale = self.adaLN_modulation(c).chunk(2, -1)
        return self.linear(modulated_norm(x, shift, scale))


class StemModel(nn.Module):
    """Stem's denoiser (arXiv 2501.15598): values x [b, g], level t [b], condition y [b, c]."""

    def __init__(
        self,
        genes: int,
        width: int,
        depth: int,
        heads: int,
        condition: int,
        mlp_ratio: float = 4,
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.gene_joint_embed = GeneEmbed(genes, width)
        self.time_embed = TimeEmbed(width)
        self.label_embed = nn.Sequential(
            nn.Linear(condition, condition), nn.SiLU(), nn.Linear(condition, width)
        )
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, fused) for _ in range(depth))
        self.final_layer = FinalLayer(width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Published start: Xavier; small normal for the parts of c; zero for adaLN and head."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.kaiming_uniform_(self.gene_joint_embed.gene_name_ebd, a=math.sqrt(5))
        for i in (0, 2):
            nn.init.normal_(self.time_embed.mlp[i].weight, std=0.02)
            nn.init.normal_(self.label_embed[i].weight, std=0.02)
        for part in (*self.blocks, self.final_layer):
            nn.init.zeros_(part.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return [b, 2, g]: channel 0 the noise eps, channel 1 the variance interpolation v."""
        c = self.time_embed(t) + self.label_embed(y)
        tokens = self.gene_joint_embed(x)
        for block in self.blocks:
            tokens = block(tokens, c)
        return self.final_layer(tokens, c).transpose(1, 2)


def linear_betas(steps: int = 1000) -> np.ndarray:
    """DDPM's linear schedule (arXiv 2006.11239), float64."""
    return np.linspace(1e-4, 0.02, steps, dtype=np.float64)


def space_timesteps(steps: int, n: int) -> list[int]:
    """The `n` of `steps` levels that a shortened chain keeps, ascending (improved DDPM)."""
    stride = (steps - 1) / (n - 1) if n > 1 else 1.0
    kept, position = [], 0.0
    for _ in range(n):
        kept.append(round(position))
        position += stride
    return kept


def respace(betas: np.ndarray, kept: Sequence[int]) -> Process:
    """Process over the kept levels: betas 1 - abar_i / abar_prev; the network sees `kept`."""
    abar = np.cumprod(1.0 - np.asarray(betas, np.float64))[list(kept)]
    return Process(1.0 - abar / np.append(1.0, abar[:-1]), kept)


def normal_kl(mean1: Tensor, logvar1: Tensor, mean2: Tensor, logvar2: Tensor) -> Tensor:
    """KL(N1 || N2) of diagonal Gaussians, entry by entry, in nats."""
    gap = (mean1 - mean2) ** 2 * torch.exp(-logvar2)
    return 0.5 * (logvar2 - logvar1 - 1.0 + torch.exp(logvar1 - logvar2) + gap)


def approx_cdf(x: Tensor) -> Tensor:
    """Tanh approximation of the standard normal cdf."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def discretised_nll(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """-log of the Gaussian mass in the bin x +- 1/255, edge bins open (improved DDPM), nats."""
    upper = approx_cdf(torch.exp(-log_scale) * (x - mean + 1 / 255))
    lower = approx_cdf(torch.exp(-log_scale) * (x - mean - 1 / 255))
    inner = torch.where(x > 0.999, 1.0 - lower, upper - lower)
    return -torch.log(torch.where(x < -0.999, upper, inner).clamp(min=1e-12))


class Process:
    """Gaussian diffusion with eps prediction and a learned-range variance (arXiv 2102.09672).

    `t` is always an index into this process; the network is given `timesteps[t]`. Constants are
    float64 and cast to the data's type where used, the whole table copied to the data's device at
    every look-up, as the published loop does it.
    """

    def __init__(self, betas: Any, timesteps: Sequence[int] | None = None) -> None:
        self.betas = np.asarray(betas, np.float64)
        self.timesteps = np.asarray(range(len(betas)) if timesteps is None else timesteps)
        self.abar = np.cumprod(1.0 - self.betas)
        before = np.append(1.0, self.abar[:-1])
        variance = self.betas * (1.0 - before) / (1.0 - self.abar)
        self.log_posterior = np.log(np.append(variance[1], variance[1:]))  # entry 0 is log 0
        self.log_beta = np.log(self.betas)
        self.weight_x0 = self.betas * np.sqrt(before) / (1.0 - self.abar)
        self.weight_xt = (1.0 - before) * np.sqrt(1.0 - self.betas) / (1.0 - self.abar)
        self.signal, self.noise = np.sqrt(self.abar), np.sqrt(1.0 - self.abar)
        self.inverse, self.inverse_m1 = np.sqrt(1 / self.abar), np.sqrt(1 / self.abar - 1)

    @staticmethod
    def at(values: np.ndarray, t: Tensor, like: Tensor) -> Tensor:
        """Constants of the rows' levels as a column [b, 1] of the type of `like`."""
        return torch.from_numpy(values).to(t.device)[t].to(like.dtype)[:, None]

    def apply(self, model: Network, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The network's output [b, 2, g], given the original integer timesteps."""
        return model(x, torch.from_numpy(self.timesteps).to(t.device)[t], y)

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t from x_0 and noise."""
        return self.at(self.signal, t, x0) * x0 + self.at(self.noise, t, x0) * noise

    def posterior_mean(self, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Mean of q(x_{t-1} | x_t, x_0)."""
        return self.at(self.weight_x0, t, x) * x0 + self.at(self.weight_xt, t, x) * x

    def reverse(self, out: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the model's p(x_{t-1} | x_t); predicted x_0 is not clipped."""
        eps, v = out[:, 0], out[:, 1]
        x0 = self.at(self.inverse, t, x) * x - self.at(self.inverse_m1, t, x) * eps
        frac = (v + 1) / 2
        low, high = self.at(self.log_posterior, t, x), self.at(self.log_beta, t, x)
        return self.posterior_mean(x0, x, t), frac * high + (1 - frac) * low

    def step(
        self, model: Network, x: Tensor, t: Tensor, y: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One ancestral step: x_{t-1}, its mean and its log variance."""
        mean, logvar = self.reverse(self.apply(model, x, t, y), x, t)
        return mean + (t > 0)[:, None] * torch.exp(0.5 * logvar) * noise, mean, logvar

    def chain(self, model: Network, x: Tensor, y: Tensor, noises: Tensor) -> Tensor:
        """All steps from x_T with stored noise [steps, b, g], the first step's first."""
        for i, noise in zip(reversed(range(len(self.betas))), noises, strict=True):
            x = self.step(model, x, torch.full((len(x),), i, device=x.device), y, noise)[0]
        return x

    def loop(self, model: Network, x: Tensor, y: Tensor, steps: int) -> Tensor:
        """The first ``steps`` steps as the published sampler takes them: fresh noise, no tables."""
        for i in list(range(len(self.betas)))[::-1][:steps]:
            t = torch.tensor([i] * len(x), device=x.device)
            x = self.step(model, x, t, y, torch.randn_like(x))[0]
        return x

    def training_terms(
        self, model: Network, x0: Tensor, t: Tensor, y: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Per-row mse, vb (bits; teaches v only) and their sum (improved DDPM, section 3.1)."""
        x = self.q_sample(x0, t, noise)
        out = self.apply(model, x, t, y)
        frozen = torch.stack([out[:, 0].detach(), out[:, 1]], dim=1)
        mean, logvar = self.reverse(frozen, x, t)
        truth = self.posterior_mean(x0, x, t)
        kl = normal_kl(truth, self.at(self.log_posterior, t, x), mean, logvar).mean(1)
        nll = discretised_nll(x0, mean, 0.5 * logvar).mean(1)
        vb = torch.where(t == 0, nll, kl) / math.log(2.0)
        mse = ((noise - out[:, 0]) ** 2).mean(1)
        return {"mse": mse, "vb": vb, "loss": mse + vb}
