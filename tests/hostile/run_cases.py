"""Runs commands in forked children of a process that has imported everything; prints JSON lines.

Started as a script with a file of jobs: [{"name", "argv", "root"}]. A child has limits on its
memory, its processor time and the size of files; what it says lies in ROOT/stdout and ROOT/stderr.
"""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import pkgutil
import resource
import signal
import sys
import time
import traceback

SECONDS = 20
MEMORY = 8 * 2**30  # of addresses: XLA's are some GB
FILE = 2**28


def import_everything():
    """Imports all of the package, and what it imports late, so that a child begins at once."""
    import anndata.io  # noqa: F401
    import imagecodecs.imagecodecs  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import zarr  # noqa: F401

    import stemjax

    for found in pkgutil.walk_packages(stemjax.__path__, "stemjax."):
        if not found.name.startswith("stemjax.export.reference") and "__main__" not in found.name:
            importlib.import_module(found.name)


def child(job):
    """Runs a command in its box and ends the process."""
    root = pathlib.Path(job["root"])
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(root / name, os.O_WRONLY | os.O_CREAT), stream)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (2 * SECONDS, 2 * SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["HOME"] = str(root / "home")
    os.chdir(root / "work")
    sys.path.insert(0, "")  # as `python -m stemjax.cli` has it
    code = 99
    try:
        from stemjax import cli

        code = cli.main(job["argv"])
    except SystemExit as ended:
        code = ended.code
    except BaseException:  # noqa: BLE001 - the test looks for it
        traceback.print_exc()
        code = 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 99)


def main():
    """Runs all jobs, two at a time."""
    import_everything()
    jobs = json.loads(pathlib.Path(sys.argv[1]).read_text())
    # Not the peak of this process, which is that of whoever started it.
    before = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4
    running = {}
    while jobs or running:
        while jobs and len(running) < 2:
            job = jobs.pop(0)
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                child(job)
            running[pid] = (job, time.monotonic())
        for pid, (job, began) in list(running.items()):
            done, status, usage = os.wait4(pid, os.WNOHANG)
            took = time.monotonic() - began
            if not done:
                if took > 9 * SECONDS:
                    os.kill(pid, signal.SIGKILL)
                continue
            del running[pid]
            told = {
                "name": job["name"],
                "code": os.waitstatus_to_exitcode(status),
                "seconds": usage.ru_utime + usage.ru_stime,
                "mb": (usage.ru_maxrss - before) / 1024,
            }
            sys.stdout.write(json.dumps(told) + "\n")
        time.sleep(0.01)


if __name__ == "__main__":
    main()
