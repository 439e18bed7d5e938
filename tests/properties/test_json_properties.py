"""Plain values from files: each is read as what it says, or refused with a typed error."""

import dataclasses
import json

import numpy as np
import pytest
from drawn import JSON, TEXT, as_text, changed, encoded, or_refused
from hypothesis import given
from hypothesis import strategies as st

from stemjax import config, errors
from stemjax.data import embeddings, genes, integrity, record_files, slide_names, space, transforms
from stemjax.train import calibration, card

CONTRACT = embeddings.EncoderContract(
    name="uni",
    width=4,
    input_px=224,
    fov_um=112.0,
    resize="bilinear",
    mean=(0.5, 0.5, 0.5),
    std=(0.2, 0.2, 0.2),
    pooling="cls",
    projection="none",
    source="tests",
    revision="1",
)
PANEL = genes.Panel(genes=("A", "B"), rule="made", slides=("S1",))
PLAIN_SPACE = space.Space(
    genes=PANEL.genes,
    transform="log2p1",
    expression=transforms.Standardisation(mean=np.zeros(2), std=np.ones(2)),
    condition=transforms.Standardisation(mean=np.zeros(4), std=np.ones(4)),
)
CARD = card.Card(
    experiment=config.Experiment(),
    space=PLAIN_SPACE,
    contract=CONTRACT,
    split={"train": ["S1"], "val": [], "test": [], "kind": "no test slide"},
    panel=PANEL.to_json(),
    versions={"stemjax": "0"},
    patch_um=(100.0, 120.0),
)
CALIBRATION = calibration.Calibration(
    levels=(0.5, 0.9),
    offsets=np.array([[[-1.0, np.nan], [1.0, np.nan]], [[-2.0, np.nan], [2.0, np.nan]]]),
    floor=np.ones(2),
    spots=np.array([40, 0]),
    slides=("S1",),
    genes=PANEL.genes,
    value_space="log2p1",
    sampling={"mode": "draws"},
    model={"config": "a", "step": 1, "weights": "best"},
    raw=(0.5, 0.8),
    held_out=(0.5, None),
    held_out_by="halves",
)
KINDS = {
    "contract": (embeddings.EncoderContract.from_json, CONTRACT.to_json()),
    "panel": (genes.Panel.from_json, PANEL.to_json()),
    "space": (space.Space.from_json, PLAIN_SPACE.to_json()),
    "standardisation": (
        transforms.Standardisation.from_json,
        PLAIN_SPACE.expression.to_json(),
    ),
    "card": (card.Card.from_json, CARD.to_json()),
    "calibration": (calibration.Calibration.from_json, CALIBRATION.to_json()),
    "experiment": (config.resolve, config.as_json(config.Experiment())),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_back(kind):
    read, values = KINDS[kind]
    found = read(json.loads(json.dumps(values)))
    plain = config.as_json(found) if kind == "experiment" else found.to_json()
    assert as_text(plain) == as_text(values)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_changed_values_are_read_or_refused(kind, data):
    read, values = KINDS[kind]
    given_values = data.draw(changed(json.loads(json.dumps(values))))
    found = or_refused(read, given_values)
    if found is None:
        return
    # What was read can be written and read again, and says the same.
    write = config.as_json if kind == "experiment" else lambda one: one.to_json()
    again = read(json.loads(json.dumps(write(found))))
    assert as_text(write(again)) == as_text(write(found))


@pytest.mark.parametrize("kind", KINDS)
@given(values=JSON)
def test_any_values_are_refused_or_read(kind, values):
    or_refused(KINDS[kind][0], values)


@given(st.sampled_from(["", "data.", "train.", "model.", "diffusion."]), st.text(min_size=1))
def test_an_unknown_key_is_named(group, name):
    values = config.as_json(config.Experiment())
    held = values[group[:-1]] if group else values
    if name in held:
        return
    held[name] = 1
    with pytest.raises(errors.ConfigError) as caught:
        config.resolve(values)
    assert f"config.{group}{name}" in caught.value.what


@given(st.data())
def test_a_digest_tells_experiments_apart(data):
    plain = config.as_json(config.Experiment())
    found = or_refused(config.resolve, data.draw(changed(plain)))
    if found is not None:
        same = as_text(config.as_json(found)) == as_text(plain)
        assert same == (config.digest(found) == config.digest(config.Experiment()))
        assert same == (not config.differences(plain, config.as_json(found)))


CALIBRATIONS = {"format": 1, "calibrations": [CALIBRATION.to_json()]}


@given(changed(CALIBRATIONS) | JSON)
def test_a_file_of_calibrations_is_read_or_refused(folder, values):
    path = folder / "calibration.json"
    path.write_text(as_text(values), encoding="utf-8")
    or_refused(calibration.read, path)


LONG = {"deep": b"[" * 100_000, "digits": b'{"format":1' + b"0" * 5000}


@given(st.binary(max_size=40) | st.sampled_from(sorted(LONG)))
def test_a_file_of_calibrations_may_be_any_bytes(folder, raw):
    path = folder / "calibration.json"
    path.write_bytes(LONG[raw] if isinstance(raw, str) else raw)
    or_refused(calibration.read, path)


METADATA = {
    "format": 1,
    "genes": ["A", "B"],
    "panel": PANEL.to_json(),
    "contract": CONTRACT.to_json(),
    "variants": 8,
    "slide": {
        "id": "S1",
        "split": "S1",
        "patient": None,
        "n_spots": 3,
        "mpp": 0.5,
        "spot_diameter_um": 55.0,
        "patch_um": 112.0,
        "thumbnail_scale": None,
        "sources": {"S1.h5ad": "0" * 64},
        "notes": ["a note"],
        "digest": "0" * 64,
        "measured": True,
    },
    "labels": {"region": ["a", "b", ""]},
}


@given(changed(METADATA) | JSON)
def test_metadata_of_records_are_read_or_refused(folder, values):
    """With a manifest that fits them: whoever changed them could change that too."""
    version = folder / "S1" / "1.0.0"
    version.mkdir(parents=True, exist_ok=True)
    (version / "metadata.json").write_text(as_text(values), encoding="utf-8")
    integrity.write_manifest(version)
    found = or_refused(record_files.read_metadata, version)
    if found is None:
        return
    info = or_refused(record_files.slide_info, found)
    or_refused(record_files.spot_labels, found)
    if info is not None:
        assert isinstance(info.id, str)
        assert info.n_spots > 0
        assert np.isfinite([info.mpp, info.spot_diameter_um, info.patch_um]).all()
        assert all(isinstance(note, str) for note in info.notes)


GENE_LISTS = JSON | st.lists(TEXT, max_size=4) | st.fixed_dictionaries({"genes": JSON})


@given(GENE_LISTS)
def test_a_list_of_genes_in_json(folder, values):
    path = folder / "genes.json"
    path.write_text(as_text(values), encoding="utf-8")
    found = or_refused(genes.read_gene_list, path)
    listed = values.get("genes") if isinstance(values, dict) else values
    works = isinstance(listed, list) and all(isinstance(name, str) for name in listed)
    if found is not None:
        assert works
        assert list(found.genes) == listed
    elif works:
        assert not listed or len(set(listed)) < len(listed) or slide_names.strange(listed)


@given(st.lists(st.text(max_size=6)))
def test_a_list_of_genes_a_line_each(folder, names):
    path = folder / "genes.txt"
    path.write_bytes(encoded("\n".join(names)))
    found = or_refused(genes.read_gene_list, path)
    if found is not None:
        assert all(name == name.strip() and name for name in found.genes)
        assert len(set(found.genes)) == len(found.genes)
        path.write_text("\n".join(found.genes), encoding="utf-8")
        assert genes.read_gene_list(path).genes == found.genes


@given(st.data())
def test_two_contracts_are_the_same_only_if_every_field_is(data):
    values = CONTRACT.to_json()
    other = or_refused(embeddings.EncoderContract.from_json, data.draw(changed(values)))
    if other is None:
        return
    differ = [
        field.name
        for field in dataclasses.fields(other)
        if getattr(other, field.name) != getattr(CONTRACT, field.name)
    ]
    fov = other.fov_um
    if differ == ["fov_um"] and fov is not None and abs(fov - 112) <= 0.05 * max(abs(fov), 112):
        differ = []
    if not differ:
        other.require_same(CONTRACT, where="here")
    else:
        with pytest.raises(errors.EncoderMismatchError, match=differ[0]):
            other.require_same(CONTRACT, where="here")
