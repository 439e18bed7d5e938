"""Contracts are compared field by field; variants are the flips and turns of D4."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from stemjax import errors
from stemjax.data import embeddings

CONTRACT = embeddings.EncoderContract(
    name="uni2",
    width=1536,
    input_px=224,
    fov_um=112.0,
    resize="lanczos",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    pooling="cls",
    projection="none",
    source="trident",
    revision="a1",
)
OTHER = {
    "name": "h_optimus_0",
    "width": 1024,
    "input_px": 448,
    "fov_um": None,
    "resize": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "pooling": "mean",
    "projection": "linear",
    "source": "lazyslide",
    "revision": "a2",
}


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        # numpy.rot90 turns against the clock; 4..7 mirror left and right before they turn.
        (0, [[1, 2], [3, 4]]),
        (1, [[2, 4], [1, 3]]),
        (2, [[4, 3], [2, 1]]),
        (3, [[3, 1], [4, 2]]),
        (4, [[2, 1], [4, 3]]),
        (5, [[1, 3], [2, 4]]),
        (6, [[3, 4], [1, 2]]),
        (7, [[4, 2], [3, 1]]),
    ],
)
def test_variant_by_hand(variant, expected):
    patch = np.array([[1, 2], [3, 4]])
    np.testing.assert_array_equal(embeddings.apply_variant(patch, variant), expected)


def test_variants_are_a_group():
    patch = np.arange(16 * 3).reshape(4, 4, 3)
    seen = {embeddings.apply_variant(patch, v).tobytes() for v in range(8)}
    assert len(seen) == 8
    for first, second in itertools.product(range(8), repeat=2):
        both = embeddings.apply_variant(embeddings.apply_variant(patch, first), second)
        assert both.tobytes() in seen


@pytest.mark.parametrize("variant", [-1, 8])
def test_unknown_variant(variant):
    with pytest.raises(errors.ConfigError, match=r"0\.\.7") as caught:
        embeddings.apply_variant(np.zeros((2, 2)), variant)
    assert caught.value.found == str(variant)


def test_json_round_trip():
    stored = json.loads(json.dumps(CONTRACT.to_json()))
    assert stored["mean"] == [0.485, 0.456, 0.406]
    assert embeddings.EncoderContract.from_json(stored) == CONTRACT
    published = dataclasses.replace(CONTRACT, fov_um=None)
    stored = json.loads(json.dumps(published.to_json()))
    assert embeddings.EncoderContract.from_json(stored) == published


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"width": "1536"}, "width"),
        ({"width": True}, "width"),
        ({"fov_um": "112 um"}, "fov_um"),
        ({"mean": ["a"]}, "mean"),
        ({"std": 1.0}, "std"),
        ({"pooling": None}, "pooling"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_damaged_json_names_the_field(change, named):
    with pytest.raises(errors.EncoderMismatchError, match=named):
        embeddings.EncoderContract.from_json(CONTRACT.to_json() | change)


def test_json_without_a_field_and_of_another_kind():
    values = CONTRACT.to_json()
    del values["revision"]
    with pytest.raises(errors.EncoderMismatchError, match="missing: revision"):
        embeddings.EncoderContract.from_json(values)
    with pytest.raises(errors.EncoderMismatchError, match="str"):
        embeddings.EncoderContract.from_json("texture")  # type: ignore[arg-type]


def test_width_below_one():
    with pytest.raises(errors.EncoderMismatchError, match="'width'"):
        dataclasses.replace(CONTRACT, width=0)


@pytest.mark.parametrize("field", OTHER)
def test_each_field_is_compared(field):
    changed = dataclasses.replace(CONTRACT, **{field: OTHER[field]})
    with pytest.raises(errors.EncoderMismatchError) as caught:
        CONTRACT.require_same(changed, where="the records and the checkpoint")
    message = str(caught.value)
    assert f"'{field}'" in message
    assert "the records and the checkpoint" in message
    shown = "max(224 px, spot diameter)" if OTHER[field] is None else str(OTHER[field])
    assert shown in (caught.value.expected or "")
    assert str(getattr(CONTRACT, field)).removesuffix(".0") in (caught.value.found or "")


def test_first_difference_is_named():
    # Same width, another encoder: the name comes before what follows from it.
    other = embeddings.EncoderContract(**(OTHER | {"width": 1536}))
    with pytest.raises(errors.EncoderMismatchError, match="field 'name'"):
        CONTRACT.require_same(other, where="here")


@pytest.mark.parametrize(("fov_um", "same"), [(106.5, True), (117.8, True), (106.0, False)])
def test_field_of_view_within_five_percent(fov_um, same):
    other = dataclasses.replace(CONTRACT, fov_um=fov_um)
    if same:
        CONTRACT.require_same(other, where="here")
        other.require_same(CONTRACT, where="here")
    else:
        with pytest.raises(errors.EncoderMismatchError, match="106 um"):
            CONTRACT.require_same(other, where="here")


def test_get_encoder():
    for name in ("texture", "none"):
        assert embeddings.get_encoder(name).contract.name == name
    with pytest.raises(errors.ConfigError, match="texture") as caught:
        embeddings.get_encoder("resnet9000")
    assert "resnet9000" in str(caught.value)
    with pytest.raises(errors.ConfigError, match="Did you mean 'texture'"):
        embeddings.get_encoder("Texture")
