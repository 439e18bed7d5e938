"""Bundles on the hub: ``hub:OWNER/NAME@REVISION``, by the hub's own library.

A revision that is pulled is a commit, named by its hash: a branch or tag is looked up once, and the
address with the hash is handed back. Only files that a bundle has are fetched, by the names that
its list of hashes gives; whatever else lies in the repository stays there. They are checked as
`bundle.load` checks any bundle, before they take their place.

The login is the library's: ``HF_TOKEN``, or what ``hf auth login`` stored. No token is taken as an
argument, and none is shown. Needs the extra ``hub``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable
from typing import Any

from stemjax import errors
from stemjax.data import integrity
from stemjax.export import bundle, model_card
from stemjax.foreign import hub_library, json_text
from stemjax.train.trained import Trained

SCHEME = "hub:"
MAIN = "main"

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"hub:({_PART})/({_PART})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,199}}))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


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
    with hub_library.explained(_teller(address)):
        library, api = hub_library.library(), hub_library.api(endpoint)
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
    with hub_library.explained(_teller(address)):
        info = hub_library.api(endpoint).model_info(address.repository, revision=address.revision)
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
        with hub_library.explained(_teller(address)):
            got = hub_library.api(endpoint).hf_hub_download(
                address.repository,
                name,
                revision=address.revision,
                local_dir=staging,
                cache_dir=staging / "cache",  # the user's own cache neither gives nor takes a file
            )
        os.replace(got, folder / name)
        return folder / name

    try:
        listed = json_text.parse(get(integrity.MANIFEST).read_text(encoding="utf-8"))
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
    listed = json_text.parse((path / integrity.MANIFEST).read_text(encoding="utf-8"))
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


def _teller(address: Address) -> Callable[[hub_library.Failure], errors.HubError]:
    """What to say where the hub does not do it."""
    words = {
        "revision": ("no such revision", "Look up the branches and commits that it has"),
        "refused": ("access is refused", f"Ask its owner for access. {hub_library.LOGIN}"),
        "missing": (
            "no such repository, or none that this login may see",
            f"Check the name. For a private one: {hub_library.LOGIN}",
        ),
        "login": ("not logged in, or the token is not valid", hub_library.LOGIN),
        "offline": ("the hub cannot be reached", "Unset HF_HUB_OFFLINE"),
        "lost": ("the hub cannot be reached", "Check the network, a proxy and HF_ENDPOINT"),
        "other": ("the hub did not do it", "Try again later"),
    }

    def tell(failure: hub_library.Failure) -> errors.HubError:
        what, fix = words[failure.kind]
        return errors.HubError(f"{address}: {what}", found=failure.said, fix=fix)

    return tell
