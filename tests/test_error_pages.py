"""Every class of errors has its page, and what the pages say of codes and texts is true."""

from __future__ import annotations

import ast
import pathlib
import pickle
import re

import pytest

from stemjax import errors
from stemjax.cli import exits

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "errors"
INDEX = ROOT / "docs" / "errors.md"

CASES = tuple(f"D{number:02d}" for number in range(1, 24))
# Of failures.md: what ends in an error. The others are behaviours without one.
TOLD = ("R1", "R2", "R3", "R4", "R5", "R6", "R7", "R8", "R9", "R12", "R13", "R15", "R18", "R19")
TOLD += ("R20", "S1", "S2", "S4", "S5", "S6", "S7", "S8", "S9", "S11", "S12")
LEAST_OWN = 0.45
"""Share of an example that has to stand in the source; the rest are names and numbers."""


def classes() -> list[type[errors.StemjaxError]]:
    """All classes of `stemjax.errors` but the first."""
    found = [one for one in vars(errors).values() if isinstance(one, type)]
    return [
        one
        for one in found
        if issubclass(one, errors.StemjaxError) and one is not errors.StemjaxError
    ]


def anchors(page: pathlib.Path) -> list[str]:
    """The cases that a page has an anchor for."""
    return re.findall(r'<a id="(d\d\d)"></a>', page.read_text())


def test_codes_are_unique_and_well_formed():
    codes = [one.code for one in classes()]
    assert len(codes) > 20
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"SJ-[A-Z]\d\d", code) for code in codes)


def test_every_class_has_a_page_and_every_page_a_class():
    assert {path.stem for path in PAGES.iterdir()} == {one.code for one in classes()}


@pytest.mark.parametrize("kind", classes(), ids=lambda one: one.code)
def test_a_page_names_its_class_and_exit_code(kind):
    text = (PAGES / f"{kind.code}.md").read_text()
    assert text.startswith(f"# {kind.code}: {kind.__name__}\n")
    made = kind.__new__(kind)
    assert f"Exit code of the command: {exits.of(made)}." in text
    mark = f"| [{kind.code}](errors/{kind.code}.md) |"
    rows = [line for line in INDEX.read_text().splitlines() if line.startswith(mark)]
    (row,) = rows
    assert f"| `{kind.__name__}` |" in row
    assert row.endswith(f"| {exits.of(made)} |")
    assert str(kind.__doc__).splitlines()[0].rstrip(".") in row
    assert "```text" in text


def test_only_what_may_pass_has_the_exit_code_of_trying_again():
    passing = [one.code for one in classes() if exits.of(one.__new__(one)) == exits.TRY_AGAIN]
    assert sorted(passing) == ["SJ-R01", "SJ-T04"]


def test_every_case_of_data_is_on_the_index_and_has_its_anchors():
    text = INDEX.read_text()
    there = {case: [] for case in CASES}
    for page in PAGES.iterdir():
        for anchor in anchors(page):
            there[anchor.upper()].append(page.stem)
    for case in CASES:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {case} |")]
        for code in there[case]:
            assert f"(errors/{code}.md#{case.lower()})" in row, (case, code)
        assert there[case] or case == "D23", case


def test_every_failure_that_has_an_error_is_on_some_page():
    text = INDEX.read_text() + "".join(page.read_text() for page in PAGES.iterdir())
    for name in TOLD:
        assert re.search(rf"\b{name}\b", text), name


def test_links_lead_somewhere():
    for page in (INDEX, *PAGES.iterdir()):
        for target, anchor in re.findall(r"\]\(([^)#]+)(?:#([^)]*))?\)", page.read_text()):
            path = (page.parent / target).resolve()
            assert path.is_file(), (page.name, target)
            assert not anchor or f'<a id="{anchor}"></a>' in path.read_text(), (page.name, target)


def constants() -> set[str]:
    """Pieces of text in the source: what messages are put together from."""
    found = set()
    for path in (ROOT / "stemjax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= {node.value.strip(" .:,;"), node.value.strip()}
    return {piece for piece in found if len(piece) >= 8 and "\n" not in piece}


def test_examples_are_what_the_source_says():
    pieces = constants()
    for page in PAGES.iterdir():
        for example in re.findall(r"```text\n(.*?)```", page.read_text(), re.DOTALL):
            covered = bytearray(len(example))
            for piece in pieces:
                for found in re.finditer(re.escape(piece), example):
                    covered[found.start() : found.end()] = b"\1" * len(piece)
            share = sum(covered) / len(example)
            assert share >= LEAST_OWN, (page.name, share, example)
            left = "".join("|" if own else sign for sign, own in zip(example, covered, strict=True))
            assert not (words := re.findall(r"(?:\b[a-z]+\b[ ,;:]+){4,}", left)), (page.name, words)


def raised_cases() -> dict[str, set[str]]:
    """The cases that the source gives errors, by file."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "stemjax").rglob("*.py"):
        for case in re.findall(r'"(D\d\d)"', path.read_text()):
            found.setdefault(case, set()).add(path.name)
    return found


def test_cases_that_errors_carry_are_explained():
    found = raised_cases()
    assert {"D01", "D02", "D04", "D05", "D08", "D14", "D19"} <= set(found)
    assert set(found) <= set(CASES)


def test_an_error_knows_where_it_is_explained():
    plain = errors.SlideError("a.h5ad", expected="b", found="c", fix="Do d")
    assert plain.reference == "docs/errors/SJ-D01.md"
    assert plain.case is None
    told = errors.SlideError("a.h5ad", fix="Did you mean b?", case="D04")
    assert told.reference == "docs/errors/SJ-D01.md#d04"
    assert str(told) == "a.h5ad. Did you mean b?"
    assert errors.PixelSizeError("x").reference == "docs/errors/SJ-D03.md#d14"
    back = pickle.loads(pickle.dumps(told))
    assert (back.case, str(back), back.fix) == ("D04", str(told), told.fix)
