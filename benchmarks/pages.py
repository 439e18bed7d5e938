"""Writes the tables of benchmarks/results/*.json into the pages of docs/ that quote them.

    uv run python benchmarks/pages.py           # writes
    uv run python benchmarks/pages.py --check   # says whether the pages are those of the results

A page has the two marks ``<!-- tables of NAME -->`` and ``<!-- end -->``; what stands between them
is replaced by the tables of benchmarks/results/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import sys

import her2st_floors
import means
import samplers

ROOT = pathlib.Path(__file__).resolve().parents[1]
MARKED = re.compile(r"(<!-- tables of (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
TABLES = {
    "samplers": samplers.tables,
    "means": means.tables,
    "her2st_floors": her2st_floors.tables,
}


def filled(text: str) -> str:
    """Returns a page with its marked places filled from the results."""

    def tables(match: re.Match[str]) -> str:
        result = json.loads((samplers.RESULTS / f"{match[2]}.json").read_text())
        made = (
            f"Measured on {result['cores']} shared {result['device']} cores, load "
            f"{result['load']:.1f} at the start, jax {result['jax']}, stemjax "
            f"{result['stemjax']} at {result['commit']}."
        )
        return f"{match[1]}\n{made}\n\n{TABLES[match[2]](result)}\n\n{match[3]}"

    return MARKED.sub(tables, text)


def main() -> None:
    """Writes the pages, or compares them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    args = parser.parse_args()
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text()
        made = filled(text)
        if made != text and args.check:
            sys.exit(f"{page} does not show the results that are committed")
        if made != text:
            page.write_text(made)
            print(f"wrote {page}")


if __name__ == "__main__":
    main()
