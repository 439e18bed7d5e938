"""What `stemjax predict` wrote, as the other modules of this room need it.

All of it comes from the AnnData alone: no records and no model are read.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse
from jaxtyping import Float

from stemjax import errors
from stemjax.eval import domains, joining, predict

if TYPE_CHECKING:
    import anndata

MOST_GENES = 20
"""Genes that are written where none are asked for, of the largest variance over spots."""

ANNOTATED = "layer"
"""Entry of ``uns`` where the predicted values are a layer of a measured object, and not X."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """A prediction and where its spots lie.

    Attributes:
      data: the AnnData; X in the units of ``value_space``.
      slide: the slide's id.
      value_space: one of `joining.VALUE_SPACES`.
      xy: spot centres, level-0 pixels (x to the right, y down), [l 2].
      diameter: of a spot, level-0 pixels.
      mpp: um a level-0 pixel, or None where it is unknown.
      image: the H&E, uint8 [h w 3], and its pixels per level-0 pixel; None where there is none.
    """

    data: anndata.AnnData
    slide: str
    value_space: str
    xy: Float[np.ndarray, "l 2"]
    diameter: float
    mpp: float | None
    image: tuple[np.ndarray, float] | None

    @property
    def genes(self) -> tuple[str, ...]:
        """Gene names, in the order of the columns."""
        return tuple(map(str, self.data.var_names))

    @property
    def barcodes(self) -> tuple[str, ...]:
        """Barcodes, in the order of the rows."""
        return tuple(map(str, self.data.obs_names))

    @property
    def units(self) -> str:
        """The units of the values, in words."""
        return joining.VALUE_SPACES[self.value_space]

    @property
    def about(self) -> Mapping[str, Any]:
        """What the prediction says of itself."""
        return self.data.uns["stemjax"]

    @functools.cached_property
    def _place(self) -> dict[str, int]:
        return {gene: column for column, gene in enumerate(self.genes)}

    def columns(self, genes: Sequence[str]) -> list[int]:
        """Returns the columns of some genes.

        Raises:
          GenePanelError: one of them was not predicted, or is asked for twice.
        """
        for gene in genes:
            if gene not in self._place:
                near = difflib.get_close_matches(gene, self.genes, n=3)
                raise errors.GenePanelError(
                    f"gene {gene!r} is not among the {len(self.genes)} genes of the prediction",
                    case="D20",
                    fix=f"Did you mean {' or '.join(near)}?" if near else "Name genes of var_names",
                )
        _require_unique(genes, "the genes asked for")
        return [self._place[gene] for gene in genes]

    def choose(self, asked: Sequence[str] | None, *, most: int = MOST_GENES) -> tuple[str, ...]:
        """Returns the genes asked for, or those of the largest variance over spots.

        Args:
          asked: names in the order wanted; None leaves the choice.
          most: how many to choose.

        Raises:
          GenePanelError: as `columns`, or none are asked for.
        """
        if asked is not None:
            if not asked:
                raise errors.GenePanelError("the genes asked for", expected="one or more names")
            self.columns(asked)
            return tuple(asked)
        values = dense(self.data.X).astype(np.float64)
        finite = np.isfinite(values)
        n = np.maximum(finite.sum(axis=0), 1)
        mean = np.where(finite, values, 0.0).sum(axis=0) / n
        variance = (np.where(finite, values - mean[None], 0.0) ** 2).sum(axis=0) / n
        order = np.lexsort((np.array(self.genes), -variance))  # names decide between equals
        return tuple(self.genes[column] for column in order[:most])

    def values(self, genes: Sequence[str], layer: str | None = None) -> Float[np.ndarray, "l k"]:
        """Returns X or a layer of some genes, float32 in the units of ``value_space``."""
        source: Any = self.data.X if layer is None else self.data.layers[layer]
        columns = self.columns(genes)
        picked = source[:, columns]
        return dense(picked).astype(np.float32)

    def spread(self, genes: Sequence[str]) -> Float[np.ndarray, "l k"] | None:
        """Returns the standard deviations of some genes, or None where the mode has none."""
        return self.values(genes, predict.STD) if predict.STD in self.data.layers else None

    def domains(self) -> list[str] | None:
        """Returns each spot's domain, "" where it has none; None where none were found."""
        if domains.COLUMN not in self.data.obs:
            return None
        column = self.data.obs[domains.COLUMN]
        return ["" if missing else str(v) for v, missing in zip(column, column.isna(), strict=True)]


def read(path: str | pathlib.Path) -> Prediction:
    """Returns the prediction in a file of `stemjax predict`.

    Raises:
      PredictionError: there is none, it is damaged, or another tool's.
    """
    return of_anndata(joining.read(path), name=str(path))


def of_anndata(data: anndata.AnnData, *, name: str = "the prediction") -> Prediction:
    """Returns a prediction in an AnnData; errors call it ``name``.

    Raises:
      PredictionError: it is none of `stemjax predict`, or its names or positions cannot be used.
    """
    about = data.uns.get("stemjax")
    if not isinstance(about, Mapping) or not {"slide", "value_space"} <= set(about):
        raise errors.PredictionError(
            f"{name} is no prediction of stemjax",
            expected='slide and value_space in uns["stemjax"]',
            found=f"uns of {', '.join(map(str, data.uns)) or 'nothing'}",
            fix="give a file of `stemjax predict`",
        )
    if ANNOTATED in about:
        raise errors.PredictionError(
            f"{name} is a measured object with a prediction in layers[{about[ANNOTATED]!r}]",
            expected="the prediction itself, with predicted values in X",
            fix="give the file of `stemjax predict` that it was made from",
        )
    space = str(about["value_space"])
    if space not in joining.VALUE_SPACES:
        raise errors.PredictionError(
            f"{name}: unknown value space", expected=" or ".join(joining.VALUE_SPACES), found=space
        )
    for names, what in ((data.obs_names, "barcodes"), (data.var_names, "genes")):
        _require_unique(list(map(str, names)), f"{name}: {what}")
    if data.X is None or not data.n_obs or not data.n_vars:
        raise errors.PredictionError(
            f"{name} holds no predicted values", found=f"{data.n_obs} spots, {data.n_vars} genes"
        )
    slide = str(about["slide"])
    held = _library(data, slide)
    factors = held.get("scalefactors", {})
    xy = _positions(data, name)
    diameter = float(factors.get("spot_diameter_fullres", 0.0))
    if not (np.isfinite(diameter) and diameter > 0):
        raise errors.PredictionError(
            f"{name}: the diameter of a spot",
            expected=f'spot_diameter_fullres in uns["spatial"][{slide!r}]["scalefactors"]',
            found=str(factors.get("spot_diameter_fullres", "nothing")),
            fix="predict again",
        )
    mpp = float(factors.get("microns_per_pixel", 0.0))
    return Prediction(
        data=data,
        slide=slide,
        value_space=space,
        xy=xy,
        diameter=diameter,
        mpp=mpp if np.isfinite(mpp) and mpp > 0 else None,
        image=_image(held),
    )


def dense(values: Any) -> np.ndarray:
    """Returns a matrix as a plain array."""
    return values.toarray() if scipy.sparse.issparse(values) else np.asarray(values)


def require_absent(path: pathlib.Path) -> None:
    """Checks that a folder can be written: nothing that stands there is ever replaced.

    Raises:
      ConfigError: something is there.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise errors.ConfigError(
            f"{path} is in the way",
            expected="nothing there, or an empty folder",
            found="a folder with files" if path.is_dir() else "a file",
            fix="name another output, or move it away",
        )


def _library(data: anndata.AnnData, slide: str) -> Mapping[str, Any]:
    """What ``uns["spatial"]`` holds of the slide, or of the only one there is."""
    spatial = data.uns.get("spatial", {})
    if not isinstance(spatial, Mapping):
        return {}
    if slide not in spatial and len(spatial) == 1:
        return spatial[next(iter(spatial))]
    return spatial.get(slide, {})


def _positions(data: anndata.AnnData, name: str) -> np.ndarray:
    xy = np.asarray(data.obsm["spatial"], np.float64) if "spatial" in data.obsm else np.empty(0)
    if xy.shape != (data.n_obs, 2) or not np.isfinite(xy).all():
        raise errors.PredictionError(
            f"{name}: spot centres",
            expected=f'finite numbers in obsm["spatial"], {data.n_obs} x 2',
            found=f"shape {xy.shape}" + ("" if np.isfinite(xy).all() else ", some not finite"),
            fix="predict again",
        )
    return xy


def _image(held: Mapping[str, Any]) -> tuple[np.ndarray, float] | None:
    """The H&E that the prediction carries and its pixels per level-0 pixel."""
    if predict.IMAGE not in held.get("images", {}):
        return None
    pixels = np.asarray(held["images"][predict.IMAGE])
    return pixels[..., :3], float(held["scalefactors"][f"tissue_{predict.IMAGE}_scalef"])


def _require_unique(names: Sequence[str], what: str) -> None:
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = sorted({entry for entry in names if entry in seen or seen.add(entry)})
        kind = errors.GenePanelError if "genes" in what else errors.PredictionError
        raise kind(f"{what} are repeated", expected="each once", found=", ".join(twice[:3]))
