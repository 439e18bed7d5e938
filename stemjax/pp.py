"""`stemjax.pp`: embeddings and records from AnnData."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stemjax import errors

if TYPE_CHECKING:
    import anndata

    from stemjax.data import embeddings, images, records

    type Embeds = embeddings.Encoder | embeddings.Embedder


def encode(
    adata: anndata.AnnData,
    encoder: str = "texture",
    *,
    weights: str | os.PathLike[str] | None = None,
    image: str | os.PathLike[str] | None = None,
    mpp: float | None = None,
    fov_um: float | Literal["default"] | None = "default",
    variants: int = 1,
    key_added: str | None = None,
    workers: int | None = None,
    progress: bool | None = None,
    copy: bool = False,
    **options: Any,
) -> anndata.AnnData | None:
    """Embeds the patch around every spot.

    Args:
      adata: one slide, of `stemjax.read_...` or any with ``obsm["spatial"]`` in full-resolution
        pixels.
      encoder: ``texture`` (built in), or any of `stemjax.encoders.list_entries`.
      weights: the encoder's, a safetensors or torch file on this machine.
      image: the full-resolution image; by default the one the slide was read with.
      mpp: um per full-resolution pixel, where ``uns`` does not say it.
      fov_um: side of a patch on the tissue in um; None is max(224 px, spot diameter), Stem's rule.
        Of encoders with weights only.
      variants: flips and turns to embed; above 1 they go to ``obsm[key_added + "_variants"]``,
        [l v c], which training draws among.
      key_added: by default ``X_<encoder>``.
      workers: threads or processes that read patches; by default all cores.
      progress: show it; by default in a terminal.
      copy: return an annotated copy, and leave the object as it is.
      options: of the encoder: ``pooling``, ``dtype``, ``batch``; see
        `stemjax.encoders.make_encoder`.

    Returns:
      None, or with ``copy`` the copy. Adds ``obsm[key_added]``, float16 [l c], and its contract to
      ``uns["stemjax_encoders"]``.

    Raises:
      ImageError, PixelSizeError, SlideError: the slide cannot be read.
      ConfigError: there is no such encoder.

    Example:
      >>> adata = sj.read_visium("outs", need_image=True)                # doctest: +SKIP
      >>> sj.pp.encode(adata, "uni", weights="uni/model.safetensors")    # doctest: +SKIP
      >>> sc.pp.neighbors(adata, use_rep="X_uni")                        # doctest: +SKIP
    """
    from stemjax import terminal
    from stemjax.data import annotated, no_image, patches
    from stemjax.data import annotated_embeddings as stored
    from stemjax.data import images as image_files

    made = _encoder(encoder, weights, fov_um, options)
    if copy:
        adata = adata.copy()
    picture: images.SlideImage | None = None
    if not no_image.is_of(made.contract):
        picture = image_files.open_image(image) if image else annotated.image_of(adata)
    slide = annotated.from_anndata(adata, image=picture, mpp=mpp)
    with terminal.shown("encode", progress) as bar:
        found = patches.embed_slide(
            slide, made, variants=variants, workers=workers or os.cpu_count() or 1, progress=bar
        )
    key = key_added or f"X_{made.contract.name}"
    adata.obsm[key] = found[:, 0]
    if found.shape[1] > 1:
        adata.obsm[key + stored.VARIANTS] = found
    kept = dict(adata.uns.get(stored.CONTRACTS, {}))
    adata.uns[stored.CONTRACTS] = kept | {key: json.dumps(made.contract.to_json())}
    return adata if copy else None


def prepare(
    slides: anndata.AnnData | Sequence[anndata.AnnData] | Mapping[str, anndata.AnnData],
    out: str | os.PathLike[str],
    *,
    embedding: str | None = None,
    genes: Sequence[str] | None = None,
    n_genes: int = 200,
    test: Sequence[str] = (),
    orthologues: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> records.Records:
    """Writes records of slides: what training and evaluation read.

    Args:
      slides: slides with raw counts and embeddings (`encode`); a mapping names them.
      out: folder of the records; slides that are there already are kept.
      embedding: key of ``obsm``; by default the only one that `encode` made.
      genes: the gene panel; by default chosen by Stem's rule on the slides not in ``test``.
      n_genes: genes to choose.
      test: slides that the choice must not see.
      orthologues: table of human and mouse genes, for a panel of the other species.
      progress: show it; by default in a terminal.

    Returns:
      The records in ``out``.

    Raises:
      SlideError, EncoderMismatchError, GenePanelError, RecordsError: as
        `stemjax.data.prepare.prepare`.

    Example:
      >>> records = sj.pp.prepare([s1, s2, s3], "records", test=["s3"])  # doctest: +SKIP
    """
    from stemjax import terminal
    from stemjax.data import annotated, no_image
    from stemjax.data import annotated_embeddings as stored
    from stemjax.data import genes as gene_panels
    from stemjax.data import prepare as preparing

    named = _named(slides)
    panel: gene_panels.Panel | None = None
    if genes is not None:
        panel = gene_panels.Panel(genes=tuple(genes), rule="given", slides=())
    embedder = stored.embedder_of(named, embedding)
    variants = 8 if no_image.is_of(embedder.contract) else embedder.variants
    with terminal.shown("prepare", progress) as bar:
        return preparing.prepare(
            lambda name: annotated.from_anndata(named[name], slide=name),
            tuple(named),
            pathlib.Path(out),
            genes=panel,
            n_genes=n_genes,
            test=test,
            encoder=embedder,
            variants=variants,
            orthologues=_orthologues(orthologues),
            progress=bar,
        )


def declare(
    adata: anndata.AnnData,
    key: str,
    encoder: str,
    *,
    fov_um: float | None,
    source: str,
    revision: str = "unknown",
    pooling: str | None = None,
) -> None:
    """Says what embeddings in ``obsm`` are, that another tool made.

    Args:
      adata: one slide.
      key: of ``obsm``, such as ``X_uni``.
      encoder: its name, as any tool spells it.
      fov_um: side of a patch on the tissue in um.
      source: the tool, such as ``trident``.
      revision: of the weights, where it is known.
      pooling: of encoders with a choice.

    Raises:
      ConfigError: there is no such encoder.
      EncoderMismatchError: the width is not the encoder's.

    Example:
      >>> sj.pp.declare(adata, "X_uni", "uni", fov_um=112, source="lazyslide")  # doctest: +SKIP
    """
    from stemjax.data import annotated_embeddings as stored
    from stemjax.encoders import registry

    contract = registry.resolve(encoder).contract(
        fov_um=fov_um, pooling=pooling, source=source, revision=revision
    )
    values: Any = adata.obsm[key] if key in adata.obsm else np.empty((0, 0))
    width = values.shape[-1]
    if width != contract.width:
        raise errors.EncoderMismatchError(
            f"obsm[{key!r}] are no embeddings of {encoder}",
            expected=f"width {contract.width}",
            found=f"width {width}" if width else "nothing under that key",
        )
    kept = dict(adata.uns.get(stored.CONTRACTS, {}))
    adata.uns[stored.CONTRACTS] = kept | {key: json.dumps(contract.to_json())}


def _encoder(
    name: str,
    weights: str | os.PathLike[str] | None,
    fov_um: float | Literal["default"] | None,
    options: Mapping[str, Any],
) -> Embeds:
    from stemjax.data import embeddings

    if name in ("texture", "none"):
        if weights is not None or options or fov_um not in ("default", None):
            raise errors.ConfigError(
                f"the encoder {name}", expected="no weights and no options", found=str(weights)
            )
        return embeddings.get_encoder(name)
    from stemjax import compilation, encoders

    compilation.enable_cache()
    path = None if weights is None else os.fspath(weights)
    return encoders.make_encoder(name, weights=path, fov_um=fov_um, **options)


def _named(
    slides: anndata.AnnData | Sequence[anndata.AnnData] | Mapping[str, anndata.AnnData],
) -> dict[str, anndata.AnnData]:
    """Slides by id."""
    from stemjax.data import annotated

    if isinstance(slides, Mapping):
        return dict(slides)
    several = list(slides) if isinstance(slides, Sequence) else [slides]
    named = {annotated.name_of(one): one for one in several}
    if len(named) < len(several):
        raise errors.SlideError(
            "slides of one name",
            expected="each slide once",
            found=", ".join(sorted(annotated.name_of(one) for one in several)),
            fix="give a mapping of names to slides",
        )
    return named


def _orthologues(path: str | os.PathLike[str] | None) -> Any:
    from stemjax.data import orthologues

    return None if path is None else orthologues.read_orthologues(path)
