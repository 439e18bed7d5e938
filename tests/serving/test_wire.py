"""What is read of a body, and what its errors say."""

from __future__ import annotations

import base64
import json

import numpy as np
import pydantic
import pytest
from live import a_request

from stemjax import errors
from stemjax.serving import refusals, wire


def packed(array, **fields):
    made = {
        "dtype": str(array.dtype),
        "shape": list(array.shape),
        "base64": base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode(),
    }
    return {**made, **fields}


def text(**fields):
    return json.dumps(a_request(**fields)).encode()


def test_a_request_is_read_with_its_defaults():
    found = wire.read_request(text(seed=7, genes=["TOY01"]))
    assert (found.encoder, found.slide, found.barcodes) == ("toy", "X1", ["0x0"])
    assert found.embeddings == [[0.5, 1, 0, 2, 0, -1]]
    assert (found.seed, found.mode, found.draws, found.encoding) == (7, None, None, "numbers")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_bytes_are_little_endian_a_spot_after_the_other(dtype):
    array = np.arange(12, dtype=dtype).reshape(2, 6) / 3
    found = wire.read_request(text(embeddings=packed(array), barcodes=["a", "b"])).embeddings
    np.testing.assert_array_equal(found.array(), array)
    assert base64.b64decode(packed(np.float16([[1.0]]))["base64"]) == b"\x00\x3c"


WRONG = {
    "no barcodes": ({"barcodes": ...}, "barcodes", "a value", "nothing"),
    "empty barcodes": ({"barcodes": []}, "barcodes", "at least 1", "a list of 0"),
    "a number for a name": ({"barcodes": ["a", 3]}, "barcodes.1", "valid string", "3"),
    "unknown": ({"temperature": 1}, "temperature", "no field", "1"),
    "text in numbers": (
        {"embeddings": [[1, 2], [3, "4"]]}, "embeddings.numbers.1.1", "valid number", "'4'",
    ),
    "flat numbers": ({"embeddings": [1, 2]}, "embeddings.numbers.0", "valid array", "1"),
    "null": ({"embeddings": [[None]]}, "embeddings.numbers.0.0", "valid number", "None"),
    "true": ({"embeddings": [[True]]}, "embeddings.numbers.0.0", "valid number", "True"),
    "a long word": ({"seed": "x" * 1000}, "seed", "valid integer", "'" + "x" * 76 + "..."),
    "other bytes": (
        {"embeddings": {"dtype": "int8", "shape": [1, 6], "base64": ""}},
        "embeddings.bytes.dtype", "'float16' or 'float32'", "'int8'",
    ),
    "negative shape": (
        {"embeddings": {"dtype": "float16", "shape": [-1, 6], "base64": ""}},
        "embeddings.bytes.shape.0", "greater than or equal to 1", "-1",
    ),
    "large seed": ({"seed": 2**32}, "seed", "less than or equal to 4294967295", "4294967296"),
    "broken seed": ({"seed": 1.5}, "seed", "valid integer", "1.5"),
    "mode": ({"mode": "median"}, "mode", "'mean', 'marginal', 'pair', 'draws'", "'median'"),
    "contract": ({"encoder": {"name": "toy"}}, "encoder.contract.width", "a value", "nothing"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_field_that_cannot_be_right_is_named(name):
    fields, where, expected, found = WRONG[name]
    with pytest.raises(refusals.FieldError) as caught:
        wire.read_request(text(**fields))
    assert caught.value.what == where
    assert expected in caught.value.expected
    assert caught.value.found == found
    assert refusals.status_of(caught.value) == 422


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_what_is_no_number_is_refused(number):
    body = text(embeddings=[[1.0, 77.0]]).replace(b"77.0", number.encode())
    with pytest.raises(refusals.FieldError, match=r"embeddings\.numbers\.0\.1: .*finite"):
        wire.read_request(body)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\x00\xff\xfe", text()[:-5], b'{"slide": "\\ud800"}', b"[" * 100_000, b"{} {}"],
)
def test_what_is_no_json_is_refused(body):
    with pytest.raises(refusals.NotJsonError) as caught:
        wire.read_request(body)
    assert (caught.value.code, refusals.status_of(caught.value)) == ("SJ-S01", 400)
    assert caught.value.found.startswith("Invalid JSON")


@pytest.mark.parametrize("body", [b"[]", b"null", b"3", b'"text"'])
def test_json_that_is_no_request_is_refused(body):
    with pytest.raises(refusals.FieldError, match="the request"):
        wire.read_request(body)


def test_a_million_wrong_values_are_one_error():
    body = json.dumps(a_request(embeddings=[["x"] * 1000] * 1000)).encode()
    with pytest.raises(refusals.FieldError, match=r"numbers\.0\.0"):
        wire.read_request(body)
    with pytest.raises(pydantic.ValidationError) as caught:
        wire.ProfilesRequest.model_validate_json(body)
    assert caught.value.error_count() == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"base64": "!!!!"}, "base64 with its padding"),
        ({"base64": "AAAA"}, "24 bytes, shape .2, 6. of float16, found 3"),
        ({"base64": "é"}, "base64 with its padding"),
        ({"shape": [10**9, 10**9]}, "found 24"),
    ],
)
def test_bytes_that_do_not_fit_their_shape_are_refused(fields, words):
    found = wire.PackedEmbeddings(**packed(np.zeros((2, 6), np.float16), **fields))
    with pytest.raises(refusals.FieldError, match=words):
        found.array()


def test_an_array_goes_out_whole_with_null_where_there_is_no_number():
    array = np.array([[0.1, np.nan], [-np.inf, 3e38]], np.float32)
    numbers = wire.pack(array, "numbers")
    assert numbers == [[float(np.float32(0.1)), None], [None, float(np.float32(3e38))]]
    found = wire.pack(array, "base64")
    back = np.frombuffer(base64.b64decode(found.base64), "<f4").reshape(found.shape)
    np.testing.assert_array_equal(back, array)


def test_an_error_is_json_whatever_it_names():
    error = errors.StemjaxError("\ud800 \x00 'é'", found=None, fix="look")
    found = json.loads(wire.error_body(error))["error"]
    assert found == {
        "code": "SJ-000", "what": "? \x00 'é'", "expected": None, "found": None, "fix": "look",
    }  # fmt: skip


def test_a_status_for_every_error():
    assert refusals.status_of(errors.EncoderMismatchError("x")) == 409
    assert refusals.status_of(errors.GenePanelError("x")) == 422
    assert refusals.status_of(refusals.LateError("x")) == 504
    assert refusals.status_of(refusals.LateError("x", status=408)) == 408
    kinds = refusals.Refusal.__subclasses__()
    assert len({kind.code for kind in kinds}) == len(kinds) == 8
