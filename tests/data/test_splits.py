"""Splits: roles, patients, and the refusals that keep a number honest."""

from __future__ import annotations

import dataclasses

import pytest

from stemjax import errors
from stemjax.data import splits

PATIENTS = {"B4": "B", "C2": "C", "C3": "C", "C5": "C", "D1": "D"}


def test_slides_not_held_out_train():
    split = splits.make_split(PATIENTS, test=["D1"], val=["C5"])
    assert split.train == ("B4", "C2", "C3")
    assert (split.val, split.test) == (("C5",), ("D1",))
    assert split.patients == PATIENTS


def test_the_order_of_names_does_not_matter():
    again = dict(reversed(PATIENTS.items()))
    assert splits.make_split(PATIENTS, test=["D1", "B4"]) == splits.make_split(
        again, test=["B4", "D1"]
    )


@pytest.mark.parametrize(
    ("patients", "test", "val", "kind", "shared"),
    [
        (PATIENTS, ["D1"], [], "new patient", ()),
        (PATIENTS, ["C5"], [], "interpolation within a patient", ("C",)),
        # One shared patient is enough, although B is new.
        (PATIENTS, ["B4", "C5"], [], "interpolation within a patient", ("C",)),
        # Choices made on a patient's other slide are a leak too.
        (PATIENTS, ["C2", "C3"], ["C5"], "interpolation within a patient", ("C",)),
        (PATIENTS | {"D1": None}, ["D1"], [], "patient unknown", ()),
        # An unknown training patient may be the test patient.
        (PATIENTS | {"B4": None}, ["D1"], [], "patient unknown", ()),
        # Two unknown patients are not known to be one.
        (PATIENTS | {"B4": None, "D1": None}, ["D1"], [], "patient unknown", ()),
        # A patient known to be shared outweighs one that is unknown.
        (PATIENTS | {"B4": None}, ["C5"], [], "interpolation within a patient", ("C",)),
        (PATIENTS, [], ["D1"], "no test slide", ()),
    ],
)
def test_kind_and_shared_patients(patients, test, val, kind, shared):
    split = splits.make_split(patients, test=test, val=val)
    assert split.kind == kind
    assert split.shared_patients == shared


def test_unknown_slide_is_named_with_the_nearest():
    with pytest.raises(errors.SplitError) as caught:
        splits.make_split(PATIENTS, test=["C22"])
    assert "test" in caught.value.what
    assert "'C22'" in caught.value.what
    assert caught.value.fix is not None
    assert "C2" in caught.value.fix


def test_an_unknown_slide_without_a_near_one_lists_the_known():
    with pytest.raises(errors.SplitError, match="'zebra'.*Use one of B4, C2, C3"):
        splits.make_split(PATIENTS, val=["zebra"])


def test_a_slide_cannot_have_two_roles():
    with pytest.raises(errors.SplitError, match=r"C5 would be both a test and a val"):
        splits.make_split(PATIENTS, test=["C5", "D1"], val=["C5"])


def test_a_slide_named_twice_is_refused():
    with pytest.raises(errors.SplitError, match="test slides name D1 more than once"):
        splits.make_split(PATIENTS, test=["D1", "D1"])


def test_something_must_be_left_to_train_on():
    with pytest.raises(errors.SplitError, match="found 4 test and 1 val slides of 5"):
        splits.make_split(PATIENTS, test=["B4", "C2", "C3", "C5"], val=["D1"])


def test_test_slides_that_the_panel_saw_are_named():
    split = splits.make_split(PATIENTS, test=["C5", "D1"], val=["B4"])
    assert split.seen_by_panel(["D1", "C2", "C5"]) == ("C5", "D1")
    # Validation slides may be seen: no number is claimed for them.
    assert split.seen_by_panel(["C2", "C3", "B4"]) == ()


def test_a_split_cannot_be_changed_after_the_fact():
    split = splits.make_split(PATIENTS, test=["D1"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        split.test = ()


def test_leaks_name_the_patient_and_the_slides_on_both_sides():
    split = splits.make_split(PATIENTS, test=["C5", "D1"], val=["C3"])
    assert split.leaks == ("patient C: test C5, train C2, val C3",)
    assert splits.make_split(PATIENTS, test=["D1"]).leaks == ()
    # A patient whose slides train and validate is no leak: no number is about either.
    assert splits.make_split(PATIENTS, test=["D1"], val=["C3"]).leaks == ()


def test_apart_or_refused():
    splits.require_apart(splits.make_split(PATIENTS, test=["D1"]))
    splits.require_apart(splits.make_split(PATIENTS | {"B4": None}, test=["D1"]))
    more = PATIENTS | {"B5": "B"}
    with pytest.raises(errors.SplitError) as caught:
        splits.require_apart(splits.make_split(more, test=["B5", "C2", "C5"], val=["D1"]))
    assert "patient B: test B5, train B4; patient C: test C2 C5, train C3" in caught.value.what
    assert "leakage=mark" in str(caught.value.fix)


def test_roles_given_one_by_one():
    roles = {"B4": "train", "C5": "test", "C2": "val"}
    split = splits.split_by_role(roles, PATIENTS)
    assert (split.train, split.val, split.test) == (("B4",), ("C2",), ("C5",))
    # Slides without a role take no part, and their patients with them.
    assert split.patients == {"B4": "B", "C2": "C", "C5": "C"}
    with pytest.raises(errors.SplitError, match="found 1 test and 1 val slides of 2"):
        splits.split_by_role({"C5": "test", "C2": "val"}, PATIENTS)
