"""Bodies that a client of `stemjax serve` may send: each is answered by a refusal."""

from __future__ import annotations

import json

import payloads
import pytest

from stemjax.serving import refusals, wire

GOOD = {"encoder": "toy", "slide": "A1", "barcodes": ["b"], "embeddings": [[0.0] * 6]}


def body(**changes):
    return json.dumps(GOOD | changes).encode()


BODIES = {
    "empty": b"",
    "nul": b"\0" * 100,
    "no UTF-8": b'{"slide": "\xff\xfe"}',
    "nested": payloads.nested().encode(),
    "nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "nested embeddings": b'{"embeddings":' + payloads.nested().encode() + b"}",
    "not a number": body(embeddings=[[float("nan")] * 6]),
    "infinite": body().replace(b"0.0", b"1e999"),
    "endless seed": body().replace(b"{", b'{"seed":' + b"9" * 10_000 + b",", 1),
    "negative seed": body(seed=-1),
    "seed as text": body(seed="1"),
    "seed as truth": body(seed=True),
    "another field": body(config="config.py"),
    "a class": body(encoder={"__reduce__": "os.system"}),
    "long slide": body(slide="x" * 201),
    "no slide": body(slide=""),
    "half a letter": body().replace(b'"A1"', b'"\\ud800"'),
    "a pickle": payloads.pickled("/nowhere"),
    "a shape of terabytes": body(
        embeddings={"dtype": "float32", "shape": [2**40, 2**20], "base64": "AAAA"}
    ),
    "objects": body(embeddings={"dtype": "object", "shape": [1, 6], "base64": "AAAA"}),
}


def taken(content):
    """What the service makes of a body before the model sees it."""
    read = wire.read_request(content)
    return read.embeddings.array() if hasattr(read.embeddings, "array") else read


@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_is_refused(name):
    with pytest.raises(refusals.Refusal) as caught:
        taken(BODIES[name])
    told = json.loads(wire.error_body(caught.value))["error"]
    assert told["code"].startswith("SJ-")
    assert len(json.dumps(told)) < 2000


def test_the_good_body_is_taken():
    assert wire.read_request(body()).slide == "A1"
