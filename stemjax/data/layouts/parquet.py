"""Columns of parquet files, of which only those asked for are read."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from stemjax import errors


def read_columns(path: pathlib.Path, columns: Sequence[str] | None) -> Any:
    """The columns of a file (None: all), as a pyarrow table with its metadata.

    Raises:
      SlideError: the file is missing, damaged, or lacks a column.
    """
    import pyarrow.parquet  # of 0.2 s, and only for these layouts

    if not path.is_file():
        raise errors.SlideError(f"there is no {path}", fix="Copy the file there")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            if missing := [column for column in columns or () if column not in names]:
                raise errors.SlideError(
                    f"{path} lacks the columns {', '.join(missing)}",
                    expected=", ".join(columns or ()),
                    found=", ".join(names[:10]) or "no columns",
                    fix="Give the file as it was written",
                )
            table = file.read(columns=None if columns is None else list(columns))
        table.validate(full=True)  # damaged offsets would be read past their end
        return table
    except errors.StemjaxError:
        raise
    except Exception as error:  # pyarrow tells damage by all kinds of exceptions
        raise errors.SlideError(
            f"{path} is damaged or no parquet file",
            found=f"{type(error).__name__}: {str(error)[:200]}",
            fix="Copy or download the file again",
        ) from error
