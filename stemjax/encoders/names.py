"""Which tensors of a published checkpoint become which parameter, one table a naming.

    timm       timm's vision transformers
    timm_eva   timm's with rotary positions, DINOv3 among them
    dinov2     the same as DINOv2's own code names it
    hf_vit     ViTModel of transformers
    hf_dinov2  Dinov2Model and its form with registers, of transformers
    conch      CONCH's vision tower: a timm trunk and an attention pool

A table's line is the parameter, the tensors that are put together for it, and how they are laid
out there. ``{i}`` is the block: such tensors are stacked along a first axis.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

import numpy as np

from stemjax import errors
from stemjax.models.vit.spec import ViTSpec


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a parameter comes from.

    Attributes:
      names: tensors that follow one another along their first axis.
      form: how they lie in the file: ``linear`` [out in] for [in out], ``conv`` [out 3 y x] for
        [y x 3 out], ``rows`` [1 n d] for [n d], ``flat`` for a vector, ``same``, or ``third 0`` to
        ``third 2`` for a part of a vector.
    """

    names: tuple[str, ...]
    form: str

    def shape(self, wanted: tuple[int, ...]) -> tuple[int, ...]:
        """Shape that each of the tensors has, leading ones of ``flat`` and ``rows`` apart.

        Args:
          wanted: of the parameter, without the axis of the blocks.
        """
        if self.form == "linear":
            return wanted[1] // len(self.names), wanted[0]
        if self.form == "conv":
            side = round((wanted[0] / 3) ** 0.5)
            return wanted[1], 3, side, side
        if self.form.startswith("third"):
            return (3 * wanted[0],)
        return (wanted[0] // len(self.names), *wanted[1:])

    def arrange(self, parts: list[np.ndarray]) -> np.ndarray:
        """The parameter, made of the tensors."""
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if self.form == "linear":
            return joined.T
        if self.form == "conv":
            return joined.transpose(2, 3, 1, 0).reshape(-1, len(joined))
        if self.form.startswith("third"):
            return np.split(joined, 3)[int(self.form[-1])]
        return joined


def _lines(text: str) -> dict[str, Origin]:
    found = {}
    for line in text.strip().splitlines():
        path, names, form = line.split("|")
        found[path.strip()] = Origin(tuple(names.split()), form.strip())
    return found


_TIMM = """
cls                    | cls_token                  | flat
registers              | reg_token                  | rows
position               | pos_embed                  | rows
patch/kernel           | patch_embed.proj.weight    | conv
patch/bias             | patch_embed.proj.bias      | flat
blocks/norm1/scale     | blocks.{i}.norm1.weight    | flat
blocks/norm1/bias      | blocks.{i}.norm1.bias      | flat
blocks/attn/qkv/kernel | blocks.{i}.attn.qkv.weight | linear
blocks/attn/qkv/bias   | blocks.{i}.attn.qkv.bias   | flat
blocks/attn/proj/kernel| blocks.{i}.attn.proj.weight| linear
blocks/attn/proj/bias  | blocks.{i}.attn.proj.bias  | flat
blocks/scale1          | blocks.{i}.ls1.gamma       | flat
blocks/norm2/scale     | blocks.{i}.norm2.weight    | flat
blocks/norm2/bias      | blocks.{i}.norm2.bias      | flat
blocks/mlp/fc1/kernel  | blocks.{i}.mlp.fc1.weight  | linear
blocks/mlp/fc1/bias    | blocks.{i}.mlp.fc1.bias    | flat
blocks/mlp/fc2/kernel  | blocks.{i}.mlp.fc2.weight  | linear
blocks/mlp/fc2/bias    | blocks.{i}.mlp.fc2.bias    | flat
blocks/scale2          | blocks.{i}.ls2.gamma       | flat
norm/scale             | norm.weight                | flat
norm/bias              | norm.bias                  | flat
"""

_HF = """
cls                    | embeddings.cls_token                         | flat
registers              | embeddings.register_tokens                   | rows
position               | embeddings.position_embeddings               | rows
patch/kernel           | embeddings.patch_embeddings.projection.weight| conv
patch/bias             | embeddings.patch_embeddings.projection.bias  | flat
blocks/norm1/scale     | @norm1.weight                                | flat
blocks/norm1/bias      | @norm1.bias                                  | flat
blocks/attn/qkv/kernel | @attn.query.weight @attn.key.weight @attn.value.weight | linear
blocks/attn/qkv/bias   | @attn.query.bias @attn.key.bias @attn.value.bias       | flat
blocks/attn/proj/kernel| @attention.output.dense.weight               | linear
blocks/attn/proj/bias  | @attention.output.dense.bias                 | flat
blocks/scale1          | @layer_scale1.lambda1                        | flat
blocks/norm2/scale     | @norm2.weight                                | flat
blocks/norm2/bias      | @norm2.bias                                  | flat
blocks/mlp/fc1/kernel  | @mlp.fc1.weight                              | linear
blocks/mlp/fc1/bias    | @mlp.fc1.bias                                | flat
blocks/mlp/fc2/kernel  | @mlp.fc2.weight                              | linear
blocks/mlp/fc2/bias    | @mlp.fc2.bias                                | flat
blocks/scale2          | @layer_scale2.lambda1                        | flat
norm/scale             | layernorm.weight                             | flat
norm/bias              | layernorm.bias                               | flat
""".replace("@attn", "@attention.attention").replace("@", "encoder.layer.{i}.")

_POOL = """
pool/query         | attn_pool_contrast.query               | flat
pool/norm_q/scale  | attn_pool_contrast.ln_q.weight         | flat
pool/norm_q/bias   | attn_pool_contrast.ln_q.bias           | flat
pool/norm_k/scale  | attn_pool_contrast.ln_k.weight         | flat
pool/norm_k/bias   | attn_pool_contrast.ln_k.bias           | flat
pool/q/kernel      | attn_pool_contrast.attn.q_proj_weight  | linear
pool/k/kernel      | attn_pool_contrast.attn.k_proj_weight  | linear
pool/v/kernel      | attn_pool_contrast.attn.v_proj_weight  | linear
pool/q/bias        | attn_pool_contrast.attn.in_proj_bias   | third 0
pool/k/bias        | attn_pool_contrast.attn.in_proj_bias   | third 1
pool/v/bias        | attn_pool_contrast.attn.in_proj_bias   | third 2
pool/out/kernel    | attn_pool_contrast.attn.out_proj.weight| linear
pool/out/bias      | attn_pool_contrast.attn.out_proj.bias  | flat
pool/norm/scale    | ln_contrast.weight                     | flat
pool/norm/bias     | ln_contrast.bias                       | flat
pool/proj/kernel   | proj_contrast                          | same
"""


def _renamed(table: dict[str, Origin], *pairs: tuple[str, str]) -> dict[str, Origin]:
    """A table with parts of its tensors' names replaced."""
    found = {}
    for path, origin in table.items():
        names = origin.names
        for old, new in pairs:
            names = tuple(name.replace(old, new) for name in names)
        found[path] = Origin(names, origin.form)
    return found


_timm, _hf = _lines(_TIMM), _lines(_HF)
_dinov2 = _renamed(_timm, ("reg_token", "register_tokens"))
_TABLES: dict[str, dict[str, Origin]] = {
    "timm": _timm,
    "timm_eva": _renamed(_timm, ("ls1.gamma", "gamma_1"), ("ls2.gamma", "gamma_2")),
    "dinov2": _dinov2,
    "dinov2 swiglu": _renamed(_dinov2, ("mlp.fc1", "mlp.w12"), ("mlp.fc2", "mlp.w3")),
    "hf_dinov2": _hf,
    "hf_dinov2 swiglu": _renamed(_hf, ("mlp.fc1", "mlp.weights_in"), ("fc2", "weights_out")),
    "hf_vit": _renamed(
        _hf,
        ("norm1", "layernorm_before"),
        ("norm2", "layernorm_after"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    ),
    "conch": {
        path: Origin(tuple(f"trunk.{name}" for name in origin.names), origin.form)
        for path, origin in _timm.items()
    }
    | _lines(_POOL),
}

NAMINGS = ("timm", "timm_eva", "dinov2", "hf_vit", "hf_dinov2", "conch")

_UNUSED = re.compile(
    r"(?:.*\.)?(?:"
    r"mask_token"  # of the pretraining
    r"|(?:dino_|ibot_)?head\..*|classifier\..*|pooler\.dense\..*"
    r"|attn_pool_caption\..*|ln_caption\..*|text\..*|text_decoder\..*|logit_scale"  # CONCH's words
    r"|proj_contrast"
    r")"
)
"""Tensors that published files hold and a vector of a patch does not need."""

_PREFIX = re.compile(
    r"(?:(?:_orig_mod|module|model|teacher|backbone|encoder|visual|trunk|vit|dinov2)\.)*"
)
"""What wrappers put before a name."""


def table(naming: str, spec: ViTSpec, parameters: Iterable[str]) -> dict[str, Origin]:
    """Returns the origin of each parameter of a network.

    Args:
      naming: one of `NAMINGS`.
      spec: of the network.
      parameters: their paths.
    """
    gated = f"{naming} swiglu"
    lines = _TABLES[gated if spec.activation == "swiglu" and gated in _TABLES else naming]
    return {path: lines[path] for path in parameters}


def find_prefix(naming: str, names: Iterable[str], where: str) -> str:
    """Returns what stands before the names of a checkpoint: ``module.``, ``visual.`` or nothing.

    Args:
      naming: one of `NAMINGS`.
      names: of all its tensors.
      where: the checkpoint, for the error.

    Raises:
      EncoderMismatchError: it has no patch projection under the naming, or several.
    """
    names = list(names)
    anchor = _TABLES[naming]["patch/kernel"].names[0]
    ends = [name.removesuffix(anchor) for name in names if name.endswith(anchor)]
    found = sorted({prefix for prefix in ends if _PREFIX.fullmatch(prefix)})
    if len(found) == 1:
        return found[0]
    shown = ", ".join(ascii(name)[:60] for name in names[:3])
    raise errors.EncoderMismatchError(
        f"{where}: tensor {anchor}",
        expected="one, with nothing or the name of a wrapper before it",
        found=f"several, after {' and '.join(map(repr, found))}"
        if found
        else f"none among {len(names)} tensors ({shown}{', ...' if len(names) > 3 else ''})",
        fix="Save one network's weights alone" if found else "Give the weights of this encoder",
    )


def require_no_others(
    origins: Mapping[str, Origin], depth: int, names: Iterable[str], prefix: str, where: str
) -> None:
    """Nothing, or an error that names a tensor that no parameter is made of and none needs not be.

    Raises:
      EncoderMismatchError: there is one.
    """
    used = {
        prefix + name.format(i=i)
        for origin in origins.values()
        for name in origin.names
        for i in range(depth if "{i}" in name else 1)
    }
    strange = sorted(name for name in names if name not in used and not _UNUSED.fullmatch(name))
    if strange:
        raise errors.EncoderMismatchError(
            f"{where}: tensor {ascii(strange[0])[:120]}",
            expected="only tensors of this encoder",
            found=f"{len(strange)} others",
            fix="Give the weights of this encoder",
        )
