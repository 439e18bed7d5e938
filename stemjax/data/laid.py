"""Windows over training rows: what a batch of a network of windows is made from."""

from __future__ import annotations

import dataclasses

import numpy as np

from stemjax import typing as st
from stemjax.data import windows as windows_lib
from stemjax.data.shown import Positions, Shown


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Laid:
    """Windows over training rows, and where those lie."""

    windows: windows_lib.Windows
    positions: Positions

    def batch(
        self, numbers: np.ndarray, *, cond: np.ndarray, x0: np.ndarray, mask: np.ndarray
    ) -> st.Batch:
        """The batch of some windows, whose tokens' arrays are given with any row for absent ones.

        Every spot but those asked for may be seen.
        """
        index, asked = self.windows.index[numbers], self.windows.asked[numbers]
        present = index >= 0
        there = present[..., None]
        return st.Batch(
            cond=np.where(there, cond, np.float32(0)),
            x0=np.where(there, x0, np.float32(0)),
            mask=np.where(there, mask, np.float32(0)),
            xy=windows_lib.take(self.positions.xy_um, index).astype(np.float32),
            place=windows_lib.take(self.positions.place, index).astype(np.float32),
            present=present.astype(np.float32),
            asked=(asked & present).astype(np.float32),
            shown=(present & ~asked).astype(np.float32),
        )


def lay_windows(shown: Shown, kind: str, length: int) -> Laid:
    """The windows of a kind over the training rows, each spot a target once.

    Raises:
      ConfigError: there is no such kind.
    """
    positions = shown.positions
    made = windows_lib.make_windows(kind, positions.xy_um, positions.slide, length=length)
    return Laid(windows=made, positions=positions)
