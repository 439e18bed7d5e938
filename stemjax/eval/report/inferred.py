"""What a prediction without a truth says of its places: measured, hidden, or points between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse
import scipy.spatial

from stemjax import errors
from stemjax.eval import plots, recovered
from stemjax.eval import truth as truths
from stemjax.foreign import json_text

if TYPE_CHECKING:
    import anndata

FILLED = 0.8
"""Diameter of a dot where points lie closer than spots do, in distances between points."""

SMOOTH = (
    " On the left what was measured, at the spots that the model was given; beside it what the "
    "model makes of every place, these spots too: a mean, smoother than what was measured. What "
    "lies between the spots is inferred and was never measured."
)


def places(
    prediction: anndata.AnnData, columns: Sequence[int], name: str
) -> tuple[plots.Tissue, plots.Shown | None]:
    """Where to draw the prediction, and what it was given of these genes, where it holds that.

    Spots have their true diameter. Where points lie between them all dots of the prediction are
    smaller, so that none covers another.

    Raises:
      PredictionError: there are no coordinates, or flags of measured spots that are none.
    """
    place = truths.of_positions(prediction, where=name)
    measured = recovered.flags(prediction, name)
    diameter = place.diameter
    if measured is not None and len(place.xy) > 1:
        distance = scipy.spatial.KDTree(place.xy).query(place.xy, k=2)[0][:, 1]
        if (apart := distance[distance > 0]).size:
            diameter = min(diameter, FILLED * float(np.median(apart)))
    tissue = plots.Tissue(xy=place.xy, diameter=diameter, unit=place.unit, image=place.image)
    observed: Any = prediction.layers.get(recovered.OBSERVED)
    if observed is None or measured is None or not measured.any():
        return tissue, None
    dense = observed.toarray() if scipy.sparse.issparse(observed) else np.asarray(observed)
    values = dense[np.ix_(measured, columns)].astype(np.float64)
    return tissue, plots.Shown(xy=place.xy[measured], diameter=place.diameter, values=values)


def counted(prediction: anndata.AnnData, name: str) -> str:
    """How many spots and points there are, and how many of them were measured."""
    measured = recovered.flags(prediction, name)
    if measured is None:
        return f"{prediction.n_obs} spots"
    given, points = int(measured.sum()), _points(prediction)
    if given == prediction.n_obs:
        return f"{given} measured spots, each predicted from the others"
    if not given and not points and not prediction.uns.get("stemjax", {}).get("hidden"):
        return f"{prediction.n_obs} spots of an image alone: nothing was measured here"
    hidden = prediction.n_obs - given - points
    parts = [f"{hidden} hidden spots"] * (hidden > 0) + [f"{points} points between"] * (points > 0)
    return f"{given} measured spots; {hidden + points} inferred: {' and '.join(parts)}"


def _points(prediction: anndata.AnnData) -> int:
    """Points that are no spots, as far as the prediction says."""
    told = prediction.uns.get("stemjax", {}).get("points")
    try:
        return int(json_text.parse(str(told))["points"]) if told else 0
    except (ValueError, KeyError, TypeError) as error:
        raise errors.PredictionError(
            'uns["stemjax"]["points"] cannot be read', found=str(told)
        ) from error


def hiding(text: str) -> str:
    """What was hidden of the slide, in words; the text itself where it is no such account."""
    try:
        told = json_text.parse(text)
        how = f"squares of {told['block']:g} x {told['block']:g} spots"
        what = "single spots" if told["how"] == "spots" else how
        return f"{told['share']:.0%} of the slide, {what}, seed {told['seed']}"
    except (ValueError, KeyError, TypeError):
        return text
