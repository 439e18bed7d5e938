"""A box for each malicious file: a home, a working folder, a secret and a canary outside both.

Payloads try to write the canary (code ran) or to bring the secret into what is written (a file of
the machine was read). What lies in a box before and after a command is compared.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable

OUT = "out"
"""What the commands write begins with it, in the working folder."""


@dataclasses.dataclass(frozen=True)
class Box:
    """Where one command runs.

    Attributes:
      root: holds everything else.
    """

    root: pathlib.Path

    @property
    def cwd(self) -> pathlib.Path:
        """The working folder, with the malicious file."""
        return self.root / "work"

    @property
    def home(self) -> pathlib.Path:
        """HOME."""
        return self.root / "home"

    @property
    def canary(self) -> pathlib.Path:
        """What a payload writes."""
        return self.root / "canary"

    @property
    def secret(self) -> pathlib.Path:
        """A file of the machine that is nobody else's business."""
        return self.root / "secret.txt"

    @property
    def secret_text(self) -> str:
        """What is in it, as long as the names of spots are."""
        return f"SECRET{hashlib.sha256(str(self.root).encode()).hexdigest()[:10]}"

    def make(self) -> None:
        """Makes the folders and the secret."""
        self.cwd.mkdir(parents=True)
        self.home.mkdir()
        self.secret.write_bytes(self.secret_text.encode() * 4096)

    def files(self) -> dict[str, str]:
        """What lies in the box, but for what the command may write: hashes by path."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            name = path.relative_to(self.root).as_posix()
            if name.startswith(f"work/{OUT}"):
                continue
            if path.is_symlink():
                found[name] = f"link to {path.readlink()}"
            elif path.is_file():
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                found[name] = "folder" if path.is_dir() else "other"
        return found

    def leaks(self) -> list[str]:
        """Files that the command wrote and that hold the secret."""
        wanted = self.secret_text.encode()
        written = [p for p in self.cwd.glob(f"{OUT}*") for p in (p, *p.rglob("*"))]
        return [str(p) for p in written if p.is_file() and wanted in p.read_bytes()]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A malicious file or folder, and what a user would do with it.

    Attributes:
      name: of the case.
      make: writes it into a box and returns the arguments of the command.
      says: what the refusal must contain; None where the command may succeed, harmlessly.
      slow: whether it takes longer than the default run of tests has.
    """

    name: str
    make: Callable[[Box], list[str]]
    says: str | None
    slow: bool = False


CASES: list[Case] = []


def case(says: str | None, *, slow: bool = False) -> Callable[[Callable], Callable]:
    """Registers a maker under its own name."""

    def register(make: Callable[[Box], list[str]]) -> Callable[[Box], list[str]]:
        CASES.append(Case(name=make.__name__, make=make, says=says, slow=slow))
        return make

    return register
