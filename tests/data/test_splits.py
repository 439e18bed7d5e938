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


def test_slides_to_recover_train_alone_or_with_those_named():
    split = splits.make_split(PATIENTS, recover=["D1"])
    assert (split.train, split.recover, split.fitted) == ((), ("D1",), ("D1",))
    assert (split.val, split.test) == ((), ())
    # The others have no role, and their patients take no part.
    assert split.patients == {"D1": "D"}
    beside = splits.make_split(PATIENTS, recover=["D1", "B4"], train=["C5", "C2"], val=["C3"])
    assert (beside.train, beside.recover) == (("C2", "C5"), ("B4", "D1"))
    assert beside.fitted == ("B4", "C2", "C5", "D1")
    assert beside.patients == PATIENTS


def test_only_the_slides_named_train():
    split = splits.make_split(PATIENTS, train=["C5"], test=["D1"])
    assert (split.train, split.fitted, split.test) == (("C5",), ("C5",), ("D1",))
    assert split.patients == {"C5": "C", "D1": "D"}
    assert split.recover == ()
    # Without either list every other slide trains, as ever.
    assert splits.make_split(PATIENTS, test=["D1"]).fitted == ("B4", "C2", "C3", "C5")


@pytest.mark.parametrize(
    ("roles", "kind"),
    [
        ({"recover": ["D1"]}, "recovery within a slide"),
        ({"recover": ["D1"], "val": ["C5"]}, "recovery within a slide"),
        ({"recover": ["D1"], "train": ["C5"]}, "recovery within a slide"),
        ({"train": ["C5"]}, "no test slide"),
        # With a test slide the split is about that one, and a slide to recover is training.
        ({"recover": ["D1"], "test": ["B4"]}, "new patient"),
        ({"recover": ["C2"], "test": ["C5"]}, "interpolation within a patient"),
    ],
)
def test_kind_of_a_split_with_slides_to_recover(roles, kind):
    assert splits.make_split(PATIENTS, **roles).kind == kind


def test_measured_spots_of_a_test_patient_are_a_leak():
    split = splits.make_split(PATIENTS, recover=["C2"], test=["C5"], train=["B4"])
    assert split.shared_patients == ("C",)
    assert split.leaks == ("patient C: test C5, train C2",)
    with pytest.raises(errors.SplitError, match="patient C"):
        splits.require_apart(split)
    unknown = splits.make_split(PATIENTS | {"C2": None}, recover=["C2"], test=["D1"])
    assert unknown.kind == "patient unknown"


@pytest.mark.parametrize(
    ("first", "second"),
    [("test", "recover"), ("val", "recover"), ("recover", "train"), ("test", "train"),
     ("val", "train"), ("test", "val")],
)  # fmt: skip
def test_no_slide_is_in_two_lists(first, second):
    named = {first: ["C5", "D1"], second: ["C5"]}
    with pytest.raises(errors.SplitError, match=rf"^C5 would be both a {first} and a {second}"):
        splits.make_split(PATIENTS, **named)


@pytest.mark.parametrize("role", ["recover", "train"])
def test_lists_of_training_slides_are_checked_too(role):
    with pytest.raises(errors.SplitError, match=f"The {role} slides.*'C22'|'C22'.*{role} slides"):
        splits.make_split(PATIENTS, **{role: ["C22"]})
    with pytest.raises(errors.SplitError, match=f"{role} slides name D1 more than once"):
        splits.make_split(PATIENTS, **{role: ["D1", "D1"]})


def test_roles_given_one_by_one_may_be_to_recover():
    split = splits.split_by_role({"B4": "recover", "C5": "test"}, PATIENTS)
    assert (split.train, split.recover, split.fitted) == ((), ("B4",), ("B4",))
    assert split.kind == "new patient"
