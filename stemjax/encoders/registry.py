"""Encoders by any name that they go by."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re

from stemjax import errors
from stemjax.data import embeddings
from stemjax.encoders.catalogue import ENTRIES
from stemjax.encoders.entry import Entry

BUILT_IN = ("texture", "none")
"""Encoders that need no weights; they are not in the catalogue."""

POOLED_NAMES = {"virchow2-cls": ("virchow2", "cls")}
"""Spellings that name an encoder and a pooling at once: (encoder, pooling)."""

_SCHEME = re.compile(r"^(hf[-_]hub:|hub:|https://huggingface\.co/)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A line of `stemjax encode --list`.

    Attributes:
      name: canonical name.
      width: features with the usual pooling.
      input_px: side of the square that the encoder sees, in pixels of its input.
      fov_um: side on the tissue, in um; None is Stem's published rule.
      licence: of the weights.
      access: ``open``, ``gated``, or ``-`` where there are no weights.
      hub: repository on the hub, or empty.
      available: whether it runs here, once there are weights.
      built_in: whether it runs here as it is.
    """

    name: str
    width: int
    input_px: int
    fov_um: float | None
    licence: str
    access: str
    hub: str
    available: bool
    built_in: bool


def resolve(name: str) -> Entry:
    """Returns the encoder of that name.

    Args:
      name: the canonical name, that of TRIDENT, LazySlide or HEST-bench, or the repository on the
        hub; in any case, with any of ``-_.`` or none between its parts.

    Raises:
      ConfigError: no encoder goes by it; suggests the nearest.
    """
    key = _key(name)
    found = _by_spelling().get(key)
    if found is None:
        near = difflib.get_close_matches(key, _by_spelling(), n=3, cutoff=0.6)
        suggested = list(dict.fromkeys(_by_spelling()[one].name for one in near))
        raise errors.ConfigError(
            f"no encoder is called {name!r}",
            expected="one of `stemjax encode --list`",
            fix=f"Did you mean {' or '.join(map(repr, suggested))}?" if suggested else None,
        )
    return found


def known_contract(
    name: str,
    *,
    patch_um: float | None,
    source: str,
    revision: str,
    pooling: str | None = None,
    projection: str | None = None,
    width: int | None = None,
) -> embeddings.EncoderContract:
    """Returns the contract of embeddings that a tool made with an encoder of that name.

    Args:
      name: any spelling, see `resolve`; or a built-in encoder, whose contract is always the same.
      patch_um: side of the patches on the tissue, of which the network may see the middle alone
        (`Entry.crop`); None is Stem's published rule, or not known.
      source: the tool.
      revision: of the weights, as far as it is known.
      pooling: how the vectors were pooled; None is the usual way, or the one that ``width`` shows.
      projection: the layer after that; None is the usual one.
      width: features of the embeddings, where they are at hand.

    Raises:
      ConfigError: no such encoder.
      EncoderMismatchError: the encoder has no such width, pooling or projection.
    """
    if _key(name) in BUILT_IN:
        return embeddings.get_encoder(_key(name)).contract
    entry = resolve(name)
    if width is not None and pooling is None and entry.width != width:
        pooling = entry.pooling_of(width)
        if pooling is None:
            widths = dict.fromkeys(entry.widths.values())
            raise errors.EncoderMismatchError(
                f"embeddings of the encoder {entry.name!r}",
                expected=f"a width of {' or '.join(map(str, widths))}",
                found=str(width),
                fix="Name the encoder that made them",
            )
    try:
        contract = entry.contract(
            fov_um=None if patch_um is None else patch_um * entry.crop,
            pooling=pooling,
            projection=projection,
            source=source,
            revision=revision,
        )
    except errors.ConfigError as error:
        raise errors.EncoderMismatchError(
            error.what, expected=error.expected, found=error.found
        ) from error
    if width is not None and contract.width != width:
        raise errors.EncoderMismatchError(
            f"embeddings of the encoder {entry.name!r} with the pooling {contract.pooling!r}",
            expected=f"a width of {contract.width}",
            found=str(width),
            fix="Name the pooling that they were made with",
        )
    return contract


def list_entries() -> list[Row]:
    """Returns all encoders: built in, then with weights, then those of files alone."""
    rows = []
    for name in BUILT_IN:
        contract = embeddings.get_encoder(name).contract
        rows.append(
            Row(
                name=name,
                width=contract.width,
                input_px=contract.input_px,
                fov_um=contract.fov_um,
                licence="Apache-2.0",
                access="-",
                hub="",
                available=True,
                built_in=True,
            )  # fmt: skip
        )
    for entry in sorted(ENTRIES, key=lambda entry: entry.spec is None):
        access = ("gated" if entry.gated else "open") if entry.hub else "-"
        rows.append(
            Row(
                name=entry.name,
                width=entry.width,
                input_px=entry.input_px,
                fov_um=entry.default_fov_um,
                licence=entry.licence,
                access=access,
                hub=entry.hub,
                available=entry.spec is not None,
                built_in=False,
            )  # fmt: skip
        )
    return rows


def spellings(entry: Entry) -> tuple[str, ...]:
    """Returns all names that an encoder goes by, as they are written."""
    # Two encoders of one repository: it names the first.
    first = next(one for one in ENTRIES if one.hub == entry.hub)
    hub = (entry.hub,) if entry.hub and first.name == entry.name else ()
    return (entry.name, *entry.aliases, *hub)


@functools.cache
def _by_spelling() -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for entry in ENTRIES:
        for name in spellings(entry):
            if found.setdefault(_key(name), entry).name != entry.name:
                raise AssertionError(f"two encoders are called {name!r}")
    for name, (of, pooling) in POOLED_NAMES.items():
        entry = found[_key(of)]
        widths = {pooling: entry.widths[pooling], **entry.widths}
        found[_key(name)] = dataclasses.replace(entry, widths=widths)
    return found


def _key(name: str) -> str:
    """A spelling without case, separators and the hub's scheme."""
    return re.sub(r"[^a-z0-9/]", "", _SCHEME.sub("", str(name).strip().lower()))
