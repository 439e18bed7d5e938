"""Architectures of the published encoders that run here, by the encoder's name.

They follow the arguments that TRIDENT, LazySlide and the model cards give timm and transformers
(`tests/encoders/make_golden.py` builds them so and lists every parameter). SwiGLU's ``hidden`` is
half of what its first layer returns: timm's ``mlp_ratio`` 5.33334 of width 1536 is 2 x 4096.
"""

from __future__ import annotations

import dataclasses

from stemjax.models.vit.spec import AttentionPool, ViTSpec

_SMALL = ViTSpec(image=224, patch=16, width=384, depth=12, heads=6, hidden=1536, layer_scale=False)
_BASE = dataclasses.replace(_SMALL, width=768, heads=12, hidden=3072)
_LARGE = ViTSpec(image=224, patch=16, width=1024, depth=24, heads=16, hidden=4096)
_HUGE = ViTSpec(
    image=224, patch=14, width=1280, depth=32, heads=16, hidden=3416, activation="swiglu",
    pooling="cls+mean",
)  # fmt: skip
_GIANT = ViTSpec(
    image=224, patch=14, width=1536, depth=40, heads=24, hidden=4096, activation="swiglu"
)
_H_OPTIMUS = dataclasses.replace(_GIANT, registers=4, positioned=0)
_HIBOU = ViTSpec(
    image=224, patch=14, width=768, depth=12, heads=12, hidden=2048, activation="swiglu",
    registers=4,
)  # fmt: skip

_DINOV3 = ViTSpec(
    image=224, patch=16, width=384, depth=12, heads=6, hidden=1536, qkv_bias=False, registers=4,
    positioned=0, rotary=100.0, eps=1e-5,
)  # fmt: skip

SPECS: dict[str, ViTSpec] = {
    "uni": _LARGE,
    "uni2": dataclasses.replace(_GIANT, depth=24, registers=8, positioned=0),
    "conch": dataclasses.replace(
        _BASE, image=448, pooling="attention", pool=AttentionPool(width=512, heads=8)
    ),
    "virchow": _HUGE,
    "virchow2": dataclasses.replace(_HUGE, registers=4, positioned=5),
    "gigapath": dataclasses.replace(_GIANT, patch=16),
    "gigapath_flash": dataclasses.replace(
        _SMALL, hidden=1024, activation="swiglu", layer_scale=True
    ),
    "h_optimus_0": _H_OPTIMUS,
    "h_optimus_1": _H_OPTIMUS,
    "h0_mini": dataclasses.replace(_HIBOU, positioned=0),
    "phikon": dataclasses.replace(_BASE, eps=1e-12, antialias=False),
    "phikon_v2": dataclasses.replace(_LARGE, antialias=False),
    "midnight": dataclasses.replace(_GIANT, pooling="cls+mean", antialias=False),
    "hibou_b": _HIBOU,
    "hibou_l": dataclasses.replace(_HIBOU, width=1024, depth=24, heads=16, hidden=2736),
    "openmidnight": dataclasses.replace(_GIANT, registers=4, antialias=False),
    "gpfm": dataclasses.replace(_LARGE, patch=14),
    "digepath": _LARGE,
    "lunit_dino_s8": dataclasses.replace(_SMALL, patch=8),
    "lunit_dino_s16": _SMALL,
    "kaiko_vits8": dataclasses.replace(_SMALL, patch=8),
    "kaiko_vits16": _SMALL,
    "kaiko_vitb8": dataclasses.replace(_BASE, patch=8),
    "kaiko_vitb16": _BASE,
    "kaiko_vitl14": dataclasses.replace(_LARGE, patch=14, registers=4, positioned=0),
    "dinov3_vits16": _DINOV3,
    "dinov3_vitb16": dataclasses.replace(_DINOV3, width=768, heads=12, hidden=3072),
    "dinov3_vitl16": dataclasses.replace(_DINOV3, width=1024, depth=24, heads=16, hidden=4096),
}
