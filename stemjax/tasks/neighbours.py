"""Stem with neighbours: diffusion given a spot's patch and what was measured around it.

    window -> regression (`HisToSGETask`) -> the mean, which is trained as a mean
           -> weighted means of the measured profiles, distances --joined to the embedding--> cond
    cond -> StemTask, which diffuses what the regression leaves: the spread about the mean

Diffusing the rest about a regression is CorrDiff's form (Mardani and others 2023, arXiv
2309.15214). A section has hundreds of spots: a diffusion network that has to find the mean as well
fits it to chance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from stemjax.diffusion import denoiser
from stemjax.models import histosge
from stemjax.tasks import windows
from stemjax.tasks.histosge import HisToSGETask
from stemjax.tasks.sampling import Sampling
from stemjax.tasks.stem import StemTask
from stemjax.typing import Batch, Params

NEAREST = 4
"""Neighbours whose distances the condition tells."""


def summary_width(genes: int, reaches: int) -> int:
    """Returns the width of `NeighbourTask.summary`."""
    return reaches * genes + 2 * NEAREST + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeighbourTask:
    """A regression on the window, and a StemTask for what it leaves.

    The StemTask's condition is the patch embedding and a summary of the measured neighbours.

    Attributes:
      regression: predicts the mean; of the form ``corrected``.
      edm: draws the rest; its network's condition is as wide as the embedding and `summary_width`.
      reaches_um: standard deviations, in um, of the Gaussian weights by distance, one for each
        mean of the measured neighbours.
      hide: largest share of a window's measured spots that training hides at random.
    """

    regression: HisToSGETask
    edm: StemTask
    reaches_um: tuple[float, ...]
    hide: float = 0.0

    @property
    def genes(self) -> int:
        """Size of the panel."""
        return self.edm.genes

    @property
    def levels(self) -> tuple[float, float]:
        """Those of the diffusion."""
        return self.edm.levels

    @property
    def extra_evaluations(self) -> int:
        """One, of the regression, beside those of the diffusion."""
        return 1 + self.edm.extra_evaluations

    @property
    def row_bytes(self) -> int:
        """Bytes of the diffusion network's largest array for one row."""
        return self.edm.row_bytes

    @property
    def estimate(self) -> Sampling:
        """The regression."""
        return Sampling(mode="mean")

    def sampling(self, **asked: Any) -> Sampling:
        """Returns what is asked for, with the defaults of `Sampling`."""
        return self.edm.sampling(**asked)

    def evaluations(self, sampling: Sampling) -> int:
        """Returns the network evaluations that a spot costs."""
        if sampling.mode == "mean":
            return 1
        return 1 + self.edm.evaluations(sampling)

    def init(self, key: Key[Array, ""]) -> Params:
        """Returns fresh parameters of both."""
        key_regression, key_edm = jax.random.split(key)
        return {
            "regression": self.regression.init(key_regression),
            "denoiser": self.edm.init(key_edm),
        }

    def fit(self, params: Params, rows: Iterable[Float[np.ndarray, "n g"]]) -> Params:
        """Returns fresh parameters with those of the regression as it fits them."""
        return {**params, "regression": self.regression.fit(params["regression"], rows)}

    def means(self, given: windows.Inputs) -> Float[Array, "b m g"]:
        """Returns Gaussian-weighted means of the measured neighbours, 0 where there is none."""
        square = jnp.sum((given["xy"] - given["xy"][:, :1]) ** 2, axis=-1)
        reach = jnp.asarray(np.asarray(self.reaches_um), jnp.float32)
        logits = -square[:, None] / (2 * reach[None, :, None] ** 2)
        shown = given["shown"][:, None]
        # Relative to the nearest, so that far neighbours alone still have weights.
        weights = jax.nn.softmax(jnp.where(shown > 0, logits, -1e30), axis=-1)
        return jnp.einsum("bml,blg->bmg", weights, windows.seen(given["x0"], given["shown"]))

    def summary(self, given: windows.Inputs) -> Float[Array, "b s"]:
        """Returns what the condition tells of the neighbours: means, distances, how many."""
        means = self.means(given)
        distance = histosge.distances(given["xy"][:, :1], given["xy"][:, 1:])[:, 0]
        near = (slice(None), slice(0, NEAREST))
        shown = given["shown"][:, 1:]
        told = jnp.log1p(distance[near]) * shown[near]
        share = jnp.mean(shown, axis=-1, keepdims=True)
        parts = [means.reshape(means.shape[0], -1), told, shown[near], share]
        return jnp.concatenate(parts, axis=-1)

    def condition(self, given: windows.Inputs) -> Float[Array, "b c"]:
        """Returns the patch embedding of each window's first spot, and the summary beside it."""
        return jnp.concatenate([given["cond"][:, 0], self.summary(given)], axis=-1)

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Returns the regression's loss and the diffusion's of what the regression leaves.

        Neither trains the other's weights: the diffusion takes the regression as it is.
        """
        given: Any = {name: jnp.asarray(values) for name, values in batch.items()}
        key_regression, key_hide, key = jax.random.split(key, 3)
        fit, _ = self.regression.loss(params["regression"], batch, key_regression)
        given["shown"] = windows.hide_some(given["shown"], key_hide, self.hide)
        # What members leave that have not seen the spot is what is left of a hidden one.
        centre = self.regression.left_out_mean(params["regression"], given)
        row = Batch(
            cond=self.condition(given),
            x0=given["x0"][:, 0] - jax.lax.stop_gradient(centre),
            mask=given["mask"][:, 0],
        )
        loss, parts = self.edm.loss(params["denoiser"], row, key)
        return loss + fit, {**parts, "loss": loss + fit, "loss_regression": fit}

    def denoiser(
        self, params: Params, cond: windows.Inputs, *, repeat: int = 1
    ) -> denoiser.Denoiser:
        """Returns D(x; sigma) for every spot ``repeat`` times in a row, at one sigma a spot."""
        joined, centre = self._bound(params, cond)
        bound = self.edm.denoiser(params["denoiser"], joined, repeat=repeat)
        return denoiser.centred(bound, jnp.repeat(centre, repeat, axis=0))

    def predict(
        self, params: Params, cond: windows.Inputs, keys: Key[Array, " b"], *, sampling: Sampling
    ) -> Float[Array, "n b g"]:
        """Returns draws in the model's space, as `StemTask.predict`; the mean is the regression's.

        Raises:
          ConfigError: a mode or sampler that this model was not trained for.
        """
        if sampling.mode == "mean":
            return self.regression.predict(params["regression"], cond, keys, sampling=sampling)
        joined, centre = self._bound(params, cond)
        drawn = self.edm.predict(params["denoiser"], joined, keys, sampling=sampling)
        if sampling.mode == "marginal":
            return drawn.at[0].add(centre)
        return drawn + centre[None]

    def _bound(self, params: Params, given: windows.Inputs) -> tuple[Array, Array]:
        """The condition of each window's first spot, and the regression's mean of it."""
        return self.condition(given), self.regression.mean(params["regression"], given)
