"""Folders are whole or absent, also when their writer is killed."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from stemjax import errors
from stemjax.data import integrity, leftovers

KILLED = """
import pathlib, sys, time
from stemjax import errors
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


def test_what_another_host_writes_is_left_alone_for_a_day(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers, "host", lambda: "another0")
    with integrity.published_folder(tmp_path / "A1") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "half").write_text("written")
        monkeypatch.setattr(leftovers, "host", lambda: "thishost")
        # A lock that is not seen from here.
        monkeypatch.setattr(fcntl, "flock", lambda handle, operation: None)
        assert integrity.remove_stale(tmp_path) == 0
        for path in (folder / "sub" / "half", folder / "sub", folder):
            os.utime(path, (0, 0))
        os.utime(folder / "sub" / "half")  # one file written just now is enough
        assert integrity.remove_stale(tmp_path) == 0
        os.utime(folder / "sub" / "half", (0, 0))
        assert integrity.remove_stale(tmp_path) == 1
        assert not folder.exists()
        folder.mkdir()


def test_folders_are_published_without_locks(tmp_path, monkeypatch):
    def no_locks(handle, operation):
        raise OSError(errno.EBADF, "Bad file descriptor")  # NFS, of a folder

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with integrity.published_folder(tmp_path / "A1") as folder:
        (folder / "one").write_text("1")
        assert integrity.remove_stale(tmp_path) == 0
        assert folder.is_dir()
    assert [path.name for path in tmp_path.rglob("*")] == ["A1", "one"]


def test_two_writers_of_one_folder_leave_one_of_theirs(tmp_path):
    target = tmp_path / "A1"
    with integrity.published_folder(target) as first:
        (first / "one").write_text("1")
        with integrity.published_folder(target) as second:
            (second / "two").write_text("2")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == [
        "A1",
        "A1/one",
    ]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_is_written_once(tmp_path, monkeypatch, links):
    if not links:

        def no_links(source, target):
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "panel.json"
    assert integrity.write_once(path, "first")
    assert not integrity.write_once(path, "second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_when_a_file_is_written_once(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(errors.ResourceError, match="panel.json could not be written: no space"):
        integrity.write_once(tmp_path / "panel.json", "text")
    assert list(tmp_path.iterdir()) == []
