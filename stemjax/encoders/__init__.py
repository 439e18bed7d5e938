"""Published patch encoders: what is known of them, and those that run here with a user's weights.

`resolve` finds an encoder by any of its names, `known_contract` says what embeddings of it are,
`make_encoder` runs one with weights from a file on this machine, `hub.download` fetches such a file
where that is asked for. Nothing here comes with weights, and nothing is fetched unasked.
"""

from __future__ import annotations

import typing

from stemjax.encoders.entry import Entry
from stemjax.encoders.registry import Row, known_contract, list_entries, resolve

if typing.TYPE_CHECKING:
    from stemjax.encoders.encoder import JaxEncoder, as_program, make_encoder

__all__ = [
    "Entry", "JaxEncoder", "Row", "as_program", "known_contract", "list_entries", "make_encoder",
    "resolve",
]  # fmt: skip


def __getattr__(name: str) -> typing.Any:
    """The parts that run encoders, imported when they are asked for: they take jax and flax."""
    if name in ("JaxEncoder", "as_program", "make_encoder"):
        from stemjax.encoders import encoder

        return getattr(encoder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
