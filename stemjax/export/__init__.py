"""How models leave and enter the house.

`torchfile` reads and writes PyTorch's checkpoint files with neither torch nor code execution.
"""
