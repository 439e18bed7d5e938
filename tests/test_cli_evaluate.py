"""``stemjax evaluate`` of several slides, by one process and by several, as a user meets it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
from made_slides import predicted, truth, write_source

from stemjax import cli, distributed, tasks
from stemjax.data import builder
from stemjax.eval import joining, predict
from stemjax.train import loop

FAST = ["--leave-out", "MLP,embedding kNN,HEST probe"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Records, and two predictions of A2 and of A1."""
    out = tmp_path_factory.mktemp("evaluate")
    source = write_source(out / "records")
    for seed, slide in enumerate(("A2", "A1")):
        for name, noise in (("good", 0.2), ("bad", 0.9)):
            true = truth(source, slide)
            mean = true + np.random.default_rng(seed).normal(0, noise, true.shape)
            one = predicted(source, slide, mean, train=["B1"], seed=1)
            one.write_h5ad(out / f"{slide}_{name}.h5ad")
    return out


def evaluate(made, *args):
    return cli.main(["evaluate", *(part.replace("{}", str(made)) for part in args), *FAST])


def test_slides_in_one_table_with_a_folder_of_figures_each(made, tmp_path, capsys):
    given = ["{}/A2_good.h5ad", "{}/A1_good.h5ad", "--truth", "{}/records", "--resamples", "20",
             "--compare", "bad={}/A2_bad.h5ad,{}/A1_bad.h5ad"]  # fmt: skip
    assert evaluate(made, *given, "-o", f"{tmp_path}/m.json", "--gene", "G1") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("2 slides (A2, A1)")
    written = [
        f"figures/{slide}/{name}.png"
        for slide in ("A2", "A1")
        for name in ("marker_G1", "gene_variation")
    ]
    assert all((tmp_path / name).is_file() for name in written)
    assert said[-5:] == [f"wrote {tmp_path}/{name}" for name in ("m.json", *written)]
    report = ["report", *given, *FAST, "-o", f"{tmp_path}/r.json"]
    assert cli.main([part.replace("{}", str(made)) for part in report]) == 0
    # The report holds all slides at once and sends nothing anywhere.
    assert (tmp_path / "m.json").read_bytes() == (tmp_path / "r.json").read_bytes()
    assert json.loads((tmp_path / "m.json").read_text())["rows"][-1]["name"] == "bad: mean"


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["{}/A2_good.h5ad", "{}/none.h5ad"], "no prediction at"),
        (["{}/A2_good.h5ad", "{}/A2_bad.h5ad"], "slide A2 is predicted more than once"),
        (["{}/A2_good.h5ad", "--compare", "b={}/A2_bad.h5ad,{}/A1_bad.h5ad"], "1 predictions"),
        (["{}/A2_good.h5ad", "{}/A1_good.h5ad", "--slide", "A2"], "--slide names one slide"),
        (["{}/A2_good.h5ad", "--process-count", "2"], "--coordinator HOST:PORT"),
    ],
)
def test_what_cannot_be_evaluated_leaves_nothing(made, tmp_path, capsys, args, text):
    out = tmp_path / "out"
    assert evaluate(made, *args, "--truth", "{}/records", "-o", f"{out}/m.json") == 1
    assert text in capsys.readouterr().err
    assert not out.exists()


def test_scores_are_written_before_a_figure_fails(made, tmp_path, capsys):
    given = ("{}/A2_good.h5ad", "--truth", "{}/records", "--resamples", "0")
    assert evaluate(made, *given, "-o", f"{tmp_path}/m.json", "--gene", "G99") == 1
    assert "gene 'G99' is not among the 14 genes" in capsys.readouterr().err
    assert json.loads((tmp_path / "m.json").read_text())["slides"][0]["slide"] == "A2"


def test_processes_agree_on_flags_and_records(made, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(distributed, "require_agreement", asked.append)
    monkeypatch.setattr(distributed, "start", lambda **_: 1)
    given = ["{}/A2_good.h5ad", "--truth", "{}/records", "-o", f"{tmp_path}/m.json", "--resamples"]
    second = ["--coordinator", "h:1", "--process-count", "2", "--process-index", "1"]
    for end in (["0"], ["0", *second], ["2"]):
        assert evaluate(made, *given, *end) == 0
    flags, records = asked[0::2], asked[1::2]
    assert flags[0] == flags[1]
    assert {name for name in flags[0] if flags[0][name] != flags[2][name]} == {"--resamples"}
    assert {"predictions", "--truth", "--regression", "version of stemjax"} <= set(flags[0])
    assert records[0] == records[1]
    shutil.copytree(made / "records", tmp_path / "fewer")
    shutil.rmtree(builder.slide_folder(tmp_path / "fewer", "U1"))
    given[2] = f"{tmp_path}/fewer"
    assert evaluate(made, *given, "0") == 0
    assert asked[-1].keys() == records[0].keys()
    assert asked[-1] != records[0]


# ------------------------------------------------------------------------ several processes, real

SLIDES = ("X1", "V1", "T2")


def launch(count, out, *args, last=()):
    """Exit codes of so many processes of one run, and what each printed and complained of."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{held.getsockname()[1]}"
    out.mkdir()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "stemjax.cli", "evaluate", *map(str, args)]
    command += ["-o", str(out / "metrics.json")]
    with contextlib.ExitStack() as stack:
        running = []
        for index in range(count):
            own = [*(last if index == count - 1 else ())]
            if count > 1:
                own += ["--coordinator", where, "--process-count", str(count)]
                own += ["--process-index", str(index)]
            # Into files: of pipes that are read one after the other a later one may fill and stop.
            said, err = (
                stack.enter_context((out / f"{name}{index}.txt").open("w"))
                for name in ("out", "err")
            )
            running.append(
                stack.enter_context(
                    subprocess.Popen([*command, *own], stdout=said, stderr=err, env=environment)
                )
            )
        try:
            codes = [process.wait(timeout=300) for process in running]
        finally:
            for process in running:
                process.kill()
    told = [[(out / f"{n}{i}.txt").read_text() for n in ("out", "err")] for i in range(count)]
    return codes, told


@pytest.fixture(scope="module")
def asked(toy_records, toy_experiment, tmp_path_factory):
    """The arguments of an evaluation of three slides by a trained model, the folder, one's run."""
    folder = tmp_path_factory.mktemp("processes")
    trained = loop.train_shown(toy_experiment, toy_records, folder / "run", None)
    files = []
    for slide in SLIDES:
        files.append(folder / f"{slide}.h5ad")
        drawn = predict.predict_slide(
            trained, toy_records, slide, tasks.Sampling(mode="draws", n_draws=4, steps=2)
        )
        predict.write(drawn, files[-1])
    given = ["--truth", next(iter(toy_records.folders.values())).parents[2], "--resamples", "30"]
    codes, told = launch(1, folder / "one", *files, *given, "--alone")
    assert codes == [0], told
    return files, given, folder


def printed(text):
    """What was printed without the paths of the files."""
    return [line for line in text.splitlines() if not line.startswith(("wrote", "[Gloo]"))]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_write_what_one_does(asked, count):
    files, given, folder = asked
    out, one = folder / f"by{count}", folder / "one"
    codes, told = launch(count, out, *files, *given, "--regression", one / "metrics_regression")
    assert codes == [0] * count, told
    assert (out / "metrics.json").read_bytes() == (one / "metrics.json").read_bytes()
    pictures = sorted(path.relative_to(one) for path in one.rglob("*.png"))
    assert len(pictures) == 2 * len(SLIDES)
    assert sorted(path.relative_to(out) for path in out.rglob("*.png")) == pictures
    for path in pictures:
        assert (out / path).read_bytes() == (one / path).read_bytes()
    assert printed(told[0][0]) == printed((one / "out0.txt").read_text())
    assert told[0][0].count("wrote ") == 1 + len(pictures)
    assert [printed(said) for said, _ in told[1:]] == [[]] * (count - 1)


@pytest.mark.slow
def test_processes_train_the_regression_together(asked):
    files, given, folder = asked
    codes, told = launch(2, folder / "trained", *files, *given)
    assert codes == [0, 0], told
    assert "val mse" in told[0][1]
    found, expected = (
        json.loads((folder / name / "metrics.json").read_text())["rows"]
        for name in ("trained", "one")
    )
    (row,), (alike,) = (
        [row for row in rows if row["name"] == "regression backbone: mean"]
        for rows in (found, expected)
    )
    # Sums of gradients over other shares of a batch: rounding, through twelve updates.
    for key in ("mse", "mae"):
        value, wanted = (one["scores"][key]["value"] for one in (row, alike))
        assert value == pytest.approx(wanted, rel=1e-5)
    assert [r for r in found if r is not row][1:] == [r for r in expected if r is not alike][1:]


@pytest.mark.slow
def test_a_bad_prediction_ends_all_processes_with_its_name(asked):
    files, given, folder = asked
    bad = joining.read(files[1])
    bad.X = np.asarray(bad.X).copy()
    bad.X[4, 5] = np.nan
    bad.write_h5ad(folder / "bad.h5ad")
    given = [*given, "--regression", "none"]
    codes, told = launch(2, folder / "failed", files[0], folder / "bad.h5ad", *given)
    assert codes == [1, 1]
    assert "error [SJ-E01]\n  prediction" in told[1][1]
    assert "error [SJ-T02]\n  1 of 2 processes of this run failed" in told[0][1]
    for _, complaint in told:
        assert f"{folder}/bad.h5ad: X holds 1 NaN" in complaint
        assert "Traceback" not in complaint
    assert not (folder / "failed" / "metrics.json").exists()


@pytest.mark.slow
def test_a_process_of_another_command_is_named_on_all(asked):
    files, given, folder = asked
    codes, told = launch(2, folder / "differ", *files, *given, last=("--seed", "5"))
    assert codes == [1, 1]
    for _, complaint in told:
        assert "process 1 has another --seed (5; the first has 0)" in complaint
