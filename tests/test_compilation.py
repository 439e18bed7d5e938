"""Programs kept on disk: a second process compiles nothing, and a folder of others is refused."""

from __future__ import annotations

import json
import os
import pathlib
import stat
import subprocess
import sys
import tempfile

import jax
import pytest

from stemjax import cli, compilation

# One process: a small scan compiled with the cache on, and what the cache did meanwhile.
PROGRAM = """
import collections, hashlib, json, sys
import jax, jax.numpy as jnp, numpy as np
from stemjax import compilation

events = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: events.update([name.rpartition("/")[2]]))
folder = compilation.enable_cache(sys.argv[1] or None)

@jax.jit
def program(x):
    return jax.lax.scan(lambda c, _: (jnp.sin(c) @ c, None), x, None, length=5)[0]

made = np.asarray(program(jax.random.normal(jax.random.key(0), (32, 32))))
print(json.dumps({
    "folder": folder and str(folder),
    "hits": events["cache_hits"],
    "misses": events["cache_misses"],
    "result": hashlib.sha256(made.tobytes()).hexdigest(),
}))
"""


def _run(folder: object = "", **environment: str) -> dict:
    """What a fresh process reports, and what it wrote on stderr."""
    names = ("STEMJAX_CACHE", "JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME")
    env = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env=env | {"JAX_PLATFORMS": "cpu"} | environment,
    )
    return {**json.loads(done.stdout), "stderr": done.stderr}


def test_a_second_process_compiles_nothing_and_gives_the_same_bits(tmp_path):
    home = str(tmp_path / "home")
    off = _run(XDG_CACHE_HOME=home, STEMJAX_CACHE="off")
    assert (off["folder"], off["hits"], off["misses"]) == (None, 0, 0)
    assert not pathlib.Path(home).exists()
    cold, warm = _run(XDG_CACHE_HOME=home), _run(XDG_CACHE_HOME=home)
    folder = pathlib.Path(home, "stemjax", "xla")
    assert cold["folder"] == warm["folder"] == str(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    # The scan, and what draws its input: each of them compiles in less than JAX's one second.
    assert (cold["hits"], warm["misses"]) == (0, 0)
    assert warm["hits"] == cold["misses"] >= 2
    assert off["result"] == cold["result"] == warm["result"]
    # XLA's loader of compiled CPU programs has a habit of remarks on the processor.
    assert off["stderr"] == cold["stderr"] == warm["stderr"] == ""


def test_two_processes_may_fill_one_folder_and_a_damaged_entry_is_compiled_again(tmp_path):
    env = os.environ | {"STEMJAX_CACHE": str(tmp_path / "shared"), "JAX_PLATFORMS": "cpu"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, ""],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    first, second = (json.loads(output) for output, _ in outputs)
    assert first["result"] == second["result"]
    (entry,) = (tmp_path / "shared").glob("jit_program-*-cache")
    entry.write_bytes(entry.read_bytes()[:-40])
    again = _run(tmp_path / "shared")
    assert again["result"] == first["result"]
    assert again["misses"] == 1
    assert again["hits"] == first["hits"] + first["misses"] - 1
    assert "Error reading persistent compilation cache entry" in again["stderr"]


def test_jaxs_own_variable_is_left_and_its_lower_bounds_are_lifted(tmp_path):
    own = str(tmp_path / "own")
    first, second = (_run(JAX_COMPILATION_CACHE_DIR=own) for _ in range(2))
    assert first["folder"] == own
    assert second["hits"] == first["misses"] >= 2
    kept = _run(
        JAX_COMPILATION_CACHE_DIR=str(tmp_path / "slow"),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="60",
    )
    assert kept["misses"] == 0  # the user asked for programs of a minute and more


@pytest.fixture
def refused(caplog, monkeypatch):
    """Checks that a folder is refused with a warning that says why, and that JAX is untouched."""
    monkeypatch.delenv("STEMJAX_CACHE", raising=False)
    monkeypatch.setattr(jax.config, "update", lambda *_: pytest.fail("the cache was enabled"))

    def check(folder: pathlib.Path, why: str) -> None:
        caplog.clear()
        assert compilation.enable_cache(folder) is None
        (record,) = caplog.records
        assert (record.name, record.levelname) == ("stemjax.compilation", "WARNING")
        assert why in record.getMessage()
        assert str(folder) in record.getMessage()
        assert "STEMJAX_CACHE" in record.getMessage()

    return check


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o702])
def test_a_folder_that_others_may_write_to_is_refused(refused, tmp_path, mode):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)
    refused(folder, "others may write")
    link = tmp_path / "link"
    link.symlink_to(folder)
    refused(link, "others may write")


def test_a_folder_that_somebody_could_replace_is_refused(refused, tmp_path):
    (tmp_path / "open" / "mine").mkdir(parents=True, mode=0o700)
    (tmp_path / "open").chmod(0o777)
    refused(tmp_path / "open" / "mine", "anybody may replace")


def test_a_folder_of_somebody_else_is_refused(refused, tmp_path, monkeypatch):
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o700)
    owner = folder.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    refused(folder, "belongs to another user")


def test_a_folder_that_cannot_be_made_or_written_is_refused(refused, tmp_path):
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "File exists")
    user = os.geteuid()
    # Root may write anywhere, so it becomes somebody who may not.
    with tempfile.TemporaryDirectory(dir="/tmp") as open_to_all:
        folder = pathlib.Path(open_to_all, "sealed")
        folder.mkdir()
        if user == 0:
            os.chmod(open_to_all, 0o755)
            os.chown(folder, 65534, 65534)
            os.seteuid(65534)
        try:
            folder.chmod(0o500)
            refused(folder, "Permission denied")
        finally:
            os.seteuid(user)


def test_what_was_unused_for_longest_makes_room(tmp_path, monkeypatch):
    monkeypatch.delenv("STEMJAX_CACHE", raising=False)
    asked = {}
    monkeypatch.setattr(jax.config, "update", asked.__setitem__)
    folder = tmp_path / "cache"
    (folder / "xla_gpu").mkdir(parents=True, mode=0o700)
    folder.chmod(0o700)
    ages = {
        "old": (5, 5),
        "read_lately": (90, 2),
        "written_lately": (3, 80),
        "xla_gpu/older": (1, 1),
    }
    for name, times in ages.items():
        (folder / name).write_bytes(bytes(1000))
        os.utime(folder / name, times)
    assert compilation.enable_cache(folder, max_bytes=4000) == folder
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 4
    assert compilation.enable_cache(folder, max_bytes=2999) == folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "read_lately",
        "written_lately",
        "xla_gpu",
    ]
    assert not list((folder / "xla_gpu").iterdir())
    assert asked["jax_compilation_cache_dir"] == str(folder)
    assert asked["jax_persistent_cache_min_compile_time_secs"] == 0.0


def test_commands_that_run_networks_enable_it(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(compilation, "enable_cache", lambda: calls.append(1))
    absent = str(tmp_path / "absent")
    predict = ["--checkpoint", absent, "--records", absent, "--slide", "S", "-o", absent]
    assert cli.main(["predict", *predict]) == 1
    assert len(calls) == 1
    assert cli.main(["compare", absent, absent]) == 1
    assert len(calls) == 1
    capsys.readouterr()
