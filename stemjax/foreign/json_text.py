"""JSON of files that others wrote."""

from __future__ import annotations

import json
from typing import Any


def parse(text: str | bytes) -> Any:
    """Returns what a text in JSON says, as `json.loads`.

    Raises:
      ValueError: it is no JSON, or nested deeper than can be read, which `json` reports as running
        out of stack.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
