"""A server in a thread, and a client that can send what no client library would."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time

import numpy as np
import uvicorn

from stemjax.serving import wire


@contextlib.contextmanager
def serving(application, service, *, ready=True):
    """Gives the address of a server in a thread, once it is ready or runs, and the server."""
    listening = socket.create_server(("127.0.0.1", 0))
    address = listening.getsockname()
    config = uvicorn.Config(application, log_config=None, log_level="warning", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        wait_for(lambda: server.started and (service.ready or not ready or service.failure))
        assert service.failure is None
        yield address, server
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def wait_for(true, seconds=60):
    """Waits until something holds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def call(address, method, path, body=None, **headers):
    """Returns status, headers and body of an answer."""
    connection = http.client.HTTPConnection(*address, timeout=60)
    try:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, names)
        found = connection.getresponse()
        return found.status, dict(found.getheaders()), found.read()
    finally:
        connection.close()


def ask(address, request, content_type="application/json"):
    """Returns status, headers and the JSON that a request for profiles is answered with."""
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    status, headers, text = call(address, "POST", "/v1/profiles", body, content_type=content_type)
    return status, headers, read(status, headers, text)


def read(status, headers, text):
    """Returns an answer's JSON, after looking whether it is what the documentation says."""

    def no_constant(name):
        raise AssertionError(f"{name} is no JSON")

    assert headers["content-type"] == "application/json"
    found = json.loads(text, parse_constant=no_constant)
    if status != 200:
        error = wire.ErrorResponse.model_validate(found).error
        assert set(found) == {"error"}
        assert set(found["error"]) == {"code", "what", "expected", "found", "fix"}
        assert error.code.startswith("SJ-")
        assert error.what
    return found


def counted(address):
    """Returns the metrics, by name with labels."""
    status, headers, text = call(address, "GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = [line for line in text.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def a_request(**fields):
    """A request that the small model answers."""
    made = {
        "encoder": "toy", "slide": "X1", "barcodes": ["0x0"], "embeddings": [[0.5, 1, 0, 2, 0, -1]],
    }  # fmt: skip
    return {name: value for name, value in {**made, **fields}.items() if value is not ...}


class Gate:
    """In place of an engine: zeros, as soon as it is opened; tells of every batch."""

    def __init__(self, trained, menu, *, max_batch):
        self._genes, self._most = len(trained.card.space.genes), max_batch
        self.open, self.batches, self.compilations = threading.Event(), [], 0
        self.fault, self.spoilt, self.server = None, False, None

    def capacity(self, order):
        return self._most

    def warm(self):
        pass

    def profiles(self, order, parts):
        self.batches.append([len(part) for part in parts])
        assert self.open.wait(30)
        if self.fault:
            raise self.fault
        made = np.zeros((sum(map(len, parts)), self._genes), np.float32)
        if self.spoilt:
            made[-1, 2] = np.nan
        return {"mean": made}
