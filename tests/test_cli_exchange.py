"""``stemjax import-torch`` and ``stemjax export``, as a user meets them."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib

import numpy as np
import pytest

from stemjax import cli
from stemjax.export import bundle, published
from stemjax.foreign import torchfile

SMALL = pathlib.Path(__file__).parent / "parity" / "fixtures" / "small.pt"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An official checkpoint after 42 steps, its genes, its encoder; bundles of it and of ours."""
    out = tmp_path_factory.mktemp("exchange")
    (out / "0000042.pt").write_bytes(SMALL.read_bytes())
    (out / "genes.txt").write_text("".join(f"GENE{i}\n" for i in range(7)))
    (out / "six.txt").write_text("".join(f"GENE{i}\n" for i in range(6)))
    contract = dataclasses.replace(published.UNI_CONCH, name="toy", width=10).to_json()
    (out / "encoder.json").write_text(json.dumps(contract))
    (out / "incomplete.json").write_text(json.dumps({"name": "toy"}))
    (out / "folder").mkdir()
    (out / "folder" / "notes.txt").write_text("mine")
    assert run(out, [*IMPORT, "-o", "{}/bundle"]) == 0
    trained = bundle.load(out / "bundle")
    card = trained.card
    experiment = dataclasses.replace(
        card.experiment, diffusion=dataclasses.replace(card.experiment.diffusion, process="edm")
    )
    # An EDM model has one output channel less.
    head = trained.params["head"]["linear"]
    params = trained.params | {
        "head": trained.params["head"] | {"linear": {k: v[..., :1] for k, v in head.items()}}
    }
    card = dataclasses.replace(card, experiment=experiment)
    bundle.write(dataclasses.replace(trained, params=params, card=card), out / "edm")
    return out


IMPORT = ["import-torch", "{}/0000042.pt", "--genes", "{}/genes.txt", "--heads", "2",
          "--encoder", "{}/encoder.json"]  # fmt: skip


def run(folder, command):
    return cli.main([part.replace("{}", str(folder)) for part in command])


def state(path, which="ema"):
    return {name: tensor.numpy() for name, tensor in torchfile.read(path)[which].items()}


@pytest.mark.parametrize("weights", [None, "ema", "model"])
def test_import_says_what_it_read_and_writes_it(made, tmp_path, capsys, weights):
    path = tmp_path / "bundle"
    asked = [] if weights is None else ["--weights", weights]
    assert run(made, [*IMPORT, *asked, "-o", str(path)]) == 0
    which = weights or "ema"
    wanted = state(SMALL, which)
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        f"{path}: {sum(value.size for value in wanted.values()):,} parameters, 7 genes, width 16, "
        f"depth 2, 2 heads, weights {which}, step 42",
        "  embeddings: toy, 10 wide; expression: log2(count + 1)",
    ]
    assert said.err == ""
    trained = bundle.load(path)
    assert trained.card.space.genes == tuple(f"GENE{i}" for i in range(7))
    assert trained.card.contract.name == "toy"
    assert (trained.step, trained.weights) == (42, which)
    found = published.to_state(trained.params)
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value)


def test_export_to_torch_gives_the_weights_back(made, tmp_path, capsys):
    path = tmp_path / "new" / "out.pt"
    assert run(made, ["export", "{}/bundle", "--format", "torch", "-o", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: torch, step 42, weights ema\n"
    assert os.listdir(path.parent) == ["out.pt"]
    for which in published.WEIGHTS:
        found = state(path, which)
        for name, value in state(SMALL).items():
            np.testing.assert_array_equal(found[name], value)


def test_export_to_a_bundle_copies_it(made, tmp_path, capsys):
    path = tmp_path / "copy"
    for source in (made / "bundle", path):  # also onto itself
        assert run(made, ["export", str(source), "--format", "bundle", "-o", str(path)]) == 0
        assert capsys.readouterr().out == f"{path}: bundle, step 42, weights ema\n"
        for file in (made / "bundle").iterdir():
            assert (path / file.name).read_bytes() == file.read_bytes()


def changed(option, value):
    """The import with another value of an option, or without it."""
    at = IMPORT.index(option)
    return IMPORT[:at] + ([option, value] if value else []) + IMPORT[at + 2 :]


EXPORT = ["export", "{}/bundle", "--format"]


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["import-torch", "{}/none.pt", *IMPORT[2:]], "SJ-X01", ["none.pt"]),
        (["import-torch", "{}/genes.txt", *IMPORT[2:]], "SJ-X01", ["genes.txt", "zip"]),
        (changed("--heads", None), "SJ-X01", ["width 16", "give --heads"]),
        (changed("--heads", "5"), "SJ-X01", ["--heads 5", "divisor of the width 16"]),
        (changed("--genes", "{}/six.txt"), "SJ-D04", ["7 genes", "found 6"]),
        (changed("--genes", "{}/none.txt"), "SJ-D04", ["none.txt"]),
        (changed("--encoder", None), "SJ-D05", ["10 features", "1536 (uni+conch)", "--encoder"]),
        (changed("--encoder", "{}/none.json"), "SJ-D05", ["none.json"]),
        (changed("--encoder", "{}/genes.txt"), "SJ-D05", ["genes.txt", "JSON"]),
        (changed("--encoder", "{}/incomplete.json"), "SJ-D05", ["incomplete.json", "input_px"]),
        (["export", "{}/none", "--format", "torch"], "SJ-K01", ["none"]),
        (["export", "{}/edm", "--format", "torch"], "SJ-X01", ["found process edm"]),
    ],
)
def test_refusals_are_one_block_with_a_code_and_write_nothing(
    made, tmp_path, capsys, command, code, words
):
    before = sorted(made.rglob("*"))
    assert run(made, [*command, "-o", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"stemjax {command[0]}: error [{code}]\n  ")
    assert len(said.err.splitlines()) == 3
    assert f"\n  See docs/errors/{code}.md" in said.err
    for word in words:
        assert word in said.err
    assert not list(tmp_path.iterdir())
    assert sorted(made.rglob("*")) == before


@pytest.mark.parametrize(
    ("command", "code", "found"),
    [
        ([*EXPORT, "torch", "-o", "{}/folder"], "SJ-X01", "found a folder"),
        ([*EXPORT, "bundle", "-o", "{}/folder"], "SJ-X02", "notes.txt"),
        ([*IMPORT, "-o", "{}/folder"], "SJ-X02", "notes.txt"),
        ([*IMPORT, "-o", "{}/0000042.pt"], "SJ-X02", "found a file"),
    ],
)
def test_what_is_in_the_way_stays(made, capsys, command, code, found):
    before = sorted(made.rglob("*"))
    assert run(made, command) == 1
    said = capsys.readouterr().err
    assert f"error [{code}]\n" in said
    assert "is in the way" in said
    assert found in said
    assert sorted(made.rglob("*")) == before
    assert (made / "folder" / "notes.txt").read_text() == "mine"
    assert (made / "0000042.pt").read_bytes() == SMALL.read_bytes()


def test_a_damaged_bundle_is_named(made, tmp_path, capsys):
    assert run(made, [*EXPORT, "bundle", "-o", str(tmp_path / "copy")]) == 0
    weights = tmp_path / "copy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    capsys.readouterr()
    command = ["export", str(tmp_path / "copy"), "--format", "torch", "-o", str(tmp_path / "x.pt")]
    assert cli.main(command) == 1
    said = capsys.readouterr().err
    assert "error [SJ-X02]\n" in said
    assert f"{tmp_path / 'copy'} is damaged" in said
    assert "model.safetensors: sha256" in said
    assert not (tmp_path / "x.pt").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["import-torch", "x.pt", "-o", "out"],
        ["import-torch", "x.pt", "--genes", "g.txt"],
        ["import-torch", "x.pt", "--genes", "g.txt", "-o", "out", "--weights", "opt"],
        ["export", "run", "-o", "out"],
        ["export", "run", "--format", "onnx", "-o", "out"],
    ],
)
def test_wrong_usage_exits_with_2(capsys, command):
    with pytest.raises(SystemExit) as exit_:
        cli.main(command)
    assert exit_.value.code == 2
    assert f"usage: stemjax {command[0]}" in capsys.readouterr().err


def test_a_program_of_the_sampling_asked_for(made, tmp_path, capsys):
    command = ["export", "{}/edm", "--format", "stablehlo", "--mode", "draws", "--n-draws", "6",
               "--sampler", "heun", "--steps", "3", "-o", str(tmp_path / "program")]  # fmt: skip
    assert run(made, command) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'program'}: stablehlo, step 42")
    about = json.loads((tmp_path / "program" / "program.json").read_text())
    sampling = about["sampling"]
    assert (sampling["sampler"], sampling["steps"], sampling["n_draws"]) == ("heun", 3, 6)
    assert about["output"]["shape"] == [6, "b", 7]
    assert about["platforms"] == ["cpu", "cuda", "tpu"]


def test_a_bundle_of_half_the_size_with_scores(made, tmp_path):
    trained = bundle.load(made / "edm")
    scores = {"checkpoint_step": trained.step, "weights": trained.weights, "slides": [], "rows": []}
    (tmp_path / "metrics.json").write_text(json.dumps(scores))
    out = tmp_path / "half"
    command = [*EXPORT_EDM, "bundle", "--dtype", "bfloat16", "--metrics"]
    assert run(made, [*command, str(tmp_path / "metrics.json"), "-o", str(out)]) == 0
    assert bundle.load(out).scores == scores
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (out, made / "edm")]
    assert sizes[0] < 0.6 * sizes[1]


EXPORT_EDM = ["export", "{}/edm", "--format"]


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["torch-edm", "--dtype", "bfloat16"], "--dtype with --format torch-edm: expected"),
        (["bundle", "--steps", "3"], "--steps with --format bundle: expected --format stablehlo"),
        (["bundle", "--n-draws", "4", "--mode", "draws"], "--mode, --n-draws with --format bundle"),
        (["bundle", "--metrics", "{}/genes.txt"], "genes.txt cannot be read"),
        (["bundle", "--metrics", "{}/incomplete.json"], "expected scores of these weights"),
    ],
)  # fmt: skip
def test_flags_that_go_with_another_format_are_refused(made, tmp_path, capsys, command, text):
    assert run(made, [*EXPORT_EDM, *command, "-o", str(tmp_path / "out")]) == 1
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
