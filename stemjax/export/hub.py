"""Bundles on the hub: ``hub:OWNER/NAME@REVISION``, by the hub's own library.

A revision that is pulled is a commit, named by its hash: a branch or tag is looked up once, and the
address with the hash is handed back. Only files that a bundle has are fetched, by the names that
its list of hashes gives; whatever else lies in the repository stays there. They are checked as
`bundle.load` checks any bundle, before they take their place.

The login is the library's: ``HF_TOKEN``, or what ``hf auth login`` stored. No token is taken as an
argument, and none is shown. Needs the extra ``hub``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator
from typing import Any

from stemjax import __version__, errors
from stemjax.data import integrity
from stemjax.export import bundle, model_card
from stemjax.train.trained import Trained

SCHEME = "hub:"
MAIN = "main"

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"hub:({_PART})/({_PART})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,199}}))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TOKEN = re.compile(r"hf_[A-Za-z0-9_]{4,}")
_LOGIN = "Log in with `hf auth login`, or set HF_TOKEN to a token that may do this"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Address:
    """A place on the hub.

    Attributes:
      repository: ``OWNER/NAME``.
      revision: a commit, branch or tag; None where none is named.
    """

    repository: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Returns the address that a text names.

        Raises:
          HubError: it names none.
        """
        found = _ADDRESS.fullmatch(text)
        if found is None or ".." in text or "--" in text or "//" in text:
            raise errors.HubError(
                f"{text!r} is no address on the hub",
                expected="hub:OWNER/NAME or hub:OWNER/NAME@REVISION",
            )
        return cls(repository=f"{found[1]}/{found[2]}", revision=found[3])

    @property
    def is_commit(self) -> bool:
        """Whether the revision is a commit, which never becomes another."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    def at(self, commit: str) -> Address:
        """Returns the address at a commit.

        Raises:
          HubError: the hub named something else.
        """
        if _COMMIT.fullmatch(commit) is None:
            raise errors.HubError(
                f"{self}: the commit that the hub names",
                expected="40 digits",
                found=repr(commit)[:80],
            )
        return dataclasses.replace(self, revision=commit)

    def __str__(self) -> str:
        return f"{SCHEME}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def push(
    path: str | pathlib.Path,
    address: Address,
    *,
    public: bool = False,
    licence: str | None = None,
    endpoint: str | None = None,
) -> Address:
    """Puts a bundle on the hub as one commit; returns its address with that commit.

    The repository is made if there is none, private unless it shall be public. Of an older bundle
    in it, files that this one lacks are deleted in the same commit; files of other kinds stay.

    Args:
      path: the bundle.
      address: the repository, and a branch (``main`` if it names none).
      public: whether everybody may read it.
      licence: what the model card shall say in the place of its own.
      endpoint: of the hub; None is the library's own (``HF_ENDPOINT``).

    Raises:
      BundleError: there is no whole bundle that computes what it did where it was written.
      ConfigError: the licence is no identifier.
      HubError: the hub cannot be reached or refuses, or the repository is public and should not be.
    """
    path, branch = pathlib.Path(path), address.revision or MAIN
    if address.is_commit:
        raise errors.HubError(f"{address}: a commit cannot be pushed to", expected="a branch")
    trained = bundle.load(path)
    contents: dict[str, pathlib.Path | bytes] = {file.name: file for file in sorted(path.iterdir())}
    if licence is not None:
        contents |= _relicensed(path, trained, licence)
    message = f"stemjax bundle, step {trained.step}, weights {trained.weights}"
    with _explained(address):
        library, api = _library(), _api(endpoint)
        api.create_repo(address.repository, private=not public, exist_ok=True)
        if not public and not api.model_info(address.repository).private:
            raise errors.HubError(
                f"{address} is public",
                expected="a private repository",
                fix="Push with --public if everybody may have the model, or to another name",
            )
        if branch != MAIN:
            api.create_branch(address.repository, branch=branch, exist_ok=True)
        before = api.model_info(address.repository, revision=branch)
        stale = sorted(name for name in _names(before) - set(contents) if bundle.is_ours(name))
        commit = api.create_commit(
            address.repository,
            [library.CommitOperationDelete(path_in_repo=name) for name in stale]
            + [
                library.CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
                for name, content in contents.items()
            ],
            commit_message=message,
            revision=branch,
            parent_commit=before.sha,
        )
    return address.at(str(commit.oid))


def pull(address: Address, path: str | pathlib.Path, *, endpoint: str | None = None) -> Address:
    """Fetches a bundle, whole or not at all; returns its address with the commit that it is of.

    Args:
      address: the repository and a revision.
      path: the folder to write, which must not be there, or be empty.
      endpoint: of the hub; None is the library's own (``HF_ENDPOINT``).

    Raises:
      HubError: the address names no revision, something is in the way, the hub cannot be reached or
        refuses, or what is there is no whole bundle.
    """
    path = pathlib.Path(path).resolve()
    if address.revision is None:
        raise errors.HubError(
            f"{address} names no revision",
            expected=f"{address}@REVISION",
            fix="Name a commit, which stays what it is; of a branch (@main) the commit is looked "
            "up and printed",
        )
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise errors.HubError(
            f"{path} is in the way", expected="nothing there, or an empty folder",
            fix="Name another output",
        )  # fmt: skip
    with _explained(address):
        info = _api(endpoint).model_info(address.repository, revision=address.revision)
    pinned = address.at(str(info.sha))
    if address.is_commit and pinned != address:
        raise errors.HubError(f"{address}: the hub answered with another commit, {info.sha}")
    with integrity.published_folder(path) as folder:
        _fetch(pinned, folder, there=_names(info), endpoint=endpoint)
        try:
            bundle.load(folder)
        except errors.StemjaxError as error:
            said = errors.StemjaxError(error.what, expected=error.expected, found=error.found)
            raise errors.HubError(
                f"{pinned}: what was downloaded is no whole bundle",
                found=str(said).replace(str(folder), "there").rstrip("."),
                fix="Pull it again; if it stays so, tell the owner of the repository",
            ) from error
    return pinned


def _fetch(
    address: Address, folder: pathlib.Path, *, there: set[str], endpoint: str | None
) -> None:
    """Downloads the files that the list of hashes names, after a look at every name."""
    leading = [name for name in there if not _is_inside(name)]
    if leading:
        raise errors.HubError(
            f"{address}: a file that would lie elsewhere", found=repr(sorted(leading)[0])[:120]
        )
    staging = folder / ".hub"

    def get(name: str) -> pathlib.Path:
        if name not in there:
            raise errors.HubError(
                f"{address} is no whole bundle", expected=name, found="no such file"
            )
        with _explained(address):
            got = _api(endpoint).hf_hub_download(
                address.repository,
                name,
                revision=address.revision,
                local_dir=staging,
                cache_dir=staging / "cache",  # the user's own cache neither gives nor takes a file
            )
        os.replace(got, folder / name)
        return folder / name

    try:
        listed = json.loads(get(integrity.MANIFEST).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        listed = None
    names = sorted(listed) if isinstance(listed, dict) else []
    strangers = [name for name in names if not bundle.is_ours(name)]
    if strangers or not names:
        raise errors.HubError(
            f"{address}: {integrity.MANIFEST}",
            expected="a list of the files that a bundle has",
            found=repr(strangers[0])[:120] if strangers else "no list",
        )
    for name in names:
        get(name)
    shutil.rmtree(staging)


def _relicensed(path: pathlib.Path, trained: Trained, licence: str) -> dict[str, bytes]:
    """A model card that names a licence, and the list of hashes with it."""
    card = model_card.make(trained, licence=licence).encode()
    listed = json.loads((path / integrity.MANIFEST).read_text(encoding="utf-8"))
    digest = hashlib.sha256(card).hexdigest()
    listed[model_card.FILE] = {"bytes": len(card), "sha256": digest}
    text = json.dumps(dict(sorted(listed.items())), indent=1) + "\n"
    return {model_card.FILE: card, integrity.MANIFEST: text.encode()}


def _is_inside(name: str) -> bool:
    """Whether a name in a repository stays in its folder on every system."""
    parts = pathlib.PurePosixPath(name).parts
    return bool(parts) and ".." not in parts and not re.search(r"^/|[\\:\0]", name)


def _names(info: Any) -> set[str]:
    return {str(one.rfilename) for one in info.siblings or ()}


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants  # the package itself imports no part of it
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise errors.HubError(
            "the hub's library is not installed", expected="huggingface_hub",
            fix="Install it: pip install 'stemjax[hub]'",
        ) from error  # fmt: skip
    return huggingface_hub


def _api(endpoint: str | None) -> Any:
    library = _library()
    if not sys.stderr.isatty() and library.constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        library.utils.disable_progress_bars()  # in a log they are noise
    # The library reads the variable once, when it is imported.
    endpoint = endpoint or os.environ.get("HF_ENDPOINT") or None
    return library.HfApi(endpoint=endpoint, library_name="stemjax", library_version=__version__)


@contextlib.contextmanager
def _explained(address: Address) -> Iterator[None]:
    """What the library raises, as errors of this house without tokens in them."""
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
        raise _explain(error, address, transport) from None  # its text may hold a token
    except (transport, ValueError, RuntimeError, KeyError) as error:
        raise _explain(error, address, transport) from None


def _explain(error: BaseException, address: Address, transport: type) -> errors.HubError:
    library = _library()
    kinds, cause = library.errors, error.__cause__
    if isinstance(error, (kinds.LocalEntryNotFoundError, RuntimeError)) and cause is not None:
        return _explain(cause, address, transport)  # the library says "failed" and this says why
    status = getattr(getattr(error, "response", None), "status_code", None)
    offline = isinstance(error, kinds.OfflineModeIsEnabled)
    if isinstance(error, kinds.RevisionNotFoundError):
        return errors.HubError(
            f"{address}: no such revision", fix="Look up the branches and commits that it has"
        )
    if isinstance(error, kinds.GatedRepoError) or status == 403:
        return errors.HubError(
            f"{address}: access is refused", found=f"status {status}",
            fix=f"Ask its owner for access. {_LOGIN}",
        )  # fmt: skip
    if isinstance(error, kinds.RepositoryNotFoundError):
        # The hub says the same of what is not there and of what this login may not see.
        return errors.HubError(
            f"{address}: no such repository, or none that this login may see",
            found=f"status {status}",
            fix=f"Check the name. For a private one: {_LOGIN}",
        )
    if status == 401 or isinstance(error, kinds.LocalTokenNotFoundError):
        return errors.HubError(f"{address}: not logged in, or the token is not valid", fix=_LOGIN)
    lost = isinstance(error, (transport, ConnectionError, TimeoutError)) and status is None
    if offline or lost:
        return errors.HubError(
            f"{address}: the hub cannot be reached",
            found=_redacted(str(error) or type(error).__name__),
            fix="Unset HF_HUB_OFFLINE" if offline else "Check the network, a proxy and HF_ENDPOINT",
        )
    said = f"{type(error).__name__}: {_redacted(str(error))}"
    return errors.HubError(f"{address}: the hub did not do it", found=said, fix="Try again later")


def _redacted(text: str) -> str:
    """The first lines of a message without the token, whoever put it there."""
    token = _library().get_token()
    if token:
        text = text.replace(token, "***")
    return " ".join(_TOKEN.sub("hf_***", text).split())[:400].rstrip(".")
