"""The published encoders: facts from TRIDENT, LazySlide, HEST-bench and the model cards.

Where TRIDENT and LazySlide differ in a filter or a pooling, the usual one here is TRIDENT's, except
for Midnight, whose card and LazySlide take class token and mean, and for Lunit's statistics, which
are its authors' (TRIDENT's come from the timm port: ImageNet's, and nine tenths of the patch).
Encoders without a spec are here for embeddings that other tools made.
"""

from __future__ import annotations

from typing import Any

from stemjax.encoders.entry import Entry
from stemjax.encoders.specs import SPECS
from stemjax.models.vit.spec import ViTSpec

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_CLIP = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
_BIOPTIMUS = {"mean": (0.707223, 0.578729, 0.703617), "std": (0.211883, 0.230117, 0.177517)}
_HIBOU = {"mean": (0.7068, 0.5755, 0.722), "std": (0.195, 0.2316, 0.1816)}
_LUNIT = {
    "mean": (0.70322989, 0.53606487, 0.66096631),
    "std": (0.21716536, 0.26081574, 0.20723464),
}
_GENBIO = {"mean": (0.697, 0.575, 0.728), "std": (0.188, 0.240, 0.187)}

_ND = "CC-BY-NC-ND-4.0"
_APACHE = "Apache-2.0"
_KAIKO = "Kaiko non-commercial"
_LUNIT_TERMS = "Lunit non-commercial"
_OWKIN = "Owkin non-commercial"
_BIN = ("pytorch_model.bin", "model.safetensors")


def _here(name: str, aliases: str, hub: str, licence: str, **more: Any) -> Entry:
    """An encoder that runs here; its widths and input follow from its spec."""
    spec = SPECS[name]
    return Entry(
        **{
            "name": name,
            "aliases": tuple(aliases.split()),
            "hub": hub,
            "licence": licence,
            "gated": True,
            "input_px": spec.image,
            "resize": "bilinear",
            "widths": _widths(spec),
            "patch_px": 224,
            "spec": spec,
            "naming": "timm",
            **_IMAGENET,
            **more,
        }
    )


def _files(name: str, aliases: str, hub: str, licence: str, **more: Any) -> Entry:
    """An encoder whose embeddings other tools make."""
    return Entry(
        **{
            "name": name,
            "aliases": tuple(aliases.split()),
            "hub": hub,
            "licence": licence,
            "gated": False,
            "input_px": 224,
            "resize": "bilinear",
            "patch_px": 224,
            **_IMAGENET,
            **more,
        }
    )


def _widths(spec: ViTSpec) -> dict[str, int]:
    if spec.pooling == "attention":
        return {"attention": spec.features}
    every = {"cls": spec.width, "cls+mean": 2 * spec.width, "mean": spec.width}
    return {spec.pooling: every[spec.pooling], **every}


_DINOV2: dict[str, Any] = {"naming": "hf_dinov2"}

ENTRIES: tuple[Entry, ...] = (
    _here("uni", "uni_v1 uni1", "MahmoodLab/UNI", _ND, patch_px=256, files=_BIN),
    _here("uni2", "uni_v2 uni2-h uni2h", "MahmoodLab/UNI2-h", _ND, patch_px=256, files=_BIN),
    _here(
        "conch", "conch_v1 conch_vision", "MahmoodLab/CONCH", _ND, patch_px=512, resize="bicubic",
        projections=("none", "proj_contrast"), naming="conch", files=_BIN, **_CLIP,
    ),
    _here("virchow", "virchow1", "paige-ai/Virchow", _APACHE, resize="bicubic", files=_BIN),
    _here("virchow2", "virchow_v2", "paige-ai/Virchow2", _ND, resize="bicubic", files=_BIN),
    _here(
        "gigapath", "prov-gigapath prov_gigapath", "prov-gigapath/prov-gigapath",
        "Apache-2.0 with conditions", patch_px=256, crop=224 / 256, resize="bicubic", files=_BIN,
    ),
    _here(
        "gigapath_flash", "gigapath-flash", "prov-gigapath/prov-gigapath-flash", _APACHE,
        patch_px=256, crop=224 / 256, resize="bicubic", files=_BIN,
    ),
    _here(
        "h_optimus_0", "hoptimus0 h-optimus-0", "bioptimus/H-optimus-0", _APACHE,
        files=_BIN, **_BIOPTIMUS,
    ),
    _here(
        "h_optimus_1", "hoptimus1 h-optimus-1", "bioptimus/H-optimus-1", _ND,
        files=_BIN, **_BIOPTIMUS,
    ),
    _here(
        "h0_mini", "h0-mini", "bioptimus/H0-mini", _ND, resize="bicubic", **_BIOPTIMUS
    ),
    _here("phikon", "phikon_v1", "owkin/phikon", _OWKIN, gated=False, naming="hf_vit"),
    _here("phikon_v2", "phikonv2 phikon2", "owkin/phikon-v2", _OWKIN, gated=False, **_DINOV2),
    _here(
        "midnight", "midnight12k midnight-12k kaiko-midnight", "kaiko-ai/midnight", "MIT",
        gated=False, **_HALF, **_DINOV2,
    ),
    _here(
        "hibou_b", "hibou-b hibou_base", "histai/hibou-b", _APACHE,
        resize="bicubic", **_HIBOU, **_DINOV2,
    ),
    _here(
        "hibou_l", "hibou-l hibou_large", "histai/hibou-L", _APACHE,
        resize="bicubic", **_HIBOU, **_DINOV2,
    ),
    _here(
        "openmidnight", "open-midnight", "SophontAI/OpenMidnight", _APACHE,
        naming="dinov2", files=("teacher_checkpoint_load.pt",),
    ),
    _here(
        "gpfm", "", "majiabo/GPFM", _ND, gated=False, resize="bicubic", files=("GPFM.pth",)
    ),
    _here("digepath", "", "xtxx/Digepath", "CC-BY-NC-4.0", patch_px=256),
    _here(
        "lunit_dino_s8", "lunit-vits8 lunit-dino-s8 lunit_vit_small_patch8_dino",
        "1aurent/vit_small_patch8_224.lunit_dino", _LUNIT_TERMS,
        gated=False, resize="bicubic", **_LUNIT,
    ),
    _here(
        "lunit_dino_s16", "lunit-vits16 lunit-dino-s16 lunit_vit_small_patch16_dino",
        "1aurent/vit_small_patch16_224.lunit_dino", _LUNIT_TERMS,
        gated=False, resize="bicubic", **_LUNIT,
    ),
    *(
        _here(
            f"kaiko_{size}", f"kaiko-{size} {more}".strip(),
            f"1aurent/{architecture}.kaiko_ai_towards_large_pathology_fms", _KAIKO,
            gated=False, patch_px=256, **_HALF,
        )
        for size, architecture, more in (
            ("vits8", "vit_small_patch8_224", "kaiko_small_8"),
            ("vits16", "vit_small_patch16_224", "kaiko_small_16"),
            ("vitb8", "vit_base_patch8_224", "kaiko_base_8"),
            ("vitb16", "vit_base_patch16_224", "kaiko_base_16"),
            ("vitl14", "vit_large_patch14_reg4_dinov2", "kaiko_large_14"),
        )
    ),
    *(
        _here(
            f"dinov3_vit{size}16",
            f"vit_{long}_patch16_dinov3 vit_{long}_patch16_dinov3.lvd1689m",
            f"timm/vit_{long}_patch16_dinov3.lvd1689m",
            "DINOv3 licence", gated=False, naming="timm_eva", resize="bicubic",
        )  # photographs, no pathology: what a pathology encoder is to be better than
        for size, long in (("s", "small"), ("b", "base"), ("l", "large"))
    ),
    _files(
        "conch_v1_5", "conch_v15 conch_v1.5 titan MahmoodLab/TITAN", "MahmoodLab/conchv1_5", _ND,
        gated=True, input_px=448, patch_px=512, widths={"attention": 768},
    ),
    # CONCH at another image size, its positions brought there bilinearly by its own code.
    _files(
        "conch_madeleine", "conch-madeleine", "MahmoodLab/CONCH", _ND, gated=True, resize="bicubic",
        patch_px=256, magnification=10, widths={"attention": 512}, **_CLIP,
    ),
    _files(
        "ctranspath", "chief-ctranspath ctranspath-chief", "", "GPL-3.0",
        patch_px=256, magnification=10, widths={"mean": 768},
    ),
    _files(
        "musk", "", "xiangjx/musk", _ND, gated=True, input_px=384, patch_px=384, resize="bicubic",
        **_HALF, widths={"cls": 1024, "cls, several scales": 2048},
    ),
    _files(
        "keep", "", "Astaxanthin/KEEP", "MIT", patch_px=256, resize="bicubic",
        widths={"cls": 768}, projections=("visual_head",),
    ),
    _files(
        "genbio_pathfm", "genbio-pathfm", "genbio-ai/genbio-pathfm", "GenBio AI Community",
        files=("model.pth",), **_GENBIO, widths={"cls of three channels": 4608},
    ),
    _files(
        "resnet50", "resnet50_trunc resnet50.tv_in1k", "timm/resnet50.tv_in1k", "BSD-3-Clause",
        patch_px=256, widths={"mean of layer 3": 1024, "mean": 2048},
    ),
    _files(
        "phaet", "", "wearewaiv/phaet", "Waiv non-commercial", gated=True,
        widths={"cls": 1024, "cls+mean": 2048},
    ),
    _files(
        "mascaret", "", "wearewaiv/mascaret", "Waiv non-commercial", gated=True, **_HALF,
        widths={"cls": 1536, "cls+mean": 3072},
    ),
)  # fmt: skip
