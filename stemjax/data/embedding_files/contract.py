"""The contract of embeddings made elsewhere: what their file says, and what has to be said for it.

A width is no proof: ResNet-50 and UNI both give 1,024 features, CONCH 512 with its projection and
without. So an encoder has a name, from the file or from the user, and where both name one they
have to agree. The field of view is that of the patches on this slide's tissue where their side in
pixels is known, else what the file states for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from stemjax import errors
from stemjax.data import embeddings, slides
from stemjax.data.embedding_files.file import EmbeddingFile, refused
from stemjax.data.embedding_files.wanted import Wanted, spelled

AS_IN_FILE = "as in file"

NOMINAL = (0.55, 1.5)
"""Ratios of the measured to the nominal field of view that magnifications explain: TRIDENT calls
.3 to .6 um a pixel 20x. Beyond, the pixel size of the slide or of the file is wrong."""

_INPUT_PX = 224


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settled:
    """A contract, and in words what of it was assumed."""

    contract: embeddings.EncoderContract
    notes: tuple[str, ...] = ()


def contract_for(
    file: EmbeddingFile, slide: slides.Slide | None = None, wanted: Wanted | None = None
) -> Settled:
    """What the embeddings of a file are.

    Args:
      file: the embeddings.
      slide: what they are of; gives the pixel size. Without it the field of view is the nominal
        one: 10 um a pixel over the magnification.
      wanted: what the user says.

    Raises:
      EncoderMismatchError: no one names the encoder, file and user name two, the width is another
        than the encoder's, or nothing gives the field of view.
      PixelSizeError: file and slide disagree about the size of a pixel.
    """
    wanted = wanted or Wanted()
    if slide is not None:
        _require_scale(file, slide)
    template, notes = _template(file, _patch_um(file, slide), wanted)
    fov_um, how = _fov(file, template.fov_um, wanted)
    if how:
        notes += (how,)
    if file.contract is not None:
        return Settled(contract=dataclasses.replace(template, fov_um=fov_um), notes=notes)
    stated = {name: file.stated[name] for name in ("resize",) if name in file.stated}
    made = dataclasses.replace(template, fov_um=fov_um, **(stated | dict(wanted.fields)))
    return Settled(contract=made, notes=notes)


def _patch_um(file: EmbeddingFile, slide: slides.Slide | None) -> float | None:
    """Side of the file's patches on the tissue; None for the published rule, or if none knows."""
    if file.published_rule:
        return None
    if slide is not None and file.patch_px is not None:
        return file.patch_px * slide.mpp
    return file.fov_um


def _template(
    file: EmbeddingFile, patch_um: float | None, wanted: Wanted
) -> tuple[embeddings.EncoderContract, tuple[str, ...]]:
    """The contract of the file's encoder; its field of view is that of the file's patches."""
    whole = wanted.encoder if isinstance(wanted.encoder, embeddings.EncoderContract) else None
    name = wanted.name
    said = file.stated.get("name")
    if not (said or name or file.guess):
        raise _nameless(file)
    by_file, by_user = _candidates(file, patch_um, wanted)
    _require_one_encoder(file, by_file, by_user, wanted)
    if file.contract is not None:
        if whole is not None:
            file.contract.require_same(
                dataclasses.replace(whole, fov_um=file.contract.fov_um),
                where=f"{file.path} and the encoder asked for",
            )
        return dataclasses.replace(file.contract, fov_um=patch_um), ()
    if whole is not None:
        if whole.width != file.width:
            raise refused(
                file.path,
                f"the width is not that of the encoder {whole.name!r}",
                expected=f"{whole.width} features",
                found=str(file.width),
                fix="It is another encoder, or pooled in another way",
            )
        # What the network sees may be less than the patch: GigaPath cuts its middle.
        seen = by_user.fov_um if by_user is not None else patch_um
        return dataclasses.replace(whole, fov_um=seen), ()
    if (found := by_user or by_file) is not None:
        return found, ()
    if wanted.known is not None and not (name or said):
        raise _nameless(file)
    chosen = str(name or said or file.guess)
    note = (
        f"nothing is known of the encoder {chosen!r}: its input, normalisation and pooling are "
        f"recorded as {AS_IN_FILE!r}"
    )
    return _unknown(file, chosen, patch_um), (note,)


def _candidates(
    file: EmbeddingFile, patch_um: float | None, wanted: Wanted
) -> tuple[embeddings.EncoderContract | None, embeddings.EncoderContract | None]:
    """What is known of the encoder that the file names, and of that which the user names."""
    said, whole = file.stated.get("name") or file.guess, not isinstance(wanted.encoder, str)
    by_file = by_user = None
    try:
        by_user = _look_up(file, wanted.name, patch_um, wanted) if wanted.name else None
    except (errors.ConfigError, errors.EncoderMismatchError):
        # A whole contract needs no registry, nor does a file of ours that says the same.
        if not whole and not (file.contract and spelled(file.contract.name) == wanted.spelled):
            raise
    try:
        by_file = _look_up(file, str(said), patch_um, wanted) if said else None
    except errors.ConfigError:
        by_file = None
    except errors.EncoderMismatchError:
        if wanted.name is None and file.contract is None:
            raise
    return by_file, by_user


def _look_up(
    file: EmbeddingFile, name: str, patch_um: float | None, wanted: Wanted
) -> embeddings.EncoderContract | None:
    """The contract of an encoder, or of several joined by ``+``, as the file has it."""
    if wanted.known is None:
        return None
    names = name.split("+")
    widths = file.stated.get("widths", (file.width,))
    if len(widths) != len(names):
        widths = (None,) * len(names)
    found = []
    for one, width in zip(names, widths):
        try:
            known = wanted.known(
                one,
                patch_um=patch_um,
                source=file.source,
                revision=str(wanted.fields.get("revision", AS_IN_FILE)),
                pooling=wanted.fields.get("pooling", file.stated.get("pooling")),
                projection=wanted.fields.get("projection", file.stated.get("projection")),
                width=width,
            )
        except errors.EncoderMismatchError as error:
            raise refused(
                file.path, error.what, expected=error.expected, found=error.found, fix=error.fix
            ) from error
        if known is None:
            return None
        found.append(known)
    made = found[0] if len(found) == 1 else _side_by_side(found)
    if made.width != file.width:
        raise refused(
            file.path,
            f"the width is not that of the encoder {made.name!r} ({made.pooling})",
            expected=f"{made.width} features",
            found=str(file.width),
            fix="It is another encoder, or pooled in another way: state the whole contract, "
            "encoder=EncoderContract(...)",
        )
    return made


def _side_by_side(found: Sequence[embeddings.EncoderContract]) -> embeddings.EncoderContract:
    """Embeddings of several encoders joined: what they see is that of the first."""
    joined: dict[str, Any] = {
        field: "+".join(getattr(one, field) for one in found)
        for field in ("name", "pooling", "projection", "revision")
    }
    return dataclasses.replace(
        found[0],
        width=sum(one.width for one in found),
        mean=tuple(value for one in found for value in one.mean),
        std=tuple(value for one in found for value in one.std),
        **joined,
    )


def _require_one_encoder(
    file: EmbeddingFile,
    by_file: embeddings.EncoderContract | None,
    by_user: embeddings.EncoderContract | None,
    wanted: Wanted,
) -> None:
    """Refuses a file of another encoder than the user names.

    A name that is only guessed, or that a registry does not know, is no proof.
    """
    said = file.stated.get("name")
    if not wanted.name:
        return
    if by_file is not None:
        theirs = by_file.name
    else:
        theirs = said if wanted.known is None or file.contract is not None else None
    ours = by_user.name if by_user is not None else wanted.name
    if theirs is None or spelled(theirs) == spelled(ours):
        return
    raise refused(
        file.path,
        "its embeddings are of another encoder than is asked for, whatever their width",
        expected=f"the encoder {ours!r}",
        found=f"{said or file.guess!r} by its own account, {file.width} features",
        fix="Give the file of that encoder, or name the one it has",
    )


def _nameless(file: EmbeddingFile) -> errors.EncoderMismatchError:
    hint = f"; it is called {file.guess!r}" if file.guess else ""
    return refused(
        file.path,
        f"it does not say which encoder made the embeddings{hint}",
        expected=f"an encoder of {file.width} features",
        fix="Name it: encoder=...",
    )


def _unknown(file: EmbeddingFile, name: str, patch_um: float | None) -> embeddings.EncoderContract:
    return embeddings.EncoderContract(
        name=name,
        width=file.width,
        input_px=_INPUT_PX,
        fov_um=patch_um,
        resize=AS_IN_FILE,
        mean=(),
        std=(),
        pooling=AS_IN_FILE,
        projection=AS_IN_FILE,
        source=file.source,
        revision=AS_IN_FILE,
    )


def _fov(file: EmbeddingFile, found: float | None, wanted: Wanted) -> tuple[float | None, str]:
    """Side of what the network sees in um, None for the published rule; and a note.

    Args:
      file: the embeddings.
      found: what file and slide give.
      wanted: may state it.
    """
    given = wanted.fov_um
    if given is None and isinstance(wanted.encoder, embeddings.EncoderContract):
        given = wanted.encoder.fov_um
    if given is None and file.contract is not None:
        given = file.contract.fov_um
    if given is None and file.published_rule:
        return None, ""
    if given is None and found is None:
        raise refused(
            file.path,
            "it does not say how much tissue a patch shows",
            expected="the side of a patch in um, of which model and records depend",
            found="neither a magnification nor a pixel size",
            fix="Give it: fov_um=... (256 px at 20x, .5 um a pixel, are 128 um)",
        )
    if given is None:
        return found, ""
    if file.published_rule:
        raise refused(
            file.path,
            "patches follow the published rule, max(224 px, spot diameter)",
            expected="no field of view of its own",
            found=f"fov_um = {given:g}",
            fix="Leave fov_um away",
        )
    if found is None or abs(found - given) <= embeddings.FOV_TOLERANCE * max(found, given):
        return given, ""
    if not wanted.allow_fov_mismatch:
        raise refused(
            file.path,
            "patches show another piece of tissue than is stated",
            expected=f"fov_um = {given:g} um, {embeddings.FOV_TOLERANCE:.0%} more or less",
            found=f"{found:.4g} um",
            fix="Tile the slide at the same um per pixel, or accept it: allow_fov_mismatch=True",
        )
    return given, f"patches of {file.path.name} are {found:.4g} um wide, not {given:g} um"


def _require_scale(file: EmbeddingFile, slide: slides.Slide) -> None:
    """Refuses a file whose pixel size, stated or nominal, is not the slide's."""
    if file.mpp is not None:
        if abs(file.mpp - slide.mpp) <= embeddings.FOV_TOLERANCE * max(file.mpp, slide.mpp):
            return
        raise errors.PixelSizeError(
            f"{file.path} and slide {slide.id} disagree about the size of a pixel",
            expected=f"{slide.mpp:.4g} um, as the slide",
            found=f"{file.mpp:.4g} um",
            fix="Correct the pixel size of the one that is wrong (mpp=), or embed the slide again",
        )
    if file.patch_px is None or file.fov_um is None:
        return
    ratio = file.patch_px * slide.mpp / file.fov_um
    if not NOMINAL[0] <= ratio <= NOMINAL[1]:
        raise errors.PixelSizeError(
            f"{file.path} and slide {slide.id} disagree about the size of a pixel",
            expected=f"patches of about {file.fov_um:.4g} um, by the file's magnifications",
            found=f"{file.patch_px:g} px of {slide.mpp:.4g} um: {file.patch_px * slide.mpp:.4g} um",
            fix="Correct the slide's pixel size (mpp=), or the magnification given to the tool",
        )
