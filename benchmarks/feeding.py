"""What hosts of a pod would have to feed, beside what a machine was measured to feed."""

from __future__ import annotations

from typing import Any

import samplers

PATHS = ("put_numbers", "ram_ahead", "stream")
"""Of `benchmarks/input.py`: rows on the devices, in RAM, and in files."""

SPOTS = 10**7


def tables(pod: dict[str, Any], measured: dict[str, Any]) -> str:
    """Returns the two results as one Markdown table.

    Args:
      pod: of `benchmarks/pod.py`; a row of it is an update.
      measured: of `benchmarks/input.py`.
    """
    rates = {line["path"]: line["rows_per_s"] for line in measured["lines"]}
    head = ["topology", "size", "hosts", "spots/s a host", "of numbers", "of RAM", "of files",
            "read from files MB/s a host", "in all GB/s",
            "GB a chip of 10^7 spots dealt out"]  # fmt: skip
    cells = []
    for line in pod["lines"]:
        if line["program"] != "train" or "projected" not in line:
            continue
        host = line["projected"]["spots_s_chip"] * line["chips_a_host"]
        hosts, stored = line["chips"] // line["chips_a_host"], line["row_bytes"]["stored"]
        each = SPOTS / line["chips"] * line["mesh"]["genes"] * stored
        # RAM and files were measured with one panel; a larger one takes longer by its bytes.
        larger = line["row_bytes"]["handed"] / (4 * (measured["condition"] + 2 * measured["genes"]))
        shares = [host / rates[path] for path in PATHS]
        shares = [shares[0], *(larger * share for share in shares[1:])]
        cells.append([
            line["topology"].replace("*", " x "), line["size"], str(hosts), f"{host:,.0f}",
            *(f"{share:.1%}" if share < 0.995 else f"{share:.1f} x" for share in shares),
            f"{host * stored / 1e6:.1f}", f"{host * hosts * stored / 1e9:.2f}", f"{each / 1e9:.2f}",
        ])  # fmt: skip
    rated = ", ".join(f"{rates[path]:,.0f} ({path})" for path in PATHS)
    return (
        "**What a projected update would take of a host, as a share of what the "
        f"{measured['cores']} cores above hand over**: rows a second {rated}, at 200 genes; with "
        "more, by the bytes of a row.\n\n" + samplers.markdown(head, cells)
    )
