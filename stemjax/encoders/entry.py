"""What is known of a published encoder: how it is fed and pooled, and where its weights are had."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from stemjax import errors
from stemjax.data import embeddings
from stemjax.models.vit.spec import ViTSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A published encoder.

    Attributes:
      name: canonical name.
      aliases: how TRIDENT, LazySlide and HEST-bench spell it, where that is another spelling.
      hub: its repository on the hub, ``OWNER/NAME``; empty where it is in none.
      files: the weights' file there, the first of these that exists.
      licence: of the weights, in words.
      gated: whether the hub asks for an account that was granted access.
      input_px: side of the square that it sees, in pixels of its input.
      resize: filter that brings a patch there.
      mean: per-channel mean taken off the pixels (in 0..1).
      std: per-channel scale that divides them.
      widths: features by pooling; the first pooling is the usual one.
      projections: layers that may follow the pooling; the first is the usual one.
      patch_px: side of the patches that TRIDENT cuts for it, in pixels of ``magnification``.
      magnification: 20 is 0.5 um a pixel.
      crop: share of such a patch's side that the network sees (GigaPath's transform cuts the middle
        224 of 256).
      spec: how the network is built; None where it does not run here.
      naming: whose names its weights bear, see `stemjax.encoders.names`; empty without a spec.
    """

    name: str
    aliases: tuple[str, ...] = ()
    hub: str = ""
    files: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")
    licence: str
    gated: bool
    input_px: int
    resize: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    widths: Mapping[str, int]
    projections: tuple[str, ...] = ("none",)
    patch_px: int
    magnification: int = 20
    crop: float = 1.0
    spec: ViTSpec | None = None
    naming: str = ""

    @property
    def pooling(self) -> str:
        """The usual pooling."""
        return next(iter(self.widths))

    @property
    def width(self) -> int:
        """Features with the usual pooling."""
        return self.widths[self.pooling]

    @property
    def default_fov_um(self) -> float:
        """Side on the tissue, in um, of what the network sees of TRIDENT's patch for it."""
        return self.patch_px * 10.0 / self.magnification * self.crop

    def contract(
        self,
        *,
        fov_um: float | None,
        pooling: str | None = None,
        projection: str | None = None,
        source: str,
        revision: str,
    ) -> embeddings.EncoderContract:
        """Returns what embeddings of this encoder are.

        Args:
          fov_um: side of the square that the network sees, in um; None is Stem's published rule.
          pooling: one of ``widths``; None is the usual one.
          projection: one of ``projections``; None is the usual one.
          source: the tool that makes or made them.
          revision: of the weights.

        Raises:
          ConfigError: it has no such pooling or projection.
        """
        pooling = self.pooling if pooling is None else pooling
        projection = self.projections[0] if projection is None else projection
        for what, names, found in (
            ("pooling", tuple(self.widths), pooling),
            ("projection", self.projections, projection),
        ):
            if found not in names:
                raise errors.ConfigError(
                    f"the {what} of the encoder {self.name!r}",
                    expected=f"one of {', '.join(names)}",
                    found=repr(found),
                )
        return embeddings.EncoderContract(
            name=self.name,
            width=self.widths[pooling],
            input_px=self.input_px,
            fov_um=fov_um,
            resize=self.resize,
            mean=self.mean,
            std=self.std,
            pooling=pooling,
            projection=projection,
            source=source,
            revision=revision,
        )

    def pooling_of(self, width: int) -> str | None:
        """Returns the pooling that gives so many features; None where none does."""
        return next((name for name, found in self.widths.items() if found == width), None)

    @property
    def how_to_get(self) -> str:
        """Where the weights are had, in sentences for the fix of an error."""
        if not self.hub:
            return f"Its weights are on no hub ({self.licence})"
        terms = f"licence {self.licence}"
        if self.gated:
            terms += "; gated: accept its terms on the page of the repository, then `hf auth login`"
        return (
            f"Its weights are in {self.hub} ({terms}). "
            f"Fetch them with `stemjax encode --encoder {self.name} --fetch REVISION` (a commit of "
            f"40 digits) or with `hf download {self.hub} {self.files[0]}`, and give the file"
        )
