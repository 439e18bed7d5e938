"""Weights of a published encoder from the hub, when they are asked for, by the hub's own library.

Always at a commit, which never becomes another, and only the one file of weights; it goes to the
library's cache, where other tools find it. The login is the library's: ``HF_TOKEN``, or what
``hf auth login`` stored. No token is taken as an argument, and none is shown. Needs the extra
``hub``.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

from stemjax import __version__, errors
from stemjax.encoders import registry
from stemjax.encoders.entry import Entry

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TOKEN = re.compile(r"hf_[A-Za-z0-9_]{4,}")
_LOGIN = "Log in with `hf auth login`, or set HF_TOKEN to a token that may read it"


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
    with _explained(entry, where):
        api = _api(endpoint)
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
    with _explained(entry, where):
        found = api.hf_hub_download(
            entry.hub, file, revision=revision, cache_dir=None if cache is None else str(cache)
        )
    return pathlib.Path(found)


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants  # the package itself imports no part of it
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise errors.HubError(
            "the hub's library is not installed",
            expected="huggingface_hub",
            fix="Install it: pip install 'stemjax[hub]'",
        ) from error
    return huggingface_hub


def _api(endpoint: str | None) -> Any:
    library = _library()
    if not sys.stderr.isatty() and library.constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        library.utils.disable_progress_bars()  # in a log they are noise
    # The library reads the variable once, when it is imported.
    endpoint = endpoint or os.environ.get("HF_ENDPOINT") or None
    return library.HfApi(endpoint=endpoint, library_name="stemjax", library_version=__version__)


@contextlib.contextmanager
def _explained(entry: Entry, where: str) -> Iterator[None]:
    """What the library raises, as an error of this house without a token in it."""
    library = _library()
    # Requests, httpx or httpx2, by its version; all errors of the line are of this class.
    transport = library.errors.HfHubHTTPError.__bases__[0]
    try:
        yield
    except errors.StemjaxError:
        raise
    except OSError as error:
        if error.filename and not isinstance(error, transport):
            raise  # the disk: `cli.main` says of which file
        raise _explain(error, entry, where, transport) from None  # its text may hold a token
    except (transport, ValueError, RuntimeError) as error:
        raise _explain(error, entry, where, transport) from None


def _explain(error: BaseException, entry: Entry, where: str, transport: type) -> errors.HubError:
    kinds, cause = _library().errors, error.__cause__
    if isinstance(error, (kinds.LocalEntryNotFoundError, RuntimeError)) and cause is not None:
        return _explain(cause, entry, where, transport)  # the library says "failed", this says why
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = f"status {status}" if status else _redacted(str(error))
    if isinstance(error, kinds.RevisionNotFoundError):
        return errors.HubError(
            f"{where}: no such commit", fix="Look it up under `Files and versions` there"
        )
    terms = f"Accept the terms on the page of {entry.hub} (licence {entry.licence}). {_LOGIN}"
    refused = isinstance(error, (kinds.GatedRepoError, kinds.RepositoryNotFoundError))
    if refused or status in (401, 403):
        return errors.HubError(
            f"{where}: access is refused, or there is no such repository", found=said, fix=terms
        )
    if isinstance(error, kinds.OfflineModeIsEnabled):
        return errors.HubError(f"{where}: the hub is switched off", fix="Unset HF_HUB_OFFLINE")
    if status is None and isinstance(error, (transport, ConnectionError, TimeoutError)):
        return errors.HubError(
            f"{where}: the hub cannot be reached",
            found=said,
            fix="Check the network, a proxy and HF_ENDPOINT; or fetch the file elsewhere and give "
            "its path",
        )
    return errors.HubError(f"{where}: the hub refuses", found=said)


def _redacted(text: str) -> str:
    """The beginning of a message without the token, whoever put it there."""
    token = _library().get_token()
    if token:
        text = text.replace(token, "***")
    return " ".join(_TOKEN.sub("hf_***", text).split())[:200]
