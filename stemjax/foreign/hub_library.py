"""The hub's own library: found or asked for, and what it raises in the words of this house.

Messages of the library may hold a token; none is shown. Needs the extra ``hub``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal

from stemjax import __version__, errors

LOGIN = "Log in with `hf auth login`, or set HF_TOKEN to a token that may do this"
_TOKEN = re.compile(r"hf_[A-Za-z0-9_]{4,}")
# Of an address with a login, of a header, of a query: proxies and endpoints have them in errors.
_LOGIN_IN_ADDRESS = re.compile(r"://[^/\s@]+@")
_SECRET = re.compile(
    r"""(?i)\b((?:bearer|basic)\s+
    |(?:token|access_token|api_?key|password|secret|signature|x-amz-[a-z-]+)['"]?\s*[=:]\s*['"]?)
    [^\s&'",;]+""",
    re.VERBOSE,
)

type Kind = Literal["revision", "refused", "missing", "login", "offline", "lost", "other"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """Why the hub did not do something.

    Attributes:
      kind: no such revision; access refused; no such repository, or none that may be seen; no
        login; switched off; out of reach; anything else.
      said: the status, or what the library said, without a token.
    """

    kind: Kind
    said: str


def library() -> Any:
    """Returns the library.

    Raises:
      HubError: it is not installed.
    """
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


def api(endpoint: str | None) -> Any:
    """Returns what talks to the hub at an address, or at that of ``HF_ENDPOINT``."""
    found = library()
    if not sys.stderr.isatty() and found.constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        found.utils.disable_progress_bars()  # in a log they are noise
    # The library reads the variable once, when it is imported.
    endpoint = endpoint or os.environ.get("HF_ENDPOINT") or None
    return found.HfApi(endpoint=endpoint, library_name="stemjax", library_version=__version__)


@contextlib.contextmanager
def explained(tell: Callable[[Failure], errors.HubError]) -> Iterator[None]:
    """What the library raises becomes what ``tell`` makes of it; the disk's errors stay."""
    # Requests, httpx or httpx2, by its version; all errors of the line are of this class.
    transport = library().errors.HfHubHTTPError.__bases__[0]
    try:
        yield
    except errors.StemjaxError:
        raise
    except OSError as error:
        if error.filename and not isinstance(error, transport):
            raise  # the disk: `cli.main` says of which file
        raise tell(_failure(error, transport)) from None  # its text may hold a token
    except (transport, ValueError, RuntimeError, KeyError) as error:
        raise tell(_failure(error, transport)) from None


def _failure(error: BaseException, transport: type) -> Failure:
    kinds, cause = library().errors, error.__cause__
    if isinstance(error, (kinds.LocalEntryNotFoundError, RuntimeError)) and cause is not None:
        return _failure(cause, transport)  # the library says "failed", and this says why
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = f"status {status}"
    if status is None:
        said = redacted(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
    kind: Kind = "other"
    if isinstance(error, kinds.RevisionNotFoundError):
        kind = "revision"
    elif isinstance(error, kinds.GatedRepoError) or status == 403:
        kind = "refused"
    elif isinstance(error, kinds.RepositoryNotFoundError):
        kind = "missing"  # the hub says so too of what this login may not see
    elif status == 401 or isinstance(error, kinds.LocalTokenNotFoundError):
        kind = "login"
    elif isinstance(error, kinds.OfflineModeIsEnabled):
        kind = "offline"
    elif status is None and isinstance(error, (transport, ConnectionError, TimeoutError)):
        kind = "lost"
    return Failure(kind=kind, said=said)


def redacted(text: str) -> str:
    """Returns the beginning of a message without tokens and logins, whoever put them there."""
    token = library().get_token()
    if token:
        text = text.replace(token, "***")
    text = _LOGIN_IN_ADDRESS.sub("://***@", _TOKEN.sub("hf_***", text))
    text = _SECRET.sub(r"\1***", text)
    return " ".join(text.split())[:400].rstrip(".")
