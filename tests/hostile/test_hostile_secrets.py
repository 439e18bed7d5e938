"""Tokens and places of this machine stay out of what is said and written."""

from __future__ import annotations

import shutil

import huggingface_hub.constants
import numpy as np
import pytest
from hostile_models import DEMO
from made_images import paint_section
from PIL import Image

from stemjax import cli
from stemjax.foreign import hub_library

TOKEN = "hf_dummydummydummy0123456789"
LOGIN = "http://someone:passw0rd@127.0.0.1:9"
COMMIT = "0" * 40


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A hub that nobody answers at, with a login in its address, and a token."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", LOGIN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DEMO, tmp_path / "demo-copy")


@pytest.mark.parametrize(
    "command",
    [
        ["pull", "hub:lab/toy@main", "-o", "out"],
        ["push", "demo-copy", "hub:lab/toy"],
        ["encode", "--encoder", "uni", "--fetch", COMMIT],
    ],
    ids=lambda command: command[0],
)
def test_no_command_says_a_token_or_a_login(nowhere, tmp_path, capsys, command):
    assert cli.main(command) == 1
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert TOKEN not in text
        assert "passw0rd" not in text
    assert "[SJ-X03]" in said.err
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        f"at http://u:{TOKEN}@host/x",
        "at https://someone:secret-1@host/x",
        "Authorization: Bearer secret-1",
        "Authorization: Basic secret-1==",
        "GET /x?token=secret-1&y=1",
        "GET /x?X-Amz-Signature=secret-1",
        "{'api_key': 'secret-1'}",
        "password = secret-1",
        f"no access for {TOKEN}",
    ],
)
def test_what_a_library_says_is_redacted(text):
    found = hub_library.redacted(text)
    assert "secret-1" not in found
    assert TOKEN not in found
    assert "***" in found


@pytest.mark.parametrize("text", ["status 404", "Connection refused: host:443", "tokens are free"])
def test_other_words_stay(text):
    assert hub_library.redacted(text) == text


def test_nothing_that_is_written_names_this_machine_or_a_token(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    home = tmp_path / "home" / "jane-doe"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    pixels, _ = paint_section((700, 700), seed=1)
    Image.fromarray(np.ascontiguousarray(pixels)).save(home / "S1.png")
    made = home / "p.h5ad"
    steps = [
        ["predict", str(home / "S1.png"), "--checkpoint", "demo", "--mpp", "0.5"]
        + ["--mode", "mean", "-o", str(made)],
        ["report", str(made), "-o", str(home / "r.html")],
        ["convert", str(made), "--to", "qupath", "-o", str(home / "q.geojson")],
        ["export", "demo", "--format", "bundle", "-o", str(home / "bundle")],
    ]
    for step in steps:
        assert cli.main(step) == 0, capsys.readouterr().err
    written = [path for path in home.rglob("*") if path.is_file() and path.name != "S1.png"]
    assert len(written) > 8
    for path in written:
        content = path.read_bytes()
        assert b"jane-doe" not in content, path
        assert TOKEN.encode() not in content, path
