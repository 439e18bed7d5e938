"""What is on a figure, and the pixels of a PNG."""

from __future__ import annotations

import io

import matplotlib.text
from matplotlib.backends import backend_agg
from PIL import Image


def texts(figure):
    """All that is written on the figure."""
    backend_agg.FigureCanvasAgg(figure).draw()
    return [t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_text().strip()]


def opened(png):
    """The PNG, read whole."""
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        return image
