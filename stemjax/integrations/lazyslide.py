"""A model for LazySlide: ``lazyslide.tl.feature_prediction`` runs it on a slide's tile features.

    model = lazyslide.ExpressionModel(stemjax.load("DIR"), feature_key="uni2")
    zs.tl.feature_prediction(wsi, model)     # adds the table stemjax_tiles: tiles x genes

LazySlide calls ``predict(features)`` on some hundreds of tiles at a time, and stores a column for
each entry of what comes back. It asks for the attributes below and for no base class, so nothing
is imported from it.
"""

from __future__ import annotations

from typing import Any, Self

import jax
import numpy as np

from stemjax import errors, tasks
from stemjax.data import embeddings
from stemjax.encoders import registry
from stemjax.integrations import prediction as predictions
from stemjax.train.trained import Trained


class ExpressionModel:
    """Expression of tiles from their features, by one evaluation of the network a tile.

    The numbers are those of ``stemjax predict --mode mean`` on the same features: rounded to
    float16 as records hold them, standardised as in training, in the model's value space.

    Args:
      trained: the model; it must see a spot's patch alone.
      features: what the features are: an encoder's contract, compared field by field, or its name;
        None takes the model's own, on the caller's word.
      feature_key: LazySlide's name of the feature table, which need not be the encoder's name here;
        None takes that one.
      name: LazySlide names the resulting table by it.

    Attributes:
      model: the trained model.
      genes: names of the outputs.
      features_model_name: where LazySlide looks for the features, unless told otherwise.
      needs_coords: whether `predict` needs positions: no.
      whole_slide: whether it needs all tiles at once: no.

    Raises:
      EncoderMismatchError: the features are of another encoder.
      ConfigError: the model sees other spots, or was not trained for one evaluation.
    """

    needs_coords = False
    whole_slide = False

    def __init__(
        self,
        trained: Trained,
        *,
        features: embeddings.EncoderContract | str | None = None,
        feature_key: str | None = None,
        name: str = "stemjax",
    ) -> None:
        card = trained.card
        if card.experiment.window.kind != "none":
            raise errors.ConfigError(
                f"a LazySlide model with config.window.kind={card.experiment.window.kind}",
                expected="a model that sees a spot's patch alone",
                fix="use `stemjax predict`",
            )
        _require_encoder(card.contract, features)
        self._predict = tasks.make_predictor(card.task, card.task.sampling(mode="mean"))
        self.model, self.name, self.genes = trained, name, card.space.genes
        self.features_model_name = feature_key or card.contract.name

    def predict(self, features: Any, coords: Any = None) -> dict[str, np.ndarray]:
        """Returns the expression of some tiles, by gene, float32 [n] each.

        Args:
          features: a row a tile, [n c]: numpy, scipy sparse or a torch tensor on the CPU.
          coords: not used.

        Raises:
          EncoderMismatchError: another width than the model's encoder has, or values that are not
            finite in float16.
        """
        card = self.model.card
        given = predictions.dense(features)
        if given.ndim != 2 or given.shape[1] != card.contract.width:
            raise errors.EncoderMismatchError(
                "features of the tiles",
                expected=f"{card.contract.width} columns, of encoder {card.contract.name!r}",
                found=f"shape {given.shape}",
                fix="extract the features with that encoder",
            )
        with np.errstate(over="ignore"):  # refused below
            rounded = given.astype(np.float16)
        if not np.isfinite(rounded).all():
            raise errors.EncoderMismatchError(
                "features of the tiles",
                expected="finite numbers below 65,504",
                found=f"{int((~np.isfinite(rounded)).any(axis=1).sum())} tiles with others",
            )
        if not len(rounded):
            return {gene: np.empty(0, np.float32) for gene in self.genes}
        cond = card.space.encode_condition(rounded)
        # One evaluation draws nothing: keys are needed and not used.
        keys = jax.random.split(jax.random.key(0), len(cond))
        values = card.space.values(self._predict(self.model.params, cond, keys)[0])
        return {gene: np.ascontiguousarray(values[:, k]) for k, gene in enumerate(self.genes)}

    def get_transform(self) -> None:
        """Returns no transform of images: the model takes features."""

    def to(self, device: Any) -> Self:
        """Returns the model itself: JAX chooses the device."""
        return self

    def try_compile(self, **compile_kws: Any) -> None:
        """Does nothing: the network is compiled by JAX at its first use."""


def _is_name(features: str, contract: embeddings.EncoderContract) -> bool:
    """Whether a name is another spelling of the contract's encoder."""
    try:
        return registry.resolve(features).name == contract.name
    except errors.ConfigError:  # an encoder of one's own
        return False


def _require_encoder(
    contract: embeddings.EncoderContract, features: embeddings.EncoderContract | str | None
) -> None:
    if isinstance(features, embeddings.EncoderContract):
        features.require_same(contract, where="the features and the model")
    elif features is not None and features != contract.name and not _is_name(features, contract):
        raise errors.EncoderMismatchError(
            "features of the tiles",
            expected=f"of encoder {contract.name!r}, {contract.width} wide",
            found=f"of {features!r}",
            fix="extract the features with the model's encoder",
        )
