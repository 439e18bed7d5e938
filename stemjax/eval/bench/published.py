"""Published figures that are printed beside ours, as their papers and the leaderboard give them.

They were computed on other panels, spots and embeddings than a rerun has, so they stand apart in
every table and are never averaged with ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

HEST_UNI: Mapping[str, float] = {
    "IDC": 0.5890,
    "PRAD": 0.2943,
    "PAAD": 0.4807,
    "SKCM": 0.6346,
    "COAD": 0.2614,
    "READ": 0.1836,
    "CCRCC": 0.2400,
    "LUNG": 0.5464,
    "LYMPH_IDC": 0.2559,
}
"""HEST-Benchmark's probe on UNI embeddings by task, official leaderboard of April 2026."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """One method's published row; None where the paper gives no figure.

    Attributes:
      method: its name.
      pcc_10, pcc_50, pcc_all: mean of the 10 or 50 highest correlations, and of all genes.
      mae, mse, rvd: errors in log2(count + 1), relative variance distance.
    """

    method: str
    pcc_10: float | None = None
    pcc_50: float | None = None
    pcc_all: float | None = None
    mae: float | None = None
    mse: float | None = None
    rvd: float | None = None


def _row(method: str, *values: float) -> Figures:
    names = ("pcc_10", "pcc_50", "pcc_all", "mae", "mse", "rvd")
    return Figures(method=method, **dict(zip(names, values, strict=True)))


STEM: Mapping[str, tuple[Figures, ...]] = {
    "her2st": (
        _row("HisToGene", 0.6812, 0.6345, 0.5250, 0.9367, 1.3468, 10.3407),
        _row("BLEEP", 0.7727, 0.7141, 0.5652, 0.8328, 1.2428, 0.6025),
        _row("TRIPLEX", 0.7907, 0.7394, 0.5766, 0.9311, 1.3456, 0.6428),
        _row("Stem", 0.8298, 0.7726, 0.5984, 0.7547, 1.0742, 0.0693),
    ),
    "kidney": (
        _row("HisToGene", 0.4294, 0.3503, 0.0905, 0.9298, 1.4105, 0.9962),
        _row("BLEEP", 0.4998, 0.4221, 0.3143, 0.9451, 1.5261, 0.2170),
        _row("TRIPLEX", 0.4654, 0.4105, 0.3165, 0.8969, 1.3015, 0.5871),
        _row("Stem", 0.5893, 0.5332, 0.4257, 0.8792, 1.3513, 0.0751),
    ),
    "prad": (
        Figures(method="HisToGene", pcc_all=0.2235),
        Figures(method="BLEEP", pcc_all=0.3158),
        Figures(method="TRIPLEX", pcc_10=0.6173, pcc_all=0.3601, mse=1.4819, rvd=0.7954),
        Figures(method="Stem", pcc_10=0.6103, pcc_all=0.3832, mse=1.4873, rvd=0.1975),
    ),
    "mouse_brain": (
        Figures(method="HisToGene", pcc_all=-0.0008),
        Figures(method="BLEEP", pcc_all=0.1555),
        Figures(method="Stem", pcc_all=0.2791),
    ),
}
"""Stem's main tables (Zhu et al., ICLR 2025, arXiv 2501.15598), the panels of highly expressed and
highly variable genes: HMHVG-300 for HER2ST, HMHVG-200 for the others."""
