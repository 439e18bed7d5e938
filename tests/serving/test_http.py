"""The service over HTTP, on a port of this machine: answers, errors, counts."""

from __future__ import annotations

import base64
import concurrent.futures
import json
import socket

import numpy as np
import pytest
from live import a_request, ask, call, counted, read

from stemjax import tasks
from stemjax.eval import predict
from stemjax.serving import service

NEAR = {"rtol": 1e-5, "atol": 1e-4}  # float32 rounding of programs of other sizes


def of_slide(toy_records, slide, rows, **fields):
    """A request for some spots of a slide, and their rows."""
    table = toy_records.load([slide])
    made = {
        "slide": slide,
        "barcodes": [table.barcodes[row] for row in rows],
        "embeddings": table.embeddings[list(rows), 0].astype(float).tolist(),
    }
    return a_request(**{**made, **fields})


def unpacked(found):
    return np.frombuffer(base64.b64decode(found["base64"]), "<f4").reshape(found["shape"])


def test_an_answer_is_what_predict_writes(live, trained, toy_records):
    rows = [3, 12, 44, 58]
    sampling = tasks.Sampling(mode="draws", n_draws=4, steps=2)
    wanted = predict.predict_slide(trained, toy_records, "X1", sampling, seed=11)
    request = of_slide(toy_records, "X1", rows, mode="draws", seed=11)
    status, _, found = ask(live, request)
    assert status == 200
    np.testing.assert_allclose(found["mean"], wanted.X[rows], **NEAR)
    np.testing.assert_allclose(found["std"], wanted.layers[predict.STD][rows], **NEAR)
    error = wanted.layers[predict.STANDARD_ERROR][rows]
    np.testing.assert_allclose(found["standard_error"], error, **NEAR)
    np.testing.assert_allclose(found["draws"], wanted.obsm[predict.DRAWS][rows], **NEAR)
    assert (found["intervals"], found["calibration"]) == (None, None)
    about = wanted.uns["stemjax"]
    assert found["sampling"] == {name: about[name] for name in found["sampling"]}
    for name in ("evaluations_per_spot", "seed", "value_space", "mode", "slide"):
        assert found[name] == about[name]
    assert found["model"] == trained.identity
    assert (found["genes"], found["barcodes"]) == (list(wanted.var_names), request["barcodes"])
    assert found["notice"] == about["notice"]


def test_intervals_are_those_of_predict_with_null_where_there_is_none(live, trained, toy_records):
    rows = [0, 1, 59]
    sampling = tasks.Sampling(mode="draws", n_draws=4, steps=2)
    wanted = predict.predict_slide(trained, toy_records, "X1", sampling)
    status, _, found = ask(live, of_slide(toy_records, "X1", rows, mode="intervals"))
    assert status == 200
    assert [one["level"] for one in found["intervals"]] == [0.5, 0.9]
    for one in found["intervals"]:
        for end in ("lower", "upper"):
            layer = wanted.layers[f"stemjax_{end}_{100 * one['level']:g}"][rows]
            assert [line[-1] for line in one[end]] == [None] * 3  # the gene nobody measured
            np.testing.assert_allclose(np.array(one[end], float), layer, **NEAR)
    assert found["calibration"]["slides"] == ["V1"]
    assert found["draws"] is None
    assert found["sampling"]["n_draws"] == 4


def test_bytes_in_and_out_and_some_genes_are_the_same(live, toy_records):
    rows = list(range(5))
    table = toy_records.load(["X1"])
    whole = ask(live, of_slide(toy_records, "X1", rows))[2]
    raw = table.embeddings[rows, 0]
    some = of_slide(
        toy_records, "X1", rows, genes=["TOY05", "TOY00"], encoding="base64",
        embeddings={
            "dtype": "float16", "shape": [5, 6],
            "base64": base64.b64encode(raw.astype("<f2").tobytes()).decode(),
        },
    )  # fmt: skip
    status, _, found = ask(live, some)
    assert status == 200
    assert found["genes"] == ["TOY05", "TOY00"]
    np.testing.assert_allclose(unpacked(found["mean"]), np.array(whole["mean"])[:, [5, 0]], **NEAR)
    # Numbers between two of float16 are rounded to them, as in records.
    between = (raw.astype(np.float64) * (1 + 2e-5)).tolist()
    assert ask(live, {**of_slide(toy_records, "X1", rows), "embeddings": between})[2] == whole


def test_a_request_of_more_spots_than_a_batch_comes_back_in_order(live, trained, toy_records):
    rows = list(range(40))
    wanted = predict.predict_slide(trained, toy_records, "T1", tasks.Sampling(mode="mean")).X
    status, _, found = ask(live, of_slide(toy_records, "T1", rows, mode="mean"))
    assert status == 200
    np.testing.assert_allclose(found["mean"], wanted[rows], **NEAR)


def test_concurrent_clients_share_batches_and_get_their_own(live, trained, toy_records):
    before = counted(live)
    requests = [
        of_slide(toy_records, slide, [row], seed=seed, mode="draws", draws=2)
        for slide, row, seed in [(s, r, d) for s in ("X1", "T1") for r in (1, 9) for d in range(4)]
    ]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda request: ask(live, request), requests))
    assert [status for status, _, _ in together] == [200] * 16
    after = counted(live)
    for request, (_, _, found) in zip(requests, together):
        alone = ask(live, request)[2]
        np.testing.assert_allclose(found["draws"], alone["draws"], **NEAR)
    assert len({json.dumps(found["draws"]) for _, _, found in together}) == 16
    assert after["stemjax_batch_requests_sum"] - before["stemjax_batch_requests_sum"] == 16
    assert after["stemjax_compilations"] == before["stemjax_compilations"] == 6
    name = 'stemjax_profiles_total{mode="draws"}'
    assert after[name] - before.get(name, 0) == 16


REFUSED = {
    "no json": ({}, b"{", 400, "SJ-S01"),
    "another encoder": ({"encoder": "uni"}, None, 409, "SJ-D05"),
    "another digest": ({"encoder": "0" * 64}, None, 409, "SJ-D05"),
    "an unknown gene": ({"genes": ["TOY01", "TP53"]}, None, 422, "SJ-D04"),
    "a gene twice": ({"genes": ["TOY01", "TOY01"]}, None, 422, "SJ-D04"),
    "a mode not served": ({"mode": "marginal"}, None, 422, "SJ-C01"),
    "other steps": ({"mode": "draws", "steps": 3}, None, 422, "SJ-C01"),
    "no calibration": ({"mode": "intervals", "draws": 2}, None, 422, "SJ-E02"),
    "an unknown field": ({"temperature": 1}, None, 422, "SJ-S02"),
    "wrong width": ({"embeddings": [[1, 2, 3]]}, None, 422, "SJ-S02"),
    "ragged": ({"embeddings": [[1] * 6, [1] * 5], "barcodes": ["a", "b"]}, None, 422, "SJ-S02"),
    "wrong rows": ({"barcodes": ["a", "b"]}, None, 422, "SJ-S02"),
    "a barcode twice": (
        {"barcodes": ["a", "a"], "embeddings": [[1] * 6] * 2}, None, 422, "SJ-S02",
    ),
    "beyond float16": ({"embeddings": [[1e5] * 6]}, None, 422, "SJ-S02"),
    "bytes not a number": (
        {"embeddings": {"dtype": "float16", "shape": [1, 6],
                        "base64": base64.b64encode(b"\x00\x7e" * 6).decode()}},
        None, 422, "SJ-S02",
    ),
    "too many spots": (
        {"barcodes": [f"{n}" for n in range(41)], "embeddings": [[1] * 6] * 41},
        None, 413, "SJ-S03",
    ),
    "too many bytes": ({}, b" " * 20_001, 413, "SJ-S03"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_answered_is_refused_with_a_code(live, name):
    fields, body, status, code = REFUSED[name]
    found, _, error = ask(live, a_request(**fields) if body is None else body)
    assert (found, error["error"]["code"]) == (status, code)
    assert ask(live, a_request())[0] == 200


def test_the_encoder_may_be_stated_by_name_digest_or_contract(live):
    about = read(*call(live, "GET", "/v1/model"))
    for stated in ("toy", about["encoder_digest"], about["encoder"]):
        assert ask(live, a_request(encoder=stated))[0] == 200
    other = {**about["encoder"], "pooling": "mean"}  # of the same name and width
    status, _, found = ask(live, a_request(encoder=other))
    assert (status, found["error"]["code"]) == (409, "SJ-D05")
    assert found["error"]["expected"] == "pooling = 'none'"
    assert found["error"]["found"] == "pooling = 'mean'"


def test_many_values_go_out_as_bytes_only(live, monkeypatch):
    asked = {"barcodes": [f"{n}" for n in range(4)], "embeddings": [[1] * 6] * 4, "mode": "draws"}
    monkeypatch.setattr(service, "MOST_NUMBERS", 4 * 8 * (2 + 4))  # mean, std and four draws
    assert ask(live, a_request(**asked))[0] == 200
    monkeypatch.setattr(service, "MOST_NUMBERS", 4 * 8 * (2 + 4) - 1)
    status, _, found = ask(live, a_request(**asked))
    assert (status, found["error"]["code"]) == (422, "SJ-S02")
    assert found["error"]["found"] == "numbers, and 192 values"
    for fewer in ({"encoding": "base64"}, {"draws": 2}, {"genes": ["TOY01"]}, {"mode": "mean"}):
        assert ask(live, a_request(**{**asked, **fewer}))[0] == 200


@pytest.mark.parametrize(
    ("kind", "coding"), [("text/plain", None), ("", None), ("application/json", "gzip")]
)
def test_another_kind_of_body_is_refused(live, kind, coding):
    given = {"content_type": kind} | ({"content_encoding": coding} if coding else {})
    status, headers, text = call(live, "POST", "/v1/profiles", json.dumps(a_request()), **given)
    assert (status, read(status, headers, text)["error"]["code"]) == (415, "SJ-S04")
    given = "application/json; charset=utf-8"
    assert ask(live, a_request(), content_type=given)[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "allowed"),
    [
        ("GET", "/v1/profiles", 405, "POST"),
        ("POST", "/v1/model", 405, "GET"),
        ("DELETE", "/metrics", 405, "GET"),
        ("GET", "/v2/profiles", 404, None),
        ("GET", "/docs", 404, None),
        ("GET", "/%ff%00", 404, None),
    ],
)
def test_other_paths_and_methods_are_refused(live, method, path, status, allowed):
    found, headers, text = call(live, method, path)
    error = read(found, headers, text)["error"]
    assert (found, error["code"], headers.get("allow")) == (status, "SJ-S05", allowed)


def test_a_large_body_is_refused_before_it_is_read(live):
    stated = b"POST /v1/profiles HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    for more in (b"Content-Length: 99999999999999\r\n\r\n",  # and not one byte of it
                 b"Transfer-Encoding: chunked\r\n\r\n" + b"4e21\r\n" + b" " * 0x4E21):  # fmt: skip
        with socket.create_connection(live, timeout=20) as connection:
            connection.sendall(stated + more)
            assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_ends_early_or_never_comes_harms_nobody(live):
    head = b"POST /v1/profiles HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    for rest in (b"Content-Length: 500\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"):
        with socket.create_connection(live, timeout=20) as connection:
            connection.sendall(head + rest)
    with socket.create_connection(live, timeout=20) as connection:
        connection.sendall(b"\x16\x03\x01 no HTTP at all\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
    assert ask(live, a_request())[0] == 200


def test_the_model_is_described(live, trained):
    about = read(*call(live, "GET", "/v1/model"))
    assert about["genes"] == list(trained.card.space.genes)
    assert about["encoder"] == trained.card.contract.to_json()
    assert (about["value_space"], about["model"]) == ("log2p1", trained.identity)
    assert about["modes"] == ["mean", "pair", "draws", "intervals"]
    assert [(one["mode"], one["intervals"]) for one in about["samplings"]] == [
        ("mean", True), ("pair", False), ("draws", True),
    ]  # fmt: skip
    assert about["limits"]["max_spots"] == 40
    assert about["train_slides"] == ["T1", "T2"]
    assert len(about["calibrations"]) == 2
    assert "Research use only" in about["notice"]
    for path in ("/healthz", "/readyz"):
        assert read(*call(live, "GET", path)) == {"status": "ok"}


def test_the_examples_of_the_documentation_are_answered(live):
    made = read(*call(live, "GET", "/openapi.json"))
    post = made["paths"]["/v1/profiles"]["post"]
    content = post["requestBody"]["content"]["application/json"]
    assert set(content["examples"]) == {"bytes", "numbers"}
    for example in content["examples"].values():
        assert ask(live, example["value"])[0] == 200
    errors = {"400", "408", "409", "413", "415", "422", "500", "503", "504"}
    assert set(post["responses"]) == {"200", *errors}
    schemas = made["components"]["schemas"]
    for status in errors:
        body = post["responses"][status]["content"]["application/json"]
        assert body == {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}
    assert "Retry-After" in post["responses"]["503"]["headers"]
    named = {text.split('"')[0] for text in json.dumps(made).split("#/components/schemas/")[1:]}
    assert named <= set(schemas)
    assert "HTTPValidationError" not in schemas


def test_answers_are_counted_by_path_and_status(live):
    before = counted(live)
    ask(live, a_request())
    ask(live, a_request(encoder="uni"))
    call(live, "GET", "/nowhere/at/all")
    call(live, "GET", "/nowhere/else")
    after = counted(live)

    def more(name):
        return after[name] - before.get(name, 0)

    assert more('stemjax_requests_total{path="/v1/profiles",status="200"}') == 1
    assert more('stemjax_requests_total{path="/v1/profiles",status="409"}') == 1
    assert more('stemjax_requests_total{path="other",status="404"}') == 2
    assert more('stemjax_request_seconds_count{path="/v1/profiles"}') == 2
    assert more("stemjax_batch_spots_count") == more("stemjax_batch_spots_sum") == 1
    assert (after["stemjax_ready"], after["stemjax_queue_length"]) == (1, 0)
    assert not any("nowhere" in name for name in after)
