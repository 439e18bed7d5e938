"""Zarr stores of strangers: what their metadata name is read as zarr would read it."""

from __future__ import annotations

import json

import pytest

from stemjax import errors
from stemjax.foreign import stores

ARRAY = {
    "zarr_format": 2,
    "shape": [1],
    "chunks": [1],
    "dtype": "|O",
    "compressor": None,
    "filters": [{"id": "vlen-utf8"}, {"id": "pickle"}],
    "fill_value": None,
    "order": "C",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_codec_that_unpickles_is_seen_in_every_encoding_of_json(tmp_path, encoding):
    array = tmp_path / "store" / "a"
    array.mkdir(parents=True)
    (array / ".zarray").write_bytes(json.dumps(ARRAY).encode(encoding))
    with pytest.raises(errors.UnsafeFileError, match="codec pickle"):
        stores.require_harmless_zarr(tmp_path / "store")
    harmless = {**ARRAY, "filters": [{"id": "vlen-utf8"}]}
    (array / ".zarray").write_bytes(json.dumps(harmless).encode(encoding))
    stores.require_harmless_zarr(tmp_path / "store")
