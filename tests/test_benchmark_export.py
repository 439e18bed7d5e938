"""The matrix of formats: its models, what it holds against each other, and its table."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SIZE = {"width": 16, "depth": 1, "heads": 2, "genes": 5, "cond": 6}


@pytest.fixture
def matrix(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import export_matrix

    return export_matrix


@pytest.fixture
def edm(matrix, tmp_path):
    model = matrix.make_model("edm", **SIZE)
    none = dict.fromkeys(("torch", "converter", "onnxruntime"))
    return matrix.Matrix("edm", model, tmp_path, none)


def test_a_program_is_compared_in_a_process_without_stemjax(edm):
    line = edm.cell("stablehlo")
    assert line["apart"] < 1e-5
    assert "jax" in line["modules"]
    assert line["absent"] == ["stemjax", "flax", "optax", "orbax", "safetensors"]
    assert line["present"] == []
    assert line["call_ms"] > 0


def test_what_differs_is_seen(edm, tmp_path):
    np.save(tmp_path / "other.npy", edm._expected + 0.01 * np.abs(edm._expected).max())
    assert edm._apart(tmp_path / "other.npy") == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("format_", "needs"), [("torch", "--torch"), ("onnx", "--converter and --onnxruntime")]
)
def test_a_format_without_an_environment_says_what_it_needs(edm, format_, needs):
    assert edm.cell(format_)["not_tried"] == f"needs {needs}"


def test_every_kind_of_model_is_made(matrix):
    tasks = {kind: matrix.make_model(kind, **SIZE).card.task for kind in matrix.KINDS}
    assert [type(task).__name__ for task in tasks.values()] == ["DdpmTask", "StemTask", "StemTask"]


def test_the_table_names_what_should_not_have_been_loaded(matrix):
    line = {"kind": "edm", "format": "stablehlo", "made_s": 1.0, "bytes": 2e6, "process_s": 3.0,
            "call_ms": None, "apart": 1e-6, "absent": ["flax"], "present": ["stemjax"]}  # fmt: skip
    missing = {"kind": "edm", "format": "onnx", "not_tried": "needs --converter"}
    result = {"size": SIZE, "lines": [line, missing]}
    text = matrix.tables(json.loads(json.dumps(result)))
    assert "| edm | stablehlo | 1.0 | 2.0 | 3.0 |  | 1.0e-06 | flax; but stemjax is |" in text
    assert "| edm | onnx | needs --converter |" in text
