"""stemjax: spatially resolved gene expression from ordinary H&E histology.

Research use only. Not for clinical or diagnostic use.
"""

__version__ = "0.1.0.dev0"
