"""Files of weights: formats, wrappers around names, pieces, and what is refused."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import small_encoders as small

from stemjax import errors
from stemjax.encoders import weights
from stemjax.foreign import torchfile

SPEC = small.spec("uni")


def load(path, spec=SPEC, naming="timm", dtype=jnp.float32):
    return weights.load(path, spec, naming=naming, dtype=dtype)


@pytest.fixture
def state():
    return small.state("uni")


@pytest.fixture
def path(tmp_path, state):
    return small.save(state, tmp_path / "uni.safetensors")


def require_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_linear_layers_are_turned_and_blocks_stacked(path, state):
    params = load(path)
    np.testing.assert_array_equal(
        params["blocks"]["mlp"]["fc1"]["kernel"][1], state["blocks.1.mlp.fc1.weight"].T
    )
    # The pixel in row 2, column 5, green, of a patch of 8 x 8.
    row = (2 * 8 + 5) * 3 + 1
    np.testing.assert_array_equal(
        params["patch"]["kernel"][row], state["patch_embed.proj.weight"][:, 1, 2, 5]
    )


@pytest.mark.parametrize("nested", [(), ("state_dict",), ("model",), ("teacher", "state_dict")])
def test_files_of_torch_give_what_safetensors_give(nested, path, state, tmp_path):
    tree = dict(state)
    for name in reversed(nested):
        tree = {name: tree, "epoch": 3}
    torchfile.write(tmp_path / "uni.pth", tree)
    require_equal(load(tmp_path / "uni.pth"), load(path))


@pytest.mark.parametrize(
    "prefix", ["module.", "backbone.", "model.", "_orig_mod.module.", "visual.trunk."]
)
def test_wrappers_around_names_are_seen_through(prefix, path, state, tmp_path):
    named = {prefix + key: value for key, value in state.items()}
    wrapped = small.save(named, tmp_path / "wrapped.safetensors")
    require_equal(load(wrapped), load(path))


def test_two_networks_in_a_file_are_not_chosen_between(state, tmp_path):
    both = {
        f"{who}.backbone.{key}": value
        for who in ("teacher", "model")
        for key, value in state.items()
    }
    with pytest.raises(errors.EncoderMismatchError, match="several, after 'model.*teacher"):
        load(small.save(both, tmp_path / "both.safetensors"))


def test_heads_and_the_mask_token_are_left_out(path, state, tmp_path):
    more = {
        "head.weight": np.zeros((3, 24)),
        "head.bias": np.zeros(3),
        "mask_token": np.zeros((1, 24)),
    }
    require_equal(load(small.save(state | more, tmp_path / "more.safetensors")), load(path))


def test_conch_s_words_are_left_out(tmp_path):
    state = {f"visual.{key}": value for key, value in small.state("conch").items()}
    plain = small.save(state, tmp_path / "a.safetensors")
    more = {
        "text.token_embedding.weight": np.zeros((5, 3)), "logit_scale": np.zeros(()),
        "text_decoder.resblocks.0.ln_1.weight": np.zeros(3), "visual.ln_caption.bias": np.zeros(3),
        "visual.attn_pool_caption.query": np.zeros((4, 3)),
    }  # fmt: skip
    whole = small.save(state | more, tmp_path / "b.safetensors")
    spec = small.spec("conch")
    require_equal(load(whole, spec, "conch"), load(plain, spec, "conch"))


def pieces(state, folder):
    """Writes three files and their index, as the hub's tools do; returns the folder."""
    folder.mkdir()
    where = {}
    for number in range(3):
        file = f"model-{number + 1:05d}-of-00003.safetensors"
        part = {key: state[key] for key in sorted(state)[number::3]}
        small.save(part, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / weights.INDEX).write_text(json.dumps({"weight_map": where}))
    return folder


def test_a_folder_of_pieces_is_one_checkpoint(path, state, tmp_path):
    folder = pieces(state, tmp_path / "pieces")
    require_equal(load(folder), load(path))
    hashes = weights.digests(folder)
    assert len(hashes) == 3
    assert weights.revision(hashes) != weights.revision(weights.digests(path))


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"weight_map": {}}', "files of tensors"),
        ('{"weight_map": {"a": "../uni.safetensors"}}', "beside it"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "beside it"),
        ('{"weight_map": {"a": 3}}', "beside it"),
    ],
)
def test_an_index_is_not_trusted(index, said, path, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / weights.INDEX).write_text(index)
    with pytest.raises(errors.CheckpointError, match=said):
        load(folder)


def test_a_folder_with_one_file_is_that_file(path, tmp_path, state):
    folder = tmp_path / "snapshot"
    folder.mkdir()
    small.save(state, folder / "model.safetensors")
    require_equal(load(folder), load(path))
    with pytest.raises(errors.CheckpointError, match="no such file"):
        load(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("kind", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_numbers_of_other_widths_are_brought_to_the_encoder_s(kind, state, tmp_path):
    path = tmp_path / "uni.safetensors"
    small.save({key: value.astype(kind) for key, value in state.items()}, path)
    params = load(path)
    for leaf in jax.tree.leaves(params):
        assert leaf.dtype == np.float32
    half = load(path, dtype=jnp.bfloat16)
    assert half["blocks"]["attn"]["qkv"]["kernel"].dtype == ml_dtypes.bfloat16
    assert half["blocks"]["norm1"]["scale"].dtype == half["position"].dtype == np.float32
    np.testing.assert_array_equal(
        half["patch"]["kernel"], params["patch"]["kernel"].astype(ml_dtypes.bfloat16)
    )


def test_tensors_that_are_no_floats_and_files_without_tensors_are_refused(state, tmp_path):
    whole = state | {"norm.bias": np.zeros(24, np.int32)}
    with pytest.raises(errors.EncoderMismatchError, match=r"norm\.bias.*floating.*int32"):
        load(small.save(whole, tmp_path / "ints.safetensors"))
    torchfile.write(tmp_path / "none.pt", {"model": {"epoch": 3}})
    with pytest.raises(errors.EncoderMismatchError, match="a dict of tensors"):
        load(tmp_path / "none.pt")
    # Lists are never searched for weights.
    torchfile.write(tmp_path / "list.pt", [state])
    with pytest.raises(errors.EncoderMismatchError, match="a dict of tensors"):
        load(tmp_path / "list.pt")
    (tmp_path / "old.bin").write_bytes(b"\x80\x02\x8a\n" + bytes(99))
    with pytest.raises(errors.TorchFileError, match="older torch"):
        load(tmp_path / "old.bin")


def test_position_embeddings_that_are_no_square_are_refused(state, tmp_path):
    state["pos_embed"] = np.zeros((1, 12, 24), np.float32)
    with pytest.raises(errors.EncoderMismatchError, match=r"pos_embed'.*\(10, 24\).*\(1, 12, 24\)"):
        load(small.save(state, tmp_path / "w.safetensors"))


def test_the_revision_is_of_the_numbers_and_not_of_the_name(path, state, tmp_path):
    same = tmp_path / "other_name.safetensors"
    same.write_bytes(path.read_bytes())
    first = weights.revision(weights.digests(path))
    assert first == weights.revision(weights.digests(same))
    assert first.startswith("sha256:")
    state["norm.bias"] = state["norm.bias"] + np.float32(1e-3)
    other = small.save(state, tmp_path / "changed.safetensors")
    assert first != weights.revision(weights.digests(other))
