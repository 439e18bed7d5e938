"""Names that the command line and the code share, and how lists of names are written.

Here, in the lowest layer, so that ``stemjax --help`` knows them without importing jax.
"""

from __future__ import annotations

MODES = ("mean", "marginal", "pair", "draws")
"""How a prediction is made; see `stemjax.tasks.Sampling`."""

SAMPLERS = ("dpmpp2m", "dpmpp2m_sde", "ddim", "ancestral", "heun", "ab2", "ddpm", "consistency")
"""Step rules; see `stemjax.tasks.Sampling`."""

LADDERS = ("karras", "log_uniform", "vp_linear", "vp_cosine", "ddpm")
"""How noise levels are spaced; see `stemjax.tasks.Sampling`."""

VALUE_SPACES = ("log2p1", "log1p", "log1p_cp10k")
"""Units of expression; see `stemjax.data.transforms`."""

LAYOUTS = ("st", "hest", "visium", "visium-hd", "xenium", "h5ad", "spatialdata", "image")
"""How folders of slides are laid out; see `stemjax.data.layouts`."""

DOMAIN_METHODS = ("kmeans", "gmm", "leiden")
"""How spots are clustered into domains; see `stemjax.eval.clustering`."""


def split_names(text: str) -> tuple[str, ...]:
    """Returns the names of a comma-separated list."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
