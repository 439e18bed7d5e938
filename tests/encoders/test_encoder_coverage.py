"""Every parameter of every published architecture, as timm and transformers list them, is ours."""

from __future__ import annotations

import dataclasses
import functools
import json
import math

import jax.numpy as jnp
import pytest
import small_encoders as small

from stemjax import errors
from stemjax.encoders import names, registry, weights
from stemjax.encoders.specs import SPECS

PUBLISHED = json.loads((small.GOLDEN / "published.json").read_text())

# Millions of parameters, from the cards that LazySlide shows: no number of ours went into them.
MILLIONS = {
    "uni": 303.4, "uni2": 681.4, "virchow": 631.2, "virchow2": 631.2, "h0_mini": 85.7,
    "phikon": 85.8, "phikon_v2": 303.4, "hibou_b": 85.7, "hibou_l": 303.7, "lunit_dino_s8": 21.7,
    "gigapath": 1130, "h_optimus_0": 1130, "h_optimus_1": 1130, "midnight": 1140,
}  # fmt: skip


class Named:
    """A tensor without numbers."""

    dtype = jnp.dtype("float32")

    def __init__(self, shape):
        self.shape = tuple(shape)


def tensors(name):
    """Name -> tensor of the published checkpoint."""
    if name == "openmidnight":  # DINOv2's own names are timm's, but for these
        listed = PUBLISHED["h_optimus_0"]
        renamed = {
            key.replace("reg_", "register_").replace("fc1", "w12").replace("fc2", "w3"): shape
            for key, shape in listed["tensors"].items()
        }
        renamed["register_tokens"] = renamed.pop("register_token")
        renamed |= {"pos_embed": [1, 257, 1536], "mask_token": [1, 1536]}
        listed = {"depth": listed["depth"], "tensors": renamed}
    else:
        listed = PUBLISHED[name]
    return {
        key.replace("{i}", str(i)): Named(shape)
        for key, shape in listed["tensors"].items()
        for i in range(listed["depth"] if "{i}" in key else 1)
    }


shapes = functools.cache(weights.parameter_shapes)


def check(name, spec, given):
    """All that `weights.load` looks at before it reads a number."""
    wanted = shapes(spec)
    naming = registry.resolve(name).naming
    origins = names.table(naming, spec, wanted)
    prefix = names.find_prefix(naming, given, name)
    names.require_no_others(origins, spec.depth, given, prefix, name)
    source = weights._Source(given, prefix, name)
    for path, shape in wanted.items():
        source.require(path, shape, origins[path], spec)
    return wanted


def test_every_encoder_that_runs_here_is_listed():
    assert set(PUBLISHED) == set(SPECS) - {"openmidnight"}


@pytest.mark.parametrize("name", SPECS)
def test_every_tensor_is_used_and_every_parameter_filled(name):
    given = tensors(name)
    wanted = check(name, SPECS[name], given)
    # Of what is used and what is filled, the same number of elements: nothing is read twice.
    unused = ("mask_token", "proj_contrast", "head.weight", "head.bias")
    held = sum(math.prod(t.shape) for key, t in given.items() if not key.endswith(unused))
    made = sum(math.prod(shape) for shape in wanted.values())
    moved = (
        math.prod(given["pos_embed"].shape) - math.prod(wanted["position"])
        if (name == "kaiko_vitl14")
        else 0
    )
    assert made == held - moved
    if name in MILLIONS:
        digits = 1 if MILLIONS[name] < 1000 else -1
        assert round(made / 1e6, digits) == pytest.approx(
            MILLIONS[name], abs=10 if digits < 0 else 0.11
        )


def test_conch_s_projection_is_used_where_it_is_asked_for():
    spec = SPECS["conch"]
    spec = dataclasses.replace(spec, pool=dataclasses.replace(spec.pool, projected=True))
    assert check("conch", spec, tensors("conch"))["pool/proj/kernel"] == (512, 512)
    given = {key: value for key, value in tensors("conch").items() if "proj_contrast" not in key}
    with pytest.raises(errors.EncoderMismatchError, match=r"proj_contrast': expected shape \(512"):
        check("conch", spec, given)


@pytest.mark.parametrize("name", ["uni2", "phikon", "hibou_b", "conch", "openmidnight"])
def test_any_tensor_that_does_not_fit_is_named(name):
    spec, given = SPECS[name], tensors(name)
    keys = sorted(key for key in given if "mask_token" not in key and "proj_contrast" not in key)
    for key in keys[:: max(1, len(keys) // 12)]:
        shape = given[key].shape
        for other in (None, Named((*shape[:-1], shape[-1] + 1))):
            broken = {k: v for k, v in given.items() if k != key} | ({key: other} if other else {})
            with pytest.raises(errors.EncoderMismatchError) as caught:
                check(name, spec, broken)
            assert key in str(caught.value)
    with pytest.raises(errors.EncoderMismatchError, match=r"blocks\.0\.attn\.q_norm\.weight"):
        check(name, spec, given | {"blocks.0.attn.q_norm.weight": Named((64,))})
    shallow = dataclasses.replace(spec, depth=spec.depth - 1)
    with pytest.raises(errors.EncoderMismatchError, match=rf"\.{shallow.depth}\..*others"):
        check(name, shallow, given)


def test_the_weights_of_one_encoder_are_refused_by_all_others_that_are_built_otherwise():
    refused = 0
    for mine in SPECS:
        given = tensors(mine)
        for other in SPECS:
            same = (
                registry.resolve(mine).naming == registry.resolve(other).naming
                and shapes(SPECS[mine]) == shapes(SPECS[other])
            )  # fmt: skip
            if same:
                check(other, SPECS[other], given)
                continue
            with pytest.raises(errors.EncoderMismatchError):
                check(other, SPECS[other], given)
            refused += 1
    assert refused > 400
