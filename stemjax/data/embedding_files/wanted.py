"""What a user says of embeddings made elsewhere, and what a registry of encoders is asked."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Protocol

from stemjax import errors
from stemjax.data import embeddings

_FREE = ("input_px", "resize", "mean", "std", "pooling", "projection", "source", "revision")


class Known(Protocol):
    """What a registry of encoders knows of one."""

    def __call__(
        self,
        name: str,
        *,
        patch_um: float | None,
        source: str,
        revision: str,
        pooling: str | None,
        projection: str | None,
        width: int | None,
    ) -> embeddings.EncoderContract | None:
        """The contract of an encoder, None for one that is not known.

        Args:
          name: any of its names.
          patch_um: side of the patches on the tissue; the contract's field of view is what the
            network sees of them. None is the published rule, or not known.
          source: the tool.
          revision: of the weights.
          pooling: how the vectors were pooled; None is the usual way, or what the width shows.
          projection: the layer after that; None is the usual one.
          width: features of the embeddings; None where they are of several encoders.

        Raises:
          ConfigError: no encoder has a name like it.
          EncoderMismatchError: the encoder has no such width, pooling or projection.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a user says of embeddings made elsewhere.

    Attributes:
      encoder: its name, or the whole contract.
      known: what is known of encoders.
      fov_um: side on the tissue of what the network sees; None to take it from file and slide.
      allow_fov_mismatch: whether patches of a slide may differ from it by more than
        `embeddings.FOV_TOLERANCE`.
      fields: other fields of the contract, over what is known.

    Raises:
      EncoderMismatchError: a field cannot be given.
    """

    encoder: str | embeddings.EncoderContract | None = None
    known: Known | None = None
    fov_um: float | None = None
    allow_fov_mismatch: bool = False
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str | None:
        """The encoder's name."""
        if isinstance(self.encoder, embeddings.EncoderContract):
            return self.encoder.name
        return self.encoder

    @property
    def spelled(self) -> str:
        """The encoder's name without case, signs and owner."""
        return spelled(self.name or "")

    def __post_init__(self) -> None:
        unknown = sorted(set(self.fields) - set(_FREE))
        if unknown:
            raise errors.EncoderMismatchError(
                f"the fields {', '.join(unknown)} of a contract cannot be given apart",
                expected=f"some of {', '.join(_FREE)}",
                fix="Name and field of view have arguments of their own; the width is the file's",
            )


def spelled(name: str) -> str:
    """A name without case, signs and owner: MahmoodLab/UNI is uni."""
    return re.sub(r"[^a-z0-9+]", "", name.lower().rpartition("/")[2])
