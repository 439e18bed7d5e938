"""The figures that the functions draw, before they become PNG."""

from __future__ import annotations

import pytest

from stemjax.eval.plots import canvas


@pytest.fixture
def figures(monkeypatch):
    """Figures in the order in which they became PNG."""
    made = []
    png = canvas.png

    def kept(figure, *args, **kwargs):
        made.append(figure)
        return png(figure, *args, **kwargs)

    monkeypatch.setattr(canvas, "png", kept)
    return made
