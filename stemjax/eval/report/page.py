"""One self-contained HTML page: headline numbers, alerts, sections of figures and tables.

The page asks nothing of the network and runs no script: style and images are inside it, and its
content security policy forbids the rest. Every text is untrusted (gene, spot and file names) and
escaped; images are shown as images, so that an SVG cannot act.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jinja2
from PIL import Image

from stemjax import errors

LIMIT_BYTES = 5_000_000
"""The largest page: one that mail and browsers still take."""

_CSS_PX_PER_INCH = 96
_COLUMN_PX = 960  # a figure wider than this fills the column
_ID = re.compile(r"[a-z][a-z0-9-]*")
_OWN_IDS = {"top", "headlines", "alerts", "provenance"}
_SIGNATURES = {"png": b"\x89PNG\r\n\x1a\n", "svg": b"<"}
_MIME = {"png": "image/png", "svg": "image/svg+xml"}
# Control letters but tab and line feed, and halves of letters: neither can stand in HTML.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Headline:
    """One number at the head of the page.

    Attributes:
      label: what it is, say ``PCC-50``.
      value: the number as text.
      interval: the interval and its kind, say ``95 %: 0.31 to 0.36``.
      beside: name and value of what it must be seen beside: floors, baselines, ceiling.
      note: in words, say ``better than ridge``.
      definition: shown on asking, and in print.
    """

    label: str
    value: str
    interval: str | None = None
    beside: tuple[tuple[str, str], ...] = ()
    note: str | None = None
    definition: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alert:
    """Something that the reader must know before believing the numbers."""

    level: Literal["error", "warning", "note"]
    title: str
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """An image.

    Attributes:
      image: PNG, or SVG in UTF-8. A PNG is shown at its printed size, 96 px an inch.
      kind: ``png`` or ``svg``.
      alt: what it shows, for those who do not see it.
      caption: printed below.
    """

    image: bytes
    kind: Literal["png", "svg"] = "png"
    alt: str
    caption: str = ""

    def __post_init__(self) -> None:
        if not self.alt.strip():
            raise ValueError("a figure needs an alt text")
        if not self.image.lstrip().startswith(_SIGNATURES[self.kind]):
            raise ValueError(f"the image is no {self.kind}: it starts with {self.image[:8]!r}")

    @property
    def uri(self) -> str:
        """The image as a data address."""
        return f"data:{_MIME[self.kind]};base64,{base64.b64encode(self.image).decode('ascii')}"

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height in CSS pixels; None for an SVG, which fills the column."""
        if self.kind == "svg":
            return None
        with Image.open(io.BytesIO(self.image)) as opened:
            (width, height), dpi = opened.size, opened.info.get("dpi", (96, 96))
        scale = _CSS_PX_PER_INCH / float(dpi[0])
        return max(1, round(width * scale)), max(1, round(height * scale))

    @property
    def is_wide(self) -> bool:
        """Whether the figure takes a row of its own."""
        return self.size is None or self.size[0] > _COLUMN_PX / 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text; the first column names the row.

    Attributes:
      head: names of the columns.
      rows: as long as ``head``.
      caption: above the table.
      numeric: indices of columns that are right-aligned.
      lead: whether the first row is set in bold: the model among its rivals.
      notes: for each row a remark under its name, empty for none; () for none at all.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str
    numeric: tuple[int, ...] = ()
    lead: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.head:
            raise ValueError("a table needs a column")
        for row in self.rows:
            if len(row) != len(self.head):
                raise ValueError(f"row {row} does not have {len(self.head)} cells")
        if self.notes and len(self.notes) != len(self.rows):
            raise ValueError(f"{len(self.notes)} notes for {len(self.rows)} rows")
        if any(not 0 <= column < len(self.head) for column in self.numeric):
            raise ValueError(f"numeric columns {self.numeric} of {len(self.head)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, a paragraph (empty for none), figures and tables.

    Attributes:
      id: the section's address in the page: lower-case letters, digits and hyphens.
      title: the heading.
      intro: the paragraph.
      blocks: in their order; figures that fit stand side by side.
    """

    id: str
    title: str
    intro: str = ""
    blocks: tuple[Figure | Table, ...] = ()

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id) or self.id in _OWN_IDS:
            raise ValueError(f"section id {self.id!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
    """All that stands on the page.

    Attributes:
      title, subtitle: of the page; the subtitle may be empty.
      notice: how the page may be used, framed under the title; may be empty.
      headlines, alerts, sections: in their order.
      provenance: name and value of what the numbers were made from and with.
      version: of stemjax.
    """

    title: str
    subtitle: str = ""
    notice: str = ""
    headlines: tuple[Headline, ...] = ()
    alerts: tuple[Alert, ...] = ()
    sections: tuple[Section, ...] = ()
    provenance: tuple[tuple[str, str], ...] = ()
    version: str

    def __post_init__(self) -> None:
        ids = [section.id for section in self.sections]
        if len(set(ids)) < len(ids):
            raise ValueError(f"section ids are not unique: {ids}")


def render(page: Page) -> str:
    """The page as HTML, to be written as UTF-8; the same page gives the same text."""
    return _environment().get_template("page.html.j2").render(page=page)


def render_within(
    make_page: Callable[[int], Page],
    *,
    resolutions: Sequence[int] = (144, 110, 80),
    limit: int = LIMIT_BYTES,
) -> str:
    """The page at the first resolution that keeps it within the limit.

    Args:
      make_page: the page with its figures drawn at so many pixels an inch.
      resolutions: tried in this order.
      limit: bytes of the page as UTF-8.

    Raises:
      ConfigError: the page is too large at each of them.
    """
    size = 0
    for resolution in resolutions:
        html = render(make_page(resolution))
        size = len(html.encode())
        if size <= limit:
            return html
    raise errors.ConfigError(
        f"the report is too large with figures at {resolutions[-1]} pixels an inch",
        expected=f"at most {limit:,} bytes",
        found=f"{size:,}",
        fix="show fewer genes",
    )


def _environment() -> jinja2.Environment:
    """Escapes every value, and fails on a name that the page lacks."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stemjax.eval.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["in_rows"] = in_rows
    return environment


def _printable(value: Any) -> Any:
    """The text without what cannot stand in HTML; plain, so that no value goes unescaped."""
    return _UNPRINTABLE.sub("\ufffd", value) if isinstance(value, str) else value


def in_rows(blocks: Sequence[Figure | Table]) -> list[Table | list[Figure]]:
    """Tables as they are, and figures in rows: wide ones alone, neighbouring narrow ones together.

    A narrow figure at the end of such a run stands alone; a row has any number of them, which the
    browser wraps to the width of the window.
    """
    rows: list[Table | list[Figure]] = []
    for block in blocks:
        last = rows[-1] if rows else None
        if isinstance(block, Table):
            rows.append(block)
        elif isinstance(last, list) and not block.is_wide and not last[-1].is_wide:
            last.append(block)
        else:
            rows.append([block])
    return rows
