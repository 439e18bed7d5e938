"""Writes golden/: what timm and transformers make of small networks, and how the full ones look.

Run once, in an environment of its own (nothing is downloaded):

    pip install torch torchvision timm==1.0.31 'transformers==4.57.6' safetensors
    python tests/encoders/make_golden.py

`outputs.npz` has, for each small member, class token and mean of the patches after the last norm,
of weights and pixels that `made_weights` makes by name. `members.json` has their tensors' names and
shapes; `published.json` those of every published architecture, blocks as ``{i}`` where all are
alike. `uni.pt` is a file of real torch, `midnight.safetensors` one of transformers.
"""

from __future__ import annotations

import json
import pathlib
import re

import made_weights
import numpy as np
import timm
import torch
import transformers
from torch import nn

HERE = pathlib.Path(__file__).resolve().parent / "golden"
SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8}
HF = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
SWIGLU = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}
GIANT = 2.66667 * 2


def uni(**more):
    return timm_model("vit_large_patch16_224", init_values=1e-5, **more)


def timm_model(name, **more):
    return timm.create_model(name, **{"num_classes": 0, "dynamic_img_size": True, **more})


def uni2(**more):
    full = {"img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "embed_dim": 1536}
    return timm_model(
        "vit_giant_patch14_224",
        **{**full, "init_values": 1e-5, "mlp_ratio": GIANT, "no_embed_class": True,
           "reg_tokens": 8, **SWIGLU, **more},
    )  # fmt: skip


def virchow(**more):
    return timm_model(
        "vit_huge_patch14_224",
        **{"init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": "", **SWIGLU, **more},
    )


def h_optimus(**more):
    return timm_model(
        "vit_giant_patch14_reg4_dinov2", **{"img_size": 224, "init_values": 1e-5, **more}
    )


def gigapath(**more):
    full = {"img_size": 224, "patch_size": 16, "embed_dim": 1536, "depth": 40, "num_heads": 24}
    return timm_model("vit_giant_patch14_dinov2", **{**full, "mlp_ratio": 5.33334, **more})


def gigapath_flash(**more):
    full = {"img_size": 224, "patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6}
    return timm.models.vision_transformer.VisionTransformer(
        **{**full, "mlp_ratio": 2048 / 384.0, "init_values": 1e-5, "num_classes": 0, **SWIGLU,
           **more},
    )  # fmt: skip


def h0_mini(**more):
    # Its card's 85.7 million parameters are those of this ratio.
    return timm_model(
        "vit_base_patch14_reg4_dinov2", **{"img_size": 224, "mlp_ratio": 5.33334, **SWIGLU, **more}
    )


class Conch(nn.Module):
    """CONCH's vision tower: a timm trunk, one query that attends to its tokens, and a matrix."""

    def __init__(self, trunk, width, out, heads):
        super().__init__()
        self.trunk = trunk
        self.attn_pool_contrast = nn.Module()
        self.attn_pool_contrast.query = nn.Parameter(torch.zeros(1, out))
        self.attn_pool_contrast.attn = nn.MultiheadAttention(
            out, heads, kdim=width, vdim=width, batch_first=True
        )
        self.attn_pool_contrast.ln_q = nn.LayerNorm(out)
        self.attn_pool_contrast.ln_k = nn.LayerNorm(width)
        self.ln_contrast = nn.LayerNorm(out)
        self.proj_contrast = nn.Parameter(torch.zeros(out, out))

    def pooled(self, images):
        pool, tokens = self.attn_pool_contrast, self.trunk.forward_features(images)
        keys = pool.ln_k(tokens)
        query = pool.ln_q(pool.query)[None].expand(len(images), -1, -1)
        found = self.ln_contrast(pool.attn(query, keys, keys, need_weights=False)[0][:, 0])
        return found, found @ self.proj_contrast


def conch(width=768, out=512, **more):
    full = {"img_size": 448, "patch_size": 16, "depth": 12, "num_heads": 12, "embed_dim": width}
    trunk = timm.models.vision_transformer.VisionTransformer(
        **{**full, "num_classes": 0, "dynamic_img_size": True, **more}
    )
    return Conch(trunk, width, out, 8)


def phikon(**more):
    config = transformers.ViTConfig(**more)
    return transformers.ViTModel(config, add_pooling_layer=False)


def dinov2(**more):
    return transformers.Dinov2Model(transformers.Dinov2Config(**more))


def registers(**more):
    config = transformers.Dinov2WithRegistersConfig(num_register_tokens=4, **more)
    return transformers.Dinov2WithRegistersModel(config)


BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
G = {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24}
AT = {"image_size": 224, "patch_size": 14}

PUBLISHED = {
    "uni": lambda: uni(),
    "uni2": lambda: uni2(),
    "conch": lambda: conch(),
    "virchow": lambda: virchow(),
    "virchow2": lambda: virchow(reg_tokens=4),
    "gigapath": lambda: gigapath(),
    "gigapath_flash": lambda: gigapath_flash(),
    "h_optimus_0": lambda: h_optimus(),
    "h_optimus_1": lambda: h_optimus(),
    "h0_mini": lambda: h0_mini(),
    "phikon": lambda: phikon(image_size=224, patch_size=16),
    "phikon_v2": lambda: dinov2(**LARGE, image_size=224, patch_size=16),
    "midnight": lambda: dinov2(**G, **AT, use_swiglu_ffn=True),
    "hibou_b": lambda: registers(**BASE, **AT, use_swiglu_ffn=True),
    "hibou_l": lambda: registers(**LARGE, **AT, use_swiglu_ffn=True),
    "gpfm": lambda: timm_model("vit_large_patch14_dinov2", img_size=224, init_values=1e-5),
    "digepath": lambda: uni(),
    "lunit_dino_s8": lambda: timm_model("vit_small_patch8_224"),
    "lunit_dino_s16": lambda: timm_model("vit_small_patch16_224"),
    "kaiko_vits8": lambda: timm_model("vit_small_patch8_224"),
    "kaiko_vits16": lambda: timm_model("vit_small_patch16_224"),
    "kaiko_vitb8": lambda: timm_model("vit_base_patch8_224"),
    "kaiko_vitb16": lambda: timm_model("vit_base_patch16_224"),
    "kaiko_vitl14": lambda: timm_model("vit_large_patch14_reg4_dinov2", img_size=518),
    "dinov3_vits16": lambda: timm_model("vit_small_patch16_dinov3"),
    "dinov3_vitb16": lambda: timm_model("vit_base_patch16_dinov3"),
    "dinov3_vitl16": lambda: timm_model("vit_large_patch16_dinov3"),
}

MEMBERS = {
    "uni": lambda: uni(img_size=24, **SMALL),
    "uni2": lambda: uni2(img_size=24, **SMALL),
    "virchow": lambda: virchow(img_size=24, **SMALL),
    "virchow2": lambda: virchow(img_size=24, reg_tokens=4, **SMALL),
    "h_optimus_0": lambda: h_optimus(img_size=24, **SMALL),
    "lunit_dino_s8": lambda: timm_model("vit_small_patch8_224", img_size=24, **SMALL),
    # Made for a larger and for a smaller image than the one that it is given.
    "kaiko_vitl14": lambda: timm_model("vit_large_patch14_reg4_dinov2", img_size=56, **SMALL),
    "phikon": lambda: phikon(**HF, image_size=24, intermediate_size=96),
    "phikon_v2": lambda: dinov2(**HF, image_size=16),
    "midnight": lambda: dinov2(**HF, image_size=56, use_swiglu_ffn=True),
    "hibou_b": lambda: registers(**HF, image_size=40, use_swiglu_ffn=True),
    "dinov3_vits16": lambda: timm_model("vit_small_patch16_dinov3", img_size=24, **SMALL),
    "conch": lambda: conch(width=24, out=16, img_size=24, patch_size=8, depth=2, num_heads=2),
}


def collapsed(model):
    """Name -> shape; tensors of the blocks once, with ``{i}``, after a look at all of them."""
    found, depth = {}, 0
    for name, value in model.state_dict().items():
        key = re.sub(r"(blocks|layer)\.(\d+)\.", r"\1.{i}.", name)
        if key != name:
            depth = max(depth, 1 + int(re.search(r"(?:blocks|layer)\.(\d+)\.", name)[1]))
        if found.setdefault(key, list(value.shape)) != list(value.shape):
            raise AssertionError(f"{name} differs between blocks")
    return {"depth": depth, "tensors": found}


def tokens(model, images):
    """All tokens after the last norm, and how many come before the patches."""
    if hasattr(model, "forward_features"):
        return model.forward_features(images), model.num_prefix_tokens
    try:
        found = model(images, interpolate_pos_encoding=True)
    except TypeError:
        found = model(images)
    return found.last_hidden_state, 1 + getattr(model.config, "num_register_tokens", 0)


def outputs(name, model):
    images = torch.from_numpy(made_weights.scaled(made_weights.pixels(2, 24))).permute(0, 3, 1, 2)
    if name == "conch":
        plain, projected = model.pooled(images)
        return {"conch/attention": plain, "conch/projected": projected}
    found, first = tokens(model, images)
    if isinstance(model, transformers.Dinov2WithRegistersModel):
        # last_hidden_state keeps the registers after the class token.
        assert found.shape[1] == 1 + 4 + 9
    return {f"{name}/cls": found[:, 0], f"{name}/mean": found[:, first:].mean(dim=1)}


def main():
    HERE.mkdir(exist_ok=True)
    arrays, members = {}, {}
    for name, build in MEMBERS.items():
        model = build().eval()
        state = {
            key: torch.from_numpy(made_weights.tensor(key, tuple(value.shape)))
            for key, value in model.state_dict().items()
        }
        model.load_state_dict(state, strict=True)
        members[name] = {key: list(value.shape) for key, value in state.items()}
        with torch.no_grad():
            arrays |= {key: value.numpy() for key, value in outputs(name, model).items()}
        if name == "uni":
            torch.save({key: value.half() for key, value in state.items()}, HERE / "uni.pt")
        if name == "midnight":
            model.half().save_pretrained(HERE)
            (HERE / "model.safetensors").rename(HERE / "midnight.safetensors")
            (HERE / "config.json").unlink()
    for old, new in ((2, 5), (5, 2), (3, 7)):
        grid = torch.from_numpy(made_weights.uniform("grid", (1, 4, old, old)))
        arrays[f"grid/{old}/given"] = grid[0].numpy()
        for antialias in (False, True):
            moved = nn.functional.interpolate(
                grid, (new, new), mode="bicubic", align_corners=False, antialias=antialias
            )
            key = f"grid/{old}/{new}/{'averaged' if antialias else 'sampled'}"
            arrays[key] = moved[0].permute(1, 2, 0).numpy()
    np.savez_compressed(HERE / "outputs.npz", **arrays)
    (HERE / "members.json").write_text(json.dumps(members) + "\n")
    published = {}
    for name, build in PUBLISHED.items():
        with torch.device("meta"):
            published[name] = collapsed(build())
    (HERE / "published.json").write_text(json.dumps(published) + "\n")
    versions = f"torch {torch.__version__}, timm {timm.__version__}, "
    versions += f"transformers {transformers.__version__}\n"
    (HERE / "versions.txt").write_text(versions)


if __name__ == "__main__":
    main()
