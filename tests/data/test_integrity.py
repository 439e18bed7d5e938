"""Folders are whole or absent, also when their writer is killed."""

from __future__ import annotations

import signal
import subprocess
import sys

from stemjax.data import integrity

KILLED = """
import pathlib, sys, time
from stemjax.data import integrity
with integrity.published_folder(pathlib.Path(sys.argv[1])) as folder:
    (folder / "half").write_text("written")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_writer_leaves_is_removed_and_a_live_one_is_left_alone(tmp_path):
    target = tmp_path / "A1"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(target)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        assert integrity.remove_stale(tmp_path) == 0
        (left,) = tmp_path.iterdir()
        writer.send_signal(signal.SIGKILL)
    assert not target.exists()
    assert left.is_dir()
    assert integrity.remove_stale(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []
