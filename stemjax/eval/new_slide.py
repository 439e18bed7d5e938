"""Prediction of a slide that no records hold: its image and an encoder in, AnnData out.

The slide goes through records all the same, in a folder that is gone afterwards: so it is embedded,
checked and predicted by the code that predicts every other slide, and by no second one.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stemjax import errors, tasks
from stemjax.data import embeddings, genes, prepare, records, slides
from stemjax.eval import predict
from stemjax.train import checkpoint

if TYPE_CHECKING:
    import anndata

type Embeds = embeddings.Encoder | embeddings.Embedder


def predict_new_slide(
    trained: checkpoint.Trained,
    slide: slides.Slide,
    encoder: Embeds,
    sampling: tasks.Sampling,
    *,
    workers: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
    **options: Any,
) -> anndata.AnnData:
    """Returns the predicted expression of a slide, as `predict.predict_slide` does.

    Args:
      trained: weights and what they mean.
      slide: measured, or an image alone.
      encoder: the model's encoder, or embeddings made by it earlier.
      sampling: mode, sampler, steps and draws.
      workers: processes or threads that read and embed patches.
      progress: called with (done, in all, what).
      options: ``seed``, ``rows``, ``summary``, ``steer`` and ``divergence`` as
        `predict.predict_slide` takes them.

    Raises:
      EncoderMismatchError: the encoder is not the model's.
      ConfigError: a model of windows, which needs measured spots, and the slide has none.
      ImageError: the slide has no image, and the encoder needs one.
    """
    require_use(trained.card, slide, encoder.contract)
    with tempfile.TemporaryDirectory(prefix="stemjax-") as folder:
        source = embed_new_slide(
            trained.card, slide, encoder, pathlib.Path(folder), workers=workers, progress=progress
        )
        return predict.predict_slide(
            trained, source, slide.id, sampling, progress=progress, **options
        )


def embed_new_slide(
    card: checkpoint.Card,
    slide: slides.Slide,
    encoder: Embeds,
    folder: pathlib.Path,
    *,
    workers: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
) -> records.Records:
    """Returns the records of one slide for a model: its genes, one variant of each patch.

    Args:
      card: the model's.
      slide: the slide.
      encoder: the model's encoder.
      folder: where they are written.
      workers: processes or threads that embed.
      progress: called with patches done, patches in all, and what is being done.
    """

    def embedding(done: int, total: int, what: str) -> None:
        # What `prepare` itself says counts slides, and there is one.
        if progress is not None and total > 1:
            progress(done, total, what)

    return prepare.prepare(
        lambda _: slide,
        (slide.id,),
        folder,
        genes=panel_of(card),
        encoder=encoder,
        variants=1,
        workers=workers,
        progress=embedding,
    )


def panel_of(card: checkpoint.Card) -> genes.Panel:
    """Returns a model's genes, in its order, as the panel of slides that it is to predict."""
    return genes.Panel(genes=tuple(card.space.genes), rule="the model's", slides=())


def require_use(
    card: checkpoint.Card, slide: slides.Slide, contract: embeddings.EncoderContract
) -> None:
    """Raises where a model cannot predict a slide, before its patches are embedded.

    Raises:
      EncoderMismatchError: the encoder is not the model's.
      ConfigError: the model needs measured spots, and there are none.
    """
    contract.require_same(card.contract, where="the encoder and the model")
    if not slide.measured and card.experiment.window.kind == "neighbours":
        raise errors.ConfigError(
            f"slide {slide.id} is an image alone",
            expected="measured spots, which this model of windows predicts others from",
            found="none",
            fix="take a model that sees a spot's patch alone: config.window.kind=none",
        )
