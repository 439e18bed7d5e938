"""The encoders against timm, transformers and a pooler in plain torch (golden/, make_golden.py)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import made_weights
import numpy as np
import pytest
import small_encoders as small

from stemjax.encoders import weights
from stemjax.models.vit import network

EXPECTED = np.load(small.GOLDEN / "outputs.npz")
# float32 sums of at most 200 terms in two orders, through two blocks and norms that magnify what
# is left of a variance of 1e-4: 1e-6 of the largest value was seen. A wrong epsilon, gate, factor
# or order of tokens moves results by 1e-3 and more (tests below).
TOLERANCE = 1e-5


def expected(name, pooling="cls+mean"):
    if name == "conch":
        return EXPECTED[f"conch/{'projected' if pooling == 'projected' else 'attention'}"]
    cls, mean = EXPECTED[f"{name}/cls"], EXPECTED[f"{name}/mean"]
    return {"cls": cls, "mean": mean, "cls+mean": np.concatenate([cls, mean], axis=1)}[pooling]


def embedded(spec, path, name, dtype=jnp.float32):
    params = weights.load(path, spec, naming=small.naming(name), dtype=dtype)
    pixels = jnp.asarray(made_weights.scaled(made_weights.pixels(2, small.SIDE)))
    return np.asarray(jax.jit(network.make_vit(spec, dtype=dtype).apply)(params, pixels))


def off(found, wanted):
    """Largest difference, in units of the largest value."""
    return np.abs(found - wanted).max() / np.abs(wanted).max()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")

    def of(name):
        file = folder / f"{name}.safetensors"
        return file if file.exists() else small.save(small.state(name), file)

    return of


@pytest.mark.parametrize("name", small.MEMBERS)
def test_features_are_those_of_the_other_implementation(name, path):
    found = embedded(small.spec(name), path(name), name)
    assert off(found, expected(name)) < TOLERANCE


@pytest.mark.parametrize("name", small.MEMBERS)
def test_bfloat16_stays_near(name, path):
    # Inputs of every product rounded to 8 bits: 2^-9 each, some ten of them one after another.
    found = embedded(small.spec(name), path(name), name, dtype=jnp.bfloat16)
    assert found.dtype == np.float32
    assert 1e-4 < off(found, expected(name)) < 3e-2


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_poolings_take_class_token_and_patches_alone(pooling, path):
    found = embedded(small.spec("virchow2", pooling), path("virchow2"), "virchow2")
    assert off(found, expected("virchow2", pooling)) < TOLERANCE


def test_conch_s_projection_is_the_matrix_as_it_is_stored(path):
    spec = small.spec("conch")
    spec = dataclasses.replace(spec, pool=dataclasses.replace(spec.pool, projected=True))
    found = embedded(spec, path("conch"), "conch")
    assert off(found, expected("conch", "projected")) < TOLERANCE


def test_a_file_of_torch_and_one_of_transformers_give_the_same():
    for name, file in (("uni", "uni.pt"), ("midnight", "midnight.safetensors")):
        found = embedded(small.spec(name), small.GOLDEN / file, name)
        assert off(found, expected(name)) < TOLERANCE


def test_dinov2_s_own_names_are_those_of_the_same_network(tmp_path):
    # facebookresearch/dinov2 is no package; its network is the one of transformers with registers
    # and its names are timm's but for these.
    spec = dataclasses.replace(small.spec("hibou_b"), antialias=True)
    tensors = {"mask_token": np.zeros((1, 24), np.float32)}
    hf = small.state("hibou_b")
    for name, value in hf.items():
        renamed = name
        for old, new in (
            ("embeddings.cls_token", "cls_token"), ("embeddings.register", "register"),
            ("embeddings.position_embeddings", "pos_embed"), ("embeddings.mask", "mask"),
            ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
            ("encoder.layer", "blocks"), ("attention.output.dense", "attn.proj"),
            ("layer_scale1.lambda1", "ls1.gamma"), ("layer_scale2.lambda1", "ls2.gamma"),
            ("weights_in", "w12"), ("weights_out", "w3"), ("layernorm", "norm"),
        ):  # fmt: skip
            renamed = renamed.replace(old, new)
        if ".query." in name:
            parts = [hf[name.replace("query", part)] for part in ("query", "key", "value")]
            renamed = renamed.replace("attention.attention.query", "attn.qkv")
            value = np.concatenate(parts)
        if ".key." not in name and ".value." not in name:
            tensors[renamed] = value
    path = small.save(tensors, tmp_path / "teacher.safetensors")
    params = weights.load(path, spec, naming="dinov2", dtype=jnp.float32)
    pixels = jnp.asarray(made_weights.scaled(made_weights.pixels(2, small.SIDE)))
    found = np.asarray(network.make_vit(spec).apply(params, pixels))
    assert off(found, expected("hibou_b")) < TOLERANCE


# What the golden files would show: each of these changes is a mistake that could be made.
MISTAKES = {
    "registers before the class token": ("virchow2", "registers first"),
    "positions of all first tokens": ("hibou_b", {"positioned": 5}),
    "no position of the class token": ("uni", {"positioned": 0}),
    "epsilon of transformers' ViT": ("phikon", {"eps": 1e-6}),
    "epsilon of torch": ("uni", {"eps": 1e-5}),
    "no LayerScale": ("uni", "no factors"),
    "values before the gate": ("uni2", "gate last"),
    "query, value, key": ("phikon_v2", "values for keys"),
    "positions sampled": ("kaiko_vitl14", {"antialias": False}),
    "positions averaged": ("midnight", {"antialias": True}),
    "patch pixels by column": ("uni", "patches turned"),
    "epsilon of the pool": ("conch", "pool"),
    "periods of another length": ("dinov3_vits16", {"rotary": 50.0}),
}


def broken(name, how, state):
    spec = small.spec(name)
    if isinstance(how, dict):
        if "positioned" in how:
            more = how["positioned"] - spec.positioned
            key = next(key for key in state if "pos" in key)
            added = np.concatenate([state[key], np.repeat(state[key][:, :1], max(more, 0), 1)], 1)
            state[key] = added[:, max(-more, 0) :]
        return dataclasses.replace(spec, **how)
    if how == "pool":
        return dataclasses.replace(spec, pool=dataclasses.replace(spec.pool, eps=1e-6))
    for key, value in list(state.items()):
        if how == "no factors" and "gamma" in key:
            state[key] = np.ones_like(value)
        if how == "gate last" and "fc1" in key:
            state[key] = np.concatenate(np.split(value, 2)[::-1])
        if how == "patches turned" and "patch_embed.proj.weight" in key:
            state[key] = value.swapaxes(2, 3)
        if how == "values for keys" and ".key." in key:
            other = key.replace("key", "value")
            state[key], state[other] = state[other], value
    if how == "registers first":
        position = state["pos_embed"].copy()
        first = np.concatenate([state["cls_token"], state["reg_token"]], 1) + position[:, :5]
        state["pos_embed"][:, :5] = 0
        state["cls_token"] = first[:, 1:2]
        state["reg_token"] = np.concatenate([first[:, :1], first[:, 2:]], 1)
    return spec


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_seen(mistake, tmp_path):
    name, how = MISTAKES[mistake]
    state = small.state(name)
    spec = broken(name, how, state)
    found = embedded(spec, small.save(state, tmp_path / "w.safetensors"), name)
    assert off(found, expected(name)) > 30 * TOLERANCE
