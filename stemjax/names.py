"""Names that the command line and the code share, how lists are written, and names of files.

Here, in the lowest layer, so that ``stemjax --help`` knows them without importing jax.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MODES = ("mean", "marginal", "pair", "draws")
"""How a prediction is made; see `stemjax.tasks.Sampling`."""

SAMPLERS = ("dpmpp2m", "dpmpp2m_sde", "ddim", "ancestral", "heun", "ab2", "ddpm", "consistency")
"""Step rules; see `stemjax.tasks.Sampling`."""

LADDERS = ("karras", "log_uniform", "vp_linear", "vp_cosine", "ddpm")
"""How noise levels are spaced; see `stemjax.tasks.Sampling`."""

VALUE_SPACES = ("log2p1", "log1p", "log1p_cp10k")
"""Units of expression; see `stemjax.data.transforms`."""

LAYOUTS = ("st", "hest", "visium", "visium-hd", "xenium", "h5ad", "spatialdata", "image")
"""How folders of slides are laid out; see `stemjax.data.layouts`."""

DOMAIN_METHODS = ("kmeans", "gmm", "leiden")
"""How spots are clustered into domains; see `stemjax.eval.clustering`."""


def split_names(text: str) -> tuple[str, ...]:
    """Returns the names of a comma-separated list."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


LONGEST_ID = 128
"""Letters of a slide's id: with what is added to it, a file's name has at most 255 bytes."""

_ID = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,126}[A-Za-z0-9_-])?")
_DEVICES = frozenset(
    ("con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)))
)
_MOST_MARKS = 60
# What spreadsheets take for the start of a formula, also where white space stands before it.
_FORMULA = re.compile(r"\s*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def is_id(text: str) -> bool:
    """Whether a text can name files on every system: a slide's id.

    It has 1 to `LONGEST_ID` of A-Z a-z 0-9 _ . -, begins with none of ``. -`` and ends without a
    dot, and is no device of Windows (``CON``, ``nul.txt``), which would be written to. At most 60
    are ``_`` or ``.``: folders of records write these as two letters.
    """
    marks = text.count("_") + text.count(".")
    return _ID.fullmatch(text) is not None and not is_device(text) and marks <= _MOST_MARKS


def is_device(name: str) -> bool:
    """Whether Windows takes a file's name for a device, whatever its ending."""
    return name.partition(".")[0].strip(" ").lower() in _DEVICES


def cell(text: str) -> str:
    """Returns a text for a CSV file that no spreadsheet takes for a formula: then with ``'`` first.

    For names and labels only: numbers are written as numbers, and -1.5 stays -1.5. And only for
    files that people open in spreadsheets: where programs join by a column, a barcode or gene must
    be the same letters as elsewhere.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def file_names(names: Sequence[str], suffix: str) -> list[str]:
    """Returns a file's name for each name, all different, also where case does not count.

    The one way from names of genes, which may be anything, to files: letters other than
    A-Z a-z 0-9 _ . - become ``_``, no name begins with ``.`` or ``-`` or is a device of Windows.

    Args:
      names: of genes.
      suffix: ending of the files, with its dot.
    """
    taken: set[str] = set()
    found = []
    for name in names:
        stem = re.sub(r"[^A-Za-z0-9_.-]", "_", name).strip(".").lstrip(".-")[:100] or "_"
        stem = f"_{stem}" if is_device(stem) else stem
        tried, number = stem, 1
        while tried.lower() in taken:
            number += 1
            tried = f"{stem}_{number}"
        taken.add(tried.lower())
        found.append(tried + suffix)
    return found
