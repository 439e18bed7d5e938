"""stemjax's own embedding files: HEST-Benchmark's form, with the contract inside.

    embeddings (n, d)     of the patches as they are
    barcodes   (n, 1)     of the spots
    coords     (n, 2)     upper left corners, level-0 pixels
    variants   (n, v, d)  flips and turns in the order of `embeddings.apply_variant`, the patch as
                          it is first; where there are several
    attributes            stemjax_contract, stemjax_slide: JSON; the content's hash (`sealing`)

What reads HEST's benchmark reads them.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float

from stemjax import errors
from stemjax.data import disk, embeddings, integrity, patches, sealing, slides
from stemjax.data.embedding_files import hdf5
from stemjax.data.embedding_files.file import EmbeddingFile, naming, number, refused, shown
from stemjax.data.hdf5 import soundness

CONTRACT, SLIDE = "stemjax_contract", "stemjax_slide"


def is_one(opened: Any) -> bool:
    """Whether an opened h5 file is one of ours."""
    return CONTRACT in opened.attrs


def write(
    path: str | os.PathLike[str],
    values: Float[np.ndarray, "l v c"],
    slide: slides.Slide,
    contract: embeddings.EncoderContract,
) -> None:
    """Writes a slide's embeddings; `path` is at every moment the old file or the new one.

    Args:
      path: the file; its folder exists.
      values: rows as ``slide.barcodes``, variants in the order of `embeddings.apply_variant`;
        stored as float16 or float32, as given.
      slide: the slide.
      contract: what the embeddings are.

    Raises:
      EncoderMismatchError: they do not fit the slide or the contract, or are not finite.
      ResourceError: the disk is full.
    """
    path = pathlib.Path(path)
    expected = f"floats of shape ({slide.n_spots}, 1 to {embeddings.N_VARIANTS}, {contract.width})"
    fits = values.ndim == 3 and values.dtype in (np.float16, np.float32)
    if not fits or not 1 <= values.shape[1] <= embeddings.N_VARIANTS:
        found = f"{values.dtype} {values.shape}"
        raise refused(path, "cannot be written", expected=expected, found=found)
    if (values.shape[0], values.shape[2]) != (slide.n_spots, contract.width):
        raise refused(path, "cannot be written", expected=expected, found=str(values.shape))
    if not np.isfinite(values).all():
        raise refused(path, "cannot be written", expected="finite numbers", found="NaN or infinity")
    side = patches.patch_side_px(slide, contract)
    corners = np.floor(slide.pixel_xy.astype(np.float64) - side / 2 + 0.5).astype(np.int64)
    about = {
        "id": slide.id,
        "mpp": slide.mpp,
        "patch_px": side,
        "sources": dict(slide.sources),
    }
    with integrity.published_file(path, needed=values.nbytes) as temporary:
        # The newest form of structure has checksums: a flipped bit is an error, no wrong number.
        with (
            disk.opened_for_hdf5(temporary) as handle,
            h5py.File(handle, "w", libver="latest") as opened,
        ):
            made: Any = opened
            made["embeddings"] = np.ascontiguousarray(values[:, 0])
            made["barcodes"] = np.array([[one.encode()] for one in slide.barcodes])
            made["coords"] = corners
            if values.shape[1] > 1:
                made["variants"] = values
            made.attrs[CONTRACT] = np.bytes_(json.dumps(contract.to_json()))
            made.attrs[SLIDE] = np.bytes_(json.dumps(about))
        sealing.seal(temporary)


def is_written(
    path: str | os.PathLike[str],
    slide: slides.Slide,
    contract: embeddings.EncoderContract,
    *,
    variants: int = 1,
) -> bool:
    """Whether `write` wrote these embeddings of this slide already, with as many variants or more.

    A damaged file counts as not written, so that it is written again.

    Raises:
      EncoderMismatchError: the file is of another tool, encoder or version of the slide: writing
        would put other embeddings in its place.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return False
    with path.open("rb") as handle:
        is_hdf5 = handle.read(len(hdf5.MAGIC)) == hdf5.MAGIC
    try:
        soundness.require_sound(path, errors.EncoderMismatchError)
        with naming(path), hdf5.open_file(path) as opened:
            ours = is_one(opened)
            file = read(path, opened) if ours else None
            about = _json(path, hdf5.attributes(opened), SLIDE) if ours else {}
    except (errors.EncoderMismatchError, errors.UnsafeFileError):
        if is_hdf5:
            return False
        file, about = None, {}
    fix = "Give another folder, or remove the file to have it written anew"
    if file is None or file.contract is None:
        raise refused(path, "the file there is not one of stemjax's", fix=fix)
    file.contract.require_same(contract, where=f"{path}, which is there, and what is asked for")
    now = {"id": slide.id, "mpp": slide.mpp, "sources": dict(slide.sources)}
    changed = [name for name, value in now.items() if about.get(name) != value]
    changed += ["barcodes"] if file.barcodes != slide.barcodes else []
    if changed:
        raise refused(
            path,
            f"it was made from another version of slide {slide.id}",
            expected="the same sources, spots and pixel size",
            found=f"other {', '.join(changed)}",
            fix=fix,
        )
    return file.shape[1] >= variants


def read(path: pathlib.Path, opened: Any) -> EmbeddingFile:
    """The embeddings of an opened file that `write` wrote.

    Raises:
      EncoderMismatchError: it is damaged, a part is missing, or they do not fit together.
    """
    if wrong := sealing.damage(path):
        raise refused(
            path,
            "it is not as it was written",
            expected=f"the content that its {sealing.ATTRIBUTE} is of",
            found="; ".join(wrong[:3]),
            fix="Copy it again, or encode the slide again",
        )
    found = hdf5.datasets(path, opened)
    missing = [name for name in ("embeddings", "barcodes", "coords") if name not in found]
    if missing:
        raise refused(path, f"it lacks {', '.join(missing)}", found=", ".join(map(shown, found)))
    attrs = hdf5.attributes(opened)
    about = _json(path, attrs, SLIDE)
    try:
        contract = embeddings.EncoderContract.from_json(_json(path, attrs, CONTRACT))
    except errors.EncoderMismatchError as error:
        raise refused(
            path, error.what, expected=error.expected, found=error.found, fix=error.fix
        ) from error
    name = "variants" if "variants" in found else "embeddings"
    values = found[name]
    if values.ndim != (3 if name == "variants" else 2) or values.shape[-1] != contract.width:
        raise refused(
            path,
            f"{name!r} does not fit the contract in the file",
            expected=f"(n, variants, {contract.width}), or (n, {contract.width}) without variants",
            found=str(values.shape),
            fix="Encode the slide again",
        )
    slide_id = about.get("id")
    return EmbeddingFile(
        path=path,
        layout="stemjax",
        source=contract.source,
        shape=(values.shape[0], 1 if values.ndim == 2 else values.shape[1], contract.width),
        load=hdf5.loader(path, name),
        barcodes=hdf5.text(path, "barcodes", found["barcodes"]),
        xy=hdf5.coordinates(path, "coords", found["coords"]),
        patch_px=number(path, about, "patch_px"),
        fov_um=contract.fov_um,
        published_rule=contract.fov_um is None,
        mpp=number(path, about, "mpp"),
        slide_id=slide_id if isinstance(slide_id, str) else None,
        stated={"name": contract.name},
        contract=contract,
        parts=(path,),
    )


def _json(path: pathlib.Path, attrs: Mapping[str, Any], name: str) -> dict[str, Any]:
    try:
        value = json.loads(attrs[name])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise refused(path, f"the attribute {name!r} cannot be read", found=shown(error)) from error
    if not isinstance(value, dict):
        raise refused(path, f"the attribute {name!r} is no object", found=type(value).__name__)
    return value
