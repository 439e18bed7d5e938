"""Reads damaged files, each in a fork of its own: run as a script by `reader.Reader`.

A line of JSON comes in (what to do, and with which paths), and a line goes out: ``read``,
``refused`` with the error's class, ``escaped`` with the traceback of any other exception,
``crashed`` or ``hung``. Libraries are loaded once, and nothing that has threads is begun before a
fork.
"""

from __future__ import annotations

import json
import os
import pathlib
import resource
import select
import signal
import sys
import time
import traceback
import warnings

import anndata
import jax
import numpy as np
import safetensors.numpy
from PIL import Image

from stemjax import errors
from stemjax.data import layouts, records
from stemjax.data.hdf5 import soundness
from stemjax.eval import joining, regression, truth, written
from stemjax.export import bundle
from stemjax.train import calibration

LOADED = (anndata.io, jax.numpy, safetensors.numpy)  # what readers import when they need it
Image.init()

SECONDS = 10
PATIENCE = 6  # a machine with much to do takes longer for a second of the processor's time
MEMORY = 8 * 2**30


def read_slide(layout, top, slide):
    found = layouts.layout(layout).read_slide(top, slide, need_image=False)
    assert found.n_spots > 0
    assert np.isfinite(found.pixel_xy).all()
    assert (found.counts.data >= 0).all()
    assert 0 < found.mpp < np.inf


def read_prediction(path, counts):
    made = joining.read(path)
    source = truth.open_truth(counts)
    joined = joining.join(made, source, name=path)
    assert np.isfinite(joined.mean).all()
    assert joined.label
    regression.read_origin(pathlib.Path(path))


def read_truth(path):
    found = truth.read_counts(pathlib.Path(path))
    assert (found.counts >= 0).all()
    assert np.isfinite(found.xy).all()


def read_index(folder):
    written.write_index(pathlib.Path(folder))


def read_records(folder):
    found = records.open_records(folder)
    for slide in found.slides:
        table = found.load([slide])
        assert table.n == found.slides[slide].n_spots
        found.labels(slide)
        if found.slides[slide].thumbnail_scale is not None:
            found.thumbnail(slide)


def read_bundle(path):
    found = bundle.load(path, verify=False)
    assert found.card.task is not None
    assert found.identity


def read_calibration(path):
    calibration.read(pathlib.Path(path))


def crash():
    os.kill(os.getpid(), signal.SIGSEGV)


def hang():
    while True:
        pass


def look(request):
    """Does what is asked; returns what became of it."""
    warnings.simplefilter("ignore")
    try:
        globals()[request["do"]](*request["given"])
    except errors.StemjaxError as error:
        return {"outcome": "refused", "text": f"{type(error).__name__}: {error}"}
    except BaseException:  # noqa: BLE001 - any other exception is what is looked for
        return {"outcome": "escaped", "text": traceback.format_exc()}
    return {"outcome": "read", "text": ""}


def apart(request):
    """`look` in a fork; all forks ask one process about files of HDF5, one after the other."""
    prober, seconds = soundness._server(os.getpid()), request.get("seconds", SECONDS)
    end, start = os.pipe()
    child = os.fork()
    if not child:
        os.close(end)
        soundness._server = lambda owner: prober
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        with open(start, "wb") as pipe:
            pipe.write(json.dumps(look(request)).encode())
        os._exit(0)
    os.close(start)
    told, until = b"", time.monotonic() + PATIENCE * seconds
    with open(end, "rb", buffering=0) as pipe:
        while (left := until - time.monotonic()) > 0 and select.select([pipe], [], [], left)[0]:
            if not (more := pipe.read(65536)):
                break
            told += more
        else:
            os.kill(child, signal.SIGKILL)
            told = b""
    status = os.waitpid(child, 0)[1]
    if status:  # it may have died while it asked
        soundness._server.cache_clear()
    if told:
        return json.loads(told)
    late = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU)
    return {"outcome": "hung" if late else "crashed", "text": f"wait status {status}"}


def main():
    """Answers requests until there are no more."""
    for layout in ("hest", "h5ad", "visium"):
        layouts.layout(layout)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(apart(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
