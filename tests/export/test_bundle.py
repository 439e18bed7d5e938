"""Bundles: what is written comes back to the last bit, and damage is named."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from stemjax import config, errors
from stemjax.data import embeddings, integrity, space, transforms
from stemjax.export import bundle, published
from stemjax.train import calibration, checkpoint, saving

FILES = ["README.md", "SHA256SUMS.json", "bundle.json", "genes.txt", "golden.safetensors"]
FILES += ["model.safetensors"]
GENES = tuple(f"G{i}" for i in range(5))


def make_card(**model):
    """The card of a small EDM network, whose space is standardised by numbers of many digits."""

    def standardisation(seed, width):
        rng = np.random.default_rng(seed)
        return transforms.Standardisation(mean=rng.normal(size=width), std=rng.uniform(1, 2, width))

    size = {"width": 8, "depth": 2, "heads": 2} | model
    contract = dataclasses.replace(published.UNI_CONCH, name="toy", width=6, mean=(0.1,) * 3)
    assert isinstance(contract, embeddings.EncoderContract)
    return checkpoint.Card(
        experiment=config.Experiment(name="toy", model=config.Model(**size)),
        space=space.Space(
            genes=GENES,
            transform="log2p1",
            expression=standardisation(1, len(GENES)),
            condition=standardisation(2, 6),
        ),
        contract=contract,
        split={"train": ["T1"], "val": [], "test": ["X1"], "kind": "new patient"},
        panel={"genes": list(GENES), "rule": "toy", "slides": ["T1"]},
        versions={"stemjax": "0"},
    )


def make_trained(seed=0, **model):
    card, rng = make_card(**model), np.random.default_rng(seed)
    shapes = jax.eval_shape(card.task.init, jax.random.key(0))
    params = jax.tree.map(
        lambda leaf: jax.numpy.asarray(rng.normal(size=leaf.shape), np.float32), shapes
    )
    return checkpoint.Trained(params=params, card=card, step=1234, weights="best")


@pytest.fixture(scope="module")
def trained():
    return make_trained()


@pytest.fixture
def path(tmp_path, trained):
    """A bundle."""
    bundle.write(trained, tmp_path / "out")
    return tmp_path / "out"


def assert_same(found, wanted):
    assert (found.step, found.weights) == (wanted.step, wanted.weights)
    assert found.card.to_json() == wanted.card.to_json()
    assert jax.tree.structure(found.params) == jax.tree.structure(wanted.params)
    for ours, theirs in zip(jax.tree.leaves(found.params), jax.tree.leaves(wanted.params)):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def rewrite(path, change):
    """Changes bundle.json and lists it anew, as someone who edits a bundle by hand would."""
    values = json.loads((path / "bundle.json").read_text())
    values = change(values) or values
    (path / "bundle.json").write_text(json.dumps(values))
    integrity.write_manifest(path)


def test_what_is_written_comes_back_to_the_last_bit(path, trained):
    assert sorted(os.listdir(path)) == FILES
    assert_same(bundle.load(path), trained)
    weights = safetensors.numpy.load_file(path / "model.safetensors")
    qkv = trained.params["blocks"]["attn"]["qkv"]["kernel"]
    np.testing.assert_array_equal(weights["blocks/attn/qkv/kernel"], qkv)
    assert len(weights) == len(jax.tree.leaves(trained.params))


def test_an_imported_checkpoint_goes_through_a_bundle_unchanged(tmp_path):
    small = pathlib.Path(__file__).resolve().parents[1] / "parity" / "fixtures" / "small.pt"
    panel = published.genes.Panel(genes=tuple("ABCDEFG"), rule="list", slides=())
    contract = dataclasses.replace(published.UNI_CONCH, name="toy", width=10)
    trained = published.read(small, panel, heads=2, contract=contract)
    bundle.write(trained, tmp_path / "bundle")
    assert_same(bundle.load(tmp_path / "bundle"), trained)
    for folder, model in (("one", trained), ("two", bundle.load(tmp_path / "bundle"))):
        published.write(model, tmp_path / folder / "out.pt")
    one, two = ((tmp_path / folder / "out.pt").read_bytes() for folder in ("one", "two"))
    assert one == two


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("file", "a file"),
        ("stranger", "notes.txt"),
        ("bundle with notes", "notes.txt"),
        ("weights of others", "model.safetensors"),
    ],
)
def test_what_is_no_bundle_is_not_replaced(tmp_path, trained, name, found):
    path = tmp_path / "out"
    if name == "file":
        path.write_text("mine")
    else:
        if name == "bundle with notes":
            bundle.write(trained, path)
        path.mkdir(exist_ok=True)
        (path / found).write_text("mine")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(errors.BundleError) as caught:
        bundle.write(trained, path)
    assert caught.value.code == "SJ-X02"
    assert f"{path} is in the way" in str(caught.value)
    assert found in caught.value.found
    after = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert after == before


def test_an_older_bundle_is_replaced(path):
    newer = dataclasses.replace(make_trained(seed=1, depth=1), step=9, weights="last")
    bundle.write(newer, path)
    assert_same(bundle.load(path), newer)
    assert os.listdir(path.parent) == ["out"]  # neither the old one nor anything temporary


@pytest.mark.parametrize("given", ["deep/er/out", "empty", "."])
def test_a_bundle_finds_its_place(tmp_path, trained, monkeypatch, given):
    folder = tmp_path / "here"
    (folder / "empty").mkdir(parents=True)
    if given == ".":
        (folder / "empty").rmdir()
    monkeypatch.chdir(folder)
    bundle.write(trained, given)
    assert sorted(os.listdir(folder / given)) == FILES
    assert_same(bundle.load(folder / given), trained)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["missing", "cut", "changed"])
def test_damage_is_named(path, name, kind):
    file = path / name
    contents = bytearray(file.read_bytes())
    if kind == "missing":
        file.unlink()
    elif kind == "cut":
        file.write_bytes(contents[: len(contents) // 2])
    else:  # of the weights the last number, of JSON a digit or a letter
        at = contents.index(b'": ') + 5 if name.endswith("json") else len(contents) - 2
        contents[at] ^= 1
        file.write_bytes(contents)
    with pytest.raises(errors.BundleError) as caught:
        bundle.load(path)
    assert caught.value.code == "SJ-X02"
    assert str(path) in str(caught.value)
    assert name in str(caught.value) or (name, kind) == ("SHA256SUMS.json", "changed")


BAD = {
    "format": (lambda v: v.update(format=1), errors.BundleError, "expected 2, found 1"),
    "no format": (lambda v: v.pop("format") and None, errors.BundleError, "KeyError: 'format'"),
    "format of the card": (
        lambda v: v["card"].update(format=7),
        errors.CheckpointError,
        "expected 1, found 7",
    ),
    "no space": (
        lambda v: v["card"].pop("space") and None,
        errors.CheckpointError,
        "a part named 'space'",
    ),
    "unknown key": (
        lambda v: v["card"]["experiment"]["model"].update(layers=3),
        errors.ConfigError,
        "config.model.layers",
    ),
    "list": (lambda v: [v], errors.BundleError, "cannot be read"),
    "card is a list": (lambda v: v.update(card=[1]), errors.BundleError, "cannot be read"),
    "card is null": (lambda v: v.update(card=None), errors.BundleError, "cannot be read"),
    "dtype": (lambda v: v.update(dtype="int8"), errors.BundleError, "dtype 'int8'"),
    "runs are numbers": (lambda v: v.update(runs=[1]), errors.BundleError, "cannot be read"),
    "step is text": (lambda v: v.update(step="last"), errors.BundleError, "cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_description_that_makes_no_sense_is_refused(path, name):
    change, kind, words = BAD[name]
    rewrite(path, change)
    with pytest.raises(errors.StemjaxError) as caught:
        bundle.load(path)
    assert type(caught.value) is kind
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["bundle.json", "golden.safetensors", "model.safetensors"])
def test_files_of_another_kind_are_refused(path, name):
    (path / name).write_bytes(b"not of this kind")
    integrity.write_manifest(path)
    with pytest.raises(errors.BundleError, match="cannot be read"):
        bundle.load(path)


@pytest.mark.parametrize(
    ("key", "value", "name", "expected"),
    [
        ("width", 12, "blocks/attn/proj/bias", "shape (2, 12)"),
        ("depth", 3, "blocks/attn/proj/bias", "shape (3, 8)"),
        ("mlp_ratio", 2, "blocks/mlp/fc1/bias", "shape (2, 16)"),
    ],
)
def test_a_card_of_another_network_is_refused_by_the_parameter(path, key, value, name, expected):
    rewrite(path, lambda v: v["card"]["experiment"]["model"].update({key: value}))
    with pytest.raises(errors.CheckpointMismatchError) as caught:
        bundle.load(path)
    found = safetensors.numpy.load_file(path / "model.safetensors")[name].shape
    assert caught.value.code == "SJ-K02"
    assert caught.value.what == f"{path}: parameter {name}"
    wanted = f"{expected}, float32", f"shape {found}, float32"
    assert (caught.value.expected, caught.value.found) == wanted


@pytest.mark.parametrize("kind", ["missing", "extra"])
def test_parameters_missing_and_extra_are_named(path, kind):
    arrays = safetensors.numpy.load_file(path / "model.safetensors")
    qkv = arrays.pop("blocks/attn/qkv/bias")
    if kind == "extra":
        arrays |= {"blocks/attn/qkv/bias": qkv, "blocks/attn/qkv/scale": qkv}
    safetensors.numpy.save_file(arrays, path / "model.safetensors")
    integrity.write_manifest(path)
    name = "blocks/attn/qkv/" + {"missing": "bias", "extra": "scale"}[kind]
    with pytest.raises(errors.CheckpointMismatchError, match=f"parameter {name}: ") as caught:
        bundle.load(path)
    assert (caught.value.found == "none") == (kind == "missing")
    assert (caught.value.expected == "none") == (kind == "extra")


@pytest.mark.parametrize("where", ["weights", "description", "manifest"])
@pytest.mark.parametrize("older", [True, False])
def test_nothing_half_written_stays(tmp_path, trained, monkeypatch, where, older):
    path = tmp_path / "out"
    if older:
        bundle.write(trained, path)

    def full(*args, **kwargs):
        if where == "weights":
            pathlib.Path(args[1]).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    module, name = {
        "weights": (safetensors.numpy, "save_file"),
        "description": (integrity, "write_text"),
        "manifest": (integrity, "write_manifest"),
    }[where]
    with monkeypatch.context() as patched:
        patched.setattr(module, name, full)
        with pytest.raises(errors.ResourceError, match="no space left"):
            bundle.write(make_trained(seed=1), path)
    assert os.listdir(tmp_path) == ["out"] * older
    if older:
        assert_same(bundle.load(path), trained)


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_others_may_read_a_bundle(tmp_path, trained):
    mask = os.umask(0o022)
    try:
        bundle.write(trained, tmp_path / "out")
    finally:
        os.umask(mask)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()}
    assert modes == dict.fromkeys(FILES, 0o644)


def test_a_model_opens_from_a_bundle_and_from_a_workdir(tmp_path, path, trained):
    assert bundle.is_bundle(path)
    assert_same(bundle.open_model(path), trained)
    assert_same(bundle.open_model(str(path), weights="last"), trained)  # it has one set
    with saving.Checkpoints(tmp_path / "run", trained.card) as checkpoints:
        checkpoints.save_best(trained.params, trained.step, {"val_mse": 1.0})
    assert not bundle.is_bundle(tmp_path / "run")
    assert_same(bundle.open_model(tmp_path / "run"), trained)
    with pytest.raises(errors.CheckpointError, match="no last checkpoint"):
        bundle.open_model(tmp_path / "run", weights="last")


def test_where_there_is_no_model_it_says_so(tmp_path):
    with pytest.raises(errors.CheckpointError, match="nowhere"):
        bundle.open_model(tmp_path / "nowhere")
    with pytest.raises(errors.BundleError, match=r"no bundle at .*nowhere.*bundle\.json") as caught:
        bundle.load(tmp_path / "nowhere")
    assert caught.value.code == "SJ-X02"


# ------------------------------------------------------------------------------------ calibrations


def calibrate(trained, mode="mean", width=1.0, **fields):
    """A calibration of a model, as `conformal.fit` would make one."""
    ends = width * np.array([-1.0, 1.0])[None, :, None] * np.ones((1, 2, len(GENES)))
    made = {
        "levels": (0.9,),
        "offsets": ends,
        "floor": np.full(len(GENES), 0.1),
        "spots": np.full(len(GENES), 40),
        "slides": ("V1",),
        "genes": GENES,
        "value_space": "log2p1",
        "sampling": {"mode": mode},
        "model": trained.identity,
        "raw": None,
        "held_out": (0.9,),
        "held_out_by": "leave one slide out",
    }
    return calibration.Calibration(**made | fields)


def stored(trained):
    return [(one.sampling["mode"], one.offsets.max()) for one in trained.calibrations]


def test_calibrations_go_with_a_bundle_and_are_replaced_one_by_one(path, trained, tmp_path):
    assert bundle.load(path).calibrations == ()
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    for mode, width in (("mean", 1.0), ("draws", 2.0), ("mean", 3.0)):
        opened = bundle.open_model(path)
        file = bundle.add_calibration(opened, calibrate(trained, mode, width), path)
        assert file == path / "calibration.json"
    assert sorted(os.listdir(path)) == sorted([*FILES, "calibration.json"])
    for name in ("bundle.json", "model.safetensors"):
        assert (path / name).read_bytes() == before[name]
    found = bundle.load(path)
    assert_same(found, trained)
    assert stored(found) == [("draws", 2.0), ("mean", 3.0)]
    bundle.write(found, tmp_path / "copy")
    assert stored(bundle.load(tmp_path / "copy")) == stored(found)
    bundle.write(trained, path)  # one without them replaces it
    assert sorted(os.listdir(path)) == FILES


@pytest.mark.parametrize("kind", ["missing", "changed"])
def test_a_damaged_calibration_is_named(path, trained, kind):
    bundle.add_calibration(trained, calibrate(trained), path)
    file = path / "calibration.json"
    text = file.read_text()
    if kind == "missing":
        file.unlink()
    else:
        file.write_text(text.replace("1.0", "1.1", 1))
    with pytest.raises(errors.BundleError, match=r"calibration\.json"):
        bundle.load(path)


def test_calibrations_of_other_weights_and_genes_are_refused(path, trained):
    other = dataclasses.replace(trained, step=5)
    fitting = calibrate(trained)
    for wrong, words in (
        (calibrate(other), "1 of others"),
        (calibrate(trained, genes=GENES[::-1]), "does not fit its model"),
    ):
        calibration.write([fitting, wrong], path / "calibration.json")
        integrity.write_manifest(path)
        with pytest.raises(errors.CalibrationError, match=words):
            bundle.load(path)


def test_a_workdir_keeps_the_calibrations_of_each_of_its_weights(tmp_path, trained):
    run, last = tmp_path / "run", dataclasses.replace(trained, weights="last", step=9)
    with saving.Checkpoints(run, trained.card) as checkpoints:
        checkpoints.save_best(trained.params, trained.step, {"val_mse": 1.0})
    assert bundle.open_model(run).calibrations == ()
    for model, mode in ((trained, "mean"), (last, "mean"), (trained, "draws")):
        assert bundle.add_calibration(model, calibrate(model, mode), run).parent == run
    opened = bundle.open_model(run)
    assert stored(opened) == [("mean", 1.0), ("draws", 1.0)]
    bundle.write(opened, tmp_path / "out")
    assert stored(bundle.load(tmp_path / "out")) == stored(opened)
    assert len(calibration.read(run / "calibration.json")) == 3
    (run / "calibration.json").write_text("{")
    with pytest.raises(errors.CalibrationError, match="delete calibration.json"):
        bundle.open_model(run)
