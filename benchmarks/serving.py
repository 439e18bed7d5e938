"""A model behind HTTP: latency and profiles a second under load, and what malformed requests do.

    uv run python benchmarks/serving.py --quick
    uv run python benchmarks/serving.py --json benchmarks/results/serving.json

`stemjax serve` runs in a process of its own on this machine, with a model that nobody trained, and
1, 8 and 64 clients send it requests over the loopback interface, each as soon as the one before is
answered (keep-alive, embeddings and profiles as base64). The clients are threads of this process
and take their part of the same cores. ``offline`` is what the same sampling does in this process
without HTTP, on as many spots as it likes, while the server is idle: the rate that the service is
a share of.

Then requests that no client should send, in turn: random bytes, wrong types, numbers that are none
or too large, wrong shapes, wrong content types, truncated bodies. They are counted by status;
``closed`` is a connection that ended without an answer. Afterwards the server must still answer a
good request as it did before.
"""

from __future__ import annotations

import argparse
import base64
import collections
import concurrent.futures
import contextlib
import http.client
import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import harness
import jax
import numpy as np

from stemjax import config, tasks
from stemjax.data import embeddings, space, transforms
from stemjax.diffusion import sampler
from stemjax.export import bundle
from stemjax.train import checkpoint

CLIENTS = (1, 8, 64)
DRAWS, STEPS = 4, 4
WAYS = {
    "mean": tasks.Sampling(mode="mean"),
    "draws": tasks.Sampling(mode="draws", n_draws=DRAWS, steps=STEPS),
}
SPOTS = (1, 16)
"""Spots of a request."""
PATH, JSON = "/v1/profiles", "application/json"
MALFORMED = 10_000

type Address = tuple[str, int]


def make_model(experiment: config.Experiment, genes: int, condition: int) -> checkpoint.Trained:
    """Returns a model that nobody trained."""

    def unit(n: int) -> transforms.Standardisation:
        return transforms.Standardisation(mean=np.ones(n, np.float32), std=np.ones(n, np.float32))

    names = tuple(f"G{i:05d}" for i in range(genes))
    contract = embeddings.EncoderContract(
        name="made", width=condition, input_px=224, fov_um=None, resize="none", mean=(), std=(),
        pooling="none", projection="none", source="benchmarks", revision="1",
    )  # fmt: skip
    card = checkpoint.Card(
        experiment=experiment,
        space=space.Space(
            genes=names,
            transform=experiment.data.transform,
            expression=unit(genes),
            condition=unit(condition),
        ),
        contract=contract,
        split={"train": [], "val": [], "test": [], "kind": "none"},
        panel={"genes": list(names), "rule": "made", "slides": []},
        versions={},
    )
    params = harness.awake(card.task.init(jax.random.key(0)))
    return checkpoint.Trained(params=params, card=card, step=0, weights="last")


@contextlib.contextmanager
def serve(model: pathlib.Path) -> Iterator[tuple[Address, float]]:
    """Gives the address of a server in a process of its own, and the seconds until it was ready."""
    command = [sys.executable, "-m", "stemjax.cli", "serve", str(model), "--port", "0"]
    command += ["--modes", ",".join(WAYS), "--n-draws", str(DRAWS), "--steps", str(STEPS)]
    command += ["--queue", "256"]
    began = time.perf_counter()
    # What it warns of, tens of thousands of broken requests, goes nowhere.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.match(r"http://([\d.]+):(\d+): ", line)
        if found is None:
            raise RuntimeError(f"the server did not start: {line!r}")
        address = found[1], int(found[2])
        while send(address, b"", method="GET", path="/readyz")[0] != 200:
            time.sleep(0.1)
        yield address, time.perf_counter() - began
        process.send_signal(signal.SIGTERM)
        if process.wait(60):
            raise RuntimeError(f"the server ended with {process.returncode}")
    finally:
        process.kill()
        process.wait()


def send(
    address: Address, body: bytes, *, method: str = "POST", path: str = PATH, kind: str = JSON
) -> tuple[int, bytes]:
    """Returns status and body of one request on a connection of its own."""
    connection = http.client.HTTPConnection(*address, timeout=120)
    try:
        connection.request(method, path, body, {"Content-Type": kind})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def a_request(
    width: int, spots: int, number: int, way: str, encoder: str = "made"
) -> dict[str, Any]:
    """Returns a good request, another for each number."""
    vectors = np.random.default_rng(number).standard_normal((spots, width)).astype("<f2")
    text = base64.b64encode(vectors.tobytes()).decode()
    return {
        "encoder": encoder,
        "slide": f"S{number}",
        "barcodes": [f"b{i}" for i in range(spots)],
        "embeddings": {"dtype": "float16", "shape": [spots, width], "base64": text},
        "seed": number,
        "mode": way,
        "encoding": "base64",
    }


class Load(NamedTuple):
    """What some clients saw: seconds of each answer, of all together, and how many were refused."""

    latencies: list[float]
    seconds: float
    refused: int


def load(address: Address, bodies: Sequence[bytes], clients: int, seconds: float) -> Load:
    """Has clients send requests for some seconds, each one after the other."""
    end = time.perf_counter() + seconds

    def client(number: int) -> tuple[list[float], int]:
        connection = http.client.HTTPConnection(*address, timeout=120)
        found, refused, turn = [], 0, number
        try:
            while (began := time.perf_counter()) < end:
                body = bodies[turn % len(bodies)]
                connection.request("POST", PATH, body, {"Content-Type": JSON})
                answer = connection.getresponse()
                answer.read()
                if answer.status == 200:
                    found.append(time.perf_counter() - began)
                else:
                    refused += 1
                turn += clients
        finally:
            connection.close()
        return found, refused

    began = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        each = list(pool.map(client, range(clients)))
    return Load(
        latencies=[latency for found, _ in each for latency in found],
        seconds=time.perf_counter() - began,
        refused=sum(refused for _, refused in each),
    )


def counted(address: Address, name: str) -> float:
    """Returns one of the server's metrics."""
    text = send(address, b"", method="GET", path="/metrics")[1].decode()
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def measure_offline(trained: checkpoint.Trained, way: str, seconds: float) -> dict[str, Any]:
    """Returns the line of the same sampling in this process, without HTTP."""
    predict = tasks.make_predictor(trained.card.task, WAYS[way])
    spots = predict.sizes[0]
    width = trained.card.contract.width
    cond = np.random.default_rng(0).standard_normal((spots, width)).astype(np.float32)
    keys = sampler.spot_keys(0, "offline", [str(i) for i in range(spots)])
    timing = harness.time_calls(
        lambda: predict(trained.params, cond, keys), repeats=3, warm_up=1, seconds=seconds
    )
    rate = spots / timing.median
    return {"way": way, "clients": 0, "spots": spots, "profiles_per_s": rate, **timing.line}


def measure_load(
    address: Address, bodies: Sequence[bytes], clients: int, *, seconds: float
) -> dict[str, Any]:
    """Returns the line of some clients."""
    load(address, bodies, clients, min(1.0, seconds / 4))
    names = ("stemjax_batch_spots_sum", "stemjax_batch_spots_count")
    before = [counted(address, name) for name in names]
    found = load(address, bodies, clients, seconds)
    computed, batches = (counted(address, name) - b for name, b in zip(names, before))
    p50, p99 = (float(q) for q in np.quantile(found.latencies, [0.5, 0.99]))
    return {
        "clients": clients,
        "answers": len(found.latencies),
        "refused": found.refused,
        "p50_s": p50,
        "p99_s": p99,
        "answers_per_s": len(found.latencies) / found.seconds,
        "spots_per_batch": computed / max(1, batches),
    }


# ---------------------------------------------------------------------- malformed


def _random_bytes(rng: np.random.Generator, good: dict[str, Any]) -> bytes:
    return rng.bytes(int(rng.integers(0, 2000)))


def _wrong_types(rng: np.random.Generator, good: dict[str, Any]) -> bytes:
    field = str(rng.choice(list(good)))
    wrong = [None, 3.5, True, "x", [], {}, [[]], [None], {"a": 1}, -1, [[["x"]]]]
    # No mode is the first one, and "x" is a slide's name like any other.
    right = {"mode": None, "slide": "x"}
    kept = [value for value in wrong if field not in right or value != right[field]]
    return json.dumps({**good, field: kept[int(rng.integers(len(kept)))]}).encode()


def _huge_numbers(rng: np.random.Generator, good: dict[str, Any]) -> bytes:
    numbers = ["1e400", "NaN", "-Infinity", "1e39", "9" * 400, "-1e5", "0." + "9" * 5000 + "e9"]
    text = json.dumps({**good, "embeddings": [[0.25]]})
    return text.replace("0.25", str(rng.choice(numbers))).encode()


def _wrong_shapes(rng: np.random.Generator, good: dict[str, Any]) -> bytes:
    width = good["embeddings"]["shape"][1]
    shapes = [(1, width + 1), (2, width), (width, 1), (0, width), (-1, -1), (2**40, 2**40)]
    shape = shapes[int(rng.integers(len(shapes)))]
    packed = {**good["embeddings"], "shape": list(shape)}
    numbers = [[0.0] * int(rng.integers(0, 5))] * int(rng.integers(0, 5))
    return json.dumps({**good, "embeddings": packed if rng.random() < 0.5 else numbers}).encode()


def _good(rng: np.random.Generator, good: dict[str, Any]) -> bytes:
    return json.dumps(good).encode()


KINDS: dict[str, Callable[[np.random.Generator, dict[str, Any]], bytes]] = {
    "random bytes": _random_bytes,
    "wrong types": _wrong_types,
    "huge numbers": _huge_numbers,
    "wrong shapes": _wrong_shapes,
    "wrong content type": _good,
    "truncated body": _good,
}


def send_malformed(address: Address, kind: str, seed: int, good: dict[str, Any]) -> str:
    """Sends one malformed request; returns the status, or ``closed``."""
    rng = np.random.default_rng(seed)
    body = KINDS[kind](rng, good)
    try:
        if kind == "truncated body":
            return _send_part(address, body, int(rng.integers(0, len(body))))
        content = JSON
        if kind == "wrong content type":
            content = str(rng.choice(["text/plain", "", "application/octet-stream", "a" * 3000]))
        return str(send(address, body, kind=content)[0])
    except (OSError, http.client.HTTPException):
        return "closed"


def _send_part(address: Address, body: bytes, length: int) -> str:
    """Says that the body is whole, sends a part, and sends no more."""
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: {JSON}\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(address, timeout=120) as connection:
        connection.sendall(head.encode() + body[:length])
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(100)
    return answer.split()[1].decode() if answer else "closed"


def measure_malformed(address: Address, count: int, good: dict[str, Any]) -> dict[str, Any]:
    """Returns how malformed requests were answered, by kind, and whether the server still works."""
    body = json.dumps(good).encode()
    before = send(address, body)
    kinds = [list(KINDS)[number % len(KINDS)] for number in range(count)]
    began = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        ends = list(pool.map(lambda n: send_malformed(address, kinds[n], n, good), range(count)))
    seconds = time.perf_counter() - began
    found = {kind: collections.Counter[str]() for kind in KINDS}
    for kind, end in zip(kinds, ends):
        found[kind][end] += 1
    after = send(address, body)
    return {
        "requests": count,
        "seconds": seconds,
        "by_kind": {kind: dict(sorted(ends.items())) for kind, ends in found.items()},
        "alive": after[0] == 200,
        "same_answer": after == before,
    }


def tables(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    import samplers

    offline = {line["way"]: line for line in result["lines"] if not line["clients"]}
    rows = []
    for line in result["lines"]:
        share = line["profiles_per_s"] / offline[line["way"]]["profiles_per_s"]
        about = [line["way"], f"{line['clients'] or 'offline'}", f"{line['spots']}"]
        if line["clients"]:
            about += [f"{1e3 * line['p50_s']:,.1f}", f"{1e3 * line['p99_s']:,.1f}"]
        else:
            about += ["", ""]
        batch = line.get("spots_per_batch", line["spots"])
        rows.append([*about, f"{line['profiles_per_s']:,.0f}", f"{share:.0%}", f"{batch:,.1f}"])
    head = ["way", "clients", "spots a request", "p50 ms", "p99 ms", "profiles/s",
            "of offline", "spots a batch"]  # fmt: skip
    refused = sum(line.get("refused", 0) for line in result["lines"])
    malformed = result["malformed"]
    statuses = sorted({status for ends in malformed["by_kind"].values() for status in ends})
    counts = [
        [kind, *(f"{ends.get(status, 0):,}" for status in statuses)]
        for kind, ends in malformed["by_kind"].items()
    ]
    after = "answers a good request as before" if malformed["same_answer"] else "DOES NOT ANSWER"
    return (
        f"{result['genes']} genes, {result['condition']} features; draws are {DRAWS} in {STEPS} "
        f"steps. Ready after {result['ready_s']:.0f} s. Refused under load: {refused}.\n\n"
        f"{samplers.markdown(head, rows)}\n\n"
        f"{malformed['requests']:,} malformed requests in {malformed['seconds']:.0f} s, by status; "
        f"the server {after}:\n\n{samplers.markdown(['', *statuses], counts)}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measures offline, under load and under malformed requests, prints, writes the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    harness.add_arguments(parser)
    parser.add_argument("--clients", type=harness.numbers, default=CLIENTS)
    parser.add_argument("--spots", type=harness.numbers, default=SPOTS, help="spots a request")
    parser.add_argument("--seconds", type=float, help="of each load; default 8, 1.5 if quick")
    parser.add_argument("--malformed", type=int, help="requests; default 10000, 600 if quick")
    args, experiment = harness.parse(parser, argv)
    quick = args.quick
    harness.fill(args, {"seconds": 1.5 if quick else 8.0, "malformed": 600 if quick else MALFORMED})
    about, lines = harness.surroundings(), []

    def note(line: dict[str, Any]) -> None:
        lines.append(line)
        harness.emit(line)

    trained = make_model(experiment, args.genes, args.condition)
    with tempfile.TemporaryDirectory() as folder:
        bundle.write(trained, pathlib.Path(folder) / "model")
        with serve(pathlib.Path(folder) / "model") as (address, ready):
            for way in WAYS:
                note(measure_offline(trained, way, args.seconds))
                for spots in args.spots:
                    asked = [a_request(args.condition, spots, n, way) for n in range(64)]
                    bodies = [json.dumps(one).encode() for one in asked]
                    for clients in args.clients:
                        line = measure_load(address, bodies, clients, seconds=args.seconds)
                        rate = spots * line["answers_per_s"]
                        note({"way": way, "spots": spots, "profiles_per_s": rate, **line})
            compiled = counted(address, "stemjax_compilations")
            malformed = measure_malformed(
                address, args.malformed, a_request(args.condition, 1, 0, "mean")
            )
    facts = {name: getattr(args, name) for name in ("genes", "condition", "quick", "seconds")}
    found = harness.result(
        "serving", about, experiment, lines, ready_s=ready, compilations=compiled,
        malformed=malformed, **facts,
    )  # fmt: skip
    print(tables(found))
    if args.json:
        harness.save(args.json, found)


if __name__ == "__main__":
    main()
