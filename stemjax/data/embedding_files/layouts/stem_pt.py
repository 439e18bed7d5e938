"""Stem's own embeddings: PyTorch files without a name or a place for any row.

Under ``processed_data/``: ``1spot_uni_ebd/{id}_uni.pt`` (n, 1024) and
``1spot_conch_ebd/{id}_conch.pt`` (n, 512), and beside them ``..._ebd_aug/{id}_..._aug.pt``
(n, 7, d). A row is a spot of ``st/{id}.h5ad``, in its order. Stem conditions on UNI followed by
CONCH.

The seven are the patch under Pillow's ``transpose`` 0 to 6, in that order, which with the original
are the eight of `embeddings.apply_variant`: here they are brought into its order.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from stemjax.data.embedding_files import file as file_lib
from stemjax.data.embedding_files.file import COPY_AGAIN, EmbeddingFile, refused
from stemjax.foreign import torchfile

D4_OF_PILLOW = (2, 3, 4, 0, 5, 1, 6)
"""Place among the seven of variants 1 to 7: ROTATE_90 is variant 1, FLIP_LEFT_RIGHT variant 4."""

FOLDERS = "1spot_*_ebd"
PUBLISHED_ORDER = ("uni", "conch")
N_FLIPPED = 7

_NO_PLACES = ("features_", "pt_files")  # folders of TRIDENT's and CLAM's .pt files


def encoder_of(original: pathlib.Path) -> str | None:
    """``uni`` of ``1spot_uni_ebd/A1_uni.pt``; None outside Stem's folders."""
    folder = original.parent.name
    if folder.startswith("1spot_") and folder.endswith("_ebd"):
        return folder.removeprefix("1spot_").removesuffix("_ebd") or None
    return None


def parts_of(folder: pathlib.Path, slide_id: str) -> dict[str, pathlib.Path]:
    """Files of a slide in a ``processed_data`` folder by encoder, in the order they are joined."""
    found = {}
    for place in sorted(folder.glob(FOLDERS)):
        encoder = encoder_of(place / "any.pt")
        path = place / f"{slide_id}_{encoder}.pt"
        if encoder and path.is_file():
            found[encoder] = path
    order = {name: place for place, name in enumerate(PUBLISHED_ORDER)}
    return dict(sorted(found.items(), key=lambda one: (order.get(one[0], len(order)), one[0])))


def read(path: pathlib.Path, paths: Sequence[pathlib.Path] | None = None) -> EmbeddingFile:
    """Embeddings of one encoder, or of several side by side.

    Args:
      path: a file of originals, or the folder that ``paths`` lie under.
      paths: files of originals of several encoders, in the order in which they are joined.

    Raises:
      EncoderMismatchError: they are of another tool, hold something else, or do not fit together.
      TorchFileError: a file is damaged or holds more than tensors.
    """
    originals = list(paths or [path])
    for one in originals:
        _require_stem(one)
    flipped = [
        one.parent.parent / f"{one.parent.name}_aug" / f"{one.stem}_aug.pt" for one in originals
    ]
    with_flipped = all(one.is_file() for one in flipped)
    tensors = [_tensor(one, 2) for one in originals]
    n, widths = tensors[0].shape[0], [one.shape[1] for one in tensors]
    more = [_tensor(one, 3) for one in flipped] if with_flipped else []
    for one, found in [*zip(originals, tensors), *zip(flipped, more)]:
        if found.shape[0] != n:
            raise refused(
                one,
                "it has another number of rows than the slide's other files",
                expected=f"{n}, as {originals[0].name}",
                found=str(found.shape[0]),
                fix="They are of different versions of the slide: embed it again",
            )
    for one, found, width in zip(flipped, more, widths):
        if found.shape[1:] != (N_FLIPPED, width):
            raise refused(
                one,
                "it holds other flips and turns than Stem's",
                expected=f"shape (n, {N_FLIPPED}, {width})",
                found=str(found.shape),
            )

    def load(start: int, stop: int) -> np.ndarray:
        taken = []
        for place, tensor in enumerate(tensors):
            first = file_lib.as_float(tensor.numpy()[start:stop])[:, None]
            if with_flipped:
                others = file_lib.as_float(more[place].numpy()[start:stop, list(D4_OF_PILLOW)])
                first = np.concatenate([first, others], axis=1)
            taken.append(first)
        return np.concatenate(taken, axis=2)

    names = [encoder_of(one) for one in originals]
    stated = {"name": "+".join(name for name in names if name)} if all(names) else {}
    notes = ("rows are taken for the slide's spots in their order: the file names none",)
    if stated:
        notes += ("the encoder is taken from the folder's name",)
    if with_flipped:
        notes += ("seven flips and turns are taken to be Pillow's transpose 0 to 6, as published",)
    return EmbeddingFile(
        path=path,
        layout="stem",
        source="stem",
        shape=(n, 1 + N_FLIPPED * with_flipped, sum(widths)),
        load=load,
        published_rule=True,
        stated=stated | {"resize": "lanczos", "widths": tuple(widths)},
        notes=notes,
        parts=(*originals, *(flipped if with_flipped else ())),
        block=max(n, 1),
    )


def _require_stem(path: pathlib.Path) -> None:
    folder = path.parent.name
    if folder.startswith(_NO_PLACES):
        raise refused(
            path,
            "a .pt file of TRIDENT or CLAM says of no row where it lies",
            expected="the .h5 with coordinates",
            fix="Give the folder of .h5 files; in TRIDENT, embed with --saveas h5",
        )
    if path.stem.endswith("_aug"):
        raise refused(
            path,
            "these are flips and turns without their originals",
            expected="the file of originals, such as 1spot_uni_ebd/A1_uni.pt",
            fix="Give that: the flips are found beside it",
        )


def _tensor(path: pathlib.Path, dimensions: int) -> torchfile.Tensor:
    found = torchfile.read(path)
    if not isinstance(found, torchfile.Tensor) or len(found.shape) != dimensions:
        raise refused(
            path,
            "it does not hold embeddings as Stem writes them",
            expected=f"one tensor of {dimensions} dimensions",
            found=f"a tensor of shape {found.shape}"
            if isinstance(found, torchfile.Tensor)
            else type(found).__name__,
            fix="One-vector features of a whole slide, and checkpoints, cannot be used",
        )
    file_lib.require_floats(path, "the tensor", found.dtype)
    if 0 in found.shape:
        raise refused(path, "the tensor is empty", found=str(found.shape), fix=COPY_AGAIN)
    return found
