"""Predictions as SpatialData, element by element as its reader of Visium folders names them.

    shapes  {id}               circles of the spots' radius, level-0 pixels
    images  {id}_hires_image   the H&E that the prediction carries
    tables  table              X, layers, obs, obsm and uns["stemjax"] of the prediction; annotates
                               the shapes by obs "region" and "spot_id"

Coordinate systems are ``{id}``, level-0 pixels, in which all elements lie over one another, and
``{id}_downscaled_hires``, pixels of the H&E.
"""

from __future__ import annotations

import importlib
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from stemjax import errors
from stemjax.data import integrity
from stemjax.eval import predict
from stemjax.integrations import prediction as predictions

TABLE = "table"
REGION, INSTANCE = "region", "spot_id"


def to_spatialdata(
    prediction: predictions.Prediction,
    *,
    genes: Sequence[str] | None = None,
    image: tuple[np.ndarray, float] | None = None,
) -> Any:
    """Returns the prediction as a `spatialdata.SpatialData`.

    Args:
      prediction: of one slide.
      genes: names; None takes all.
      image: another H&E, uint8 [h w 3], and its pixels per level-0 pixel; None takes the one that
        the prediction carries, if any.

    Raises:
      ConfigError: spatialdata is not installed.
      GenePanelError: a gene was not predicted.
    """
    sd, geopandas, shapely = _libraries()
    models, transformations = sd.models, sd.transformations
    name = element_name(prediction.slide)
    hires = f"{name}_downscaled_hires"
    image = prediction.image if image is None else image
    identity = transformations.Identity()
    placed: dict[str, Any] = {name: identity}
    if image is not None:
        placed[hires] = transformations.Scale([image[1], image[1]], axes=("y", "x"))
    circles = geopandas.GeoDataFrame(
        {"radius": np.full(len(prediction.xy), prediction.diameter / 2)},
        geometry=shapely.points(prediction.xy),
        index=pd.RangeIndex(len(prediction.xy), name=INSTANCE),
    )
    made = sd.SpatialData(
        shapes={name: models.ShapesModel.parse(circles, transformations=placed)},
        tables={TABLE: _table(sd, prediction, genes, name)},
    )
    if image is not None:
        pixels, scale = image
        made.images[f"{name}_hires_image"] = models.Image2DModel.parse(
            np.ascontiguousarray(np.moveaxis(pixels[..., :3], -1, 0)),
            dims=("c", "y", "x"),
            c_coords=["r", "g", "b"],
            transformations={
                hires: identity,
                name: transformations.Scale([1 / scale, 1 / scale], axes=("y", "x")),
            },
        )
    return made


def write(
    prediction: predictions.Prediction,
    path: str | pathlib.Path,
    *,
    genes: Sequence[str] | None = None,
    image: tuple[np.ndarray, float] | None = None,
) -> None:
    """Writes `to_spatialdata` as a zarr store, whole or not at all.

    Args:
      prediction: of one slide.
      path: the folder to write, usually ``*.zarr``; nothing that stands there is replaced.
      genes: as `to_spatialdata`.
      image: as `to_spatialdata`.

    Raises:
      ConfigError: something is in the way, or spatialdata is not installed.
      GenePanelError: a gene was not predicted.
      ResourceError: the disk is full.
    """
    path = pathlib.Path(path)
    predictions.require_absent(path)
    made = to_spatialdata(prediction, genes=genes, image=image)
    with integrity.published_file(path) as partial:
        made.write(partial)


def element_name(slide: str) -> str:
    """Returns a slide's id as a name that SpatialData allows: letters, digits and ``_-.``."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", slide)
    name = re.sub(r"^__+", "_", name)
    return "slide" if not name.strip(".") else name


def _table(
    sd: Any, prediction: predictions.Prediction, genes: Sequence[str] | None, region: str
) -> Any:
    """The AnnData with what makes it a table; the caller's is left as it was."""
    data = prediction.data
    if genes is not None:
        columns = prediction.columns(prediction.choose(genes))
        draws = data.obsm.get(predict.DRAWS)
        data = data[:, columns].copy()
        if draws is not None:
            data.obsm[predict.DRAWS] = np.ascontiguousarray(draws[:, :, columns])
    else:
        data = data.copy()
    data.obs[REGION] = pd.Categorical([region] * data.n_obs)
    data.obs[INSTANCE] = np.arange(data.n_obs)
    data.uns.pop("spatial", None)  # the image and its scale are elements of their own
    return sd.models.TableModel.parse(
        data, region=region, region_key=REGION, instance_key=INSTANCE, overwrite_metadata=True
    )


def _libraries() -> tuple[Any, Any, Any]:
    """The modules spatialdata, geopandas and shapely, which are an extra."""
    names = ("spatialdata", "geopandas", "shapely")
    try:
        sd, geopandas, shapely = (importlib.import_module(name) for name in names)
    except ModuleNotFoundError as error:
        raise errors.ConfigError(
            f"SpatialData needs the packages {', '.join(names)} ({error})",
            fix="pip install 'stemjax[spatialdata]'",
        ) from error
    return sd, geopandas, shapely
