"""What a bundle holds beside its weights: example, provenance, scores; large ones; strangers."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
import test_bundle as made

from stemjax import config, errors
from stemjax.data import integrity
from stemjax.export import bundle, golden, tensors
from stemjax.models import layers


@pytest.fixture(scope="module")
def trained():
    runs = ({"from_step": 0, "device": "TPU v5 lite", "devices": 8},)
    return dataclasses.replace(made.make_trained(), validation={"val_mse": 0.5}, runs=runs)


@pytest.fixture
def path(tmp_path, trained):
    bundle.write(trained, tmp_path / "out")
    return tmp_path / "out"


def relisted(path):
    """Lists a bundle anew, as someone who edits it by hand would."""
    integrity.write_manifest(path)
    return path


# ------------------------------------------------------------------------------------- the example


@pytest.mark.parametrize("where", ["weights", "standardisation", "denoised", "mean"])
def test_a_model_that_computes_something_else_is_refused(path, where):
    if where == "weights":
        arrays = safetensors.numpy.load_file(path / "model.safetensors")
        arrays["head/linear/kernel"] = 1.01 * arrays["head/linear/kernel"]
        safetensors.numpy.save_file(arrays, path / "model.safetensors")
    elif where == "standardisation":
        values = json.loads((path / "bundle.json").read_text())
        values["card"]["space"]["condition"]["std"][0] *= 1.1
        (path / "bundle.json").write_text(json.dumps(values))
    else:
        arrays = safetensors.numpy.load_file(path / "golden.safetensors")
        arrays[f"outputs/{where}"][1, 2] += 0.01 * np.abs(arrays[f"outputs/{where}"]).max()
        safetensors.numpy.save_file(arrays, path / "golden.safetensors")
    relisted(path)
    with pytest.raises(errors.BundleError, match=r"does not compute.*expected the same"):
        bundle.load(path)
    assert bundle.load(path, verify=False).step == 1234


def test_code_that_computes_something_else_is_noticed(path, monkeypatch):
    golden._programs.cache_clear()
    right = layers.modulated
    monkeypatch.setattr(layers, "modulated", lambda x, shift, scale: right(x, shift, 1.1 * scale))
    with pytest.raises(errors.BundleError, match="does not compute what it did"):
        bundle.load(path)
    golden._programs.cache_clear()


def test_numbers_that_are_none_are_not_the_same(path):
    arrays = safetensors.numpy.load_file(path / "golden.safetensors")
    arrays["outputs/mean"][0, 0] = np.nan
    safetensors.numpy.save_file(arrays, path / "golden.safetensors")
    with pytest.raises(errors.BundleError, match="does not compute"):
        bundle.load(relisted(path))


@pytest.mark.parametrize("name", ["inputs/keys", "inputs/noisy", "outputs/mean"])
def test_an_example_without_a_part_is_refused(path, name):
    arrays = safetensors.numpy.load_file(path / "golden.safetensors")
    del arrays[name]
    safetensors.numpy.save_file(arrays, path / "golden.safetensors")
    with pytest.raises(errors.BundleError, match=r"example|outputs/mean"):
        bundle.load(relisted(path))


KINDS = {
    "lite": {"model": {"kind": "lite"}},
    "latents": {"model": {"kind": "lite", "latents": 4}},
    "no mean token": {"diffusion": {"mean_fraction": 0.0}},
    "residual": {"diffusion": {"residual": True, "mean_fraction": 0.5}},
    "ddpm": {"diffusion": {"process": "ddpm", "mean_fraction": 0.0}},
    "bfloat16": {"model": {"dtype": "bfloat16"}},
    "histosge": {
        "model": {"kind": "histosge"},
        "window": {"kind": "neighbours", "length": 7, "components": 3},
    },
    "histosge_published": {
        "model": {"kind": "histosge_published"}, "window": {"kind": "rows", "length": 7}
    },
    "neighbours": {
        "diffusion": {"mean_fraction": 0.5},
        "window": {"kind": "neighbours", "length": 7, "components": 3},
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_has_an_example(tmp_path, kind):
    values = config.as_json(config.Experiment(name="toy"))
    values["model"] |= {"width": 8, "depth": 2, "heads": 2}
    for group, part in KINDS[kind].items():
        values[group] |= part
    card = dataclasses.replace(made.make_card(), experiment=config.resolve(values))
    params = card.task.init(jax.random.key(1))
    model = dataclasses.replace(made.make_trained(), params=params, card=card)
    bundle.write(model, tmp_path / "out")
    made.assert_same(bundle.load(tmp_path / "out"), model)
    example = safetensors.numpy.load_file(tmp_path / "out" / "golden.safetensors")
    # Fresh weights predict the mean of the training spots: constant, and there all the same.
    assert np.isfinite(example["outputs/mean"]).all()


# ------------------------------------------------------------------------- types and several files


def test_half_the_size_and_8_bits(tmp_path, trained):
    for dtype in ("float32", "bfloat16"):
        bundle.write(trained, tmp_path / dtype, dtype=dtype)
    sizes = [(tmp_path / d / "model.safetensors").stat().st_size for d in ("float32", "bfloat16")]
    whole = sum(leaf.size for leaf in jax.tree.leaves(trained.params))
    assert sizes[0] - sizes[1] == pytest.approx(2 * whole, abs=64)
    found = bundle.load(tmp_path / "bfloat16")  # the example is of the rounded weights
    for ours, theirs in zip(jax.tree.leaves(found.params), jax.tree.leaves(trained.params)):
        assert ours.dtype == np.float32
        assert np.abs(ours - theirs).max() > 0
        np.testing.assert_allclose(ours, theirs, rtol=2**-8)


def test_large_models_are_several_files(tmp_path, trained):
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(trained.params))
    bundle.write(trained, tmp_path / "out", largest_file=total // 3)
    names = sorted(file.name for file in (tmp_path / "out").glob("model*"))
    assert names[0].startswith("model-00001-of-0000")
    assert names[-1] == tensors.INDEX
    assert len(names) >= 4
    index = json.loads((tmp_path / "out" / tensors.INDEX).read_text())
    assert index["metadata"]["total_size"] == total
    assert set(index["weight_map"]) == set(tensors.named(trained.params))
    made.assert_same(bundle.load(tmp_path / "out"), trained)
    bundle.write(trained, tmp_path / "out")  # a smaller one leaves none of the old files
    assert sorted(os.listdir(tmp_path / "out")) == made.FILES


@pytest.mark.parametrize("target", ["../outside.safetensors", "/etc/passwd", 7, "bundle.json"])
def test_an_index_leads_nowhere_else(tmp_path, trained, target):
    bundle.write(trained, tmp_path / "out", largest_file=100)
    file = tmp_path / "out" / tensors.INDEX
    index = json.loads(file.read_text())
    index["weight_map"]["head/linear/bias"] = target
    file.write_text(json.dumps(index))
    with pytest.raises(errors.BundleError, match="model-00001"):
        bundle.load(relisted(tmp_path / "out"))


def test_a_tensor_in_two_files_is_refused(tmp_path, trained):
    bundle.write(trained, tmp_path / "out", largest_file=100)
    files = sorted((tmp_path / "out").glob("model-*"))
    arrays = [safetensors.numpy.load_file(file) for file in files[:2]]
    safetensors.numpy.save_file(arrays[0] | arrays[1], files[0])
    with pytest.raises(errors.BundleError, match="expected in one file, found in several"):
        bundle.load(relisted(tmp_path / "out"))


def test_a_type_that_is_none_is_refused(tmp_path, trained):
    with pytest.raises(errors.ConfigError, match="float32 or bfloat16"):
        bundle.write(trained, tmp_path / "out", dtype="int8")
    bundle.write(trained, tmp_path / "out")
    arrays = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    arrays["head/linear/bias"] = arrays["head/linear/bias"].astype(np.float16)
    safetensors.numpy.save_file(arrays, tmp_path / "out" / "model.safetensors")
    with pytest.raises(errors.CheckpointMismatchError, match=r"float32, found .*F16"):
        bundle.load(relisted(tmp_path / "out"))


# -------------------------------------------------------------------------------------- strangers


@pytest.mark.parametrize("name", ["weights.pkl", "model.pt", "run.py", "model-1-of-2.safetensors"])
@pytest.mark.parametrize("listed", [True, False])
def test_a_file_that_no_bundle_has_is_named(path, name, listed):
    (path / name).write_bytes(pickle.dumps({"a": 1}))
    if listed:
        relisted(path)
    with pytest.raises(errors.BundleError, match=f"{name}: no file of a bundle"):
        bundle.load(path)


@pytest.mark.parametrize("name", ["calibration.json", "metrics.json", tensors.INDEX])
def test_a_file_that_the_list_lacks_is_named(path, name):
    (path / name).write_text("{}")
    with pytest.raises(errors.BundleError, match=f"{name}: not in SHA256SUMS"):
        bundle.load(path)


def test_a_pickle_in_the_place_of_weights_is_not_run(path, tmp_path):
    class Canary:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "canary"),))

    (path / "model.safetensors").write_bytes(pickle.dumps(Canary()))
    with pytest.raises(errors.BundleError, match="safetensors cannot be read"):
        bundle.load(relisted(path))
    assert not (tmp_path / "canary").exists()


def test_an_absurd_shape_is_refused_before_anything_is_allocated(path):
    file = path / "model.safetensors"
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header["head/linear/bias"]["shape"] = [2**40]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])
    with pytest.raises(errors.StemjaxError, match=r"cannot be read|shape \(1099511627776"):
        bundle.load(relisted(path))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda genes: [genes[1], genes[0], *genes[2:]], "'G1' where 'G0' is, number 1"),
        (lambda genes: genes[:-1], "4 genes"),
        (lambda genes: [*genes[:-1], "g4"], "'g4' where 'G4' is, number 5"),
    ],
    ids=["order", "fewer", "name"],
)
def test_genes_in_another_order_are_refused(path, change, found):
    genes = (path / "genes.txt").read_text().splitlines()
    (path / "genes.txt").write_text("".join(f"{gene}\n" for gene in change(genes)))
    with pytest.raises(errors.BundleError) as caught:
        bundle.load(relisted(path))
    assert found in caught.value.found


# --------------------------------------------------------------------------- provenance and scores


def test_where_it_was_trained_comes_along(path, trained):
    found = bundle.load(path)
    assert found.validation == trained.validation
    assert found.runs == trained.runs


SCORES = {
    "checkpoint_step": 1234,
    "weights": "best",
    "slides": [{"slide": "X1", "patient": "P", "split": "test", "spots": 9, "gene_pcc": {"G0": 1}}],
    "rows": [{"name": "stem", "scores": {"pcc": {"value": 0.5, "interval": [0.4, 0.6]}}}],
    "resampled": {"pcc": [0.5] * 500},
}


def test_scores_go_with_the_model_they_are_of(tmp_path, trained):
    scored = bundle.with_scores(trained, SCORES, "metrics.json")
    bundle.write(scored, tmp_path / "out")
    found = bundle.load(tmp_path / "out")
    assert found.scores is not None
    assert found.scores == scored.scores
    assert found.scores["rows"] == SCORES["rows"]
    # What only other programs need, or is a number a gene, stays where it was.
    assert "resampled" not in found.scores
    assert "gene_pcc" not in found.scores["slides"][0]
    with pytest.raises(errors.BundleError, match="scores of these weights"):
        bundle.with_scores(trained, SCORES | {"checkpoint_step": 9}, "metrics.json")


def test_a_bundle_opens_without_orbax(path):
    script = (
        "import sys\n"
        "from stemjax.export import bundle\n"
        f"bundle.load({str(path)!r})\n"
        "found = {name.split('.')[0] for name in sys.modules}\n"
        "assert not found & {'orbax', 'tensorflow', 'torch'}, found\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
