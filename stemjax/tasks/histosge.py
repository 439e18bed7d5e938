"""HisToSGE: expression of a spot from the spots around it, as a mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from stemjax.data import components
from stemjax.diffusion import denoiser
from stemjax.models import network
from stemjax.tasks import windows
from stemjax.tasks.sampling import Sampling
from stemjax.typing import Batch, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class HisToSGETask:
    """Expression from patches and positions, in the corrected form also from what was measured.

    Attributes:
      network: as `stemjax.models.histosge.make_corrected` or ``make_published`` returns it first.
      features: the network that it returns second, up to the tokens.
      genes: size of the panel.
      form: ``corrected`` asks for the first spot of each window, ``published`` for all of them.
      hide: largest share of a window's measured spots that training hides at random.
      noise: standard deviation of the noise that training adds to the expression that tokens see;
        what is interpolated has none.
      condition_noise: the same for the patch embeddings.
      members: networks that are trained side by side and averaged. A section has hundreds of
        spots and networks fitted to so few differ by chance; their mean is better than any.
      bag: share of the spots that each member is not trained on, so that their mean there is that
        of a hidden spot (`left_out_mean`; Breiman 1996, Out-of-bag estimation).
    """

    network: network.Network
    features: network.Network
    genes: int
    form: Literal["corrected", "published"] = "corrected"
    hide: float = 0.0
    noise: float = 0.0
    condition_noise: float = 0.0
    members: int = 1
    bag: float = 0.0

    @property
    def levels(self) -> tuple[float, float]:
        """None are visited: there is no diffusion."""
        return 0.0, 0.0

    @property
    def row_bytes(self) -> int:
        """Unknown: windows are small."""
        return 0

    @property
    def estimate(self) -> Sampling:
        """The mean."""
        return Sampling(mode="mean")

    def sampling(self, **asked: Any) -> Sampling:
        """Returns the mean, which is all there is.

        Raises:
          ConfigError: draws are asked for.
        """
        sampling = Sampling(**asked)
        windows.require_mean(sampling)
        return sampling

    def evaluations(self, sampling: Sampling) -> int:
        """Returns 1."""
        windows.require_mean(sampling)
        return 1

    def init(self, key: Key[Array, ""]) -> Params:
        """Returns fresh parameters; of several members with a leading axis of theirs."""
        if self.members == 1:
            return self.network.init(key)
        return jax.vmap(self.network.init)(jax.random.split(key, self.members))

    def fit(self, params: Params, rows: Iterable[Float[np.ndarray, "n g"]]) -> Params:
        """Returns fresh parameters with the training rows' principal components in them.

        Of the published form, which has none, as they are.
        """
        if self.form == "published":
            return params
        fitted: Any = dict(params)
        count = fitted["loadings"].shape[-2]
        found = components.find_components(rows, count)
        for name in ("centre", "loadings"):
            value = np.broadcast_to(getattr(found, name), fitted[name].shape)
            fitted[name] = jax.device_put(value, fitted[name].sharding)
        return fitted

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Returns the mean squared error over the spots that are asked for.

        Members are trained each for itself, but for the clip of their common gradient: it is the
        mean of their losses.
        """
        given: Any = batch
        weight = self._trained_on(jnp.asarray(given["xy"]))
        if self.members == 1:
            loss = self._loss(params, batch, key, weight[0])
        else:
            keys = jax.random.split(key, self.members)
            each = jax.vmap(self._loss, in_axes=(0, None, 0, 0))
            loss = jnp.mean(each(params, batch, keys, weight))
        return loss, {"loss": loss}

    def _trained_on(self, xy: Float[Array, "b l 2"]) -> Float[Array, "m b"]:
        """1 where a member is trained on a window's first spot: a function of where that lies."""
        if not self.bag:
            return jnp.ones((self.members, xy.shape[0]), jnp.float32)

        def draw(place: Array) -> Array:
            words = jax.lax.bitcast_convert_type(place.astype(jnp.float32), jnp.uint32)
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), words[0]), words[1])
            return jax.random.uniform(key, (self.members,), jnp.float32)

        return (jax.vmap(draw)(xy[:, 0]) >= self.bag).astype(jnp.float32).T

    def _loss(
        self, params: Params, batch: Batch, key: Key[Array, ""], weight: Float[Array, " b"]
    ) -> Float[Array, ""]:
        given: Any = {name: jnp.asarray(values) for name, values in batch.items()}
        key_hide, key_seen, key_cond = jax.random.split(key, 3)
        given["shown"] = windows.hide_some(given["shown"], key_hide, self.hide)
        given["cond"] = windows.disturb(given["cond"], key_cond, self.condition_noise)
        seen = windows.disturb(given["x0"], key_seen, self.noise)
        output = self._apply(self.network, params, given, seen)
        if self.form == "published":
            squared = jnp.square(output - given["x0"]).reshape(-1, self.genes)
            rows = denoiser.mean_over_measured(squared, given["mask"].reshape(-1, self.genes))
            asked = given["asked"].reshape(-1)
            return jnp.sum(rows * asked) / jnp.maximum(jnp.sum(asked), 1)
        squared = jnp.square(output - given["x0"][:, 0])
        rows = denoiser.mean_over_measured(squared, given["mask"][:, 0])
        return jnp.sum(rows * weight) / jnp.maximum(jnp.sum(weight), 1)

    def predict(
        self, params: Params, cond: windows.Inputs, keys: Key[Array, " b"], *, sampling: Sampling
    ) -> Float[Array, "n b ..."]:
        """Returns the mean, [1 b g], or in the published form that of every token, [1 b l g].

        Raises:
          ConfigError: draws are asked for.
        """
        windows.require_mean(sampling)
        return self.mean(params, cond)[None]

    def mean(self, params: Params, given: windows.Inputs) -> Float[Array, "b ..."]:
        """Returns the mean over the members, as `predict`."""
        return jnp.mean(self._each(self.network, params, given), axis=0)

    def left_out_mean(self, params: Params, given: windows.Inputs) -> Float[Array, "b g"]:
        """Returns the mean over the members that are not trained on a window's first spot.

        Over all members, where all are trained on it.
        """
        weight = 1 - self._trained_on(given["xy"])
        weight = jnp.where(jnp.sum(weight, axis=0) > 0, weight, 1.0)
        weight = weight / jnp.sum(weight, axis=0, keepdims=True)
        return jnp.einsum("mb,mbg->bg", weight, self._each(self.network, params, given))

    def _each(
        self, net: network.Network, params: Params, given: windows.Inputs
    ) -> Float[Array, "m b ..."]:
        """What a network gives with the weights of each member."""
        if self.members == 1:
            return self._apply(net, params, given, given["x0"])[None]
        return jax.vmap(lambda own: self._apply(net, own, given, given["x0"]))(params)

    def hidden(
        self, params: Params, cond: windows.Inputs, keys: Key[Array, " b"]
    ) -> Float[Array, "1 b ..."]:
        """Returns the features that expression is read off: [1 b d], published [1 b l d].

        Those of several members stand side by side.
        """
        found = jnp.concatenate(list(self._each(self.features, params, cond)), axis=-1)
        return (found if self.form == "published" else found[:, 0])[None]

    def _apply(self, net: network.Network, params: Params, given: Any, seen: Array) -> jax.Array:
        if self.form == "published":
            return net.apply(params, given["cond"], given["place"], given["present"])
        x, told = (windows.seen(values, given["shown"]) for values in (given["x0"], seen))
        names = ("shown", "present", "xy")
        return net.apply(params, given["cond"], x, told, *(given[k] for k in names))
