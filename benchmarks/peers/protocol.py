"""How `ab.py` talks to a program in another interpreter: a JSON object a line, both ways.

The parent writes ``{"do": NAME, ...}`` to the child's standard input; the child answers each with
one line, an object or ``{"error": TEXT}``. Arrays travel as .npy and .npz files in a folder that
both see. No pickle, no network. `serve` is the child's end and needs the standard library alone
(Python 3.11), since the child's environment is not the package's.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Answer = Callable[..., Mapping[str, Any]]
TAIL = 2000
"""Characters of a child's log that an error shows."""


class PeerError(RuntimeError):
    """The other program is gone, or says that it cannot do what it was asked."""


class Child:
    """A program that answers; ends with the ``with`` block.

    Args:
      command: program and arguments.
      log: file for its standard error.
      environment: variables beside those of this process.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: pathlib.Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._log = log
        with log.open("w") as errors:
            try:
                self._process = subprocess.Popen(
                    list(command),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    env={**os.environ, **(environment or {})},
                )
            except OSError as problem:
                raise PeerError(f"cannot start {command[0]}: {problem}") from problem

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        """Returns the answer to one request, once it is there.

        Raises:
          PeerError: the program ended, answered with an error, or with something else than an
            object.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **values}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line.endswith("\n"):
            raise PeerError(f"the other program ended at {do!r}: {self._tail()}")
        try:
            answer = json.loads(line)
        except json.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            raise PeerError(f"{do!r} was answered with {line[:200]!r}, not a JSON object")
        if "error" in answer:
            raise PeerError(f"{do!r}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Ends the program: its input is closed, and if that is not enough it is killed."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _tail(self) -> str:
        text = self._log.read_text(errors="replace").strip()
        return text[-TAIL:] or "it left no message"

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(answers: Mapping[str, Answer]) -> None:
    """Answers requests from standard input until it closes.

    Whatever else the program and its libraries print goes to standard error, file descriptor 1
    included, so that it cannot stand between two answers.

    Args:
      answers: request name -> function of the request's other values.
    """
    with os.fdopen(os.dup(1), "w") as lines:
        os.dup2(2, 1)
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = dict(answers[request.pop("do")](**request))
            except Exception as problem:  # noqa: BLE001 - the other end shows it to the user
                text = " ".join(str(problem).split())[:TAIL]
                answer = {"error": f"{type(problem).__name__}: {text}"}
            lines.write(json.dumps(answer) + "\n")
            lines.flush()
