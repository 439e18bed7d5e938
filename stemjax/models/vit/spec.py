"""What one vision transformer is: sizes, and the switches in which published encoders differ."""

from __future__ import annotations

import dataclasses

from stemjax import errors

ACTIVATIONS = ("gelu", "swiglu")
POOLINGS = ("cls", "mean", "cls+mean", "attention")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionPool:
    """One learned query that attends to all tokens, as CONCH's vision tower ends.

    Attributes:
      width: of the query and of the result.
      heads: of the attention; they divide the width.
      eps: of its three LayerNorms.
      projected: whether a square matrix without bias follows.
    """

    width: int
    heads: int
    eps: float = 1e-5
    projected: bool = False

    def __post_init__(self) -> None:
        _require(
            self.width > 0 and self.heads > 0 and self.width % self.heads == 0,
            "an attention pool's width and heads",
            "a width that the heads divide",
            f"{self.width} and {self.heads}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTSpec:
    """A vision transformer: pre-norm blocks between a patch projection and a last LayerNorm.

    Tokens are, in this order, the class token, the registers, the patches row by row.

    Attributes:
      image: side of the square that it sees, in pixels.
      patch: side of a patch in pixels; divides ``image``.
      width: of a token.
      depth: blocks.
      heads: of each attention; they divide the width.
      hidden: width inside the MLP, as its second layer takes it. With ``swiglu`` the first layer
        returns twice as much: the gate, then the values.
      activation: ``gelu`` (exact, by the error function) or ``swiglu``, SiLU(gate) x values.
      qkv_bias: whether queries, keys and values have biases.
      layer_scale: whether each residual branch has a learned factor per channel.
      registers: register tokens.
      positioned: of the class token and the registers, how many have a position embedding: 0 (timm:
        ``no_embed_class``), 1 (class token alone: DINOv2), or all.
      rotary: None for learned position embeddings, which are added to the tokens. For rotary ones,
        the number that their periods grow to (DINOv3: 100): queries and keys of patches are turned
        by their place in every block, and no embedding is learned.
      eps: of LayerNorm.
      antialias: whether position embeddings are averaged where they are brought to a smaller grid
        (timm; DINOv2 with registers) or only sampled (DINOv2, ViT of transformers).
      pooling: one of `POOLINGS`.
      pool: the attention pool, if that is the pooling.

    Raises:
      ConfigError: values that do not go together.
    """

    image: int
    patch: int
    width: int
    depth: int
    heads: int
    hidden: int
    activation: str = "gelu"
    qkv_bias: bool = True
    layer_scale: bool = True
    registers: int = 0
    positioned: int = 1
    rotary: float | None = None
    eps: float = 1e-6
    antialias: bool = True
    pooling: str = "cls"
    pool: AttentionPool | None = None

    def __post_init__(self) -> None:
        sizes = (self.image, self.patch, self.width, self.depth, self.heads, self.hidden)
        _require(min(sizes) > 0, "a ViT's sizes", "whole numbers above 0", repr(sizes))
        _require(
            self.image % self.patch == 0,
            "a ViT's image size",
            f"a multiple of the patch size {self.patch}",
            str(self.image),
        )
        _require(
            self.width % self.heads == 0,
            "a ViT's width",
            f"a multiple of its {self.heads} heads",
            str(self.width),
        )
        _require(
            self.registers >= 0 and self.positioned in (0, 1, self.prefix),
            "how many of a ViT's first tokens have a position embedding",
            f"0, 1 or all {self.prefix}",
            str(self.positioned),
        )
        if self.rotary is not None:
            _require(
                self.rotary > 1 and self.positioned == 0 and self.width // self.heads % 4 == 0,
                "a ViT's rotary positions",
                "a period above 1, no learned position, and heads of a multiple of 4",
                f"{self.rotary:g}, {self.positioned} and heads of {self.width // self.heads}",
            )
        for what, names, found in (
            ("a ViT's activation", ACTIVATIONS, self.activation),
            ("a ViT's pooling", POOLINGS, self.pooling),
        ):
            _require(found in names, what, f"one of {', '.join(names)}", repr(found))
        _require(
            (self.pool is not None) == (self.pooling == "attention"),
            "a ViT's attention pool",
            "one with the pooling 'attention', none with others",
            f"{self.pool} with {self.pooling!r}",
        )

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image // self.patch

    @property
    def prefix(self) -> int:
        """Tokens before the patches."""
        return 1 + self.registers

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.prefix + self.grid**2

    @property
    def features(self) -> int:
        """Width of the pooled vector."""
        if self.pool is not None:
            return self.pool.width
        return 2 * self.width if self.pooling == "cls+mean" else self.width

    @property
    def flops(self) -> float:
        """FLOP of the matrix products of one image; a multiply and an add are two."""
        d, n = self.width, self.tokens
        inner = 3 if self.activation == "swiglu" else 2
        block = 2 * n * d * (4 * d + inner * self.hidden) + 4 * n * n * d
        total = 2 * self.grid**2 * 3 * self.patch**2 * d + self.depth * block
        if self.pool is not None:
            out = self.pool.width
            total += 4 * n * d * out + 4 * n * out + 2 * out * out * (2 + self.pool.projected)
        return float(total)


def _require(fits: bool, what: str, expected: str, found: str) -> None:
    if not fits:
        raise errors.ConfigError(what, expected=expected, found=found)
