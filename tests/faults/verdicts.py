"""What a case came to, and the checks that say so."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

SURVIVED, LOST, SILENT = "survived", "lost", "silent"
OUTCOMES = (SURVIVED, LOST, SILENT)

_TYPED = re.compile(r"error \[(SJ-[A-Z]\d\d)\]\n +\S")
_TRACEBACK = ("Traceback (most recent call last)", "Fatal Python error", "core dumped")
_DAMAGE = ("damaged", "missing", "cannot be read", "sha256", "instead of", "incomplete")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Done:
    """How a command ended.

    Attributes:
      argv: what was run.
      code: exit code; minus the signal that ended it.
      out: what it printed.
      err: what it printed as errors.
      seconds: that it took.
      late: it was killed for not ending within its limit.
      extra: what was asked of it afterwards, in plain values.
    """

    argv: Sequence[str]
    code: int
    out: str
    err: str
    seconds: float
    late: bool = False
    extra: object = None

    @property
    def typed(self) -> str | None:
        """The code of a typed error that was printed, or None."""
        found = _TYPED.search(self.err)
        return found[1] if found else None

    def says(self, *words: str) -> bool:
        """Whether any of some words was printed."""
        return any(word in self.err or word in self.out for word in words)

    def describe(self) -> str:
        """Returns the command, its code and the end of what it printed."""
        most = 60 if self.late else 16
        tail = "\n".join((self.out[-600:] + "\n" + self.err[-5000:]).strip().splitlines()[-most:])
        late = ", killed for being late" if self.late else ""
        shown = " ".join(self.argv)
        return f"$ stemjax {shown}\n  code {self.code} after {self.seconds:.1f} s{late}\n{tail}"


class Failed(Exception):
    """A promise was broken."""

    outcome = LOST

    def __init__(self, why: str, *evidence: Done) -> None:
        self.why, self.evidence = why, evidence
        super().__init__(why)


class Lost(Failed):
    """State is lost, or the command did not end as it should."""


class Silent(Failed):
    """A wrong result without a word."""

    outcome = SILENT


def require_plain(done: Done, codes: Iterable[int]) -> Done:
    """Checks that a command ended in time, with one of some codes, and in plain words.

    Raises:
      Lost: it did not.
    """
    if done.late:
        raise Lost("it hung and was killed", done)
    if shows_traceback(done):
        raise Lost("it showed a traceback", done)
    if done.code not in codes:
        raise Lost(f"exit code {done.code} instead of {sorted(codes)}", done)
    if done.code in (1, 75) and done.typed is None:
        raise Lost("an error without a code", done)
    return done


def shows_traceback(done: Done) -> bool:
    """Whether a traceback, or an abort's, was printed."""
    return any(mark in done.err or mark in done.out for mark in _TRACEBACK)


def require_done(done: Done) -> Done:
    """Checks that a command did its work.

    Raises:
      Lost: it did not.
    """
    return require_plain(done, {0})


def require_same(found: object, wanted: object, what: str, *evidence: Done) -> None:
    """Checks that a result that was given without a word is the undisturbed one.

    Raises:
      Silent: it is another.
    """
    if found != wanted:
        raise Silent(f"{what}: {difference(found, wanted)}", *evidence)


def require_right_or_named(
    done: Done, wanted: object, names: Sequence[str], what: str, found: object = None
) -> str:
    """Checks the user of something damaged: the right result, or an error that names it.

    Args:
      done: how it ended; ``extra`` is the digest of its result where ``found`` is None.
      wanted: the digest of the undisturbed result.
      names: what an error may call the damaged thing.
      what: the result, for the message.
      found: the digest of its result.

    Returns:
      Which of them it was.

    Raises:
      Lost: it crashed, or its error names none of them.
      Silent: it gave another result.
    """
    require_plain(done, {0, 1, 75})
    if done.code:
        if not done.says(*names):
            raise Lost(f"an error that names none of {', '.join(names)}", done)
        return f"named [{done.typed}]"
    found = done.extra if found is None else found
    if found == wanted:
        return "right"
    # Another result is no lie where the user is told so, as with weights of another step.
    if done.says(*names) and done.says(*_DAMAGE):
        return "another result, said"
    raise Silent(f"{what}: {difference(found, wanted)}", done)


def difference(found: object, wanted: object) -> str:
    """Says where two results differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        names = sorted(n for n in {*found, *wanted} if found.get(n) != wanted.get(n))
        return f"{', '.join(map(str, names[:4]))} differ"
    return f"{_short(found)} instead of {_short(wanted)}"


def within_one_save(done_steps: int, committed: int, every: int) -> bool:
    """Whether a killed run lost no more than the save under way and one interval before it."""
    # A step is logged before its own save begins, which waits for the one before it.
    return committed >= ((done_steps - 1) // every - 1) * every


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) < 160 else text[:157] + "..."
