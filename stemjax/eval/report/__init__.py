"""The report: one self-contained HTML page.

`page` knows how a page looks and nothing of what stands on it; `content` and `figures` fill it
from evaluated slides.
"""

from stemjax.eval.report.content import render, without_truth

__all__ = ["render", "without_truth"]
