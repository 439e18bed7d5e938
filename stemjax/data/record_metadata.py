"""What metadata.json of a slide's records may hold: every part of the type that is read from it.

Its hash says that it is as somebody wrote it, not that it was stemjax.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from stemjax import errors
from stemjax.data import builder, slides
from stemjax.data import embeddings as embeddings_lib
from stemjax.data import genes as genes_lib
from stemjax.foreign import json_text

FILE = "metadata.json"
_MOST_SHOWN = 60


def read(folder: pathlib.Path) -> tuple[dict[str, Any], list[str]]:
    """The metadata in a slide's version folder, and what is wrong with them: "NAME: what".

    Of another format nothing is said: it may have other parts.
    """
    try:
        values = json_text.parse((folder / FILE).read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"{type(values).__name__} in place of an object")
    except (OSError, ValueError, RecursionError) as error:
        return {}, [f"{FILE}: unreadable ({type(error).__name__}: {str(error)[:_MOST_SHOWN]})"]
    if values.get("format") != builder.FORMAT:
        return values, []
    return values, [f"{FILE}: {what}" for what in _wrong(values)]


def _wrong(values: Mapping[str, Any]) -> list[str]:
    """What cannot be, part by part."""
    found = _misfits(values, "", _PARTS)
    if found:
        return found
    for name, make in (
        ("panel", genes_lib.Panel.from_json),
        ("contract", embeddings_lib.EncoderContract.from_json),
    ):
        try:
            make(values[name])
        except errors.StemjaxError as error:
            found.append(f"{name}: {error}")
    slide = values["slide"]
    found += _misfits(slide, "slide.", _SLIDE)
    if found:
        return found
    try:
        slides.require_id(slide["id"])
    except errors.SlideError as error:
        return [f"slide.id: {error}"]
    if slide["split"] != builder.split_name(slide["id"]):
        found.append(f"slide.split: {_shown(slide['split'])} of slide {slide['id']}")
    found += [
        f"labels: {len(labels)} of {_shown(name)} for {slide['n_spots']} spots"
        for name, labels in values.get("labels", {}).items()
        if len(labels) != slide["n_spots"]
    ]
    return found


def _misfits(
    values: Mapping[str, Any], where: str, parts: Mapping[str, Callable[[Any], bool]]
) -> list[str]:
    needed = [name for name in parts if name not in _OPTIONAL]
    missing = [f"{where}{name} is missing" for name in needed if name not in values]
    unlike = [
        f"{where}{name} cannot be {_shown(values[name])}"
        for name, fits in parts.items()
        if name in values and not fits(values[name])
    ]
    unknown = sorted(set(values) - set(parts)) if where else []
    return missing + unlike + [f"{where}{_shown(name)} is unknown" for name in unknown]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 2**63 and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _are_genes(value: Any) -> bool:
    return _are_texts(value) and 0 < len(value) == len(set(value))


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _each(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


_OPTIONAL = ("labels", "measured")
_PARTS: Mapping[str, Callable[[Any], bool]] = {
    "genes": _are_genes,
    "panel": lambda value: isinstance(value, dict),
    "contract": lambda value: isinstance(value, dict),
    "variants": lambda value: _is_whole(value) and value <= embeddings_lib.N_VARIANTS,
    "slide": lambda value: isinstance(value, dict),
    "labels": _each(_are_texts),
}
_SLIDE: Mapping[str, Callable[[Any], bool]] = {
    "id": _is_text,
    "split": _is_text,
    "patient": _or_none(_is_text),
    "n_spots": _is_whole,
    "mpp": _is_positive,
    "spot_diameter_um": _is_positive,
    "patch_um": _is_number,
    "thumbnail_scale": _or_none(_is_positive),
    "sources": _each(_is_text),
    "notes": _are_texts,
    "digest": _is_text,
    "measured": lambda value: isinstance(value, bool),
}


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."
