"""Dimension letters, array aliases and the batch that travels from the data to the model.

Letters, the same in jaxtyping strings, einsum strings and name suffixes:
b batch, l spots in a window, g genes, c condition, d width, h heads, k head width,
f feed-forward, n draws, s rungs, v variants.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

import jax
import numpy as np

type Array = jax.Array | np.ndarray
"""A device or a host array."""

type Params = dict[str, Any]
"""A nested dict of arrays: network parameters."""


class Batch(TypedDict):
    """What a training step consumes, as global arrays.

    Attributes:
      cond: patch embeddings, one variant each, in the encoder's own units, [b c] float32.
      x0: expression in the model's space (transformed, then standardised), [b g] float32.
      mask: 1 where the slide measured the gene, else 0, [b g] float32. A gene that a slide lacks
        is left out of the loss: it is not a zero.
      progress: share of the run that is done, the same in each row, [b] float32; the train step
        adds it for losses that change in the course of a run.
      teacher: weights that the run started from, for losses that ask them; not rows.

    A row of a network of windows is a window of l spots (`stemjax.data.windows`): cond, x0 and mask
    are [b l ...] then, and there are besides

      xy: where each spot lies, in um, [b l 2].
      place: its array column and row, [b l 2].
      present: 1 where there is a spot, [b l].
      asked: 1 where its expression is asked for, [b l].
      shown: 1 where its expression may be seen, [b l].
    """

    cond: Array
    x0: Array
    mask: Array
    progress: NotRequired[Array]
    teacher: NotRequired[Params]
    xy: NotRequired[Array]
    place: NotRequired[Array]
    present: NotRequired[Array]
    asked: NotRequired[Array]
    shown: NotRequired[Array]
