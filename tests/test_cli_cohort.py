"""``stemjax predict --slides``: many slides into a folder, as a user meets it."""

from __future__ import annotations

import io
import json
import shutil

import jax
import numpy as np
import pytest

from stemjax import cli, errors, terminal
from stemjax.cli import options
from stemjax.data import builder
from stemjax.eval import draw_files, joining
from stemjax.export import bundle
from stemjax.train import checkpoint
from stemjax.train import material as material_lib

ALL = ("T1", "T2", "V1", "X1")
DRAWS = ("--mode", "draws", "--n-draws", "4", "--steps", "2")


@pytest.fixture(scope="module")
def model(toy_records, toy_experiment, tmp_path_factory):
    """A bundle of weights that nobody trained."""
    out = tmp_path_factory.mktemp("cohort") / "model"
    card = material_lib.gather(toy_experiment, toy_records).card
    params = card.task.init(jax.random.key(1))
    keys = iter(jax.random.split(jax.random.key(2), 100))
    moved = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape), params)
    bundle.write(checkpoint.Trained(params=moved, card=card, step=7, weights="best"), out)
    return out


@pytest.fixture
def predict(model, toy_records, tmp_path):
    """Runs the command into ``tmp_path``/out, or where ``-o`` says; returns its exit code."""

    def run(*more, records=toy_records.folders["T1"].parents[2]):
        command = ["predict", "--checkpoint", str(model), "--records", str(records)]
        output = [] if "-o" in more else ["-o", str(tmp_path / "out")]
        return cli.main([*command, *more, *output])

    return run


def test_a_folder_of_predictions_is_what_single_ones_are(predict, tmp_path, capsys):
    assert predict("--slides", "X1,T2", "--block", "16", "--seed", "4", *DRAWS) == 0
    said = capsys.readouterr()
    assert "0 of 2 slides done earlier, 2 to do" in said.out
    assert "2 slides finished, 120 spots in " in said.out
    assert "slide 2 of 2, X1: 120/120 spots, " in said.err
    assert " spots/s, 00:00:00 left" in said.err
    for slide in ("X1", "T2"):
        assert predict("--slide", slide, "--seed", "4", *DRAWS, "-o", f"{tmp_path}/{slide}") == 0
        alone, made = joining.read(tmp_path / slide), joining.read(tmp_path / f"out/{slide}.h5ad")
        # Programs for other numbers of rows: fp32 rounding of values of size 5.
        np.testing.assert_allclose(np.asarray(made.X), np.asarray(alone.X), atol=1e-4)
        theirs, ours = (np.asarray(one.obsm["stemjax_draws"]) for one in (alone, made))
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    before = (tmp_path / "out" / "X1.h5ad").stat()
    assert predict("--slides", "all", "--seed", "4", *DRAWS) == 0
    assert "2 of 4 slides done earlier, 2 to do" in capsys.readouterr().out
    assert (tmp_path / "out" / "X1.h5ad").stat() == before
    index = json.loads((tmp_path / "out" / "cohort.json").read_text())
    assert [line["slide"] for line in index["slides"]] == list(ALL)
    assert predict("--slides", "all", "--seed", "5", *DRAWS) == 1
    said = capsys.readouterr().err
    assert "seed: 4 -> 5" in said
    assert "another folder as -o" in said


def test_the_files_are_evaluated_as_single_ones_are(predict, toy_records, tmp_path):
    assert predict("--slides", "X1", "--block", "16") == 0
    assert predict("--slide", "X1", "-o", f"{tmp_path}/alone.h5ad") == 0
    scores = []
    for path in (tmp_path / "out" / "X1.h5ad", tmp_path / "alone.h5ad"):
        command = ["evaluate", str(path), "--truth", str(toy_records.folders["T1"].parents[2]),
                   "--regression", "none", "--resamples", "0", "--leave-out", "MLP",
                   "-o", f"{tmp_path}/metrics.json"]  # fmt: skip
        assert cli.main(command) == 0
        rows = json.loads((tmp_path / "metrics.json").read_text())["rows"]
        scores.append({row["name"]: row["scores"]["pcc_all"]["value"] for row in rows})
    made, alone = scores
    assert made.keys() == alone.keys()
    # Correlations of values that differ by the rounding of other matrix shapes.
    assert made == pytest.approx(alone, abs=1e-5)


def test_the_models_test_slides_and_shares(predict, tmp_path, capsys):
    assert predict("--slides", "test") == 0
    assert [path.name for path in (tmp_path / "out").glob("*.h5ad")] == ["X1.h5ad"]
    shared = ("--slides", "T1,T2,V1", "--block", "16", "-o", f"{tmp_path}/shared")
    assert predict(*shared, "--shard", "1/2") == 0
    assert "are not there yet: T1, T2" in capsys.readouterr().out
    assert predict(*shared, "--shard", "0/2") == 0
    assert "not there yet" not in capsys.readouterr().out
    assert len(list((tmp_path / "shared").glob("*.h5ad"))) == 3


@pytest.mark.parametrize("harm", ["cut", "flip"])
def test_damaged_records_of_a_slide_are_listed_at_the_end(
    predict, toy_records, tmp_path, capsys, harm
):
    root = tmp_path / "records"
    shutil.copytree(toy_records.folders["T1"].parents[2], root)
    (victim,) = builder.slide_folder(root, "T1").glob("*/*.array_record-*")
    sound = victim.read_bytes()
    flipped = sound[:500] + bytes([sound[500] ^ 4]) + sound[501:]
    victim.write_bytes(flipped if harm == "flip" else sound[:500])
    assert predict("--slides", "all", records=root) == 1
    said = capsys.readouterr().err
    assert "error [SJ-D08]" in said
    assert "1 of 4 slides could not be predicted" in said
    assert f"T1: {'RecordsError' if harm == 'flip' else 'The records of slide T1'}" in said
    assert victim.name in said
    index = json.loads((tmp_path / "out" / "cohort.json").read_text())
    assert [line["slide"] for line in index["slides"]] == ["T2", "V1", "X1"]
    assert [line["slide"] for line in index["failed"]] == ["T1"]
    # Slides that were not asked for may be as they are.
    assert predict("--slides", "T2,X1", records=root) == 0
    victim.write_bytes(sound)
    assert predict("--slides", "all", records=root) == 0
    assert json.loads((tmp_path / "out" / "cohort.json").read_text())["failed"] == []


def test_a_single_slides_draws_go_into_a_store(predict, tmp_path):
    assert predict("--slide", "X1", *DRAWS, "-o", f"{tmp_path}/in.h5ad") == 0
    inside = joining.read(tmp_path / "in.h5ad")
    for _ in range(2):  # the second time it replaces the first
        assert predict("--slide", "X1", *DRAWS, "--draws", "zarr", "-o", f"{tmp_path}/x.h5ad") == 0
    beside = joining.read(tmp_path / "x.h5ad")
    assert "stemjax_draws" not in beside.obsm
    assert beside.uns["stemjax"]["draws"] == "x.draws.zarr"
    store = draw_files.open_draws(tmp_path / "x.draws.zarr")
    np.testing.assert_array_equal(store[:], inside.obsm["stemjax_draws"])
    assert (store.attrs["slide"], store.attrs["genes"]) == ("X1", list(inside.var_names))
    left = {"in.h5ad", "x.h5ad", "x.draws.zarr"}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_no_draws_is_a_summary(predict, tmp_path):
    quantiles = ("--quantiles", ".5")
    assert predict("--slides", "X1", *DRAWS, "--draws", "none", *quantiles) == 0
    assert predict("--slides", "X1", *DRAWS, "--summary-only", *quantiles) == 0  # done earlier
    found = joining.read(tmp_path / "out" / "X1.h5ad")
    assert "stemjax_q50" in found.layers
    assert "stemjax_draws" not in found.obsm


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--slide", "X1", "--shard", "0/2"), "--shard: expected --slides"),
        (("--slide", "X1", "--block", "9"), "--block: expected --slides"),
        (("--slides", "X1", "--shard", "2/2"), "I from 0 to N-1, such as 0/8, found '2/2'"),
        (("--slides", "X1", "--shard", "1of2"), "found '1of2'"),
        (("--slides", "X1", "--block", "0"), "block: expected at least 1 spot"),
        (("--slides", "X1,X1"), "each once"),
        (("--slides", "X1,X9"), "There are no records of slide 'X9'"),
        (("--slides", "X1", "--draws", "zarr"), "expected mode draws"),
        (("--slides", "X1", "--summary-only", "--draws", "zarr"), "found --draws zarr"),
        (("--slides", "X1", "--sampler", "consistency", "--mode", "pair"), "consistency"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(predict, tmp_path, capsys, more, text):
    assert predict(*more) == 1
    assert text in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.h5ad"))
    assert not (tmp_path / "out" / "failed").exists()


def test_one_slide_or_many(predict, tmp_path):
    for more in ((), ("--slide", "X1", "--slides", "T1")):
        with pytest.raises(SystemExit) as exit_:
            predict(*more)
        assert exit_.value.code == 2
    (tmp_path / "out").write_text("mine")
    assert predict("--slides", "X1") == 1
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("slide", ["X1", "x-1", "a.b", "all", "a_d.b", "a._u", "u_.d"])
def test_a_damaged_folder_tells_its_slide(tmp_path, slide):
    folder = builder.slide_folder(tmp_path, slide) / builder.VERSION
    assert builder.slide_of(folder) == slide


def test_shares_are_read():
    assert options.share("3/8") == (3, 8)
    for text in ("8/8", "-1/8", "1", "1/2/3", ""):
        with pytest.raises(errors.ConfigError):
            options.share(text)


def test_the_rate_counts_from_the_first_call():
    seconds = iter([10.0, 10.0, 14.0, 3614.0])
    pace = terminal.Pace("spots", clock=lambda: next(seconds))
    assert pace(1_000_000, 2_000_000) == ""  # an earlier run's
    assert pace(1_000_000, 2_000_000) == ""
    assert pace(1_010_000, 2_000_000) == "2,500 spots/s, 00:06:36 left"
    assert pace(1_003_604, 1_008_604) == "1.0 spots/s, 01:23:20 left"


def test_a_bar_with_a_unit_shows_it():
    stream = io.StringIO()
    with terminal.Bar("predict", stream, unit="spots") as bar:
        bar(0, 10, "A")
        bar(10, 10, "A")
    first, last = stream.getvalue().splitlines()
    assert first == "predict A: 0/10 spots"
    assert last.startswith("predict A: 10/10 spots, ")
    assert last.endswith(" spots/s, 00:00:00 left")
