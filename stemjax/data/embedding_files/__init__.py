"""Embedding files of other tools, read as they are: joined by barcode or place, never by row.

`open_embeddings` makes a folder of files an `embeddings.Embedder`; `read`, `join` and
`contract_for` are its three steps for one file; `write` writes our own.
"""

from stemjax.data.embedding_files.contract import Settled, contract_for
from stemjax.data.embedding_files.file import EmbeddingFile
from stemjax.data.embedding_files.folder import EmbeddingFolder, open_embeddings
from stemjax.data.embedding_files.join import Joined, cut, join
from stemjax.data.embedding_files.own import write
from stemjax.data.embedding_files.reading import read
from stemjax.data.embedding_files.wanted import Wanted

__all__ = [
    "EmbeddingFile",
    "EmbeddingFolder",
    "Joined",
    "Settled",
    "Wanted",
    "contract_for",
    "cut",
    "join",
    "open_embeddings",
    "read",
    "write",
]
