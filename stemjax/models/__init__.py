"""The networks: Flax inside this room, plain functions over a dict of arrays outside it.

`network` is the seam (`Network.init`, `Network.apply`), `layers` the parts that networks share,
`stem` the gene-token diffusion transformer. No module here holds a random state, an optimiser or a
jit: what to differentiate, compile and shard is decided by the caller.
"""
