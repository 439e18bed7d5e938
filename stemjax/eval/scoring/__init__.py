"""Every score of a row of a table, on the slide and on its resamples in one pass."""

from stemjax.eval.scoring.columns import COLUMNS, Column
from stemjax.eval.scoring.ground import Ground, make_ground
from stemjax.eval.scoring.rows import Scored, score, score_ceiling, score_draws

__all__ = [
    "COLUMNS",
    "Column",
    "Ground",
    "Scored",
    "make_ground",
    "score",
    "score_ceiling",
    "score_draws",
]
