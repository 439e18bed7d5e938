"""stemjax: spatially resolved gene expression from ordinary H&E histology.

    import stemjax as sj

    model = sj.load("demo")          # or a bundle, or the workdir of a run

Research use only. Not for clinical or diagnostic use.
"""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

__version__ = "0.1.0.dev0"

# Imports of the house stand inside the functions: `import stemjax` is light and touches no device.
if TYPE_CHECKING:
    from stemjax.train.trained import Trained


def load(path: str | pathlib.Path, *, weights: str = "auto", verify: bool = True) -> Trained:
    """Returns a trained model, checked.

    Args:
      path: a bundle (`stemjax export --format bundle`), the workdir of a run, or ``demo``: a small
        model of drawn tissue that comes with the package, for trying things offline.
      weights: of a workdir ``best``, ``last`` or ``auto``; a bundle has one set.
      verify: of a bundle, also compute its example and compare (a second or so). Hashes, names and
        shapes are checked in any case.

    Returns:
      Weights, genes, transform, encoder contract, calibrations and where they come from:
      `stemjax.train.trained.Trained`.

    Raises:
      BundleError, CheckpointError: there is none, it is damaged, or it computes something else than
        where it was written.
      CheckpointMismatchError: weights of another network than it says.
      CalibrationError: its calibrations are damaged or of other weights.
    """
    from stemjax.export import bundle

    return bundle.open_model(path, weights=weights, verify=verify)
