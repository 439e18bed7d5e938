"""Prepare in several processes, and with slides that fail: the others are written all the same."""

from __future__ import annotations

import dataclasses
import errno
import gc
import json
import os
import pathlib
import subprocess
import sys
import weakref

import numpy as np
import pytest
import small_slides as made

from stemjax import errors
from stemjax.data import builder, failures, genes, integrity, prepare, records

IDS = ("A", "B", "C", "D", "E")
NAMES = tuple(f"G{i}" for i in range(30))


def section(slide_id):
    return made.make_slide(slide_id, n=6, names=NAMES, image=True)


class Encoder:
    """Mean colour of a patch in five numbers; `trouble` is raised where one is set."""

    contract = made.CONTRACT
    trouble: BaseException | None = None

    def encode(self, patches):
        if self.trouble is not None:
            raise self.trouble
        mean = patches.astype(np.float32).mean(axis=(1, 2))[:, None] + np.arange(8)[:, None]
        return np.concatenate([mean, mean[..., :2]], axis=-1)


class Reader:
    """Slides by id; remembers what was read, and fails where it is told to."""

    def __init__(self):
        self.read, self.bad = [], {}

    def __call__(self, slide_id):
        self.read.append(slide_id)
        if slide_id in self.bad:
            raise self.bad[slide_id]
        return section(slide_id)


@pytest.fixture
def reader():
    return Reader()


@pytest.fixture
def encoder():
    return Encoder()


@pytest.fixture
def run(reader, encoder, tmp_path):
    def call(part=None, *, ids=IDS, out=tmp_path / "out", **options):
        options = {"n_genes": 4, "encoder": encoder, "test": ("C", "E")} | options
        return prepare.prepare(reader, ids, out, part=part, **options)

    return call


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def files(out):
    return {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}


def manifests(out):
    """Size and hash of each slide's files."""
    paths = sorted(out.rglob(integrity.MANIFEST))
    return {path.relative_to(out): json.loads(path.read_text()) for path in paths}


def same_records(left, right):
    assert manifests(left) == manifests(right)
    for name in ("panel.json", "genes.txt"):
        assert (left / name).read_bytes() == (right / name).read_bytes()
    a, b = records.open_records(left), records.open_records(right)
    assert (a.genes, a.panel, a.slides) == (b.genes, b.panel, b.slides)
    for field in dataclasses.fields(records.Table):
        one, other = (getattr(view.load(list(view.slides)), field.name) for view in (a, b))
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
def test_every_slide_is_dealt_once_and_evenly(n):
    dealt = [prepare.deal(IDS, (i, n)) for i in range(n)]
    assert sorted(slide for part in dealt for slide in part) == list(IDS)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    assert dealt == [prepare.deal(IDS[::-1], (i, n)) for i in range(n)]


def test_parts_are_every_nth_slide():
    assert prepare.deal(IDS, (1, 2)) == ("B", "D")
    assert prepare.deal(IDS, (2, 3)) == ("C",)


@pytest.mark.parametrize("part", [(2, 2), (-1, 2), (0, 0)])
def test_there_is_no_such_part(run, reader, out, part):
    with pytest.raises(errors.ConfigError, match=r"i from 0 to n - 1, found part"):
        run(part)
    assert reader.read == []
    assert not out.exists()


PROCESS = """
import pathlib, sys, time
import small_slides as made
from stemjax.data import prepare
import test_prepare_shards as tests

me, out, ready = int(sys.argv[1]), pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
waited = False

def read(slide_id):
    # Both have looked for a panel when either begins to choose one, and finish at about one time.
    global waited
    if not waited:
        (ready / str(me)).touch()
        while len(list(ready.iterdir())) < 2:
            time.sleep(0.01)
        waited = True
    return tests.section(slide_id)

written = prepare.prepare(
    read, tests.IDS, out, part=(me, 2), test=("C", "E"), n_genes=4, encoder=tests.Encoder()
)
print(*written.slides)
"""


def start(part, out, ready):
    paths = os.pathsep.join([str(pathlib.Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(part), str(out), str(ready)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )


def test_two_processes_at_once_write_what_one_writes(run, out, tmp_path):
    ready = tmp_path / "ready"
    ready.mkdir()
    both = [start(part, out, ready) for part in (0, 1)]
    said = [process.communicate(timeout=100)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said == ["A C E\n", "B D\n"]
    run(out=tmp_path / "one")
    same_records(out, tmp_path / "one")
    # No temporary file of either is left.
    names = [sorted(p.name for p in folder.rglob("*")) for folder in (out, tmp_path / "one")]
    assert names[0] == names[1]
    # And again, each part and all at once: nothing is written.
    before, told = files(out), []
    for part in ((0, 2), (1, 2), None):
        run(part, progress=lambda done, total, what: told.append(what))
        assert told[-1].startswith("nothing to write: all")
    assert files(out) == before


def test_a_part_reads_its_own_slides_where_there_is_a_panel(run, reader, out):
    prepare.choose_panel(reader, IDS, out, n_genes=4, test=("C", "E"))
    assert reader.read == ["A", "B", "D"]
    assert sorted(path.name for path in out.iterdir()) == ["genes.txt", "panel.json"]
    reader.read.clear()
    assert list(run((1, 2)).slides) == ["B", "D"]
    assert reader.read == ["B", "D"]
    reader.read.clear()
    # Without the panel it is chosen on all training slides, the same.
    run((1, 2), out=out.with_name("alone"))
    assert reader.read == ["A", "B", "D", "B", "D"]
    panels = [json.loads((folder / "panel.json").read_text()) for folder in out.parent.iterdir()]
    assert panels[0] == panels[1]


def test_a_part_returns_its_own_slides_and_minds_no_other(run, out):
    run((0, 2))
    folder = builder.slide_folder(out, "C") / builder.VERSION
    (folder / "metadata.json").unlink()  # as if C were being written anew
    (out / "spots" / ".C.tmp-0123").mkdir()
    written = run((1, 2))
    assert list(written.slides) == ["B", "D"]
    assert written.load(["D"]).n == 6
    assert (out / "spots" / ".C.tmp-0123").is_dir()
    assert sorted(run((0, 2)).slides) == ["A", "C", "E"]


def test_a_part_without_slides_has_nothing_to_do(run, out):
    told = []
    written = run((6, 7), progress=lambda done, total, what: told.append(what))
    assert not written.slides
    assert not (out / "spots").exists()
    assert told[-1] == "0 of 0 slides done earlier, 0 to do"
    assert written.genes == run().genes


def test_a_part_refuses_another_encoder_and_panel(run, out):
    run((0, 2))
    other = Encoder()
    other.contract = dataclasses.replace(made.CONTRACT, revision="2")
    with pytest.raises(errors.RecordsError, match="another encoder.*revision"):
        run((1, 2), encoder=other)
    with pytest.raises(errors.RecordsError, match="another gene panel.*expected 4 genes"):
        run((1, 2), n_genes=5)
    assert sorted(path.name for path in (out / "spots").iterdir()) == ["A", "C", "E"]


@pytest.mark.parametrize("same", [True, False])
def test_of_two_panels_chosen_at_once_the_first_holds(run, reader, out, same):
    first = run(out=out.with_name("first")).panel
    if not same:
        first = dataclasses.replace(first, genes=first.genes[:3] + ("G0",))
    read = reader.__call__

    def meanwhile(slide_id):
        out.mkdir(exist_ok=True)
        (out / "panel.json").write_text(json.dumps(first.to_json()))
        return read(slide_id)

    if same:
        assert prepare.choose_panel(meanwhile, IDS, out, n_genes=4, test=("C", "E")) == first
    else:
        with pytest.raises(errors.RecordsError, match="another gene panel in the meantime"):
            prepare.choose_panel(meanwhile, IDS, out, n_genes=4, test=("C", "E"))
    assert genes.Panel.from_json(json.loads((out / "panel.json").read_text())) == first


def test_of_many_slides_the_message_names_those_that_differ(out):
    ids = [f"S{i:03d}" for i in range(40)]
    panel = genes.Panel(genes=("G1",), rule=genes.variable_rule(7), slides=tuple(ids))
    out.mkdir()
    (out / "panel.json").write_text(json.dumps(panel.to_json()))
    with pytest.raises(errors.RecordsError) as caught:
        prepare.choose_panel(section, ids, out, test=("S007",), n_genes=1, n_variable=7)
    assert caught.value.expected == (
        "a panel selected on 40 slides, 1 of them not in the other, such as S007"
    )
    assert caught.value.found.startswith("one to be selected on 39 slides (the slides or test")


BAD = errors.SlideError("slide C: 3 counts are negative", fix="Give the raw counts")


@pytest.mark.parametrize(
    "bad", [BAD, PermissionError(errno.EACCES, "Denied", "C.tsv"), KeyError(7)]
)
def test_a_bad_slide_does_not_stop_the_others(run, reader, out, bad):
    reader.bad = {"C": bad}
    told = []
    with pytest.raises(errors.SlidesFailedError) as caught:
        run(progress=lambda done, total, what: told.append(what))
    assert caught.value.written == ("A", "B", "D", "E")
    assert list(caught.value.failed) == ["C"]
    assert "1 of 5 slides could not be prepared" in str(caught.value)
    assert f"C: {type(bad).__name__}" in str(caught.value)
    assert str(bad) in str(caught.value)
    assert [what for what in told if what.startswith("C: failed")]
    assert sorted(records.open_records(out).slides) == ["A", "B", "D", "E"]
    (failure,) = failures.listed(out)
    code = getattr(bad, "code", None)
    assert (failure.slide, failure.type, failure.code) == ("C", type(bad).__name__, code)
    assert failure.message == str(bad)
    assert (failure.traceback is None) == isinstance(bad, errors.StemjaxError)
    assert code or "in __call__" in failure.traceback
    assert [path.name for path in (out / "failed").iterdir()] == ["C.json"]
    reader.bad = {}
    assert sorted(run().slides) == list(IDS)
    assert failures.listed(out) == []
    run(out=out.with_name("clean"))
    same_records(out, out.with_name("clean"))


def test_a_failure_is_forgotten_where_the_slide_was_written_by_another_run(run, out):
    run()
    failures.record(out, "C", BAD)
    run((0, 2))
    assert failures.listed(out) == []


def test_when_every_slide_fails_that_is_said(run, reader, out):
    prepare.choose_panel(reader, IDS, out, n_genes=4, test=("C", "E"))
    reader.bad = dict.fromkeys(IDS, BAD)
    with pytest.raises(errors.SlidesFailedError, match="None of the 3 slides could") as caught:
        run((0, 2))
    assert caught.value.written == ()
    assert [failure.slide for failure in failures.listed(out)] == ["A", "C", "E"]


def test_a_slide_alone_raises_its_own_error(run, reader, out):
    reader.bad = {"C": BAD}
    with pytest.raises(errors.SlideError, match="3 counts are negative"):
        run((2, 5))
    assert [failure.slide for failure in failures.listed(out)] == ["C"]
    # Another library's error says nothing of what to do: it is wrapped.
    reader.bad = {"C": KeyError(7)}
    with pytest.raises(
        errors.SlidesFailedError, match="None of the 1 slides.*\n    C: KeyError: 7"
    ):
        run((2, 5))


def test_many_failures_are_counted_in_the_message():
    failed = {f"S{i:02d}": "SlideError: bad" for i in range(23)}
    error = errors.SlidesFailedError("23 failed", failed=failed, written=(), fix="Mend them")
    assert "S19: SlideError: bad\n    and 3 more" in str(error)
    assert "S20" not in str(error)


def test_a_bad_slide_of_the_panel_stops_the_run(run, reader, out):
    reader.bad = {"B": BAD}
    with pytest.raises(
        errors.GenePanelError, match="slide B, on which.*3 counts are neg"
    ) as caught:
        run((0, 2))
    assert "--slides" in str(caught.value.fix)
    assert "--genes" in str(caught.value.fix)
    assert not out.exists()


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("trouble", [FULL, MemoryError(), KeyboardInterrupt()])
def test_what_no_slide_is_to_blame_for_stops_the_run(run, encoder, out, trouble):
    encoder.trouble = trouble
    with pytest.raises(type(trouble)):
        run()
    assert not (out / "failed").exists()
    assert not (out / "spots").exists()


def test_a_disk_that_cannot_be_written_stops_the_run(run, out, monkeypatch):
    def broken(folder):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(integrity, "write_manifest", broken)
    with pytest.raises(OSError, match="Input/output error"):
        run()
    assert not (out / "failed").exists()


def test_a_failed_slide_s_image_is_let_go(out):
    images, held = [], []

    class Failing(Encoder):
        def encode(self, patches):
            raise ValueError("no weights")

    def read(slide_id):
        gc.collect()
        held.append(sum(image() is not None for image in images))
        slide = section(slide_id)
        images.append(weakref.ref(slide.image))
        return slide

    panel = genes.Panel(genes=("G1", "G2"), rule="list", slides=())
    with pytest.raises(errors.SlidesFailedError, match="None of the 5"):
        prepare.prepare(read, IDS, out, genes=panel, encoder=Failing())
    assert held == [0, 0, 0, 0, 0]
