"""What every refusal must tell: code, case, place, expected, found, and an action that exists."""

from __future__ import annotations

import argparse
import functools
import pathlib
import re
from collections.abc import Callable, Sequence

import pytest

from stemjax import cli, errors

ROOT = pathlib.Path(__file__).resolve().parents[2]
_FLAG = re.compile(r"--[a-z][a-z0-9.-]*[a-z0-9]")
_NAMED = re.compile(r"`stemjax ([a-z]+)([^`]*)`")


@functools.cache
def flags() -> dict[str, frozenset[str]]:
    """The flags of every sub-command."""
    actions = cli.make_parser()._actions
    subs = next(a for a in actions if isinstance(a, argparse._SubParsersAction)).choices
    return {
        name: frozenset(flag for action in sub._actions for flag in action.option_strings)
        for name, sub in subs.items()
    }


def require_flags(text: str, command: str) -> None:
    """Every flag that a text names is one of the command's, or of the command named with it."""
    for name, rest in _NAMED.findall(text):
        assert name in flags(), name
        for flag in _FLAG.findall(rest):
            assert flag in flags()[name], (name, flag, text)
    for flag in _FLAG.findall(_NAMED.sub("", text)):
        if flag.startswith("--config."):
            assert command in ("train", "recover"), text
        else:
            assert flag in flags()[command], (command, flag, text)


def require_told(error: errors.StemjaxError, code: str, case: str | None, *texts: str) -> None:
    """The error says what it has to."""
    assert error.code == code, str(error)
    for part in ("expected", "found", "fix"):
        assert getattr(error, part), (part, str(error))
    for text in texts:
        assert text in str(error), (text, str(error))
    page, _, anchor = error.reference.partition("#")
    assert (ROOT / page).is_file()
    if case is not None:
        assert (error.case, anchor) == (case, case.lower()), str(error)
        assert f'<a id="{anchor}"></a>' in (ROOT / page).read_text()


def command_refuses(
    capsys: pytest.CaptureFixture[str],
    command: Sequence[object],
    code: str,
    case: str | None,
    *texts: str,
) -> errors.StemjaxError:
    """Returns the error that ends a command, whose text and exit code are as they should be."""
    words = [str(word) for word in command]
    with pytest.raises(errors.StemjaxError) as caught:
        cli.main(["--debug", *words])
    error = caught.value
    require_told(error, code, case, *texts)
    require_flags(str(error), words[0])
    capsys.readouterr()
    assert cli.main(words) == 1
    said = capsys.readouterr().err
    assert f"error [{code}" in said
    assert str(error) in said
    assert "Traceback" not in said
    return error


def python_refuses(
    call: Callable[[], object], code: str, case: str | None, *texts: str
) -> errors.StemjaxError:
    """Returns the error that a call of the Python API raises."""
    with pytest.raises(errors.StemjaxError) as caught:
        call()
    require_told(caught.value, code, case, *texts)
    return caught.value
