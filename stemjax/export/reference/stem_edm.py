"""A Stem model of the EDM process in PyTorch: network, preconditioning, samplers, and its spaces.

This file stands beside the ``model.safetensors`` and ``config.json`` that it reads, and needs torch
alone (safetensors is used where it is installed). Take it, change it, import it::

    import stem_edm

    model = stem_edm.load("exported").to("cuda")
    cond = model.encode(embeddings)           # [b c] embeddings of the encoder in config.json
    mean = model.decode(model.mean(cond))     # one evaluation a spot
    draw = model.decode(model.sample(cond, steps=18, sampler="heun"))  # one sample a spot

`encode` takes embeddings to the network's input and `decode` takes what the network's space holds
to the value space of ``config["transform"]``, such as log2(count + 1); columns are ``model.genes``.
Several samples a spot: ``model.sample(cond.repeat_interleave(20, 0))``.

Noise: x = x0 + sigma n, n of unit normal law, sigma in units of the model's space. The mean token
is the level sigma = inf, where x says nothing and the answer is E[x0 | cond]. Where the
configuration says ``residual``, x0 less that mean is what is diffused.

References: DiT (arXiv 2212.09748), EDM (arXiv 2206.00364), DDIM (arXiv 2010.02502), Stem (arXiv
2501.15598). Shapes: b rows, g genes, c embedding features, d width, h heads, k head width.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

FORMAT = "stem-edm-1"
NOISE_FEATURES = 256
SIGMA_LIMIT = 1e5  # where the network's noise level stops growing; sigma = inf is shown as this

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x [b g], sigma [b] or a scalar) -> the expected x0 [b g]; the condition is bound."""


class Mlp(nn.Module):
    """Linear, activation, Linear."""

    def __init__(self, inside: int, hidden: int, out: int, activation: Callable) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(inside, hidden), nn.Linear(hidden, out)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """The output."""
        return self.fc2(self.activation(self.fc1(x)))


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form."""
    return functional.gelu(x, approximate="tanh")


class Modulation(nn.Module):
    """Vectors from the condition, one for each part: [b 1 d] each."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(width, parts * width)

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:
        """The vectors, ready to broadcast over tokens."""
        return self.linear(functional.silu(c))[:, None].chunk(self.parts, dim=-1)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without parameters of its own, then scale and shift."""
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class Attention(nn.Module):
    """Self-attention of all tokens; the rows of qkv are laid out (3, h, k)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """The attended tokens."""
        b, g, d = x.shape
        q, k, v = self.qkv(x).reshape(b, g, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(b, g, d))


class Block(nn.Module):
    """A transformer block with adaLN-Zero conditioning; with 0 heads, without attention."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.modulation = Modulation(width, 6 if heads else 3)
        self.attn = Attention(width, heads) if heads else None
        self.mlp = Mlp(width, mlp_ratio * width, width, gelu)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """The tokens after the block."""
        *of_attention, shift, scale, gate = self.modulation(c)
        if self.attn is not None:
            shift_attn, scale_attn, gate_attn = of_attention
            x = x + gate_attn * self.attn(modulated(x, shift_attn, scale_attn))
        return x + gate * self.mlp(modulated(x, shift, scale))


def make_blocks(size: dict, heads: int) -> nn.ModuleList:
    """As many blocks as the network is deep."""
    made = (Block(size["width"], heads, size["mlp_ratio"]) for _ in range(size["depth"]))
    return nn.ModuleList(made)


class Head(nn.Module):
    """Modulated LayerNorm and a Linear."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.modulation = Modulation(width, 2)
        self.linear = nn.Linear(width, out)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """The output, channels last."""
        return self.linear(modulated(x, *self.modulation(c)))


class GeneTokens(nn.Module):
    """A token a gene: its name vector plus an embedding of its noisy expression."""

    def __init__(self, genes: int, width: int) -> None:
        super().__init__()
        self.name = nn.Parameter(torch.randn(genes, width))
        self.value = Mlp(1, width, width, functional.silu)

    def forward(self, x: Tensor) -> Tensor:
        """The tokens, [b g d]."""
        return self.name + self.value(x[..., None])


class Network(nn.Module):
    """What both networks have in common: embeddings of noise level and condition."""

    def __init__(self, condition: int, width: int) -> None:
        super().__init__()
        self.noise = Mlp(NOISE_FEATURES, width, width, functional.silu)
        self.condition = Mlp(condition, condition, width, functional.silu)
        # In float64: phases reach 2878, where float32 has few digits to lose.
        half = NOISE_FEATURES // 2
        frequencies = torch.exp(-math.log(10000) / half * torch.arange(half, dtype=torch.float64))
        self.register_buffer("frequencies", frequencies.float(), persistent=False)

    def combine(self, level: Tensor, embedded: Tensor) -> Tensor:
        """The sum of the noise levels' and the conditions' embeddings, [b d]."""
        phase = level[:, None] * self.frequencies[None]
        return self.noise(torch.cat([phase.cos(), phase.sin()], dim=-1)) + embedded


class Stem(Network):
    """A diffusion transformer whose tokens are genes; they have no order."""

    def __init__(self, genes: int, condition: int, channels: int, size: dict) -> None:
        width = size["width"]
        super().__init__(condition, width)
        self.tokens = GeneTokens(genes, width)
        self.blocks = make_blocks(size, size["heads"])
        self.head = Head(width, channels)

    def forward(self, x: Tensor, level: Tensor, embedded: Tensor) -> Tensor:
        """The raw output [b o g], o channels, of scaled profiles [b g] at noise levels [b]."""
        c = self.combine(level, embedded)
        tokens = self.tokens(x)
        for block in self.blocks:
            tokens = block(tokens, c)
        return self.head(tokens, c).transpose(1, 2)


class Vector(nn.Module):
    """The panel through one vector."""

    def __init__(self, genes: int, channels: int, size: dict) -> None:
        super().__init__()
        width = size["width"]
        self.read = nn.Linear(genes, width)
        self.blocks = make_blocks(size, heads=0)
        self.head = Head(width, channels * genes)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """The output [b og], channel after channel."""
        vector = self.read(x)[:, None]
        for block in self.blocks:
            vector = block(vector, c)
        return self.head(vector, c)[:, 0]


class Latents(nn.Module):
    """The panel through a few latent tokens, which find their genes by the genes' name vectors."""

    def __init__(self, genes: int, channels: int, size: dict) -> None:
        super().__init__()
        d, m, self.heads = size["width"], size["latents"], size["heads"]
        self.name, self.value = (nn.Parameter(torch.randn(genes, d)) for _ in range(2))
        self.latent, self.query, self.answer = (nn.Parameter(torch.randn(m, d)) for _ in range(3))
        self.blocks = make_blocks(size, self.heads)
        self.modulation = Modulation(d, 2)
        self.output = nn.Parameter(torch.zeros(channels, genes, d))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """The output [b og], channel after channel."""
        gather = self._scores(self.query).softmax(dim=2)
        read = torch.einsum("bg,hmg,ghk->bmhk", x, gather, self._split(self.value))
        tokens = self.latent + x.shape[1] ** 0.5 * read.flatten(2)
        for block in self.blocks:
            tokens = block(tokens, c)
        tokens = self._split(modulated(tokens, *self.modulation(c)))
        give = self._scores(self.answer).softmax(dim=1)
        out = torch.einsum("bmhk,hmg,oghk->bog", tokens, give, self._split(self.output))
        return out.flatten(1)

    def _split(self, table: Tensor) -> Tensor:
        return table.unflatten(-1, (self.heads, -1))

    def _scores(self, ask: Tensor) -> Tensor:
        names = self._split(self.name)
        return torch.einsum("mhk,ghk->hmg", self._split(ask), names) * names.shape[-1] ** -0.5


class Lite(Network):
    """A denoiser of the whole profile at once, with a gain for each gene beside it."""

    def __init__(self, genes: int, condition: int, channels: int, size: dict) -> None:
        super().__init__(condition, size["width"])
        self.channels = channels
        self.profile = (Latents if size["latents"] else Vector)(genes, channels, size)
        self.gain = nn.Linear(size["width"], channels * genes)

    def forward(self, x: Tensor, level: Tensor, embedded: Tensor) -> Tensor:
        """The raw output [b o g], as `Stem.forward`."""
        c = self.combine(level, embedded)
        gain = self.gain(functional.silu(c)).unflatten(1, (self.channels, -1))
        return self.profile(x, c).unflatten(1, (self.channels, -1)) + gain * x[:, None]


class StemEDM(nn.Module):
    """Network, preconditioning and spaces of a model; ``config`` is the content of config.json."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        self.config, self.genes = config, list(config["genes"])
        self.sigma_data, self.residual = config["sigma_data"], config["residual"]
        size = config["network"]
        make = {"stem": Stem, "lite": Lite}[size["kind"]]
        condition = len(config["condition"]["mean"])
        self.network = make(len(self.genes), condition, 1 + config["marginal"], size)
        for space in ("expression", "condition"):
            for name in ("mean", "std"):
                values = torch.tensor(config[space][name], dtype=torch.float32)
                self.register_buffer(f"{space}_{name}", values, persistent=False)

    def encode(self, embeddings: Tensor) -> Tensor:
        """Embeddings [b c] of the encoder in ``config["encoder"]`` as the network's condition."""
        return (embeddings.to(self.condition_mean) - self.condition_mean) / self.condition_std

    def decode(self, x: Tensor) -> Tensor:
        """Profiles [... g] of the model's space in the value space ``config["transform"]``."""
        return x * self.expression_std + self.expression_mean

    def denoiser(self, cond: Tensor) -> Denoiser:
        """The denoiser D(x; sigma) of some conditions [b c] (what `encode` returns)."""
        embedded = self.network.condition(cond)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            return self._precondition(x, sigma, embedded)

        if not self.residual:
            return denoise
        centre = self._mean(embedded)
        return lambda x, sigma: centre + denoise(x - centre, sigma)

    @torch.no_grad()
    def mean(self, cond: Tensor) -> Tensor:
        """E[x0 | cond] by the mean token [b g], one evaluation."""
        self._require("has_mean", "a mean token; average samples instead")
        return self._mean(self.network.condition(cond))

    @torch.no_grad()
    def marginal(self, cond: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each gene [b g], one evaluation."""
        self._require("marginal", "a variance channel; take the spread of samples instead")
        x = cond.new_zeros(len(cond), len(self.genes))
        level = torch.full_like(x[:, 0], 250 * math.log(SIGMA_LIMIT))
        raw = self.network(x, level, self.network.condition(cond))
        return self.sigma_data * raw[:, 0], self.sigma_data * (raw[:, 1] / 2).exp()

    @torch.no_grad()
    def sample(
        self,
        cond: Tensor,
        *,
        steps: int = 18,
        sampler: str = "heun",
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """One sample of x0 for each row of ``cond``, [b g] in the model's space.

        ``noise`` is unit normal noise [b g], drawn if None. ``heun`` takes 2 steps - 1 evaluations,
        ``ddim`` takes ``steps``; a residual model one more for its mean.
        """
        rungs = karras(steps, **self.config["schedule"]).to(cond)
        if noise is None:
            shape = (len(cond), len(self.genes))
            noise = torch.randn(shape, generator=generator, dtype=cond.dtype, device=cond.device)
        step = {"heun": heun, "ddim": ddim}[sampler]
        return step(self.denoiser(cond), rungs, rungs[0] * noise)

    def _precondition(self, x: Tensor, sigma: Tensor, embedded: Tensor) -> Tensor:
        """c_skip x + c_out F(c_in x, c_noise) (EDM, equation 7), with the limits at sigma = inf."""
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
        level = 250 * sigma.clamp(1 / SIGMA_LIMIT, SIGMA_LIMIT).log()
        at_infinity = sigma.isinf()
        finite = torch.where(at_infinity, 1.0, sigma)
        r = torch.hypot(finite, torch.full_like(finite, self.sigma_data))
        skip = torch.where(at_infinity, 0.0, (self.sigma_data / r) ** 2)
        out = torch.where(at_infinity, self.sigma_data, self.sigma_data * finite / r)
        scale = torch.where(at_infinity, 0.0, 1 / r)
        raw = self.network(scale[:, None] * x, level, embedded)[:, 0]
        return skip[:, None] * x + out[:, None] * raw

    def _mean(self, embedded: Tensor) -> Tensor:
        x = embedded.new_zeros(len(embedded), len(self.genes))
        return self._precondition(x, torch.full_like(x[:, 0], math.inf), embedded)

    def _require(self, trained: str, what: str) -> None:
        if not self.config[trained]:
            raise ValueError(f"this model was trained without {what}")


def karras(steps: int, *, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """The steps + 1 noise levels of EDM's ladder (equation 5), falling from sigma_max to 0."""
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    levels = torch.linspace(*ends, steps, dtype=torch.float64) ** rho
    return torch.cat([levels, levels.new_zeros(1)])


def ddim(denoise: Denoiser, rungs: Tensor, x: Tensor) -> Tensor:
    """DDIM with eta = 0: x moves straight towards its denoised estimate."""
    for sigma, below in zip(rungs[:-1], rungs[1:]):
        denoised = denoise(x, sigma)
        x = denoised + below / sigma * (x - denoised)
    return x


def heun(denoise: Denoiser, rungs: Tensor, x: Tensor) -> Tensor:
    """Heun's rule (EDM, algorithm 1 without churn); the last step, to 0, is Euler's."""
    for sigma, below in zip(rungs[:-1], rungs[1:]):
        slope = (x - denoise(x, sigma)) / sigma
        euler = x + (below - sigma) * slope
        if below > 0:
            slope = (slope + (euler - denoise(euler, below)) / below) / 2
            euler = x + (below - sigma) * slope
        x = euler
    return x


def load(path: str | pathlib.Path) -> StemEDM:
    """The model of a folder with config.json and model.safetensors, on the CPU, for evaluation."""
    path = pathlib.Path(path)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if config.get("format") != FORMAT:
        raise ValueError(f"{path}: expected format {FORMAT}, found {config.get('format')!r}")
    model = StemEDM(config)
    model.network.load_state_dict(read_weights(path / "model.safetensors"))
    return model.eval()


def read_weights(path: pathlib.Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, all of them float32 here."""
    try:
        from safetensors.torch import load_file
    except ImportError:
        # The format: length of a JSON header (8 bytes), header, numbers.
        data = bytearray(path.read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        header.pop("__metadata__", None)
        tensors = {}
        for name, entry in header.items():
            first, end = (start + offset for offset in entry["data_offsets"])
            flat = torch.frombuffer(data[first:end], dtype=torch.float32)
            tensors[name] = flat.reshape(entry["shape"])
        return tensors
    return load_file(path)
