"""Weights of a published encoder from the hub, when they are asked for, by the hub's own library.

Always at a commit, which never becomes another, and only the one file of weights; it goes to the
library's cache, where other tools find it. The login is the library's: ``HF_TOKEN``, or what
``hf auth login`` stored. No token is taken as an argument, and none is shown. Needs the extra
``hub``.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Callable

from stemjax import errors
from stemjax.encoders import registry
from stemjax.encoders.entry import Entry
from stemjax.foreign import hub_library

_COMMIT = re.compile(r"[0-9a-f]{40}")


def download(
    name: str,
    *,
    revision: str,
    cache: str | os.PathLike[str] | None = None,
    endpoint: str | None = None,
) -> pathlib.Path:
    """Fetches the weights of an encoder; returns where they are.

    Args:
      name: any spelling, see `registry.resolve`.
      revision: the commit, 40 hexadecimal digits.
      cache: folder of downloads; None is the library's own (``HF_HUB_CACHE``).
      endpoint: of the hub; None is the library's own (``HF_ENDPOINT``).

    Raises:
      ConfigError: no such encoder, or its weights are of no use here.
      HubError: the revision is no commit, the file is not there, access is refused, or the hub
        cannot be reached.
    """
    entry = registry.resolve(name)
    if entry.spec is None or not entry.hub:
        raise errors.ConfigError(
            f"weights of the encoder {entry.name!r}",
            expected="an encoder that runs here",
            found="one that is known by the embeddings of other tools",
            fix="Embed with TRIDENT or LazySlide and give their files: --embeddings PATH",
        )
    where = f"{entry.hub}@{revision}"
    if _COMMIT.fullmatch(revision) is None:
        raise errors.HubError(
            f"{where} is no commit",
            expected="40 hexadecimal digits: branches move, and weights must not",
            found=repr(revision)[:80],
            fix=f"Look up the commit under `Files and versions` of {entry.hub}",
        )
    with hub_library.explained(_teller(entry, where)):
        api = hub_library.api(endpoint)
        info = api.model_info(entry.hub, revision=revision)
    if str(info.sha) != revision:
        raise errors.HubError(
            f"{where}: the hub answered with another commit", found=repr(str(info.sha))[:80]
        )
    there = {str(one.rfilename) for one in info.siblings or ()}
    file = next((one for one in entry.files if one in there), None)
    if file is None:
        raise errors.HubError(
            f"{where}: weights of the encoder {entry.name!r}",
            expected=" or ".join(entry.files),
            found=", ".join(sorted(there)[:10]) or "no files",
            fix="Take another commit",
        )
    with hub_library.explained(_teller(entry, where)):
        found = api.hf_hub_download(
            entry.hub, file, revision=revision, cache_dir=None if cache is None else str(cache)
        )
    return pathlib.Path(found)


def _teller(entry: Entry, where: str) -> Callable[[hub_library.Failure], errors.HubError]:
    """What to say where the hub does not do it."""
    terms = f"Accept the terms on the page of {entry.hub} (licence {entry.licence})"
    words = {
        "revision": ("no such commit", "Look it up under `Files and versions` there"),
        "offline": ("the hub is switched off", "Unset HF_HUB_OFFLINE"),
        "lost": (
            "the hub cannot be reached",
            "Check the network, a proxy and HF_ENDPOINT; or fetch the file elsewhere and give its "
            "path",
        ),
        "other": ("the hub refuses", None),
    }
    refused = (
        "access is refused, or there is no such repository",
        f"{terms}. {hub_library.LOGIN}",
    )

    def tell(failure: hub_library.Failure) -> errors.HubError:
        what, fix = words.get(failure.kind, refused)
        return errors.HubError(f"{where}: {what}", found=failure.said, fix=fix)

    return tell
