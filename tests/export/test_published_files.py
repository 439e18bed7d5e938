"""Official checkpoints come in as models that predict, go out as the original code wants them.

`small.pt` of `tests/parity/fixtures` is a file of real torch with random weights; whatever is wrong
with a file is planted into a copy of its tree.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import pathlib
import pickle
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stemjax import config, errors, tasks
from stemjax.data import genes, transforms
from stemjax.diffusion import sampler
from stemjax.export import published
from stemjax.foreign import torchfile

PARITY = pathlib.Path(__file__).resolve().parents[1] / "parity"
SMALL = PARITY / "fixtures" / "small.pt"
PANEL = genes.Panel(genes=tuple(f"G{i}" for i in range(7)), rule="list genes.txt", slides=())
CONTRACT = dataclasses.replace(published.UNI_CONCH, name="toy", width=10)
QKV = "blocks.1.attn.qkv.weight"


def read(path, **kwargs):
    return published.read(path, **({"panel": PANEL, "heads": 2, "contract": CONTRACT} | kwargs))


def arrays(tree):
    """The tree of a file with its tensors as arrays, which `torchfile.write` takes."""
    if isinstance(tree, dict):
        return {key: arrays(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(arrays(value) for value in tree)
    return tree.numpy() if isinstance(tree, torchfile.Tensor) else tree


@pytest.fixture
def tree():
    """What small.pt holds, to change and to write."""
    return arrays(torchfile.read(SMALL))


@pytest.fixture
def variant(tmp_path, tree):
    """Writes small.pt after a change of its ``ema``; returns the path."""

    def make(change):
        change(tree["ema"])
        torchfile.write(tmp_path / "variant.pt", tree)
        return tmp_path / "variant.pt"

    return make


def with_card(trained, **parts):
    """The model with other parts of its card."""
    return dataclasses.replace(trained, card=dataclasses.replace(trained.card, **parts))


def refusal(path, kind=errors.TorchFileError, **kwargs):
    """The error with which reading ends; its text is fit for a terminal."""
    with pytest.raises(errors.StemjaxError) as caught:
        read(path, **kwargs)
    assert type(caught.value) is kind
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    assert str(path) in str(caught.value)
    return caught.value


def test_the_weights_asked_for_come_out():
    tree = arrays(torchfile.read(SMALL))
    assert any((tree["ema"][name] != tree["model"][name]).any() for name in tree["ema"])
    for which, trained in (("ema", read(SMALL)), ("model", read(SMALL, weights="model"))):
        state = published.to_state(trained.params)
        assert trained.weights == trained.card.versions["imported_weights"] == which
        assert state.keys() == tree[which].keys()
        for name, value in tree[which].items():
            np.testing.assert_array_equal(state[name], value)
    with pytest.raises(errors.ConfigError, match="expected ema or model, found 'best'"):
        read(SMALL, weights="best")


@pytest.mark.parametrize(("name", "step"), [("0300000.pt", 300_000), ("17.pt", 17), ("s12.pt", 0)])
def test_the_step_is_the_files_name(tmp_path, name, step):
    path = tmp_path / name
    path.write_bytes(SMALL.read_bytes())
    trained = read(path)
    assert trained.step == step
    assert trained.card.versions["imported_from"] == name


def test_the_card_says_what_was_imported():
    card = read(SMALL).card
    model, diffusion = card.experiment.model, card.experiment.diffusion
    assert (model.width, model.depth, model.heads, model.mlp_ratio) == (16, 2, 2, 4)
    assert diffusion.process == "ddpm"
    assert card.versions["imported_sha256"] == hashlib.sha256(SMALL.read_bytes()).hexdigest()
    assert card.space.genes == PANEL.genes
    assert card.panel == PANEL.to_json()
    assert card.contract == CONTRACT
    assert card.split == {"train": [], "val": [], "test": [], "kind": "unknown"}
    # The identity space: log2(count + 1) and embeddings go in as they are.
    counts = np.arange(14).reshape(2, 7)
    value = card.space.encode_expression(counts, counts.sum(1), np.ones((2, 7)))
    np.testing.assert_allclose(value, np.log2(counts + 1.0), rtol=2e-7)  # float32's log2
    cond = np.linspace(-3, 3, 20, dtype=np.float16).reshape(2, 10)
    np.testing.assert_array_equal(card.space.encode_condition(cond), cond.astype(np.float32))
    # And it is a card that checkpoints can store: `from_json` checks the configuration.
    assert type(card).from_json(json.loads(json.dumps(card.to_json()))).to_json() == card.to_json()
    assert config.resolve(config.as_json(card.experiment)) == card.experiment


def test_what_is_read_predicts_as_torch_does():
    with np.load(PARITY / "fixtures" / "small.npz") as stored:
        x, t, cond, output = (jnp.asarray(stored[name]) for name in ("x", "t", "cond", "output"))
    trained = read(SMALL)
    task = trained.card.task
    assert isinstance(task, tasks.DdpmTask)
    got = jax.jit(task.network.apply)(trained.params, x, t.astype(jnp.float32), cond)
    # float32 on both sides: a few roundings of numbers of order 1.
    np.testing.assert_allclose(got, output, atol=1e-5, rtol=0)
    keys = sampler.spot_keys(0, "S", [f"b{i}" for i in range(5)])
    sampling = tasks.Sampling(mode="draws", sampler="ddpm", steps=2, n_draws=2)
    draws = np.asarray(task.predict(trained.params, cond, keys, sampling=sampling))
    assert draws.shape == (2, 5, 7)
    assert np.isfinite(draws).all()
    assert draws.std() > 0.1


def test_heads_that_the_width_tells_need_not_be_given(tmp_path):
    size = published.stem.StemConfig(genes=7, width=64, depth=1, heads=1, condition=10, channels=2)
    shapes = published.published_shapes(size)
    path = tmp_path / "wide.pt"
    torchfile.write(path, {"ema": {k: np.ones(v, np.float32) for k, v in shapes.items()}})
    assert read(path, heads=None).card.experiment.model.heads == 1
    assert read(path, heads=4).card.experiment.model.heads == 4


@pytest.mark.parametrize("n", [6, 8])
def test_another_number_of_genes_is_refused(n):
    panel = dataclasses.replace(PANEL, genes=tuple(f"G{i}" for i in range(n)))
    error = refusal(SMALL, errors.GenePanelError, panel=panel)
    assert (error.code, error.found) == ("SJ-D04", str(n))
    assert "7 genes" in str(error)
    assert "selected_gene_list.txt" in str(error)


@pytest.mark.parametrize("contract", [None, dataclasses.replace(CONTRACT, width=11)])
def test_another_width_of_the_encoder_is_refused(contract):
    error = refusal(SMALL, errors.EncoderMismatchError, contract=contract)
    assert error.code == "SJ-D05"
    assert "10 features" in str(error)
    assert ("11 (toy)" if contract else "1536 (uni+conch)") in str(error)
    assert "--encoder" in str(error)


def test_heads_that_cannot_be_are_refused():
    error = refusal(SMALL, heads=None)
    assert error.code == "SJ-X01"
    assert "width 16" in str(error)
    assert "64" in str(error)
    assert "give --heads" in str(error)
    for heads in (3, 32, 0, -2):
        message = str(refusal(SMALL, heads=heads))
        assert f"--heads {heads}" in message
        assert "divisor of the width 16" in message


# Changes of the state dict -> what the message must say.
FAULTS = {
    "missing": (lambda s: s.pop(QKV), [f"missing: '{QKV}';", "extra: none"]),
    "extra": (lambda s: s.update({"y_embed": s[QKV]}), ["missing: none", "extra: 'y_embed'"]),
    "both": (
        lambda s: s.update({"blocks.1.attn.qkv.scale": s.pop(QKV)}),
        [f"missing: '{QKV}';", "extra: 'blocks.1.attn.qkv.scale'"],
    ),
    "a block less": (
        lambda s: [s.pop(name) for name in list(s) if name.startswith("blocks.0.")],
        ["blocks.0.mlp.fc1.weight", "no such tensor"],
    ),
    "a block between": (
        lambda s: s.update({"blocks.3.attn.qkv.weight": s[QKV]}),
        ["missing: 'blocks.2.attn.qkv.weight'", "and 14 more", "extra: none"],
    ),
    "transposed": (
        lambda s: s.update({QKV: s[QKV].T.copy()}),
        [f"tensor {QKV}", "expected shape (48, 16)", "found (16, 48)"],
    ),
    "bias with an axis more": (
        lambda s: s.update({"final_layer.linear.bias": np.ones((2, 1), np.float32)}),
        ["tensor final_layer.linear.bias", "expected shape (2,)", "found (2, 1)"],
    ),
    "one channel": (
        lambda s: s.update({"final_layer.linear.weight": np.ones((1, 16), np.float32)}),
        ["tensor final_layer.linear.weight", "expected shape (2, 16)", "found (1, 16)"],
    ),
    "names with one axis": (
        lambda s: s.update({"gene_joint_embed.gene_name_ebd": np.ones(7, np.float32)}),
        ["gene_joint_embed.gene_name_ebd", "two axes", "shape (7,)"],
    ),
    "no genes": (
        lambda s: s.update({"gene_joint_embed.gene_name_ebd": np.ones((0, 16), np.float32)}),
        ["gene_joint_embed.gene_name_ebd", "shape (0, 16)"],
    ),
    "nan": (
        lambda s: s[QKV].__setitem__((3, 4), np.nan),
        [f"tensor {QKV}", "finite numbers", "found 1 that are not"],
    ),
    "inf": (
        lambda s: s["time_embed.mlp.0.bias"].__setitem__([0, 1], [np.inf, -np.inf]),
        ["tensor time_embed.mlp.0.bias", "found 2 that are not"],
    ),
    "beyond float32": (
        lambda s: s.update({"time_embed.mlp.0.bias": np.full(16, 1e300)}),
        ["tensor time_embed.mlp.0.bias", "found 16 that are not"],
    ),
    "no tensor": (lambda s: s.update({QKV: [1.0, 2.0]}), [f"entry '{QKV}' of ema", "found list"]),
    "number as name": (
        lambda s: s.update({3: s[QKV]}),
        ["entry 3 of ema", "found Tensor under int"],
    ),
    "odd name": (
        lambda s: s.update({"\x1b[31mred" + "x" * 5000: s[QKV]}),
        ["extra: '\\x1b[31mred"],
    ),
    "odd name of no tensor": (lambda s: s.update({"x" * 5000: 1}), ["entry 'xxx", "found int"]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_another_network_is_refused_by_its_tensor(variant, name):
    change, words = FAULTS[name]
    error = refusal(variant(change))
    assert error.code == "SJ-X01"
    for word in words:
        assert word in str(error)


def test_a_fault_in_weights_that_are_not_asked_for_does_no_harm(variant):
    path = variant(lambda state: state.pop(QKV))
    assert read(path, weights="model").weights == "model"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda tree: {"model": tree["model"], "opt": {}}, "'model', 'opt'"),
        (lambda tree: tree["ema"], "'gene_joint_embed.gene_name_ebd'"),
        (lambda tree: {"ema": [1, 2]}, "'ema'"),
        (lambda tree: {}, "none"),
        (lambda tree: [tree], "list"),
        (lambda tree: 3, "int"),
        (lambda tree: {"\x1b[31m" + "x" * 5000: 1}, "\\x1b"),
    ],
)  # fmt: skip
def test_a_file_of_other_things_is_refused(tmp_path, tree, change, found):
    path = tmp_path / "other.pt"
    torchfile.write(path, change(tree))
    error = refusal(path)
    assert error.code == "SJ-X01"
    assert "model, ema and opt" in str(error)
    assert found in error.found


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    for length in (SMALL.stat().st_size // 2, SMALL.stat().st_size - 1):
        path.write_bytes(SMALL.read_bytes()[:length])
        assert "cut off" in str(refusal(path))
    path.write_bytes(b"not a zip archive at all")
    assert "not a zip archive" in str(refusal(path))
    path.unlink()
    assert refusal(path).code == "SJ-X01"


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


@pytest.mark.parametrize("where", ["ema", "model", "beside"])
def test_nothing_in_a_file_is_executed(tmp_path, where):
    canary, path = tmp_path / "canary", tmp_path / "evil.pt"
    tree = {"model": {}, "ema": {}, "opt": {}}
    if where == "beside":
        tree["opt"] = Touch(canary)
    else:
        tree[where]["gene_joint_embed.gene_name_ebd"] = Touch(canary)
    body = pickle.dumps(tree, protocol=2)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("evil/data.pkl", body)
        archive.writestr("evil/version", "3\n")
    assert "Nothing in the file was executed" in str(refusal(path))
    assert not canary.exists()
    pickle.loads(body)  # the trap works
    assert canary.exists()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("process", "process edm, transform log2p1"),
        ("transform", "process ddpm, transform log1p_cp10k"),
        ("condition", "process ddpm, transform log2p1, standardised"),
        ("expression", "process ddpm, transform log2p1, standardised"),
    ],
)
def test_a_model_that_the_original_code_cannot_run_is_not_written(tmp_path, change, found):
    trained = read(SMALL)
    if change == "process":
        experiment = dataclasses.replace(trained.card.experiment, diffusion=config.Diffusion())
        trained = with_card(trained, experiment=experiment)
    else:
        shift = np.eye(10 if change == "condition" else 7, dtype=np.float32)[2]
        other = {
            "transform": "log1p_cp10k",
            "condition": transforms.Standardisation(mean=0 * shift, std=1 + shift),
            "expression": transforms.Standardisation(mean=shift, std=0 * shift + 1),
        }[change]
        space = dataclasses.replace(trained.card.space, **{change: other})
        trained = with_card(trained, space=space)
    with pytest.raises(errors.TorchFileError) as caught:
        published.write(trained, tmp_path / "out.pt")
    assert (caught.value.code, caught.value.found) == ("SJ-X01", found)
    assert "configs/stem_published_ddpm.py" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_what_is_written_reads_back_to_the_last_bit(tmp_path):
    trained = read(SMALL)
    optim = config.Optim(learning_rate=3e-5)
    experiment = dataclasses.replace(trained.card.experiment, optim=optim)
    trained = with_card(trained, experiment=experiment)
    published.write(trained, tmp_path / "0000042.pt")
    for which in published.WEIGHTS:
        again = read(tmp_path / "0000042.pt", weights=which)
        assert again.step == 42
        jax.tree.map(np.testing.assert_array_equal, again.params, trained.params)
    tree, original = torchfile.read(tmp_path / "0000042.pt"), torchfile.read(SMALL)
    assert list(tree) == ["model", "ema", "opt"]
    # Names in the order of torch's own file, and so in that of published_names.json, which is of
    # 12 blocks: the optimiser numbers parameters by it.
    wanted = json.loads((PARITY / "fixtures" / "published_names.json").read_text())["shapes"]
    order = [name for name in wanted if not name.startswith("blocks.") or name[7:9] in ("0.", "1.")]
    for which in published.WEIGHTS:
        assert list(tree[which]) == list(original[which]) == order
        assert {v.dtype for v in tree[which].values()} == {np.dtype(np.float32)}
    (group,) = tree["opt"]["param_groups"]
    assert tree["opt"]["state"] == {}
    assert group["params"] == list(range(len(order)))
    assert len(original["opt"]["param_groups"][0]["params"]) == len(order)
    assert (group["lr"], group["betas"], group["weight_decay"]) == (3e-5, (0.9, 0.999), 0)


def test_the_bytes_of_an_export_are_always_the_same(tmp_path):
    files = [tmp_path / "a" / "out.pt", tmp_path / "b" / "deeper" / "out.pt"]
    for path in files:  # whose folders are made
        published.write(read(SMALL), path)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out.pt"]  # nothing beside it


def test_an_export_does_not_take_the_place_of_a_folder(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(errors.TorchFileError, match="folder") as caught:
        published.write(read(SMALL), tmp_path / "run")
    assert str(tmp_path / "run") in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_torch_alone_runs_what_is_written(tmp_path):
    published.write(read(SMALL), tmp_path / "out.pt")
    command = [PARITY / "check_export.py", tmp_path / "out.pt", PARITY / "fixtures" / "small.npz"]
    done = subprocess.run(
        [sys.executable, *map(str, command), "--heads", "2"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "out.pt: ok, max abs error" in done.stdout
