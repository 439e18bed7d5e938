"""Two implementations side by side: ours and an independent one in PyTorch (`ab.py`)."""
