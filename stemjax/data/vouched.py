"""Embeddings that a person says are the model's, though a tool or a revision is written otherwise.

A contract names the tool and the revision of the weights, since both can change the numbers. Two
tools that run one encoder on one file of weights agree but for rounding and resampling, and only a
person can know that they did. Everything else in the two contracts has to be the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float16

from stemjax.data import embeddings, patches, slides

FIELDS = ("source", "revision")
"""What may differ."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Vouched:
    """An encoder under the contract of a model: an `embeddings.Embedder`.

    Attributes:
      encoder: what embeds.
      contract: the model's.
    """

    encoder: embeddings.Encoder | embeddings.Embedder
    contract: embeddings.EncoderContract

    def embed(
        self,
        slide: slides.Slide,
        *,
        variants: int = embeddings.N_VARIANTS,
        workers: int = 1,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Float16[np.ndarray, "l v c"]:
        """What the encoder returns."""
        return patches.embed_slide(
            slide, self.encoder, variants=variants, workers=workers, progress=progress
        )

    def covered(self, slide: slides.Slide) -> slides.Slide:
        """The slide as the encoder covers it, with a note of what was vouched for."""
        if isinstance(self.encoder, embeddings.Embedder):
            slide = self.encoder.covered(slide)
        told = [
            f"{field} {getattr(self.encoder.contract, field)} for {getattr(self.contract, field)}"
            for field in FIELDS
            if getattr(self.encoder.contract, field) != getattr(self.contract, field)
        ]
        note = f"embeddings taken for the model's on request: {', '.join(told)}"
        return dataclasses.replace(slide, notes=(*slide.notes, note)) if told else slide


def vouch(
    encoder: embeddings.Encoder | embeddings.Embedder, contract: embeddings.EncoderContract
) -> Vouched:
    """Returns the encoder under a model's contract.

    Args:
      encoder: of the same encoder by another tool, or with weights of unknown revision.
      contract: the model's.

    Raises:
      EncoderMismatchError: they differ in anything but `FIELDS`.
    """
    theirs = {field: getattr(contract, field) for field in FIELDS}
    same = dataclasses.replace(encoder.contract, **theirs)
    same.require_same(contract, where="the encoder and the model")
    return Vouched(encoder=encoder, contract=contract)
