"""The model card of a bundle: ``README.md``, Markdown with the hub's front matter.

It is made from the model and nothing else, so the same model has the same card. What comes from
files (names of slides and genes, rules, notes) is shown as it is written: characters that mean
something in Markdown or HTML are escaped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from stemjax import errors
from stemjax.export import facts
from stemjax.train.trained import Trained

FILE = "README.md"
LICENCE = "other"
"""What the hub calls a licence that is none of its list, or not said."""

NOTICE = "Research use only. Not for clinical or diagnostic use."

_TAGS = ("stemjax", "jax", "spatial-transcriptomics", "gene-expression", "histology", "pathology")
_MARKS = re.compile(r"([\\`*_{}\[\]<>#!|~$@]|&(?=#?\w+;))")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")

_LOADING = """\
```python
import stemjax

model = stemjax.load("PATH")  # this folder
```

or `stemjax predict --checkpoint PATH --records RECORDS --slide SLIDE -o out.h5ad`. From the hub,
with a commit hash as revision: `stemjax pull hub:OWNER/NAME@REVISION -o PATH`. Loading checks every
hash, name and shape, computes a stored example, and executes nothing that is in the folder.
"""

_INTENDED = """\
Research on tissue sections: hypotheses on where genes are expressed, comparison of methods, spatial
statistics of cohorts whose slides were prepared, stained and scanned like those that it was trained
on, with the encoder that is named above and no other.
"""

_OUT_OF_SCOPE = """\
- Diagnosis, prognosis, choice of treatment, or any other decision about a person.
- In the place of a measurement: what it infers is what an image tells of expression on average.
- Genes that are not in its list, other species, stains, scanners, technologies or spot sizes than
  those of its training slides, without an evaluation on measured slides of that kind.
- Embeddings of another encoder, magnification or pooling, even of equal width.
"""

_SOURCES = """\
- Stem: Zhu, Zhu, Tao and Qiu, ICLR 2025, arXiv 2501.15598.
- HisToSGE: Shi, Xue, Zhu and Min, BIBM 2024, arXiv 2407.20518.
- EDM: Karras, Aittala, Aila and Laine, NeurIPS 2022, arXiv 2206.00364.
"""


def make(trained: Trained, *, licence: str = LICENCE) -> str:
    """Returns the card of a model.

    Args:
      trained: the model.
      licence: the identifier that the hub has for the licence of the weights, such as
        ``apache-2.0``; ``other`` says that it is left open.

    Raises:
      ConfigError: the licence is no such identifier.
    """
    if _LICENCE.fullmatch(licence) is None:
        raise errors.ConfigError(
            f"licence {licence!r}",
            expected="an identifier as the hub has them: small letters, digits, . + -",
            fix="say apache-2.0, cc-by-nc-4.0, ..., or other",
        )
    sections = facts.describe(trained)
    name = sections["Model"]["Name"]
    parts = [_front_matter(trained, licence), f"# {escape(name)}", f"**{NOTICE}**"]
    for title, fields in sections.items():
        rows = [[escape(field), escape(text)] for field, text in fields.items()]
        parts += [f"## {title}", _table(["", ""], rows)]
    head, rows = facts.scores(trained)
    if head:
        parts.append(_table(head, [[escape(cell) for cell in row] for row in rows]))
        if any(row[0].endswith(" *") for row in rows):
            parts.append(r"\* sees the test slide's own measurements: a floor or ceiling.")
    open_ = "The licence of these weights has not been stated: ask whoever gave them to you."
    terms = open_ if licence == LICENCE else f"Weights: {escape(licence)}."
    parts += [
        "## Loading",
        _LOADING.strip(),
        "## Intended use",
        _INTENDED.strip(),
        "## Out of scope",
        _OUT_OF_SCOPE.strip(),
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(trained)),
        "## Licence",
        f"{terms} The encoder: {escape(sections['Encoder']['Licence'])}. Training slides have "
        "licences of their own, which are not recorded here.",
        "## Methods",
        _SOURCES.strip(),
    ]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Returns a line of plain text that Markdown shows as it is: no link, no markup, no HTML."""
    found = _MARKS.sub(r"\\\1", facts.clean(text, most=4000))
    # Bare addresses become links without any mark.
    return re.sub(r"(?i)www\.", lambda at: at[0][:-1] + r"\.", found.replace("://", r"\://"))


def _front_matter(trained: Trained, licence: str) -> str:
    """The hub's metadata. Nothing from a file is in it: not every reader knows it for metadata.

    No pipeline tag: the hub has none for embeddings of an image in and expression out.
    """
    kind = "histosge" if trained.card.experiment.model.kind.startswith("histosge") else "diffusion"
    lines = [
        "---",
        f'license: "{licence}"',
        "library_name: stemjax",
        "tags:",
        *(f"- {tag}" for tag in (*_TAGS, kind)),
        "---",
    ]
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _limits(trained: Trained) -> list[str]:
    """What one must know of this model, and of all of its kind."""
    card, found = trained.card, []
    if facts.is_within_patient(trained):
        kind = escape(facts.clean(card.split["kind"]))
        found.append(
            f"Its test is {kind}: nothing here says how it does on a patient it has never seen."
        )
    if trained.scores is None:
        found.append("Not evaluated: nothing is known of its errors on measured slides.")
    if not trained.calibrations:
        found.append("Not calibrated: the spread of its draws is the model's own claim.")
    if not card.split.get("train"):
        found.append("What it was trained on is not recorded.")
    return [
        *found,
        "A part of expression cannot be seen in an image; a score means something only beside the "
        "floors in its table.",
        "The mean of a prediction is smoother than measured expression; draws are not.",
        "A slide unlike the training slides is not refused: see the alerts of `stemjax report`.",
    ]
