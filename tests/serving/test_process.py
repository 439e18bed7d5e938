"""``stemjax serve`` as a user starts it: a process of its own, clients, a signal."""

from __future__ import annotations

import concurrent.futures
import os
import re
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from live import a_request, ask, call, counted, wait_for

from stemjax import cli, tasks
from stemjax.cli import serve
from stemjax.eval import predict
from stemjax.export import bundle

SMALL = ["--port", "0", "--modes", "mean", "--max-batch", "16"]


@pytest.fixture(scope="module")
def model(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "model"
    bundle.write(trained, path)
    return path


@pytest.fixture
def start(model):
    """Starts the command with more flags; gives the process and its address, once it is ready."""
    started = []

    def run(*flags):
        command = [sys.executable, "-m", "stemjax.cli", "serve", str(model), *SMALL, *flags]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )  # fmt: skip
        started.append(process)
        line = process.stdout.readline()
        address = re.match(r"http://(127\.0\.0\.1):(\d+): 8 genes from toy \(width 6\), ", line)
        assert address, line + process.stderr.read()
        where = address[1], int(address[2])
        wait_for(lambda: call(where, "GET", "/readyz")[0] == 200)
        return process, where

    yield run
    for process in started:
        process.kill()
        process.communicate()


def requests_of(toy_records, count):
    table = toy_records.load(["X1"])
    return [
        a_request(
            barcodes=[table.barcodes[row % table.n]],
            embeddings=table.embeddings[[row % table.n], 0].astype(float).tolist(),
        )
        for row in range(count)
    ]


@pytest.mark.slow
def test_a_process_answers_many_clients_and_ends_when_it_is_told(start, trained, toy_records):
    process, address = start("--queue", "500")
    wanted = predict.predict_slide(trained, toy_records, "X1", tasks.Sampling(mode="mean")).X
    asked = requests_of(toy_records, 160)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda request: ask(address, request), asked))
        assert {status for status, _, _ in answers} == {200}
        for row, (_, _, found) in enumerate(answers):
            np.testing.assert_allclose(found["mean"][0], wanted[row % 60], rtol=1e-5, atol=1e-4)
        counts = counted(address)
        assert counts['stemjax_profiles_total{mode="mean"}'] == 160
        # Sixteen clients at a time: some of them shared a batch.
        assert counts["stemjax_batch_spots_count"] < 160
        assert counts["stemjax_batch_spots_sum"] == 160
        late = [pool.submit(ask, address, request) for request in asked]
        wait_for(lambda: counted(address)['stemjax_profiles_total{mode="mean"}'] > 170)
        process.send_signal(signal.SIGTERM)
        ends = []
        for job in concurrent.futures.as_completed(late):
            try:
                ends.append(job.result()[0])
            except OSError:
                ends.append("refused")
    # Accepted and answered, or not accepted: nothing between, and no error.
    assert set(ends) <= {200, "refused"}
    assert ends.count(200) >= 1
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "stopped\n", "")


def test_a_port_that_is_taken_is_said_at_once(model, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert cli.main(["serve", str(model), "--modes", "mean", "--port", str(port)]) == 1
    err = capsys.readouterr().err
    assert f"--port {port}: expected an address of this machine and a free port" in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--n-draws", "4,many"], "--n-draws: expected whole numbers"),
        (["--modes", "marginal"], "mode marginal: expected a model trained with"),
        (["--queue", "0"], "limit queue: expected at least 1, found 0"),
        (["--timeout-s", "0"], "found 0.0 and 2.0"),
        (["--timeout-s", "nan"], "found nan"),
        (["--port", "99999"], "a free port"),
    ],
)
def test_flags_that_cannot_work_are_named(model, flags, words, capsys):
    assert cli.main(["serve", str(model), "--modes", "mean", *flags]) == 1
    assert words in capsys.readouterr().err


def test_without_the_extra_it_says_how_to_get_it(model, capsys, monkeypatch):
    found = serve.importlib.util.find_spec
    monkeypatch.setattr(
        serve.importlib.util, "find_spec", lambda name: None if name == "uvicorn" else found(name)
    )
    assert cli.main(["serve", str(model)]) == 1
    err = capsys.readouterr().err
    assert "needs the packages uvicorn" in err
    assert "pip install 'stemjax[serve]'" in err


def test_the_service_is_not_imported_for_others():
    code = (
        "import sys\nfrom stemjax import cli\ncli.make_parser().format_help()\n"
        "print([m for m in ('fastapi', 'uvicorn', 'stemjax.serving', 'jax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_names_every_limit(capsys):
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    defaults = {"max-batch": "256", "max-spots": "1024", "queue": "64", "timeout-s": "60",
                "max-wait-ms": "2", "max-body-bytes": "33554432"}  # fmt: skip
    from stemjax.serving import service

    for flag, told in defaults.items():
        assert re.search(rf"--{flag} [A-Z]+ [^(]*\(default: {told}\)", text), flag
        assert float(told) == getattr(service.Limits(), flag.replace("-", "_"))
