"""How tools write embeddings: a module for each kind of file."""
