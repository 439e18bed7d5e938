"""Floors, ceilings and rivals to print beside a model: what the same data give without it.

`fit` makes the rows of a table for one slide of the records. Every other function takes plain
arrays and returns a prediction [l g] in the value space of ``y``. The training rows carry a mask
[n g], 1 where the row's slide measured the gene; each gene is fitted on the rows that measured it,
and a gene that none measured comes out as NaN.

- floors: `constant_mean`, `coordinates_knn` (no image); `neighbour_mean` and `depth_oracle` see
  the test slide's own measurements (`SEES_TEST`) and are no rivals of an image model.
- ceilings: `noise_ceiling`, `poisson_mse`, from the test slide's counts.
- rivals on the same embeddings: `ridge`, `hest_probe`, `embedding_knn`, and
  `stemjax.eval.baselines.perceptron` (its import brings in JAX and Flax).
- recovery of hidden spots from measured ones of the same slide: `recovery_rows` with
  `nearest_measured_mean`, `kriging` and `component_kriging`.
- spread: `climatology`, `normal_residuals`, and what kNN and MLP bring along.
"""

from stemjax.eval.baselines.ceilings import (
    Ceiling,
    noise_ceiling,
    poisson_again,
    poisson_mse,
    split_halves,
)
from stemjax.eval.baselines.fitting import FLOORS, ROWS, SEES_TEST, SLOW, Fitted, fit
from stemjax.eval.baselines.floors import (
    constant_mean,
    coordinates_knn,
    depth_oracle,
    neighbour_mean,
)
from stemjax.eval.baselines.linear import (
    ALPHAS,
    Ridge,
    held_out_pcc,
    hest_probe,
    ridge,
    ridge_folds,
    ridge_held_out,
)
from stemjax.eval.baselines.neighbours import NEIGHBOURS, EmbeddingKnn, embedding_knn
from stemjax.eval.baselines.recovery import RECOVERY_ROWS, Recovered, recovery_rows
from stemjax.eval.baselines.smoothing import (
    Kriging,
    SharedKernel,
    component_kriging,
    kriging,
    nearest_measured_mean,
)
from stemjax.eval.baselines.spread import QUANTILE_LEVELS, climatology, normal_residuals

__all__ = [
    "ALPHAS",
    "FLOORS",
    "NEIGHBOURS",
    "QUANTILE_LEVELS",
    "RECOVERY_ROWS",
    "ROWS",
    "SEES_TEST",
    "SLOW",
    "Ceiling",
    "EmbeddingKnn",
    "Fitted",
    "Kriging",
    "Recovered",
    "Ridge",
    "SharedKernel",
    "climatology",
    "component_kriging",
    "constant_mean",
    "coordinates_knn",
    "depth_oracle",
    "embedding_knn",
    "fit",
    "held_out_pcc",
    "hest_probe",
    "kriging",
    "nearest_measured_mean",
    "neighbour_mean",
    "noise_ceiling",
    "normal_residuals",
    "poisson_again",
    "poisson_mse",
    "recovery_rows",
    "ridge",
    "ridge_folds",
    "ridge_held_out",
    "split_halves",
]
