"""How models leave and enter the house.

    bundle     a folder of safetensors and JSON: the archive, and what `stemjax.load` opens
    program    StableHLO that runs where there is JAX and none of this code
    published  the official PyTorch checkpoints, in and out
    torch_edm  a folder with a PyTorch module that a PyTorch user can read
    hub        bundles to and from the hub, pinned to a commit
    facts      what a model is, in words; `model_card` and `stemjax models info` say it

`torchfile` reads and writes PyTorch's checkpoint files with neither torch nor code execution.
"""
