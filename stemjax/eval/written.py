"""What stands in a folder of predictions: of which request each file is, and the index of all.

    OUT/<slide>.h5ad        uns["stemjax"]["request"] says what was asked for
    OUT/<slide>.draws.zarr  its attributes say the same
    OUT/failed/<slide>.json why a slide could not be predicted
    OUT/cohort.json         the index, in the order of the slides' ids

Files are read, never remembered: whichever process looks last sees what all of them have done.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import h5py
import jax
import numpy as np

from stemjax import config, errors
from stemjax.data import builder, failures, integrity, sealing
from stemjax.data.hdf5 import soundness
from stemjax.foreign import json_text
from stemjax.train import checkpoint

FORMAT = 1
INDEX = "cohort.json"
PARTS = ".parts"
REQUEST, SECONDS = "request", "seconds"


class Written(NamedTuple):
    """What a file of predictions says of itself.

    Attributes:
      request: what was asked for, in plain values.
      spots: rows.
      seconds: of predicting, summed over the processes that did.
    """

    request: Mapping[str, Any]
    spots: int
    seconds: float


def weights_digest(trained: checkpoint.Trained) -> str:
    """Returns the SHA-256 over a model's weights with their names and over what they mean."""
    found = hashlib.sha256(json.dumps(trained.card.to_json(), sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(trained.params):
        found.update(jax.tree_util.keystr(path).encode())
        found.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return found.hexdigest()


def digest(request: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a request."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def file_of(out: pathlib.Path, slide: str) -> pathlib.Path:
    """Returns where a slide's prediction is or will be."""
    return out / f"{builder.split_name(slide)}.h5ad"


def draws_of(out: pathlib.Path, slide: str) -> pathlib.Path:
    """Returns where a slide's draws are or will be, where they have a store of their own."""
    return out / f"{builder.split_name(slide)}.draws.zarr"


def workplace(out: pathlib.Path, slide: str) -> pathlib.Path:
    """Returns the folder for what is not finished of a slide."""
    return out / PARTS / builder.split_name(slide)


def read(path: pathlib.Path) -> Written | None:
    """Returns what a file says of itself; None if it is none of a cohort, or cannot be read."""
    try:
        soundness.require_sound(path, errors.PredictionError)
        sealing.require_whole(path)
        with h5py.File(path, "r") as file:
            about: Any = file["uns/stemjax"]
            request = json_text.parse(about[REQUEST][()])
            if not (isinstance(request["slide"], str) and "draws" in request):
                return None
            spots: Any = file["obsm/spatial"]
            return Written(request, int(spots.shape[0]), float(about[SECONDS][()]))
    # h5py tells damage by all kinds of exceptions.
    except (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError):
        return None
    except errors.StemjaxError:
        return None


def _damage(path: pathlib.Path) -> str | None:
    """Why a file cannot be read, in words, or None."""
    try:
        soundness.require_sound(path, errors.PredictionError)
        sealing.require_whole(path)
    except errors.StemjaxError as error:
        return f"it is damaged ({error.found})"
    return None


def is_done(out: pathlib.Path, slide: str, request: Mapping[str, Any]) -> bool:
    """Whether a slide's prediction is there.

    Raises:
      PredictionError: what is there is something else, or of another request.
    """
    path = file_of(out, slide)
    found = read(path)
    if found is None and not path.exists():
        return False
    if found is None:
        differing = [_damage(path) or "it is not of `stemjax predict --slides`"]
    else:
        differing = config.differences(found.request, json.loads(json.dumps(request)))
    if differing:
        shown = [line if len(line) < 160 else line[:157] + "..." for line in differing[:5]]
        raise errors.PredictionError(
            f"{path} is there already",
            expected="no file, or one of this request",
            found="; ".join(shown),
            fix="Give another folder as -o, or move the file away",
        )
    return request["draws"] != "zarr" or draws_of(out, slide).is_dir()


def write_index(out: pathlib.Path, seen: dict[pathlib.Path, Any] | None = None) -> dict[str, Any]:
    """Writes the index of a folder from what is in it, and returns it.

    Of several processes that do so at once the last to write sees all: whoever has written looks
    again, and writes again if there is more now.

    Args:
      out: the folder.
      seen: what earlier calls have read, which need not be read again; is added to.
    """
    seen = {} if seen is None else seen
    index = _index(out, seen)
    while True:
        integrity.write_text(out / INDEX, json.dumps(index, indent=1) + "\n")
        now = _index(out, seen)
        if now == index:
            return index
        index = now


def _index(out: pathlib.Path, seen: dict[pathlib.Path, Any]) -> dict[str, Any]:
    slides = []
    for path in out.glob("*.h5ad"):
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        key = (stat.st_mtime_ns, stat.st_size)
        if path not in seen or seen[path][0] != key:
            seen[path] = (key, read(path))
        found = seen[path][1]
        if found is not None:
            slides.append(_line(path, found))
    done = {line["slide"] for line in slides}
    return {
        "format": FORMAT,
        "slides": sorted(slides, key=lambda line: line["slide"]),
        "failed": [
            {"slide": one.slide, "error": str(one)}
            for one in failures.listed(out)
            if one.slide not in done
        ],
    }


def _line(path: pathlib.Path, found: Written) -> dict[str, Any]:
    draws = draws_of(path.parent, found.request["slide"])
    return {
        "slide": found.request["slide"],
        "file": path.name,
        **({"draws": draws.name} if found.request["draws"] == "zarr" else {}),
        "spots": found.spots,
        "request": digest(found.request),
        "seconds": round(found.seconds, 3),
    }


def waiting(out: pathlib.Path, slides: Sequence[str]) -> tuple[str, ...]:
    """Returns the slides that are neither there nor failed: other processes have parts of them."""
    failed = {one.slide for one in failures.listed(out)}
    return tuple(s for s in slides if s not in failed and not file_of(out, s).exists())
