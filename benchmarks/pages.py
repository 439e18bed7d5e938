"""Writes the tables of benchmarks/results/*.json into README.md and the pages of docs/.

    uv run python benchmarks/pages.py           # writes
    uv run python benchmarks/pages.py --check   # says whether the pages are those of the results

A page has the two marks ``<!-- tables of NAME -->`` and ``<!-- end -->``; what stands between them
is replaced by the tables of benchmarks/results/NAME.json, or by a line that says that nobody has
measured it. The tables are made by ``tables(result)`` of the script in `SCRIPTS` whose name NAME
begins with, the longest of them: results of one script on other devices or configurations are
``sampling_h200`` and such. A NAME of `COMPOSED` is made of several results.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pathlib
import re
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- tables of (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SCRIPTS = {
    "samplers": "samplers",
    "means": "means",
    "her2st_floors": "her2st_floors",
    "sampling": "sampling",
    "tpu": "tpu",
    "lite": "lite",
    "training": "training",
    "input": "input",
    "compile": "compiling",
    "parallel": "parallel",
    "peers": "peers.tables",
    "frontier": "frontier",
    "recovery": "recovery",
    "field": "field",
    "domains": "domains",
    "layouts": "layouts",
    "cohort": "cohort",
    "long_panels": "long_panels",
    "pod": "pod_tables",
    "export_matrix": "export_matrix",
    "serving": "serving",
    "encode": "encode",
    "big_slide": "big_slide",
}
"""What a result's name begins with -> the module in benchmarks/ that has its ``tables``."""
COMPOSED = {"headline": ("peers", "frontier"), "feeding": ("pod", "input")}
"""A module in benchmarks/ -> the results that its ``tables`` takes."""


def filled(text: str, results: pathlib.Path = RESULTS) -> str:
    """Returns a page with its marked places filled from the results.

    Raises:
      LookupError: a result that no script makes tables of.
    """

    def tables(match: re.Match[str]) -> str:
        names = COMPOSED.get(match[2], (match[2],))
        paths = [results / f"{name}.json" for name in names]
        made = "Not measured yet."
        if all(path.is_file() for path in paths):
            found = [json.loads(path.read_text()) for path in paths]
            tables_of = _tables_of(match[2])  # an unknown result is named before it is read
            about = "\n".join(measured(result) for result in found)
            made = f"{about}\n\n{tables_of(*found)}"
        return f"{match[1]}\n{made}\n\n{match[3]}"

    return MARKED.sub(tables, text)


def measured(result: dict[str, Any]) -> str:
    """Returns where and when a result was measured, as a sentence."""
    where = f"{result['cores']} shared {result['device']} cores"
    if result.get("platform", "cpu") != "cpu":
        where = f"{result['devices']} {result['device']}"
    load = f"load {result['load']:.1f} at the start"
    if "load_end" in result:
        load += f" and {result['load_end']:.1f} at the end"
    when = f" on {result['date'][:10]}" if "date" in result else ""
    return (
        f"Measured{when} on {where}, {load}, jax {result['jax']}, stemjax "
        f"{result['stemjax']} at {result['commit']}."
    )


def _tables_of(name: str) -> Any:
    if name in COMPOSED:
        return importlib.import_module(name).tables
    known = [script for script in SCRIPTS if name == script or name.startswith(f"{script}_")]
    if not known:
        raise LookupError(f"benchmarks/results/{name}.json: no script of pages.SCRIPTS makes it")
    return importlib.import_module(SCRIPTS[max(known, key=len)]).tables


def main() -> None:
    """Writes the pages, or compares them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    args = parser.parse_args()
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text()
        made = filled(text)
        if made != text and args.check:
            sys.exit(f"{page} does not show the results that are committed")
        if made != text:
            page.write_text(made)
            print(f"wrote {page}")


if __name__ == "__main__":
    main()
