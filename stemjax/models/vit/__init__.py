"""Vision transformers that embed patches: one definition for the DINOv2 and timm families.

`spec` says how a member is built, `network` makes it as functions over a dict of arrays, `pooling`
makes one vector of the tokens, `grids` brings position embeddings to another image size.
"""
