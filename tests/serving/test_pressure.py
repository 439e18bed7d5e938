"""More than the device can do: full queues, time-outs, failures, the end."""

from __future__ import annotations

import concurrent.futures
import json
import socket
import threading

import pytest
from live import Gate, a_request, ask, call, counted, read, serving, wait_for

from stemjax.serving import app, service


def test_a_full_queue_is_told_and_what_was_accepted_is_answered(gated):
    address, gate = gated(queue=3)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        first = pool.submit(ask, address, a_request(barcodes=["first"]))
        wait_for(lambda: gate.batches)
        waiting = [pool.submit(ask, address, a_request(barcodes=[f"{n}"])) for n in range(3)]
        wait_for(lambda: counted(address)["stemjax_queue_length"] == 3)
        for _ in range(5):
            status, headers, found = ask(address, a_request(barcodes=["late"]))
            assert (status, found["error"]["code"]) == (503, "SJ-S06")
            assert int(headers["retry-after"]) >= 1
        # The device is held, and still it says that it is alive, and ready to take more.
        assert call(address, "GET", "/healthz")[0] == 200
        gate.open.set()
        answers = [job.result(30) for job in (first, *waiting)]
    assert [status for status, _, _ in answers] == [200] * 4
    assert [found["barcodes"] for _, _, found in answers] == [["first"], ["0"], ["1"], ["2"]]
    assert gate.batches == [[1], [1, 1, 1]]
    assert ask(address, a_request())[0] == 200
    assert counted(address)['stemjax_requests_total{path="/v1/profiles",status="503"}'] == 5


def test_who_waits_too_long_is_told_and_takes_no_room(gated):
    address, gate = gated(timeout_s=0.3, queue=2)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(ask, address, a_request(barcodes=["held"]))]
        wait_for(lambda: gate.batches)
        jobs += [pool.submit(ask, address, a_request(barcodes=[f"{n}"])) for n in range(2)]
        answers = [job.result(30) for job in jobs]
        assert {(status, found["error"]["code"]) for status, _, found in answers} == {
            (504, "SJ-S07")
        }
        # Both places of the queue are free again, though the device is still held.
        jobs = [pool.submit(ask, address, a_request(barcodes=[f"n{n}"])) for n in range(2)]
        wait_for(lambda: counted(address)["stemjax_queue_length"] == 2)
        gate.open.set()
        assert [job.result(30)[0] for job in jobs] == [200, 200]
    assert gate.batches == [[1], [1, 1]]  # what nobody waited for was never computed


def test_a_body_that_comes_too_slowly_is_refused(gated):
    address, _ = gated(timeout_s=0.3)
    head = "POST /v1/profiles HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        answer = connection.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"SJ-S07" in answer


@pytest.mark.parametrize("fault", [ValueError("secret path"), RuntimeError("device")])
def test_a_failed_batch_is_a_500_without_its_inside(gated, fault, caplog):
    address, gate = gated()
    gate.open.set()
    gate.fault = fault
    status, _, found = ask(address, a_request())
    assert (status, found["error"]["code"]) == (500, "SJ-S08")
    assert found["error"]["found"] == type(fault).__name__
    assert "secret" not in json.dumps(found)
    assert str(fault) in caplog.text
    gate.fault = None
    assert ask(address, a_request())[0] == 200


def test_a_profile_that_is_no_number_is_an_error(gated):
    address, gate = gated()
    gate.open.set()
    gate.spoilt = True
    request = a_request(barcodes=["0x0", "0x1"], embeddings=[[1] * 6] * 2)
    status, _, found = ask(address, request)
    assert (status, found["error"]["code"]) == (422, "SJ-T01")
    assert "'0x1'" in found["error"]["what"]


def test_an_end_finishes_what_was_accepted_and_takes_no_more(gated):
    address, gate = gated()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        first = pool.submit(ask, address, a_request(barcodes=["first"]))
        wait_for(lambda: gate.batches)
        waiting = [pool.submit(ask, address, a_request(barcodes=[f"{n}"])) for n in range(3)]
        wait_for(lambda: counted(address)["stemjax_queue_length"] == 3)
        gate.server.should_exit = True
        wait_for(lambda: not gate.server.servers or not gate.server.servers[0].is_serving())
        with pytest.raises(ConnectionRefusedError):
            ask(address, a_request(barcodes=["late"]))
        gate.open.set()
        answers = [job.result(30) for job in (first, *waiting)]
    assert [status for status, _, _ in answers] == [200] * 4
    assert [found["barcodes"] for _, _, found in answers] == [["first"], ["0"], ["1"], ["2"]]


def test_before_everything_is_compiled_it_says_so(trained, offer, monkeypatch):
    warming = threading.Event()

    class Cold(Gate):
        def warm(self):
            assert warming.wait(30)

    monkeypatch.setattr(service.engine, "Engine", Cold)
    made = service.Service(trained, offer, service.Limits())
    with serving(app.make_app(made), made, ready=False) as (address, _):
        assert call(address, "GET", "/healthz")[0] == 200
        for method, path in (("GET", "/readyz"), ("POST", "/v1/profiles")):
            given = {"content_type": "application/json"}
            status, headers, text = call(address, method, path, json.dumps(a_request()), **given)
            assert (status, headers["retry-after"]) == (503, "5")
            assert read(status, headers, text)["error"]["code"] == "SJ-S06"
        warming.set()
        wait_for(lambda: call(address, "GET", "/readyz")[0] == 200)
