"""``stemjax models info``, ``push`` and ``pull``, as a user meets them."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import hub_stub
import huggingface_hub.constants
import jax
import pytest

from stemjax import cli, config
from stemjax.data import embeddings, space, transforms
from stemjax.export import bundle
from stemjax.train import checkpoint, saving

# The library uploads large files by a form of its HTTP library that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

GENES = ("ACTB", "KRT5", "IGHG1")


@pytest.fixture(scope="module")
def trained():
    """A small model on its way out of a house."""
    contract = embeddings.EncoderContract(
        name="texture",
        width=4,
        input_px=64,
        fov_um=112.0,
        resize="bilinear",
        mean=(),
        std=(),
        pooling="disc",
        projection="none",
        source="stemjax",
        revision="1",
    )

    def one(width):
        mean = jax.numpy.zeros(width)
        return transforms.Standardisation(mean=mean, std=mean + 1)

    card = checkpoint.Card(
        experiment=config.Experiment(
            name="breast", model=config.Model(kind="lite", width=8, depth=1, heads=1)
        ),
        space=space.Space(genes=GENES, transform="log2p1", expression=one(3), condition=one(4)),
        contract=contract,
        split={
            "train": ["T1", "T2"],
            "val": ["V1"],
            "test": ["X1"],
            "kind": "interpolation within a patient",
        },
        panel={"genes": list(GENES), "rule": "a list", "slides": []},
        versions={"stemjax": "0.1.0"},
    )
    params = card.task.init(jax.random.key(0))
    scores = {
        "rows": [
            {"name": "prediction", "scores": {"pcc_all": {"value": 0.25, "interval": None}}},
            {
                "name": "depth oracle",
                "sees_test": True,
                "scores": {"pcc_all": {"value": 0.5, "interval": None}},
            },
        ],
        "slides": [{"slide": "X1"}],
    }
    return checkpoint.Trained(params=params, card=card, step=70, weights="best", scores=scores)


@pytest.fixture
def path(tmp_path, trained):
    """A bundle."""
    bundle.write(trained, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def stub(monkeypatch):
    """A hub, and a login there."""
    monkeypatch.setenv("HF_TOKEN", hub_stub.TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with hub_stub.serve() as stub:
        monkeypatch.setenv("HF_ENDPOINT", stub.url)
        yield stub


def run(capsys, *argv):
    """Exit code, what was printed, and what was complained of."""
    code = cli.main([str(word) for word in argv])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_bundle_is_checked_and_told(path, capsys):
    code, out, err = run(capsys, "models", "info", path)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == (f"{path}: hashes, names and shapes are right, and it computes its example")
    assert "  First                 ACTB, KRT5, IGHG1" in lines
    assert "  Weights               best, of step 70" in lines
    assert (
        "  Leakage               LEAK: a patient of the test slides also has a training or" in out
    )
    assert "Research use only. Not for clinical or diagnostic use." in lines
    table = [line.split() for line in lines if line.startswith(("  prediction", "  depth oracle"))]
    assert table == [["prediction", "0.250"], ["depth", "oracle", "*", "0.500"]]
    assert "  * sees the test slide's own measurements: a floor or ceiling" in lines
    assert max(map(len, lines[1:])) <= 100


def test_json_holds_the_same_fields(path, capsys):
    code, out, _ = run(capsys, "models", "info", path, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["Genes"]["First"] == "ACTB, KRT5, IGHG1"
    assert found["Slides"]["Training"] == "T1, T2"
    assert found["Scores"][1] == {"row": "depth oracle *", "PCC-all": "0.500"}


def test_a_workdir_is_told_too(tmp_path, trained, capsys):
    with saving.Checkpoints(tmp_path / "run", trained.card) as checkpoints:
        checkpoints.save_best(trained.params, 70, {"val_mse": 1.5})
    code, out, _ = run(capsys, "models", "info", tmp_path / "run")
    assert code == 0
    assert out.startswith(f"{tmp_path / 'run'}: a run's workdir\n")
    assert "  Scores                not evaluated: no scores are stored with these weights" in out
    assert "val_mse 1.5" in out


@pytest.mark.parametrize("kind", ["damaged", "nowhere"])
def test_what_is_no_whole_model_is_an_error(path, capsys, kind):
    (path / "genes.txt").write_text("ACTB\n")
    asked = path if kind == "damaged" else path.parent / "nowhere"
    code, out, err = run(capsys, "models", "info", asked)
    assert (code, out) == (1, "")
    assert err.startswith("stemjax models: error [SJ-" + {"damaged": "X02", "nowhere": "K01"}[kind])
    assert {"damaged": "genes.txt", "nowhere": "nowhere"}[kind] in err


def test_wrong_usage_ends_with_two(capsys):
    for argv in (["models"], ["push", "x"], ["pull", "hub:a/b@main"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(argv)
        assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_from_one_machine_to_another(stub, path, tmp_path, capsys):
    code, out, err = run(capsys, "push", path, "hub:lab/breast", "--license", "cc-by-4.0")
    assert (code, err) == (0, "")
    commit = stub.repositories["lab/breast"]["branches"]["main"]
    pinned = f"hub:lab/breast@{commit}"
    assert out == f"{path} -> {pinned} (private)\n  stemjax pull {pinned} -o DIR\n"
    assert stub.repositories["lab/breast"]["private"]

    code, out, err = run(capsys, "pull", "hub:lab/breast@main", "-o", tmp_path / "main")
    assert (code, err) == (0, "")
    said = out.splitlines()
    assert said[0] == (f"hub:lab/breast@main is {pinned} now: name that one to get the same again")
    code, out, _ = run(capsys, "pull", pinned, "-o", tmp_path / "again")
    assert code == 0
    assert out.splitlines() == [
        f"{pinned} -> {tmp_path / 'again'}: every file as its list says, example computed"
    ]
    for name in os.listdir(path):
        one, two = ((tmp_path / place / name).read_bytes() for place in ("main", "again"))
        assert one == two
    assert 'license: "cc-by-4.0"' in (tmp_path / "main" / "README.md").read_text()
    assert bundle.load(tmp_path / "main").step == 70


def test_public_is_said_and_done(stub, path, capsys):
    code, out, _ = run(capsys, "push", path, "hub:lab/breast@trial", "--public")
    assert code == 0
    assert out.splitlines()[0].endswith(" (public)")
    assert not stub.repositories["lab/breast"]["private"]
    assert "trial" in stub.repositories["lab/breast"]["branches"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["push", "{}", "lab/breast"], "no address on the hub"),
        (["push", "{}", "hub:lab/breast", "--license", "My Own"], "an identifier as the hub has"),
        (["pull", "hub:lab/breast", "-o", "{}/out"], "names no revision"),
        (["pull", "hub:lab/other@main", "-o", "{}/out"], "no such repository"),
    ],
)
def test_errors_have_a_code_and_no_token(stub, path, capsys, argv, words):
    code, out, err = run(capsys, *(word.format(path) for word in argv))
    assert (code, out) == (1, "")
    assert err.startswith(f"stemjax {argv[0]}: error [SJ-")
    assert words in err
    assert hub_stub.TOKEN not in err
    assert not (path / "out").exists()


def test_a_model_of_another_license_stays_what_it_is(stub, path, trained, capsys):
    other = dataclasses.replace(trained, step=71)
    bundle.write(other, path)
    before = (path / "README.md").read_bytes()
    assert run(capsys, "push", path, "hub:lab/breast", "--license", "mit")[0] == 0
    assert (path / "README.md").read_bytes() == before


def test_a_reader_that_leaves_is_no_error():
    command = [sys.executable, "-m", "stemjax.cli", "models", "info", "demo"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdout.close()
        assert run.stderr.read() == ""
    assert run.returncode == 141
