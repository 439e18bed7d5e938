"""The page: whole, escaped, self-contained, in order; read back by html.parser."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import io
import pathlib
import re

import jinja2
import pytest
from PIL import Image

from stemjax import errors
from stemjax.eval.report import page

EVIL = "<script>alert(1)</script>"
QUOTES = """"'><img src=x onerror=alert(1)>{{ 7 * 7 }}&amp;"""
VOID = {"meta", "link", "img", "br"}


def png(width=960, height=300, dpi=96):
    file = io.BytesIO()
    Image.new("RGB", (width, height), "white").save(file, "png", dpi=(dpi, dpi))
    return file.getvalue()


WIDE, NARROW = png(1440, 450, 144), png(460, 300)
SVG = f'<svg xmlns="http://www.w3.org/2000/svg"><text>{EVIL}</text></svg>'.encode()


def table(**changes):
    values = {
        "head": ("model", "PCC", EVIL),
        "rows": (("stem", "0.33", QUOTES), ("depth oracle", "0.45", "a" * 500)),
        "caption": "Scores",
        "numeric": (1,),
        "lead": True,
        "notes": ("", "sees the test slide's own measurements"),
    }
    return page.Table(**(values | changes))


def full(**changes):
    """A page on which every text is hostile."""
    bad = page.Figure(image=SVG, kind="svg", alt=QUOTES, caption=EVIL)
    wide = page.Figure(image=WIDE, alt="wide")
    narrow = page.Figure(image=NARROW, alt="narrow", caption="c")
    values = {
        "title": EVIL,
        "subtitle": QUOTES,
        "notice": EVIL,
        "headlines": (
            page.Headline(
                label=EVIL,
                value=QUOTES,
                interval=EVIL,
                beside=((EVIL, QUOTES),),
                note=EVIL,
                definition=QUOTES,
            ),
            page.Headline(label="MSE", value="1.2"),
        ),
        "alerts": (
            page.Alert(level="error", title=EVIL, text=QUOTES),
            page.Alert(level="warning", title="w", text="first"),
            page.Alert(level="warning", title="w", text="second"),
        ),
        "sections": (
            page.Section(id="maps", title=EVIL, intro=QUOTES, blocks=(bad, wide, narrow, narrow)),
            page.Section(id="scores", title="Scores", blocks=(table(), narrow, table())),
            page.Section(id="none", title="Nothing"),
        ),
        "provenance": ((EVIL, QUOTES), ("file", "x" * 500)),
        "version": "1.2.3",
    }
    return page.Page(**(values | changes))


class Reader(html.parser.HTMLParser):
    """Tags with their attributes and text, and whether they are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == [], "unclosed"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open and data.strip():
            self.text.append((self.open[-1] if self.open else "", data.strip()))

    def all(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]

    def within(self, name):
        return [data for tag, data in self.text if tag == name]


def test_every_text_is_shown_as_text():
    reader = Reader(page.render(full()))
    allowed = {"html", "head", "body", "style", "title", "header", "main", "footer", "nav"}
    allowed |= {"section", "article", "h1", "h2", "h3", "p", "div", "span", "small", "a", "ul"}
    allowed |= {"li", "dl", "dt", "dd", "details", "summary", "figure", "figcaption", "table"}
    allowed |= {"caption", "thead", "tbody", "tr", "th", "td"} | VOID
    assert {tag for tag, _ in reader.tags} <= allowed
    for tag, attributes in reader.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
    # Each place that takes a text has it whole.
    for place in ("title", "h1", "h2", "h3", "p", "dt", "dd", "th", "td", "figcaption", "a"):
        assert {EVIL, QUOTES} & set(reader.within(place)), place
    assert QUOTES in [image["alt"] for image in reader.all("img")]
    assert f"What {EVIL} is" in [attrs["aria-label"] for attrs in reader.all("summary")]


def test_text_that_calls_itself_safe_is_escaped_too():
    from markupsafe import Markup

    assert EVIL not in page.render(full(subtitle=Markup(EVIL)))


def test_the_page_asks_nothing_of_the_network():
    text = page.render(full())
    reader = Reader(text)
    (policy,) = (
        meta["content"]
        for meta in reader.all("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert rules["style-src"] == "'unsafe-inline'"
    assert "script-src" not in rules
    # Before anything that it governs.
    names = [tag for tag, _ in reader.tags]
    assert names.index("meta") < names.index("style")
    assert "http-equiv" in reader.tags[names.index("meta") + 1][1]
    for tag, attributes in reader.tags:
        for name in ("src", "href", "data", "action", "srcset", "poster"):
            address = attributes.get(name)
            if address is not None:
                assert address.startswith(("data:image/", "#")) or address == "data:,", tag
    assert "http:" not in text
    assert "https:" not in text
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style


def test_images_are_inside_and_have_their_printed_size():
    reader = Reader(page.render(full()))
    images = reader.all("img")
    data = [base64.b64decode(image["src"].split(",", 1)[1]) for image in images]
    assert data == [SVG, WIDE, NARROW, NARROW, NARROW]
    assert images[0]["src"].startswith("data:image/svg+xml;base64,")
    assert (images[1]["width"], images[1]["height"]) == ("960", "300")  # 10 inches of 96 px
    assert "width" not in images[0]
    assert all(image["alt"].strip() for image in images)


def test_figures_stand_alone_or_in_rows():
    wide, narrow = page.Figure(image=WIDE, alt="w"), page.Figure(image=NARROW, alt="n")
    scores = table()
    rows = page.in_rows((narrow, wide, narrow, narrow, scores, narrow, wide, wide))
    assert rows == [[narrow], [wide], [narrow, narrow], scores, [narrow], [wide], [wide]]
    assert page.in_rows(()) == []


def test_headings_step_down_one_at_a_time_and_ids_are_unique():
    reader = Reader(page.render(full()))
    levels = [int(tag[1]) for tag, _ in reader.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    ids = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    assert {attrs["href"][1:] for attrs in reader.all("a")} <= set(ids)
    assert reader.all("html") == [{"lang": "en"}]


def test_tables_name_rows_and_columns_and_mark_what_is_asked():
    reader = Reader(
        page.render(full(sections=(page.Section(id="s", title="S", blocks=(table(),)),)))
    )
    scopes = [cell.get("scope") for cell in reader.all("th")]
    assert scopes == ["col"] * 3 + ["row"] * 2
    assert reader.within("caption") == ["Scores"]
    cells = [a for t, a in reader.tags if t in ("th", "td")]
    assert [a.get("class") for a in cells] == [None, "num", None] * 3
    assert [row.get("class") for row in reader.all("tr")] == [None, "lead", None]
    assert reader.within("small") == ["sees the test slide's own measurements"]
    empty = page.Section(id="s", title="S", blocks=(table(rows=(), notes=()),))
    assert Reader(page.render(full(sections=(empty,)))).within("td") == ["no rows"]


def test_alerts_say_their_level_in_words_and_are_counted_at_the_top():
    reader = Reader(page.render(full()))
    assert reader.within("span") == ["Error", "Warning", "Warning"]
    links = [a for a in reader.all("a") if a["href"] == "#alerts"]
    assert [link["class"] for link in links] == ["chip error", "chip warning"]
    assert reader.within("a")[:2] == ["1 error", "2 warnings"]


def test_a_page_of_nothing_is_a_page():
    reader = Reader(page.render(page.Page(title="T", version="1")))
    assert reader.within("h1") == ["T"]
    for absent in ("section", "nav", "table", "figure", "dl", "img"):
        assert reader.all(absent) == []


def test_control_letters_and_halves_of_letters_become_writable():
    text = page.render(full(subtitle="a\x00b\x1b\ud800c\tµ"))
    assert "a\ufffdb\ufffd\ufffdc\tµ" in text
    text.encode("utf-8")


def test_the_same_page_gives_the_same_text():
    assert page.render(full()) == page.render(full())


def test_a_value_that_the_page_lacks_is_an_error(monkeypatch):
    lacking = dataclasses.make_dataclass("Page", ["title", "version"])(title="T", version="1")
    with pytest.raises(jinja2.UndefinedError, match="subtitle"):
        page.render(lacking)


def test_resolution_falls_until_the_page_is_small_enough():
    tried = []

    def make(resolution):
        tried.append(resolution)
        return page.Page(title="x" * resolution, version="1")

    around = len(page.render(page.Page(title="", version="1")).encode())
    html_text = page.render_within(make, resolutions=(5000, 500, 10), limit=around + 2 * 500)
    assert tried == [5000, 500]
    assert html_text == page.render(make(500))
    with pytest.raises(errors.ConfigError, match=r"at most 50 bytes.*fewer genes"):
        page.render_within(make, resolutions=(20, 10), limit=50)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: page.Figure(image=WIDE, alt=" "), "alt"),
        (lambda: page.Figure(image=b"GIF89a", alt="a"), "no png"),
        (lambda: page.Figure(image=WIDE, kind="svg", alt="a"), "no svg"),
        (lambda: table(rows=(("a", "b"),)), "3 cells"),
        (lambda: table(notes=("",)), "1 notes for 2 rows"),
        (lambda: table(numeric=(3,)), "numeric"),
        (lambda: table(head=(), rows=()), "column"),
        (lambda: page.Section(id="a b", title="t"), "'a b'"),
        (lambda: page.Section(id="alerts", title="t"), "'alerts'"),
        (lambda: full(sections=(page.Section(id="a", title="t"),) * 2), "not unique"),
    ],
)
def test_parts_that_cannot_be_shown_are_refused(build, said):
    with pytest.raises(ValueError, match=said):
        build()


def test_style_is_for_screens_of_both_shades_and_for_paper():
    style = pathlib.Path(page.__file__).with_name("page.css").read_text()
    assert style.strip() in page.render(full())
    for needed in ("prefers-color-scheme: dark", "@media print", "max-width: 46rem"):
        assert needed in style
    # Dark is for screens only: nobody prints on black.
    for query in re.findall(r"@media ([^{]*)prefers-color-scheme", style):
        assert query.startswith("screen")
