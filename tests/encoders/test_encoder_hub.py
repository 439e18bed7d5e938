"""Weights from the hub, against a stub of it on this machine."""

from __future__ import annotations

import builtins
import os
import socket
import sys

import hub_stub
import huggingface_hub.constants
import pytest

from stemjax import encoders, errors
from stemjax.encoders import hub, weights
from stemjax.foreign import hub_library

NAME, WEIGHTS = "MahmoodLab/UNI", b"PK\x03\x04 weights"
FILES = {
    "pytorch_model.bin": WEIGHTS,
    "README.md": b"x",
    "config.json": b"{}",
    "big.bin": b"y" * 99,
}


@pytest.fixture
def stub(monkeypatch):
    """A hub, and a login there."""
    monkeypatch.setenv("HF_TOKEN", hub_stub.TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # files by HTTP
    with hub_stub.serve() as stub:
        monkeypatch.setenv("HF_ENDPOINT", stub.url)
        yield stub


def refused(cache, *words, name="uni", revision):
    with pytest.raises(errors.HubError) as caught:
        hub.download(name, revision=revision, cache=cache)
    for word in words:
        assert word in str(caught.value)
    assert hub_stub.TOKEN not in str(caught.value)
    return str(caught.value)


def test_the_weights_alone_are_fetched_at_the_commit_and_kept(stub, tmp_path):
    sha = stub.commit(NAME, FILES, private=True)
    stub.commit(NAME, FILES | {"pytorch_model.bin": b"newer"})
    path = hub.download("uni_v1", revision=sha, cache=tmp_path)
    assert path.read_bytes() == WEIGHTS
    assert path.name == "pytorch_model.bin"
    assert sha in str(path)
    fetched = {asked for _, asked in stub.asked if "/resolve/" in asked}
    assert fetched == {f"/{NAME}/resolve/{sha}/pytorch_model.bin"}
    assert weights.files(path) == [path]
    gets = len([1 for method, asked in stub.asked if method == "GET" and "/resolve/" in asked])
    assert hub.download("uni", revision=sha, cache=tmp_path) == path
    again = len([1 for method, asked in stub.asked if method == "GET" and "/resolve/" in asked])
    assert again == gets  # from the cache


def test_of_two_files_the_first_of_the_entry_is_taken(stub, tmp_path):
    both = {"model.safetensors": b"safe", "pytorch_model.bin": b"torch"}
    sha = stub.commit("owkin/phikon-v2", both)
    assert hub.download("phikon_v2", revision=sha, cache=tmp_path).read_bytes() == b"safe"
    sha = stub.commit("owkin/phikon-v2", {"pytorch_model.bin": b"torch"})
    assert hub.download("phikon_v2", revision=sha, cache=tmp_path).read_bytes() == b"torch"


@pytest.mark.parametrize("revision", ["main", "v1.0", "", "a" * 39, "g" * 40, "A" * 40])
def test_only_a_commit_is_taken(revision, stub, tmp_path):
    refused(tmp_path, "is no commit", "40 hexadecimal digits", revision=revision)
    assert stub.asked == []


def test_a_commit_without_weights_says_what_is_there(stub, tmp_path):
    sha = stub.commit(NAME, {"README.md": b"x"})
    refused(tmp_path, "pytorch_model.bin or model.safetensors", "README.md", revision=sha)
    refused(tmp_path, "no such commit", revision="0" * 40)


def test_a_refusal_names_terms_and_login_and_no_token(stub, tmp_path, monkeypatch):
    sha = stub.commit(NAME, FILES, private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    for status in (None, (403, f"not for {hub_stub.TOKEN}"), (401, "no")):
        stub.refusal = status
        refused(tmp_path, "access is refused", "CC-BY-NC-ND-4.0", "hf auth login", revision=sha)
    stub.refusal = (500, f"broken {hub_stub.TOKEN}")
    said = refused(tmp_path, "refuses", revision=sha)
    assert "status 500" in said
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size] == []


def test_no_token_is_ever_part_of_a_message(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret-of-another-form")
    said = hub_library.redacted("proxy said: secret-of-another-form, hf_abcdefgh and hf_auth")
    assert said == "proxy said: ***, hf_*** and hf_***"


def test_a_hub_out_of_reach_is_said_to_be(monkeypatch, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")
    refused(tmp_path, "cannot be reached", "HF_ENDPOINT", revision="0" * 40)


def test_without_the_library_it_says_what_to_install(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name.startswith("huggingface_hub"):
            raise ImportError(name)
        return real(name, *rest, **more)

    for module in [name for name in sys.modules if name.startswith("huggingface_hub")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", without)
    refused(tmp_path, "pip install 'stemjax[hub]'", revision="0" * 40)


def test_encoders_of_files_alone_have_no_weights_to_fetch(stub, tmp_path):
    for name in ("ctranspath", "musk"):
        with pytest.raises(errors.ConfigError, match="--embeddings"):
            hub.download(name, revision="0" * 40, cache=tmp_path)
    assert stub.asked == []
    assert os.listdir(tmp_path) == []


def test_making_an_encoder_asks_no_hub(stub):
    with pytest.raises(errors.ConfigError, match="no weights here"):
        encoders.make_encoder("uni", weights=None)
    assert stub.asked == []
