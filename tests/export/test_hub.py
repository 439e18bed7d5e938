"""Bundles to the hub and back, against a stub of it on this machine."""

from __future__ import annotations

import builtins
import dataclasses
import hashlib
import json
import os
import pickle
import socket
import sys

import hub_stub
import huggingface_hub.constants
import pytest
import test_bundle as made

from stemjax import errors
from stemjax.data import integrity
from stemjax.export import bundle, hub

# The library uploads large files by a form of its HTTP library that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = "lab/toy-model"
ADDRESS = hub.Address.parse(f"hub:{NAME}")


@pytest.fixture(scope="module")
def trained():
    return made.make_trained()


@pytest.fixture(scope="module")
def path(tmp_path_factory, trained):
    """A bundle."""
    path = tmp_path_factory.mktemp("hub") / "bundle"
    bundle.write(trained, path)
    return path


@pytest.fixture
def stub(monkeypatch):
    """A hub, and a login there."""
    monkeypatch.setenv("HF_TOKEN", hub_stub.TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # files by HTTP
    with hub_stub.serve() as stub:
        monkeypatch.setenv("HF_ENDPOINT", stub.url)
        yield stub


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def relisted(files):
    """Files with a list of hashes that fits them, as whoever owns a repository can make one."""
    listed = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
        if name != integrity.MANIFEST
    }
    return files | {integrity.MANIFEST: json.dumps(listed).encode()}


def refused(address, output, *words):
    """Pulls what must be refused, of which nothing must stay; returns the message."""
    with pytest.raises(errors.HubError) as caught:
        hub.pull(address, output)
    said = str(caught.value)
    for word in words:
        assert word in said
    assert caught.value.code == "SJ-X03"
    assert not output.exists()
    assert os.listdir(output.parent) == []  # nor anything temporary beside it
    return said


# ---------------------------------------------------------------------------------- there and back


def test_what_is_pushed_comes_back_byte_for_byte(stub, path, trained, tmp_path):
    pinned = hub.push(path, ADDRESS)
    repository = stub.repositories[NAME]
    assert pinned == dataclasses.replace(ADDRESS, revision=repository["branches"]["main"])
    assert repository["private"]
    assert hub.pull(pinned, tmp_path / "out") == pinned
    assert contents(tmp_path / "out") == contents(path)
    made.assert_same(bundle.load(tmp_path / "out"), trained)
    assert os.listdir(tmp_path) == ["out"]


def test_a_branch_is_the_commit_that_it_is_now(stub, path, tmp_path):
    first = hub.push(path, ADDRESS)
    newer = dataclasses.replace(made.make_trained(seed=1), step=9)
    bundle.write(newer, tmp_path / "newer")
    second = hub.push(tmp_path / "newer", ADDRESS)
    assert first != second
    main = dataclasses.replace(ADDRESS, revision="main")
    assert hub.pull(main, tmp_path / "main") == second
    assert hub.pull(first, tmp_path / "first") == first
    assert bundle.load(tmp_path / "main").step == 9
    assert contents(tmp_path / "first") == contents(path)
    # All files are asked for by the commit: a push in between changes none of them.
    resolved = [path for _, path in stub.asked if "/resolve/" in path]
    assert resolved
    assert not [path for path in resolved if "/resolve/main/" in path]


def test_a_branch_can_be_pushed_to(stub, path, tmp_path):
    hub.push(path, ADDRESS)
    bundle.write(dataclasses.replace(made.make_trained(seed=1), step=9), tmp_path / "newer")
    trial = dataclasses.replace(ADDRESS, revision="trial")
    pinned = hub.push(tmp_path / "newer", trial)
    assert stub.repositories[NAME]["branches"]["trial"] == pinned.revision
    assert stub.files(NAME)["bundle.json"] == (path / "bundle.json").read_bytes()
    with pytest.raises(errors.HubError, match="expected a branch"):
        hub.push(path, pinned)


def test_files_of_an_older_bundle_go_and_others_stay(stub, path, trained, tmp_path):
    bundle.write(trained, tmp_path / "pieces", largest_file=4000)
    pieces = {name for name in os.listdir(tmp_path / "pieces") if name.startswith("model-")}
    assert pieces
    stub.commit(NAME, contents(tmp_path / "pieces") | {"figure.png": b"mine"}, private=True)
    pinned = hub.push(path, ADDRESS)
    assert set(stub.files(NAME)) == {*os.listdir(path), "figure.png"}
    hub.pull(pinned, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == made.FILES


def test_a_large_model_comes_in_its_pieces(stub, trained, tmp_path):
    bundle.write(trained, tmp_path / "pieces", largest_file=4000)
    hub.pull(hub.push(tmp_path / "pieces", ADDRESS), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "pieces")


def test_a_licence_is_said_on_the_card_there(stub, path, tmp_path):
    before = contents(path)
    hub.pull(hub.push(path, ADDRESS, licence="cc-by-nc-4.0"), tmp_path / "out")
    assert contents(path) == before
    after = contents(tmp_path / "out")
    assert after["README.md"].startswith(b'---\nlicense: "cc-by-nc-4.0"\n')
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"README.md", "SHA256SUMS.json"}
    with pytest.raises(errors.ConfigError, match="licence"):
        hub.push(path, ADDRESS, licence="mine: all rights")


# ---------------------------------------------------------------------------------- what is pushed


def test_a_public_repository_wants_the_word(stub, path):
    stub.commit(NAME, {".gitattributes": b"x"})
    with pytest.raises(errors.HubError, match="is public: expected a private"):
        hub.push(path, ADDRESS)
    assert list(stub.files(NAME)) == [".gitattributes"]
    hub.push(path, ADDRESS, public=True)
    assert "bundle.json" in stub.files(NAME)
    hub.push(path, hub.Address.parse("hub:lab/open"), public=True)
    assert not stub.repositories["lab/open"]["private"]


@pytest.mark.parametrize("kind", ["damaged", "stranger", "nothing", "other weights"])
def test_what_is_no_whole_bundle_is_not_pushed(stub, trained, tmp_path, kind):
    path = tmp_path / "bundle"
    if kind == "other weights":
        bundle.write(trained, path)
        bundle.write(made.make_trained(seed=5), tmp_path / "other")
        os.replace(tmp_path / "other" / "model.safetensors", path / "model.safetensors")
        integrity.write_manifest(path)
    elif kind != "nothing":
        bundle.write(trained, path)
        name = "genes.txt" if kind == "damaged" else "notes.txt"
        (path / name).write_text("G0\n")
    with pytest.raises(errors.BundleError):
        hub.push(path, ADDRESS)
    assert stub.asked == []


# ---------------------------------------------------------------------------------- what is pulled


@pytest.mark.parametrize("name", made.FILES)
def test_a_damaged_file_is_refused_and_nothing_stays(stub, path, tmp_path, name):
    files = contents(path)
    files[name] = files[name][:-2] + bytes([files[name][-2] ^ 1]) + files[name][-1:]
    if name == integrity.MANIFEST:  # a list with another hash
        files[name] = contents(path)[name].replace(b'"sha256": "', b'"sha256": "0', 1)
    commit = stub.commit(NAME, files)
    address = ADDRESS.at(commit)
    said = refused(address, tmp_path / "out", str(address), "no whole bundle")
    assert name in said or name == integrity.MANIFEST
    assert str(tmp_path) not in said


def test_weights_that_compute_something_else_are_refused(stub, path, tmp_path):
    other = made.make_trained(seed=5)
    bundle.write(other, tmp_path / "other")
    files = contents(path)
    files["model.safetensors"] = (tmp_path / "other" / "model.safetensors").read_bytes()
    (tmp_path / "place").mkdir()
    commit = stub.commit(NAME, relisted(files))
    refused(ADDRESS.at(commit), tmp_path / "place" / "out", "does not compute what it did")


def test_other_files_of_a_repository_are_never_asked_for(stub, path, tmp_path):
    class Canary:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "canary"),))

    bad = {
        "pytorch_model.bin": pickle.dumps(Canary()),
        "model.pt": pickle.dumps(Canary()),
        "weights.pkl": pickle.dumps(Canary()),
        "modeling_stem.py": b"import os; os.mkdir('canary')",
        "sub/bundle.json": b"{}",
        "model-1-of-2.safetensors": b"x",
    }
    commit = stub.commit(NAME, contents(path) | bad)
    hub.pull(ADDRESS.at(commit), tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == made.FILES
    assert os.listdir(tmp_path) == ["out"]
    fetched = {path.rpartition(f"{commit}/")[2] for _, path in stub.asked if "/resolve/" in path}
    assert fetched == set(made.FILES)


@pytest.mark.parametrize("name", ["run.py", "model.pt", "../out.json", "/tmp/x", "sub/genes.txt"])
def test_a_list_that_names_other_files_is_refused(stub, path, tmp_path, name):
    commit = stub.commit(NAME, relisted(contents(path) | {name: b"x"}))
    refused(ADDRESS.at(commit), tmp_path / "out")
    assert not [path for _, path in stub.asked if path.endswith(name)]


@pytest.mark.parametrize("name", ["../bundle.json", "a/../../b", "/etc/x", "C:x", "a\\..\\b"])
def test_a_name_that_leads_elsewhere_is_refused(stub, path, tmp_path, name):
    commit = stub.commit(NAME, contents(path) | {name: b"x"})
    refused(ADDRESS.at(commit), tmp_path / "out", "would lie elsewhere")
    assert not [path for _, path in stub.asked if "/resolve/" in path]


@pytest.mark.parametrize("name", [*made.FILES, "calibration.json"])
def test_a_repository_that_lacks_a_file_is_refused(stub, path, tmp_path, name):
    files = relisted(contents(path) | {"calibration.json": b"{}"})
    del files[name]
    refused(ADDRESS.at(stub.commit(NAME, files)), tmp_path / "out", name)


@pytest.mark.parametrize("text", [b"[]", b"\xff", b"{}", b'["bundle.json"]', b"[" * 10**6])
def test_a_list_that_is_none_is_refused(stub, path, tmp_path, text):
    commit = stub.commit(NAME, contents(path) | {integrity.MANIFEST: text})
    refused(ADDRESS.at(commit), tmp_path / "out", "SHA256SUMS.json", "no list")


def test_files_that_the_list_does_not_name_are_left(stub, path, tmp_path):
    """Else a calibration that nobody hashed would make intervals."""
    commit = stub.commit(NAME, contents(path) | {"calibration.json": b"{}"})
    hub.pull(ADDRESS.at(commit), tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == made.FILES


def test_a_hub_that_answers_with_another_commit_is_refused(stub, path, tmp_path, monkeypatch):
    first = stub.commit(NAME, contents(path))
    second = stub.commit(NAME, contents(path) | {"x": b"y"})
    repository = stub.repositories[NAME]
    repository["branches"][first] = second
    refused(ADDRESS.at(first), tmp_path / "out", "another commit", second)
    repository["branches"] = {"main": "not a hash"}
    repository["commits"]["not a hash"] = contents(path)
    main = dataclasses.replace(ADDRESS, revision="main")
    refused(main, tmp_path / "out", "expected 40 digits")


def test_what_stands_there_is_not_replaced(stub, path, tmp_path):
    address = ADDRESS.at(stub.commit(NAME, contents(path)))
    (tmp_path / "empty").mkdir()
    hub.pull(address, tmp_path / "empty")
    for name in ("empty", "file"):
        if name == "file":
            (tmp_path / name).write_text("mine")
        with pytest.raises(errors.HubError, match="is in the way"):
            hub.pull(address, tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    assert contents(tmp_path / "empty") == contents(path)


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_others_may_read_what_was_pulled(stub, path, tmp_path):
    address = ADDRESS.at(stub.commit(NAME, contents(path)))
    mask = os.umask(0o022)
    try:
        hub.pull(address, tmp_path / "out")
    finally:
        os.umask(mask)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()}
    assert modes == dict.fromkeys(made.FILES, 0o644)


# ---------------------------------------------------------------------------- what the hub refuses


def test_a_pull_wants_a_revision(stub, tmp_path):
    refused(ADDRESS, tmp_path / "out", "names no revision", f"hub:{NAME}@REVISION")
    assert stub.asked == []


def test_what_is_not_there_is_named(stub, path, tmp_path):
    main = dataclasses.replace(ADDRESS, revision="main")
    refused(main, tmp_path / "out", f"hub:{NAME}@main", "no such repository", "404")
    stub.commit(NAME, contents(path))
    gone = dataclasses.replace(ADDRESS, revision="v9")
    refused(gone, tmp_path / "out", f"hub:{NAME}@v9: no such revision")


def test_without_a_login_a_private_one_is_not_there(stub, path, tmp_path, monkeypatch):
    stub.commit(NAME, contents(path), private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_ofsomeoneelse")
    main = dataclasses.replace(ADDRESS, revision="main")
    refused(main, tmp_path / "out", "none that this login may see", "401", "HF_TOKEN")
    with pytest.raises(errors.HubError, match="not logged in, or the token is not valid"):
        hub.push(path, hub.Address.parse("hub:lab/new"))


@pytest.mark.parametrize(
    ("status", "words"), [(403, "access is refused"), (418, "the hub did not do it")]
)
@pytest.mark.parametrize("token", [hub_stub.TOKEN, "a-secret-of-a-mirror"])
def test_a_refusal_is_told_without_the_token(
    stub, path, tmp_path, monkeypatch, status, words, token
):
    monkeypatch.setenv("HF_TOKEN", token)
    stub.refusal = status, f"go away with {token} and hf_anotherTOKEN123"
    main = dataclasses.replace(ADDRESS, revision="main")
    said = [refused(main, tmp_path / "out", words)]
    with pytest.raises(errors.HubError, match=words) as caught:
        hub.push(path, ADDRESS)
    assert caught.value.__cause__ is None  # else a traceback would show it
    assert caught.value.__suppress_context__
    for text in [*said, str(caught.value)]:
        assert "secret" not in text
        assert "anotherTOKEN" not in text


def test_a_hub_that_is_not_there_is_named(path, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("HF_TOKEN", hub_stub.TOKEN)
    endpoint = f"http://127.0.0.1:{port}"
    main = dataclasses.replace(ADDRESS, revision="main")
    for do in (
        lambda: hub.pull(main, tmp_path / "out", endpoint=endpoint),
        lambda: hub.push(path, ADDRESS, endpoint=endpoint),
    ):
        with pytest.raises(errors.HubError, match="cannot be reached") as caught:
            do()
        assert "HF_ENDPOINT" in caught.value.fix
        assert caught.value.__cause__ is None
    assert os.listdir(tmp_path) == []


def test_a_hub_that_goes_away_leaves_nothing(stub, path, tmp_path):
    commit = stub.commit(NAME, contents(path))
    whole = stub.repositories[NAME]["commits"][commit]

    class Vanishing(dict):
        def get(self, name, default=None):
            if name == "model.safetensors":
                stub.refusal = 401, "Invalid credentials in Authorization header"
            return super().get(name, default)

    stub.repositories[NAME]["commits"][commit] = Vanishing(whole)
    refused(ADDRESS.at(commit), tmp_path / "out", "the token is not valid")


def test_without_the_library_it_says_what_to_install(path, tmp_path, monkeypatch):
    kept = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.partition(".")[0] == "huggingface_hub":
            raise ImportError(name)
        return kept(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "huggingface_hub")
    monkeypatch.setattr(builtins, "__import__", absent)
    main = dataclasses.replace(ADDRESS, revision="main")
    refused(main, tmp_path / "out", "pip install 'stemjax[hub]'")
    with pytest.raises(errors.HubError, match=r"stemjax\[hub\]"):
        hub.push(path, ADDRESS)
