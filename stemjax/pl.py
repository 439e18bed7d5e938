"""`stemjax.pl`: genes and domains over the H&E, as matplotlib figures."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from stemjax import errors

if TYPE_CHECKING:
    import anndata

    from stemjax.eval import plots
    from stemjax.eval.plots.canvas import Figure


def gene(
    adata: anndata.AnnData,
    name: str,
    *,
    key: str = "stemjax",
    measured: bool = True,
    width: float = 9.0,
    save: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draws one gene over the H&E: measured, predicted and the spread, as far as there are.

    Measured and predicted share one colour scale, in the value space of the prediction.

    Args:
      adata: a prediction, or a slide that `stemjax.tl.predict` annotated.
      name: the gene.
      key: of the prediction in ``layers`` and ``uns``.
      measured: draw what was measured too, where there are counts.
      width: of the figure in inches.
      save: also write it there: .png, .pdf or .svg.

    Returns:
      The figure, which a notebook shows.

    Raises:
      GenePanelError: the object or the prediction lacks the gene.

    Example:
      >>> sj.pl.gene(adata, "ERBB2", save="erbb2.png")         # doctest: +SKIP
    """
    from stemjax.eval import joining
    from stemjax.eval.plots import canvas, tissue

    column = _column(adata, name)
    annotated = key in adata.layers
    predicted = np.asarray(adata.layers[key] if annotated else _dense(adata.X))[:, column]
    about = adata.uns.get(key, {})
    if "value_space" not in about or not np.isfinite(predicted).any():
        raise errors.GenePanelError(
            f"there is no prediction of {name}",
            expected=f"layers[{key!r}] with its values, and uns[{key!r}]",
            fix="run stemjax.tl.predict first, with a model that has the gene",
        )
    space = str(about["value_space"])
    spread = adata.layers.get(f"{key}_std")
    true = _measured(adata, column, space) if measured and annotated else None
    figure = canvas.own_style(tissue.spot_figure)(
        name,
        true,
        predicted,
        None if spread is None else np.asarray(spread)[:, column],
        _tissue(adata),
        units=joining.VALUE_SPACES[space],
        title=name,
        width=width,
    )
    if save is not None:
        canvas.save(figure, save)
    return figure


def domains(
    adata: anndata.AnnData,
    *columns: str,
    save: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draws categories of spots over the H&E, one map a column, in comparable colours.

    Args:
      adata: a slide or a prediction.
      columns: of obs; by default ``stemjax_domain``.
      save: also write it there: .png, .pdf or .svg.

    Returns:
      The figure.

    Raises:
      PredictionError: there is no such column.

    Example:
      >>> sj.pl.domains(adata, "annotation", "stemjax_domain")  # doctest: +SKIP
    """
    from stemjax.eval.plots import canvas
    from stemjax.eval.plots import domains as maps

    panels = {}
    for column in columns or ("stemjax_domain",):
        if column not in adata.obs:
            raise errors.PredictionError(
                f"obs[{column!r}]",
                expected="a column of categories",
                found=", ".join(map(str, adata.obs.columns)) or "none",
                fix="run stemjax.tl.domains first" if column == "stemjax_domain" else None,
            )
        values = adata.obs[column].astype(object)
        panels[column] = [None if one != one or one is None else str(one) for one in values]
    figure = canvas.own_style(maps.domain_figure)(panels, _tissue(adata), title="", dpi=canvas.DPI)
    if save is not None:
        canvas.save(figure, save)
    return figure


def _column(adata: anndata.AnnData, name: str) -> int:
    names = list(map(str, adata.var_names))
    if name not in names:
        import difflib

        near = difflib.get_close_matches(name, names, n=3)
        raise errors.GenePanelError(
            f"there is no gene {name!r}",
            expected="a name of var_names",
            fix=f"Did you mean {' or '.join(near)}?" if near else None,
        )
    return names.index(name)


def _dense(values: Any) -> np.ndarray:
    return values.toarray() if hasattr(values, "toarray") else np.asarray(values)


def _measured(adata: anndata.AnnData, column: int, space: str) -> np.ndarray | None:
    """The gene's counts in the value space of the prediction; None where there are no counts."""
    from stemjax.data import annotated, transforms

    try:
        counts = annotated.counts_of(adata, "the object")
    except errors.SlideError:
        return None
    total = np.asarray(counts.sum(axis=1)).reshape(-1)
    values = counts[:, [column]].toarray()
    return np.asarray(transforms.get_transform(space).forward(values, total))[:, 0]


def _tissue(adata: anndata.AnnData) -> plots.Tissue:
    from stemjax.eval import plots, truth

    place = truth.of_positions(adata, where="the object")
    return plots.Tissue(xy=place.xy, diameter=place.diameter, unit=place.unit, image=place.image)
