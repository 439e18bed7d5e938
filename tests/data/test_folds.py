"""Folds: who is tested when, files there and back, and what is refused."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from stemjax import errors
from stemjax.data import folds, splits

# Numbers of slides: A 5, B 3, C 3, D 2, E 1, F 1, G 1.
SIZES = {"A": 5, "B": 3, "C": 3, "D": 2, "E": 1, "F": 1, "G": 1}
PATIENTS = {f"{p}{i}": p for p, n in SIZES.items() for i in range(1, n + 1)}


def test_leave_one_patient_out():
    made = folds.leave_one_out(PATIENTS)
    assert list(made) == list("ABCDEFG")
    assert made["D"].test == ("D1", "D2")
    assert made["D"].val == ()
    assert made["D"].train == tuple(sorted(set(PATIENTS) - {"D1", "D2"}))
    assert {split.kind for split in made.values()} == {"new patient"}


def test_leave_one_slide_out_says_what_it_is():
    made = folds.leave_one_out(PATIENTS, by="slide")
    assert [split.test for split in made.values()] == [(slide,) for slide in sorted(PATIENTS)]
    assert made["A3"].kind == "interpolation within a patient"
    assert made["E1"].kind == "new patient"  # its patient has no other slide


@pytest.mark.parametrize("k", [2, 3, 7])
@pytest.mark.parametrize("seed", range(5))
def test_every_patient_is_tested_once(k, seed):
    made = folds.k_fold(PATIENTS, k, seed=seed)
    assert list(made) == [str(i) for i in range(k)]
    tested = [slide for split in made.values() for slide in split.test]
    assert sorted(tested) == sorted(PATIENTS)
    for split in made.values():
        assert split.shared_patients == ()
        assert sorted(split.train + split.test) == sorted(PATIENTS)
    sizes = [len(split.test) for split in made.values()]
    assert max(sizes) - min(sizes) <= max(SIZES.values())


def test_folds_by_patient_are_as_even_as_they_can_be():
    # 16 slides in 3: the best there is, found by trying every way to deal seven patients.
    def spread(dealt):
        sizes = [sum(SIZES[p] for p, fold in zip(SIZES, dealt) if fold == i) for i in range(3)]
        return max(sizes) - min(sizes)

    best = min(spread(dealt) for dealt in itertools.product(range(3), repeat=len(SIZES)))
    for seed in range(5):
        sizes = [len(split.test) for split in folds.k_fold(PATIENTS, 3, seed=seed).values()]
        assert max(sizes) - min(sizes) == best


@pytest.mark.parametrize("k", [2, 3, 5, 16])
def test_folds_by_slide_differ_by_one_at_most(k):
    sizes = [len(split.test) for split in folds.k_fold(PATIENTS, k, by="slide").values()]
    assert sum(sizes) == 16
    assert max(sizes) - min(sizes) <= 1


def test_folds_are_a_function_of_slides_and_seed():
    again = dict(reversed(PATIENTS.items()))
    assert folds.k_fold(again, 3, seed=4) == folds.k_fold(PATIENTS, 3, seed=4)
    tests = {
        frozenset(split.test for split in folds.k_fold(PATIENTS, 4, by="slide", seed=seed).values())
        for seed in range(5)
    }
    assert len(tests) == 5  # five draws out of 2.6 million ways: no two alike by chance


def test_which_slides_go_together_is_chance():
    # With seven folds patient A is alone. Otherwise each pair of equal patients meets now and then.
    met = np.zeros(2)
    for seed in range(200):
        made = folds.k_fold({s: p for s, p in PATIENTS.items() if p in "EFG"}, 2, seed=seed)
        pairs = {split.test for split in made.values()}
        met += [("E1", "F1") in pairs, ("F1", "G1") in pairs]
    # Probability 1/3 each: 200 draws have a standard deviation of 6.7, and 27 is four of them.
    assert (np.abs(met - 200 / 3) < 27).all()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: folds.leave_one_out(PATIENTS | {"X1": None}), "unknown for X1"),
        (lambda: folds.k_fold(PATIENTS | {"X1": None}, 2), "unknown for X1"),
        (lambda: folds.k_fold(dict.fromkeys("abcdefg"), 2), "a, b, c, d, e and 2 more"),
        (lambda: folds.k_fold(PATIENTS, 8), "at least 8 patients, found 7"),
        (lambda: folds.k_fold(PATIENTS, 1), "at least 2 folds"),
        (lambda: folds.k_fold(PATIENTS, 2, seed=-1), "seed -1"),
        (lambda: folds.leave_one_out({"A1": "A", "A2": "A"}), "at least 2 patients, found 1"),
        (lambda: folds.leave_one_out({}, by="slide"), "found none"),
    ],
)
def test_folds_that_cannot_be_made(call, text):
    with pytest.raises(errors.SplitError) as caught:
        call()
    assert text in str(caught.value)


def test_by_slide_a_patient_may_be_unknown():
    made = folds.leave_one_out(PATIENTS | {"X1": None}, by="slide")
    assert made["X1"].kind == "patient unknown"


@pytest.mark.parametrize("name", ["folds.csv", "folds.json"])
def test_a_manifest_there_and_back(tmp_path, name):
    made = {
        'odd, "fold"': splits.make_split({"A1": "Pat, 1", "B1": None, "C1": "ü"}, test=["A1"]),
        "part": splits.make_split({"A1": "Pat, 1", "C1": "ü"}, val=["A1"]),
    }
    folds.write_manifest(made, tmp_path / "new" / name)
    assert folds.read_manifest(tmp_path / "new" / name) == made


def test_the_files_are_plain_tables(tmp_path):
    made = folds.leave_one_out({"A1": "A", "B1": "B"})
    folds.write_manifest(made, tmp_path / "f.csv")
    folds.write_manifest(made, tmp_path / "f.json")
    assert (tmp_path / "f.csv").read_text() == (
        "fold,slide,patient,role\nA,B1,B,train\nA,A1,A,test\nB,A1,A,train\nB,B1,B,test\n"
    )
    assert json.loads((tmp_path / "f.json").read_text())[1] == {
        "fold": "A",
        "slide": "A1",
        "patient": "A",
        "role": "test",
    }


def test_a_manifest_written_by_hand_or_by_a_spreadsheet(tmp_path):
    path = tmp_path / "hand.csv"
    # Columns in another order, a byte order mark, CRLF, spaces, an unknown patient.
    path.write_bytes(b"\xef\xbb\xbfrole,fold,slide,patient\r\ntrain,1, A1 ,\r\ntest,1,B1,B\r\n")
    split = folds.read_manifest(path)["1"]
    assert (split.train, split.test) == (("A1",), ("B1",))
    assert split.patients == {"A1": None, "B1": "B"}
    path = tmp_path / "hand.json"
    path.write_text('[{"fold": 1, "slide": "A1", "patient": null, "role": "train"}]')
    assert folds.read_manifest(path)["1"].patients == {"A1": None}


HEAD = "fold,slide,patient,role\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no rows"),
        (HEAD, "holds no rows"),
        ("fold,slide,role\n1,A1,train\n", "row 1 has other columns: expected fold, slide, patient"),
        (HEAD + "1,A1,A,train,more\n", "row 1 has other columns"),
        (HEAD + "1,A1,A\n", "row 1 cannot be read"),
        (HEAD + "1,A1,A,train\n1,B1,B,tset\n", "row 2 cannot be read.*role 'tset'"),
        (HEAD + ",A1,A,train\n", "row 1 cannot be read"),
        (HEAD + "1,A1,A,train\n1,A1,A,test\n", "row 2: fold 1 names slide A1 twice.*train and tes"),
        (HEAD + "1,A1,A,train\n2,A1,B,train\n", "row 2: slide A1 has two patients: found A and B"),
        (HEAD + "1,A1,A,train\n2,A1,,train\n", "two patients: found A and unknown"),
        (HEAD + "1,A1,A,test\n", "fold 1: No training slide is left"),
    ],
)
def test_manifests_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "f.csv").write_text(text)
    with pytest.raises(errors.SplitError, match=message) as caught:
        folds.read_manifest(tmp_path / "f.csv")
    assert "f.csv" in caught.value.what


def test_files_that_are_none(tmp_path):
    with pytest.raises(errors.SplitError, match=r"f\.json cannot be read.*FileNotFound"):
        folds.read_manifest(tmp_path / "f.json")
    (tmp_path / "f.json").write_text('[{"fold"')
    with pytest.raises(errors.SplitError, match=r"f\.json cannot be read.*JSONDecodeError"):
        folds.read_manifest(tmp_path / "f.json")
    (tmp_path / "f.json").write_text('["fold"]')
    with pytest.raises(errors.SplitError, match="row 1 has other columns.*found str"):
        folds.read_manifest(tmp_path / "f.json")
    (tmp_path / "f.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(errors.SplitError, match=r"f\.csv cannot be read.*UnicodeDecodeError"):
        folds.read_manifest(tmp_path / "f.csv")
    for call in (folds.read_manifest, lambda path: folds.write_manifest({}, path)):
        with pytest.raises(errors.SplitError, match=r"expected \.csv or \.json, found \.txt"):
            call(tmp_path / "f.txt")


def test_a_manifest_is_whole_or_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "f.csv"
    folds.write_manifest(folds.leave_one_out({"A1": "A", "B1": "B"}), path)
    before = path.read_text()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(errors.ResourceError, match="no space left"):
        folds.write_manifest(folds.leave_one_out({"A1": "A", "C1": "C"}), path)
    assert path.read_text() == before


def test_a_fold_for_the_slides_there_are(tmp_path):
    path = tmp_path / "f.csv"
    path.write_text(HEAD + "1,A1,A,train\n1,B1,,test\n1,C1,C,val\n")
    split = folds.read_fold(path, "1", {"A1": None, "B1": "B", "C1": "C", "D1": "D"})
    # Whichever of the two knows the patient; D1 is not in the fold and takes no part.
    assert split.patients == {"A1": "A", "B1": "B", "C1": "C"}
    assert (split.train, split.val, split.test) == (("A1",), ("C1",), ("B1",))
    for patients, fold, message in (
        ({"A1": "A", "B1": "B", "C1": "C"}, "2", r"f\.csv has no fold '2': expected one of 1"),
        ({"A1": "A", "C1": "C"}, "1", r"Fold 1 of .*f\.csv name 'B1', which is not among the 2"),
        ({"A1": "Z", "B1": "B", "C1": "C"}, "1", "another patient for slide A1.*Z, found A"),
    ):
        with pytest.raises(errors.SplitError, match=message):
            folds.read_fold(path, fold, patients)
