"""What an embedding is: the contract of the encoder that made it, and the encoders built in.

Two embeddings of equal width from different encoders look alike and mean nothing to each other's
models. So records, checkpoints and predictions carry an `EncoderContract`, which is compared field
by field, never by width alone. An `Encoder` turns patches into vectors; each patch gives eight, one
for each flip and quarter turn (the group D4), original first.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float16, Float32, UInt8

from stemjax import errors

if TYPE_CHECKING:
    from stemjax.data import slides

N_VARIANTS = 8
"""Flips and quarter turns of a patch: the order of the group D4."""

FOV_TOLERANCE = 0.05
"""Relative difference of the field of view above which two contracts differ."""

_NAMES = ("texture", "none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderContract:
    """All that decides what an embedding means.

    Attributes:
      name: canonical name of the encoder.
      width: number of features.
      input_px: side of the square that the encoder sees, in pixels of its input.
      fov_um: side of that square on the tissue in um; None is the published rule: a square of
        max(224, spot diameter) level-0 pixels around the spot's centre.
      resize: filter that brings a patch to ``input_px``.
      mean: per-channel mean taken off the pixels (in 0..1), empty where there is none.
      std: per-channel scale that divides them, empty where there is none.
      pooling: how the vector comes from the encoder's outputs.
      projection: the layer after pooling, or ``none``.
      source: the tool that made the embeddings.
      revision: version of the weights or of the features; changes whenever the numbers do.
    """

    name: str
    width: int
    input_px: int
    fov_um: float | None
    resize: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pooling: str
    projection: str
    source: str
    revision: str

    def __post_init__(self) -> None:
        # Both arrays and JSON lists come here; equality needs plain tuples.
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        for field in ("width", "input_px"):
            if getattr(self, field) < 1:
                raise errors.EncoderMismatchError(
                    f"the field {field!r} of the contract of encoder {self.name!r} cannot be right",
                    expected="a whole number of at least 1",
                    found=str(getattr(self, field)),
                    fix="Give the encoder's own value",
                )

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` takes back."""
        values = dataclasses.asdict(self)
        return values | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EncoderContract:
        """Returns the contract that `to_json` wrote.

        Raises:
          EncoderMismatchError: a field is missing, unknown or of another type.
        """
        if not isinstance(values, Mapping):
            raise _unreadable("a mapping of fields", type(values).__name__)
        fields = [field.name for field in dataclasses.fields(cls)]
        if set(values) != set(fields):
            missing = [name for name in fields if name not in values]
            unknown = sorted(set(values) - set(fields))
            raise _unreadable(
                f"the fields {', '.join(fields)}",
                f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}",
            )
        for name in fields:
            value = values[name]
            if not _fits(name, value):
                raise _unreadable(f"another type of value in the field {name!r}", repr(value))
        return cls(**values)

    def require_same(self, other: EncoderContract, *, where: str) -> None:
        """Returns if both contracts describe the same embeddings.

        Args:
          other: the contract to compare with.
          where: what the two belong to, e.g. ``the records and the checkpoint``.

        Raises:
          EncoderMismatchError: they differ; names the first field that does, and both values. The
            fields of view may differ by `FOV_TOLERANCE`.
        """
        for field in dataclasses.fields(self):
            ours, theirs = getattr(self, field.name), getattr(other, field.name)
            same = ours == theirs
            if field.name == "fov_um" and ours is not None and theirs is not None:
                same = abs(ours - theirs) <= FOV_TOLERANCE * max(abs(ours), abs(theirs))
            if not same:
                known = field.name in ("name", "width")
                raise errors.EncoderMismatchError(
                    f"the encoder contracts differ in the field {field.name!r} ({where}; encoders "
                    f"{self.name!r} and {other.name!r}"
                    + (f", both of {self.width:,} features)" if self.width == other.width else ")"),
                    expected=f"{field.name} = {_show(field.name, theirs)}"
                    + (f" ({other.described()})" if known else ""),
                    found=f"{field.name} = {_show(field.name, ours)}"
                    + (f" ({self.described()})" if known else ""),
                    fix="Embed the slides again with the encoder that is expected, or train on "
                    "these embeddings",
                    case="D15" if self.width != other.width else "D16",
                )

    def described(self) -> str:
        """Features, input and field of view, in words."""
        side = "of the published rule" if self.fov_um is None else f"of {self.fov_um:g} um"
        return f"{self.width:,} features, patches {side} at {self.input_px} px"


class Encoder(Protocol):
    """Turns patches into embeddings."""

    @property
    def contract(self) -> EncoderContract:
        """What the embeddings are."""
        ...

    def encode(self, patches: UInt8[np.ndarray, "n px px 3"]) -> Float32[np.ndarray, "n v c"]:
        """Embeddings of the eight variants of each patch, in the order of `apply_variant`.

        Args:
          patches: RGB, ``px`` = ``contract.input_px``.

        Raises:
          ImageError: another shape or type.
        """
        ...


@runtime_checkable
class Embedder(Protocol):
    """Embeds a slide at once: an encoder on an accelerator, or files of embeddings made earlier."""

    @property
    def contract(self) -> EncoderContract:
        """What the embeddings are."""
        ...

    def embed(
        self,
        slide: slides.Slide,
        *,
        variants: int = N_VARIANTS,
        workers: int = 1,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Float16[np.ndarray, "l v c"]:
        """Embeddings of the first ``variants`` variants of every spot, rows as ``slide.barcodes``.

        Fewer variants come back where there are no more.

        Args:
          slide: the slide.
          variants: 1 to `N_VARIANTS`, in the order of `apply_variant`.
          workers: threads or processes that read patches; changes no number.
          progress: called with spots done, spots in all, and what is being done.
        """
        ...

    def covered(self, slide: slides.Slide) -> slides.Slide:
        """The slide as far as there are embeddings of it, which `embed` then takes.

        Their files are among its ``sources``, and what was assumed or left out among its notes.
        """
        ...


def require_variants(variants: int) -> None:
    """Checks how many variants of each patch are asked for.

    Raises:
      ConfigError: there are not so many.
    """
    if not 1 <= variants <= N_VARIANTS:
        raise errors.ConfigError(
            "the number of variants of a patch cannot be right",
            expected=f"1 to {N_VARIANTS}",
            found=str(variants),
        )


def apply_variant(patch: np.ndarray, variant: int) -> np.ndarray:
    """The patch, flipped and turned: a view of shape [y x ...].

    Variants 0..3 turn it by as many quarter turns (`numpy.rot90`); 4..7 mirror left and right
    first, then turn by ``variant - 4``. Variant 0 is the patch itself.

    Args:
      patch: [y x ...], any type.
      variant: 0..7.
    """
    if not 0 <= variant < N_VARIANTS:
        raise errors.ConfigError(
            "there is no such variant of a patch",
            expected=f"0..{N_VARIANTS - 1}",
            found=str(variant),
            fix="Pick one of the eight flips and turns",
        )
    return np.rot90(patch[:, ::-1] if variant >= 4 else patch, variant % 4)


def constant_note(vectors: Float16[np.ndarray, "l v c"]) -> tuple[str, ...]:
    """The note that all spots have one embedding, which says nothing of any (case D18)."""
    first = vectors[:, 0]
    if len(first) < 2 or not first.any() or (first != first[:1]).any():
        return ()  # zeros have a note of their own, see `stemjax.data.builder`
    return (
        f"all {len(first):,} spots have the same embedding: a blank image, or a failed encoder?",
    )


def get_encoder(name: str) -> Encoder:
    """Returns the built-in encoder of that name.

    Raises:
      ConfigError: no encoder has it; lists those there are.
    """
    if name not in _NAMES:
        near = difflib.get_close_matches(str(name).lower(), _NAMES, n=1)
        raise errors.ConfigError(
            f"no encoder is called {name!r}",
            expected=f"one of {', '.join(_NAMES)}",
            fix=f"Did you mean {near[0]!r}?" if near else "Choose one of those",
        )
    # Late: both import this module for the contract.
    if name == "none":
        from stemjax.data import no_image

        return no_image.NoImageEncoder()
    from stemjax.data import texture

    return texture.TextureEncoder()


def _fits(name: str, value: Any) -> bool:
    """Whether a JSON value has the type of that field."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in ("width", "input_px"):
        return isinstance(value, int) and number
    if name == "fov_um":
        return value is None or number
    if name in ("mean", "std"):
        return isinstance(value, list | tuple) and all(
            isinstance(one, int | float) and not isinstance(one, bool) for one in value
        )
    return isinstance(value, str)


def _show(name: str, value: Any) -> str:
    if name == "fov_um":
        return "max(224 px, spot diameter)" if value is None else f"{value:g} um"
    return repr(value)


def _unreadable(expected: str, found: str) -> errors.EncoderMismatchError:
    return errors.EncoderMismatchError(
        "an encoder contract cannot be read",
        expected=expected,
        found=found,
        fix="It was written by another version or changed by hand: embed the slides again",
    )
