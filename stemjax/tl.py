"""`stemjax.tl`: training, prediction and what follows from it, on AnnData."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stemjax import errors

if TYPE_CHECKING:
    import anndata

    from stemjax import config as configs
    from stemjax import terminal
    from stemjax.data import records
    from stemjax.train.trained import Trained

    type Path = str | os.PathLike[str]
    type Model = Path | Trained
    type Config = str | Any | configs.Experiment


def train(
    records: records.Records | Path,
    workdir: Path,
    *,
    config: Config | None = None,
    test: Sequence[str] = (),
    val: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> Trained:
    """Trains a model, going on where the workdir stopped.

    Args:
      records: of `stemjax.pp.prepare`, or their folder.
      workdir: folder of the run.
      config: an ml_collections ConfigDict, the path of a file with ``get_config()``, or the name of
        one that comes with the package, such as ``stem_her2st`` or ``histosge``; by default
        `stemjax.config.default_config`.
      test: slides that training never sees.
      val: slides that choose the weights.
      overrides: keys of the configuration, such as ``{"train.steps": 2000}``.
      progress: show it; by default in a terminal.

    Returns:
      The weights and what they mean, ready for `predict`.

    Raises:
      ConfigError: an unknown key, or a value that cannot work.
      SplitError, CheckpointMismatchError: as `stemjax.train.loop.train`.

    Example:
      >>> model = sj.tl.train(records, "run", test=["s3"], val=["s2"])  # doctest: +SKIP
    """
    from stemjax import compilation
    from stemjax.data import records as record_folders
    from stemjax.train import loop

    compilation.enable_cache()
    source = records
    if not isinstance(source, record_folders.Records):
        source = record_folders.open_records(pathlib.Path(source))
    values = {"data.test": ",".join(test), "data.val": ",".join(val)}
    values = {name: value for name, value in values.items() if value}
    experiment = _experiment(config, {**values, **(overrides or {})})
    return loop.train_shown(experiment, source, pathlib.Path(workdir), _line(progress))


def predict(
    adata: anndata.AnnData,
    model: Model,
    *,
    embedding: str | None = None,
    mode: str = "mean",
    n_draws: int | None = None,
    seed: int = 0,
    key_added: str = "stemjax",
    inplace: bool = True,
    progress: bool | None = None,
    **sampling: Any,
) -> anndata.AnnData | None:
    """Predicts the expression of every spot from its patch.

    Args:
      adata: one slide with embeddings of the model's encoder (`stemjax.pp.encode`). Those of the
        built-in encoder are made here where they are missing.
      model: of `train` or `stemjax.load`, or the path of a bundle or workdir.
      embedding: key of ``obsm``; by default the one that the model's contract fits.
      mode: ``mean``, ``marginal``, ``pair`` or ``draws``; see `stemjax.tasks.Sampling`.
      n_draws: of mode ``draws``.
      seed: randomness is a function of (seed, slide, barcode).
      key_added: what is written is called by.
      inplace: annotate ``adata``, or return a new AnnData of the model's genes.
      progress: show it; by default in a terminal.
      sampling: further fields of `stemjax.tasks.Sampling`.

    Returns:
      None, or without ``inplace`` the prediction as `stemjax predict` writes it. In place it adds
      ``layers[key_added]``, NaN for genes that the model does not have, ``layers[key_added +
      "_std"]`` and intervals as far as there are some, and ``uns[key_added]``.

    Raises:
      EncoderMismatchError: no embeddings of the model's encoder.
      ConfigError: a mode the model was not trained for, or ``inplace`` on an object without genes.

    Example:
      >>> sj.tl.predict(adata, "bundle", mode="draws")                         # doctest: +SKIP
      >>> sq.pl.spatial_scatter(adata, color="ERBB2", layer="stemjax")         # doctest: +SKIP
      >>> expression = sj.tl.predict(image_only, "bundle", inplace=False)      # doctest: +SKIP
    """
    from stemjax import compilation, terminal
    from stemjax.data import annotated
    from stemjax.eval import new_slide

    compilation.enable_cache()
    if inplace and adata.n_vars == 0:
        raise errors.ConfigError(
            "predict in place on an image alone",
            expected="an object with genes, whose layers take the prediction",
            found="no gene",
            fix="inplace=False, which returns the prediction as an object of its own",
        )
    trained = _model(model)
    asked = {"mode": mode, **({} if n_draws is None else {"n_draws": n_draws}), **sampling}
    how = trained.card.task.sampling(**asked)
    encoder, picture = _encoder_for(adata, trained, embedding)
    slide = annotated.from_anndata(adata, image=picture)
    with terminal.shown("predict", progress) as bar:
        result = new_slide.predict_new_slide(
            trained, slide, encoder, how, workers=os.cpu_count() or 1, seed=seed, progress=bar
        )
    if not inplace:
        return result
    from stemjax.integrations import measured

    measured.annotate(adata, result, key_added=key_added)
    return None


def recover(
    adata: anndata.AnnData,
    workdir: Path,
    *,
    embedding: str | None = None,
    config: Config | None = None,
    hide: str = "spots",
    share: float = 0.5,
    genes: Sequence[str] | None = None,
    n_genes: int = 200,
    seed: int = 0,
    key_added: str = "stemjax",
    progress: bool | None = None,
) -> dict[str, Any]:
    """Hides a share of a slide's spots, trains on the others, predicts and scores the hidden.

    Args:
      adata: one measured slide, with embeddings (`stemjax.pp.encode`; encoder ``none`` uses
        positions and expression alone).
      workdir: folder of its records and run.
      embedding: key of ``obsm``.
      config: as `train`; by default ``histosge``.
      hide: ``spots`` or ``blocks``.
      share: of the spots that is hidden.
      genes: the panel; by default chosen by Stem's rule on this slide.
      n_genes: genes to choose.
      seed: of the prediction.
      key_added: as `predict`; ``obs[key_added + "_measured"]`` tells what was shown.
      progress: show it; by default in a terminal.

    Returns:
      Scores on the hidden spots with floors and intervals: `stemjax.eval.evaluate.evaluate`.

    Raises:
      ConfigError, SlideError, EncoderMismatchError: as `train` and `stemjax.pp.prepare`.

    Example:
      >>> sj.pp.encode(adata)                                  # doctest: +SKIP
      >>> scores = sj.tl.recover(adata, "recovered")           # doctest: +SKIP
    """
    from stemjax import compilation, pp, terminal
    from stemjax.data import annotated
    from stemjax.eval import evaluate, predict
    from stemjax.integrations import measured
    from stemjax.train import loop

    compilation.enable_cache()
    folder, name = pathlib.Path(workdir), annotated.name_of(adata)
    source = pp.prepare(
        {name: adata}, folder / "records", embedding=embedding, genes=genes, n_genes=n_genes,
        progress=progress,
    )  # fmt: skip
    values = {"data.recover": name, "data.hide": hide, "data.hide_share": float(share)}
    experiment = _experiment("histosge" if config is None else config, values)
    trained = loop.train_shown(experiment, source, folder / "run", _line(progress))
    with terminal.shown("predict", progress) as bar:
        result = predict.predict_slide(
            trained, source, name, trained.card.task.sampling(), seed=seed, progress=bar
        )
    measured.annotate(adata, result, key_added=key_added)
    return evaluate.evaluate(result, source)


def densify(
    adata: anndata.AnnData,
    model: Model,
    *,
    embedding: str | None = None,
    factor: int | None = None,
    pitch_um: float | None = None,
    points: Path | None = None,
    mode: str = "mean",
    seed: int = 0,
    progress: bool | None = None,
    **sampling: Any,
) -> anndata.AnnData:
    """Predicts expression between the spots of a slide.

    Args:
      adata: one slide of `stemjax.read_...`, whose image patches are read from.
      model: of `train` or `stemjax.load`, or a path; its encoder built in, or ``none``.
      embedding: key of ``obsm``; as `predict`.
      factor: points for every spot: 4 (default), 9, 16, ...
      pitch_um: distance between points, in place of ``factor``.
      points: a table of points, in place of both.
      mode: as `predict`.
      seed: as `predict`.
      progress: show it; by default in a terminal.
      sampling: further fields of `stemjax.tasks.Sampling`.

    Returns:
      Spots and points as one AnnData, ``obs["stemjax_measured"]`` tells them apart.

    Raises:
      ConfigError: points that cannot be, or an encoder that cannot embed them.
      ImageError: the image is needed and cannot be found.

    Example:
      >>> dense = sj.tl.densify(adata, "bundle", factor=4)      # doctest: +SKIP
    """
    import tempfile

    from stemjax import compilation, terminal
    from stemjax.data import annotated, no_image
    from stemjax.eval import densify, new_slide

    compilation.enable_cache()
    trained = _model(model)
    how = trained.card.task.sampling(mode=mode, **sampling)
    if (factor, pitch_um, points) == (None, None, None):
        factor = 4
    encoder, picture = _encoder_for(adata, trained, embedding)
    if picture is None and not no_image.is_of(encoder.contract):
        picture = annotated.image_of(adata)
    slide = annotated.from_anndata(adata, image=picture)
    workers = os.cpu_count() or 1
    with (
        tempfile.TemporaryDirectory(prefix="stemjax-") as folder,
        terminal.shown("densify", progress) as bar,
    ):
        source = new_slide.embed_new_slide(
            trained.card, slide, encoder, pathlib.Path(folder), workers=workers, progress=bar
        )
        chosen = densify.choose_points(
            source,
            slide.id,
            factor=factor,
            pitch_um=pitch_um,
            file=None if points is None else str(points),
        )
        asked = densify.points_table(
            source, slide.id, chosen, lambda _: slide, workers=workers, progress=bar
        )
        return densify.predict_points(
            trained, source, slide.id, asked, how, seed=seed, progress=bar
        )


def domains(
    adata: anndata.AnnData,
    *,
    use: str | None = None,
    method: str = "kmeans",
    k: int | None = None,
    resolution: float | None = None,
    label: str | None = None,
    seed: int = 0,
    key_added: str = "stemjax_domain",
) -> None:
    """Clusters spots into spatial domains.

    Args:
      adata: a prediction, or a slide that `predict` annotated.
      use: ``layers`` or ``obsm`` key, ``X``, ``measured`` or ``smoothed``; by default the
        prediction: ``layers["stemjax"]`` where there is one, else ``X``.
      method: ``kmeans``, ``gmm`` or ``leiden``.
      k: number of domains; by default that of ``label``, or chosen.
      resolution: of leiden.
      label: column of obs whose number of classes is taken.
      seed: of the clustering.
      key_added: column of obs to write.

    Raises:
      PredictionError, ConfigError: as `stemjax.eval.domains.find_domains`.

    Example:
      >>> sj.tl.domains(adata, k=6)                            # doctest: +SKIP
      >>> sq.pl.spatial_scatter(adata, color="stemjax_domain")  # doctest: +SKIP
    """
    from stemjax.eval import domains as finding

    data, asked = adata, use
    layer = use if use is not None else "stemjax"
    if layer in adata.layers:
        data, asked = _of_layer(adata, layer), "X"
    found = finding.find_domains(
        data, asked or "X", method=method, k=k, resolution=resolution, label=label, seed=seed,
        name="the object",
    )  # fmt: skip
    finding.write_domains(data, found)
    adata.obs[key_added] = data.obs[finding.COLUMN].to_numpy()
    adata.obs[key_added] = adata.obs[key_added].astype("category")
    adata.uns["stemjax_domains"] = data.uns["stemjax_domains"]


def _of_layer(adata: anndata.AnnData, layer: str) -> anndata.AnnData:
    """The genes that a layer has values of, as X."""
    import anndata
    import pandas as pd

    values = np.asarray(adata.layers[layer], np.float32)
    known = np.isfinite(values).all(axis=0)
    if not known.any():
        raise errors.PredictionError(
            f"layers[{layer!r}]", expected="genes with a value at every spot", found="none"
        )
    genes = pd.DataFrame(index=adata.var_names[known])
    obs: Any = adata.obs.copy()
    result = anndata.AnnData(X=values[:, known], obs=obs, var=genes)
    result.obsm["spatial"] = np.asarray(adata.obsm["spatial"])
    result.uns.update({key: adata.uns[key] for key in ("spatial", layer) if key in adata.uns})
    return result


def _model(model: Model) -> Trained:
    from stemjax.export import bundle
    from stemjax.train.trained import Trained

    return model if isinstance(model, Trained) else bundle.open_model(os.fspath(model))


def _encoder_for(adata: anndata.AnnData, trained: Trained, embedding: str | None) -> Any:
    """The embeddings in the object that the model takes, or its built-in encoder and the image."""
    from stemjax.data import annotated, embeddings, no_image
    from stemjax.data import annotated_embeddings as stored

    contract, name = trained.card.contract, annotated.name_of(adata)
    if embedding is None:
        embedding = stored.fitting(adata, contract)
    if embedding is None and contract.name in ("texture", "none"):
        picture = None if no_image.is_of(contract) else annotated.image_of(adata)
        return embeddings.get_encoder(contract.name), picture
    given = stored.embedder_of({name: adata}, embedding)
    given.contract.require_same(contract, where=f"slide {name} and the model")
    return given, None


def _experiment(config: Config | None, overrides: Mapping[str, Any]) -> configs.Experiment:
    """The experiment of a configuration, with some keys set."""
    from stemjax import config as configs
    from stemjax import configfile

    if isinstance(config, configs.Experiment):
        values = configs.default_config()
        values.update(configs.as_json(config))
    elif config is None:
        values = configs.default_config()
    elif isinstance(config, str | os.PathLike):
        values = configfile.load(os.fspath(config), ())
    else:
        values = config.copy_and_resolve_references()
    for name, value in overrides.items():
        try:
            values.update_from_flattened_dict({name: value})
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise errors.ConfigError(
                f"config.{name}", found=repr(value), fix=str(error).strip('"')
            ) from error
    return configs.resolve(values)


def _line(progress: bool | None) -> type[terminal.TrainingLine] | None:
    from stemjax import terminal

    return terminal.TrainingLine if terminal.wanted(progress) else None
