"""Stem's denoiser and its DDPM process in PyTorch, written from a specification to compare with.

Papers: DDPM (arXiv 2006.11239), improved DDPM (arXiv 2102.09672), DiT (arXiv 2212.09748) and
Stem (arXiv 2501.15598). Nothing here is shared with the package under test.
"""

import math

import numpy as np
import torch
from torch import nn


def sinusoid(t):
    """Cosines then sines of the raw noise level `t` [b] -> [b, 256] (DiT, arXiv 2212.09748)."""
    index = torch.arange(128, dtype=t.dtype, device=t.device)
    angle = t[:, None] * torch.exp(-math.log(10000.0) * index / 128)[None]
    return torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)


def modulated_norm(x, shift, scale):
    """LayerNorm of the tokens [b, g, d], then a row's own shift and scale [b, d]; no affine."""
    normed = nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6)
    return normed * (1 + scale[:, None]) + shift[:, None]


class GeneEmbed(nn.Module):
    """One token per gene: its learned name vector plus an embedding of its value (Stem)."""

    def __init__(self, genes, width):
        super().__init__()
        self.gene_name_ebd = nn.Parameter(torch.empty(genes, width))
        self.gene_count_ebd = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x):
        return self.gene_name_ebd[None] + self.gene_count_ebd(x[..., None])


class TimeEmbed(nn.Module):
    """The noise level as a vector: sinusoid, Linear, SiLU, Linear (DiT)."""

    def __init__(self, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t):
        return self.mlp(sinusoid(t.to(self.mlp[0].weight.dtype)))


class Attention(nn.Module):
    """Self-attention with one fused projection laid out (3, heads, head width)."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        b, g, d = x.shape
        q, k, v = self.qkv(x).reshape(b, g, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        weights = torch.softmax((q * (d // self.heads) ** -0.5) @ k.transpose(-2, -1), dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, g, d))


class Mlp(nn.Module):
    """Linear, GELU (tanh form), Linear."""

    def __init__(self, width, hidden):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(nn.functional.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Transformer block with adaptive LayerNorm and gated residuals (DiT, adaLN-Zero)."""

    def __init__(self, width, heads, mlp_ratio):
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, c):
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, -1)
        x = x + gate_a[:, None] * self.attn(modulated_norm(x, shift_a, scale_a))
        return x + gate_m[:, None] * self.mlp(modulated_norm(x, shift_m, scale_m))


class FinalLayer(nn.Module):
    """Adaptive LayerNorm and the projection of each token to (eps, v)."""

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, 2)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c).chunk(2, -1)
        return self.linear(modulated_norm(x, shift, scale))


class StemModel(nn.Module):
    """Stem's denoiser (arXiv 2501.15598): values x [b, g], level t [b], condition y [b, c]."""

    def __init__(self, genes, width, depth, heads, condition, mlp_ratio=4):
        super().__init__()
        self.gene_joint_embed = GeneEmbed(genes, width)
        self.time_embed = TimeEmbed(width)
        self.label_embed = nn.Sequential(
            nn.Linear(condition, condition), nn.SiLU(), nn.Linear(condition, width)
        )
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.final_layer = FinalLayer(width)
        self.reset_parameters()

    def reset_parameters(self):
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

    def forward(self, x, t, y):
        """Return [b, 2, g]: channel 0 the noise eps, channel 1 the variance interpolation v."""
        c = self.time_embed(t) + self.label_embed(y)
        tokens = self.gene_joint_embed(x)
        for block in self.blocks:
            tokens = block(tokens, c)
        return self.final_layer(tokens, c).transpose(1, 2)


def linear_betas(steps=1000):
    """DDPM's linear schedule (arXiv 2006.11239), float64."""
    return np.linspace(1e-4, 0.02, steps, dtype=np.float64)


def space_timesteps(steps, n):
    """The `n` of `steps` levels that a shortened chain keeps, ascending (improved DDPM)."""
    stride = (steps - 1) / (n - 1) if n > 1 else 1.0
    kept, position = [], 0.0
    for _ in range(n):
        kept.append(round(position))
        position += stride
    return kept


def respace(betas, kept):
    """Process over the kept levels: betas 1 - abar_i / abar_prev; the network sees `kept`."""
    abar = np.cumprod(1.0 - np.asarray(betas, np.float64))[list(kept)]
    return Process(1.0 - abar / np.append(1.0, abar[:-1]), kept)


def normal_kl(mean1, logvar1, mean2, logvar2):
    """KL(N1 || N2) of diagonal Gaussians, entry by entry, in nats."""
    gap = (mean1 - mean2) ** 2 * torch.exp(-logvar2)
    return 0.5 * (logvar2 - logvar1 - 1.0 + torch.exp(logvar1 - logvar2) + gap)


def approx_cdf(x):
    """Tanh approximation of the standard normal cdf."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def discretised_nll(x, mean, log_scale):
    """-log of the Gaussian mass in the bin x +- 1/255, edge bins open (improved DDPM), nats."""
    upper = approx_cdf(torch.exp(-log_scale) * (x - mean + 1 / 255))
    lower = approx_cdf(torch.exp(-log_scale) * (x - mean - 1 / 255))
    inner = torch.where(x > 0.999, 1.0 - lower, upper - lower)
    return -torch.log(torch.where(x < -0.999, upper, inner).clamp(min=1e-12))


class Process:
    """Gaussian diffusion with eps prediction and a learned-range variance (arXiv 2102.09672).

    `t` is always an index into this process; the network is given `timesteps[t]`. Constants are
    float64 and cast to the data's type where used.
    """

    def __init__(self, betas, timesteps=None):
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
    def at(values, t, like):
        """Constants of the rows' levels as a column [b, 1] of the type of `like`."""
        return torch.from_numpy(values)[t].to(like.dtype)[:, None]

    def apply(self, model, x, t, y):
        """The network's output [b, 2, g], given the original integer timesteps."""
        return model(x, torch.from_numpy(self.timesteps)[t], y)

    def q_sample(self, x0, t, noise):
        """x_t from x_0 and noise."""
        return self.at(self.signal, t, x0) * x0 + self.at(self.noise, t, x0) * noise

    def posterior_mean(self, x0, x, t):
        """Mean of q(x_{t-1} | x_t, x_0)."""
        return self.at(self.weight_x0, t, x) * x0 + self.at(self.weight_xt, t, x) * x

    def reverse(self, out, x, t):
        """Mean and log variance of the model's p(x_{t-1} | x_t); predicted x_0 is not clipped."""
        eps, v = out[:, 0], out[:, 1]
        x0 = self.at(self.inverse, t, x) * x - self.at(self.inverse_m1, t, x) * eps
        frac = (v + 1) / 2
        low, high = self.at(self.log_posterior, t, x), self.at(self.log_beta, t, x)
        return self.posterior_mean(x0, x, t), frac * high + (1 - frac) * low

    def step(self, model, x, t, y, noise):
        """One ancestral step: x_{t-1}, its mean and its log variance."""
        mean, logvar = self.reverse(self.apply(model, x, t, y), x, t)
        return mean + (t > 0)[:, None] * torch.exp(0.5 * logvar) * noise, mean, logvar

    def chain(self, model, x, y, noises):
        """All steps from x_T with stored noise [steps, b, g], the first step's first."""
        for i, noise in zip(reversed(range(len(self.betas))), noises, strict=True):
            x = self.step(model, x, torch.full((len(x),), i), y, noise)[0]
        return x

    def training_terms(self, model, x0, t, y, noise):
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
