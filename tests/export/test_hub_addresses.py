"""Addresses on the hub: what is one, and what is none."""

from __future__ import annotations

import pytest

from stemjax import errors
from stemjax.export import hub


@pytest.mark.parametrize(
    ("text", "revision"),
    [
        ("hub:a/b", None),
        ("hub:lab/toy-model_1.2@v1.0", "v1.0"),
        ("hub:lab/toy@refs/pr/1", "refs/pr/1"),
        (f"hub:lab/toy@{'0a' * 20}", "0a" * 20),
    ],
)
def test_an_address_is_read_and_written(text, revision):
    address = hub.Address.parse(text)
    assert (str(address), address.revision) == (text, revision)
    assert address.is_commit == (revision == "0a" * 20)


@pytest.mark.parametrize(
    "text",
    [
        "lab/toy",
        "hub:toy",
        "hub:lab/toy/x",
        "hub:../toy",
        "hub:lab/..",
        "hub:lab/toy@",
        "hub:l/t@a b",
    ]
    + ["hub:lab/toy@../x", "hub:lab/toy@-x", "hub:lab/t?x", "hub:lab/t\n", "hub:/t", "hub:a--b/c"]
    + ["https://lab/toy", "hub:lab/toy@x//y", "hub:lab/toy@v1@v2", ""],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(errors.HubError, match="no address"):
        hub.Address.parse(text)
