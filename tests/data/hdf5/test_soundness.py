"""Another process reads a stranger's HDF5 file first; one that asks for too much is refused."""

import os
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from stemjax import errors
from stemjax.data.hdf5 import soundness


@pytest.fixture(autouse=True)
def _forget():
    soundness._harm.cache_clear()


def write(path, fill):
    with h5py.File(path, "w") as opened:
        fill(opened)
    return path


def honest(opened):
    opened["obs/names"] = np.array(["ab", "c"] * 500, object)
    opened["X"] = np.zeros((1000, 20), np.float32)
    opened["same"] = opened["X"]
    opened["soft"] = h5py.SoftLink("/X")
    opened["nowhere"] = h5py.SoftLink("/none")
    opened.create_dataset("zeros", (2000, 2000), "f8", chunks=(500, 500), compression="gzip")
    opened["one"] = "a text"
    opened.create_dataset("none", data=h5py.Empty("f4"))
    opened.attrs["about"] = ["x", "y"]


def test_an_honest_file_is_sound_and_tried_once(tmp_path, monkeypatch):
    path = write(tmp_path / "a.h5", honest)
    soundness.require_sound(path)
    monkeypatch.setattr(soundness, "_server", None)  # nobody can be asked again
    soundness.require_sound(path)
    soundness.require_sound(tmp_path / "absent.h5")
    (tmp_path / "text.h5").write_text("barcode,x\n")
    soundness.require_sound(tmp_path / "text.h5")
    soundness.require_sound(tmp_path)


def external(opened):
    opened["x"] = h5py.ExternalLink("b.h5", "x")


def in_raw_bytes(opened):
    opened.create_dataset("x", (3,), "f8", external=[("/etc/hostname", 0, 24)])


def virtual(opened):
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource("b.h5", "x", (3,))
    opened.create_virtual_dataset("x", layout)


def huge(opened):
    opened.create_dataset("x", (10**7, 100), "f4", chunks=(1, 100))


def huge_in_parts(opened):
    for part in "abcdefgh":
        opened.create_dataset(part, (10**8,), "f4", chunks=(100,))


def huge_chunk(opened):
    opened.create_dataset("x", (4,), "f4", chunks=(10**9,), maxshape=(None,))


def in_itself(opened):
    group = opened.create_group("g")
    group["g"] = group


def over_and_over(opened):
    opened["0/x"] = 1
    for deep in range(40):
        for name in "ab":
            opened[f"{deep + 1}/{name}"] = opened[str(deep)]


def by_soft_links(opened):
    for name in "abc":
        opened[f"g/{name}"] = h5py.SoftLink("/g")


@pytest.mark.parametrize(
    ("fill", "match"),
    [
        (external, "points to other files.*b.h5"),
        (in_raw_bytes, "points to other files"),
        (virtual, "points to other files"),
        (huge, "claims more than the file can hold.*4,000,000,000 bytes"),
        (huge_in_parts, "claims more than the file can hold"),
        (huge_chunk, "claims more than the file can hold"),
        (in_itself, "groups go too deep"),
        (over_and_over, "same parts over and over|too deep"),
        (by_soft_links, "same parts over and over|too deep"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_no_honest_file_needs_is_refused(tmp_path, fill, match):
    path = write(tmp_path / "a.h5", fill)
    started = time.process_time()
    with pytest.raises(errors.UnsafeFileError, match=match) as caught:
        soundness.require_sound(path)
    assert str(path) in str(caught.value)
    assert time.process_time() - started < soundness.LEAST_SECONDS


def test_one_text_named_many_times_is_refused(tmp_path):
    """Each value of a list of texts is a reference, and all may be to one of 100 kB."""
    long = "q" * 10**5
    path = write(tmp_path / "a.h5", lambda o: o.create_dataset("x", data=[long] + [""] * 99999))
    raw = path.read_bytes()
    with h5py.File(path) as opened:
        place = opened["x"].id.get_offset()
    reference = raw[place : place + 16]
    assert int.from_bytes(reference[:4], "little") == len(long)
    path.write_bytes(raw[:place] + reference * 100000 + raw[place + 16 * 100000 :])
    with pytest.raises(errors.UnsafeFileError, match="claims more"):
        soundness.require_sound(path)


@pytest.mark.parametrize("kind", [errors.SlideError, errors.PredictionError])
def test_a_file_cut_off_is_named_with_its_size(tmp_path, kind):
    path = write(tmp_path / "a.h5", honest)
    whole = path.read_bytes()
    path.write_bytes(whole[:5000])
    with pytest.raises(kind, match=rf"a\.h5 is damaged.*5,000 of {len(whole):,} bytes"):
        soundness.require_sound(path, kind)


def test_a_crash_and_a_hang_of_the_library_are_errors(tmp_path, monkeypatch):
    path = write(tmp_path / "a.h5", honest)
    text = soundness._PROBE.read_text()
    monkeypatch.setattr(soundness, "LEAST_SECONDS", 1.0)
    for harm, match in (
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crashes on it"),
        ("while True: pass", "did not end within 1 s"),
        ("time.sleep(60)", "did not end within 1 s"),
        ("bytes(10**12)", "more memory"),
        ("os.kill(os.getppid(), signal.SIGKILL)", "ended twice"),
    ):
        script = tmp_path / "probe.py"
        opening = "        with h5py.File"
        script.write_text(text.replace(opening, f"        {harm}\n{opening}"))
        monkeypatch.setattr(soundness, "_PROBE", script)
        soundness._server.cache_clear()
        soundness._harm.cache_clear()
        with pytest.raises(errors.SlideError, match=match):
            soundness.require_sound(path)
    soundness._server.cache_clear()


def test_a_process_that_asked_leaves_no_other_behind(tmp_path):
    path = write(tmp_path / "a.h5", honest)
    code = (
        "import os, sys\nfrom stemjax.data.hdf5 import soundness\n"
        "soundness.require_sound(sys.argv[1])\nprint(soundness._server(os.getpid()).pid)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(path)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)
