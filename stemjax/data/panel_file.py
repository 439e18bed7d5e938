"""The gene panel of a folder of records: chosen once, the same for all slides and processes.

    OUT/panel.json genes.txt      the panel, and its genes one a line

It is a function of the slides that it is chosen on and of the options, so processes that choose it
at the same time choose alike; the first that is done writes it, and the others compare theirs.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence, Set

from stemjax import errors
from stemjax.data import genes as genes_lib
from stemjax.data import integrity, record_files, slides
from stemjax.foreign import json_text

PANEL, GENES = "panel.json", "genes.txt"

_MOST_NAMED = 10

OTHERWISE = "Give another --out, or --genes OUT/genes.txt to keep the panel of this one"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """The panel that is asked for.

    Attributes:
      given: a panel to use as it is; None selects one by Stem's rule.
      chosen_on: the slides that it is selected on.
      n_genes: genes to select.
      n_variable: the most variable genes of each slide that it selects among.
    """

    given: genes_lib.Panel | None
    chosen_on: tuple[str, ...]
    n_genes: int
    n_variable: int


def settle(
    request: Request,
    read: Callable[[str], slides.Slide],
    out: pathlib.Path,
    *,
    tell: Callable[[int, int, str], None],
) -> genes_lib.Panel:
    """The panel of the folder `out`, which is chosen and written if there is none.

    Slides are read only to choose one.

    Raises:
      SplitError: no slide is left to choose on.
      GenePanelError: a slide to choose on cannot be read, or they have too few genes.
      RecordsError: the folder has another panel than the one asked for.
    """
    if request.given is None and not request.chosen_on:
        raise errors.SplitError(
            "No slide is left to choose the gene panel on",
            fix="Leave a slide out of test, give a gene list, or say panel_slides='all'",
        )
    panel = _stored(out)
    if panel is None:
        ours = request.given or _choose(request, read, tell)
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(ours.to_json(), indent=1) + "\n"
        panel = ours
        if not integrity.write_once(out / PANEL, text):
            panel = _stored(out) or ours
            _require_asked_for(out, panel, request)
            require_same_genes(
                panel.genes, ours.genes, f"{out} has got another gene panel in the meantime"
            )
    else:
        _require_asked_for(out, panel, request)
    if not (out / GENES).exists():  # also where a run was killed between the two files
        integrity.write_text(out / GENES, "".join(f"{gene}\n" for gene in panel.genes))
    return panel


def require_same_genes(stored: Sequence[str], found: Sequence[str], what: str) -> None:
    """Nothing, if both lists have the same genes in the same order.

    Raises:
      RecordsError: `what`, with the difference in words.
    """
    stored, found = tuple(stored), tuple(found)
    if stored == found:
        return
    added, gone = sorted(set(found) - set(stored)), sorted(set(stored) - set(found))
    expected, other = f"its {len(stored)} genes", f"{len(found)} genes"
    if not added and not gone:
        expected, other = f"{expected} in its order", "the same genes in another order"
    other += f", {len(added)} new such as {added[0]}" if added else ""
    other += f", {len(gone)} missing such as {gone[0]}" if gone else ""
    raise errors.RecordsError(what, expected=expected, found=other, fix=OTHERWISE)


def _choose(
    request: Request,
    read: Callable[[str], slides.Slide],
    tell: Callable[[int, int, str], None],
) -> genes_lib.Panel:
    """Select the panel; a slide that cannot be read ends it. One is held at a time."""
    counted = (_counts(request, read, tell, done) for done in range(len(request.chosen_on)))
    return genes_lib.select_panel(counted, n_genes=request.n_genes, n_variable=request.n_variable)


def _counts(
    request: Request,
    read: Callable[[str], slides.Slide],
    tell: Callable[[int, int, str], None],
    done: int,
) -> slides.Slide:
    """One of the slides to choose on, without its image: that can be gigabytes."""
    slide_id = request.chosen_on[done]
    tell(done, len(request.chosen_on), f"{slide_id}: reading counts for the gene panel")
    try:
        return dataclasses.replace(read(slide_id), image=None)
    except errors.StemjaxError as error:
        raise errors.GenePanelError(
            f"The gene panel cannot be chosen: slide {slide_id}, on which it is chosen, cannot "
            f"be read. {error}",
            fix="Without this slide the panel may be another one, so it is not passed over: "
            "mend the slide, leave it out with --slides, or give a list with --genes",
        ) from error


def _stored(out: pathlib.Path) -> genes_lib.Panel | None:
    """The folder's panel: its panel.json, or where that is gone what its slides say."""
    path = out / PANEL
    if not path.exists():
        written = record_files.slide_folders(out)
        if not written:
            return None
        return genes_lib.Panel.from_json(record_files.read_metadata(written[0])["panel"])
    try:
        return genes_lib.Panel.from_json(json_text.parse(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, errors.StemjaxError) as error:
        raise errors.RecordsError(
            f"{path} cannot be read: {error}",
            fix="Remove it if the slides beside it are whole: they hold the panel too",
        ) from error


def _require_asked_for(out: pathlib.Path, stored: genes_lib.Panel, request: Request) -> None:
    """Refuse a stored panel other than the one asked for."""
    what = f"{out} holds records of another gene panel"
    rule = genes_lib.variable_rule(request.n_variable)
    if request.given is not None:
        return require_same_genes(stored.genes, request.given.genes, what)
    if not stored.slides:
        expected, found = f"the gene list it was given ({stored.rule})", "no gene list"
    elif set(stored.slides) != set(request.chosen_on):
        ours, theirs = set(request.chosen_on), set(stored.slides)
        expected = f"a panel selected on {_named(theirs, theirs - ours)}"
        found = f"one to be selected on {_named(ours, ours - theirs)} (the slides or test differ)"
    elif len(stored.genes) != request.n_genes:
        expected, found = f"{len(stored.genes)} genes", f"{request.n_genes} genes asked for"
    elif not stored.rule.startswith(rule):
        expected, found = stored.rule, rule
    else:
        return None
    raise errors.RecordsError(what, expected=expected, found=found, fix=OTHERWISE)


def _named(ids: Set[str], differ: Set[str]) -> str:
    """Slides in words: all of a few; of many their number and some of those that differ."""
    if len(ids) <= _MOST_NAMED:
        return ", ".join(sorted(ids))
    told = ", ".join(sorted(differ)[:_MOST_NAMED])
    return f"{len(ids)} slides" + (
        f", {len(differ)} of them not in the other, such as {told}" if told else ""
    )
