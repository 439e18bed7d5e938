"""Labels of a prediction's spots: the pathologist's regions, clusters and such, for its ``obs``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stemjax import errors
from stemjax.data import records

if TYPE_CHECKING:
    import pandas as pd


def label_columns(
    source: records.Records, slide: str, barcodes: Sequence[str]
) -> dict[str, pd.Categorical]:
    """Returns each label of the slide's spots by its name, as scanpy and squidpy take them.

    Categories are sorted; a spot without the label is missing (NaN).

    Args:
      source: records that hold the slide.
      slide: its id.
      barcodes: its spots, in the records' order.

    Raises:
      RecordsError: the records lack the slide, are damaged, or label another number of spots.
    """
    columns: dict[str, pd.Categorical] = {}
    for name, values in source.labels(slide).items():
        if len(values) != len(barcodes):
            raise errors.RecordsError(
                f"Label {name} of slide {slide} does not fit the spots",
                expected=f"{len(barcodes)} spots",
                found=str(len(values)),
                fix="Ask for the labels of the whole slide, or prepare it again",
            )
        columns[name] = categorical(values)
    return columns


def categorical(values: Sequence[str]) -> pd.Categorical:
    """Returns labels as a categorical column: sorted categories, NaN for ""."""
    import pandas as pd

    known = sorted({value for value in values if value})
    return pd.Categorical([value or None for value in values], categories=known)
