"""The encoder that looks at nothing: for slides without an image.

Every spot has the same embedding, the number 0. A model on such records learns the law of the
profiles and nothing of where they lie: what an image adds is what another model does better, and
baselines, given genes and exchange of profiles need no image. Records of it do not mix with those
of any other encoder.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, UInt8

from stemjax.data import embeddings

CONTRACT = embeddings.EncoderContract(
    name="none",
    width=1,
    input_px=1,
    fov_um=None,
    resize="none",
    mean=(),
    std=(),
    pooling="none",
    projection="none",
    source="stemjax",
    revision="1",
)


class NoImageEncoder:
    """Gives every patch the embedding 0; `patches.embed_slide` asks it for none."""

    @property
    def contract(self) -> embeddings.EncoderContract:
        """What the embeddings are."""
        return CONTRACT

    def encode(self, patches: UInt8[np.ndarray, "n px px 3"]) -> Float32[np.ndarray, "n v 1"]:
        """Zeros, whatever the patches hold."""
        return np.zeros((len(patches), embeddings.N_VARIANTS, CONTRACT.width), np.float32)


def is_of(contract: embeddings.EncoderContract) -> bool:
    """Whether the embeddings of that contract are of this encoder, and of no patch."""
    return contract.name == CONTRACT.name
